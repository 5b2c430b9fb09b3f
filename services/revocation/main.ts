import { runService } from "@curfew/rpc/process.ts";
import { environment, revocationSpec } from "./config.ts";
import { openRevocation } from "./service.ts";

await runService({
  name: "revocation",
  spec: revocationSpec,
  keys: /^pepper-\d+\.key$/,
  env: environment,
  open: (parts) => openRevocation(parts),
});
