import { join } from "node:path";
import { openMongoStore } from "@curfew/document-store/mongo.ts";
import type { EpochRow } from "@curfew/event-log/epochs.ts";
import { runService } from "@curfew/rpc/process.ts";
import { auditorSpec, checkLedger, environment } from "./config.ts";
import { openAuditor } from "./service.ts";

await runService({
  name: "auditor",
  spec: auditorSpec,
  env: environment,
  open: async (parts, config) => {
    checkLedger(config);
    const { mongoUrl, mongoTls, producersDatabase, caFile, identityDir } = config;
    const { ledgerOrigin, ledgerDir, ledgerListen, minInsync, reverifyPerSecond, witnessPolicyFile, witnessAllow } =
      config;
    const producers = await openMongoStore({
      url: mongoUrl,
      database: producersDatabase,
      ...(mongoTls && {
        tls: { ca: caFile, cert: join(identityDir, "cert.pem"), key: join(identityDir, "key.pem") },
      }),
    });
    const service = await openAuditor({
      ...parts,
      epochs: await producers.collection<EpochRow>("epochs"),
      ...(ledgerOrigin && { origin: ledgerOrigin }),
      ...(ledgerDir && { ledgerDir }),
      ...(ledgerListen && { ledgerListen }),
      ...(minInsync !== undefined && { minInsync }),
      ...(reverifyPerSecond !== undefined && { reverifyPerSecond }),
      ...(witnessPolicyFile && { witnessing: { policy: witnessPolicyFile, allow: witnessAllow } }),
    });
    const close = async () => {
      await service.close();
      await producers.close();
    };
    return { port: service.port, ready: service.ready, failed: service.failed, close };
  },
});
