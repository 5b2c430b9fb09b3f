import { withFile } from "../file-source.ts";
import { openBundle } from "../verify-bundle.ts";
import { policy } from "./sample.ts";

/** Opens the bundle that it is given and prints what came of it, and how much memory that took at most (KiB). */
const [path = ""] = process.argv.slice(2);
const verdict = await withFile(path, (source) => openBundle(source, policy)).then(
  ({ manifest }) => `${manifest.entries} entries`,
  (error: Error) => `${error.name}: ${error.message}`,
);
process.stdout.write(JSON.stringify({ verdict, maxRssKiB: process.resourceUsage().maxRSS }));
