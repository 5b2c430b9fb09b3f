import { runService } from "@curfew/rpc/process.ts";
import { issuerSpec } from "./config.ts";
import { openIssuer } from "./service.ts";

await runService({
  name: "issuer",
  spec: issuerSpec,
  keys: /^(pepper-\d+|secret-challenges)\.key$/,
  env: process.env,
  open: (parts, { identitiesDir }) => openIssuer({ ...parts, ...(identitiesDir && { identitiesDir }) }),
});
