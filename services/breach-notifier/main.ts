import { runService } from "@curfew/rpc/process.ts";
import { breachNotifierSpec, environment } from "./config.ts";
import { openBreachNotifier } from "./service.ts";

await runService({
  name: "breach-notifier",
  spec: breachNotifierSpec,
  env: environment,
  open: (parts, { pagingFile }) => openBreachNotifier({ ...parts, paging: pagingFile }),
});
