import { join } from "node:path";
import { openMongoStore } from "@curfew/document-store/mongo.ts";
import { openEpochs } from "@curfew/event-log/epochs.ts";
import { openPersonalStore } from "@curfew/personal-data/personal-store.ts";
import { runService } from "@curfew/rpc/process.ts";
import { auditorSpec, environment, ledgerProblems } from "./config.ts";
import { erasureSettings } from "./people/erasure-settings.ts";
import { openLedgerBucket } from "./public-log/bucket-settings.ts";
import { openShardFolders } from "./public-log/shard-files.ts";
import { rebuildOnce } from "./rebuild/rebuild-once.ts";
import { openAuditor } from "./service.ts";

await runService({
  name: "auditor",
  spec: auditorSpec,
  keys: /^(signing-.+|epoch-\d+|secret-identifiers)\.key$/,
  env: environment,
  check: ledgerProblems,
  open: async (parts, config) => {
    const { mongoUrl, mongoTls, producersDatabase, caFile, identityDir } = config;
    const { ledgerOrigin, ledgerDir, ledgerListen, minInsync, reverifyPerSecond } = config;
    const { witnessPolicyFile, witnessAllow, tsaUrl, tsaCaFile, tsaAllow } = config;
    const tls = mongoTls && {
      tls: { ca: caFile, cert: join(identityDir, "cert.pem"), key: join(identityDir, "key.pem") },
    };
    const producers = await openMongoStore({ url: mongoUrl, database: producersDatabase, ...tls });
    const store = await openMongoStore({ url: mongoUrl, database: config.personalDatabase, ...tls });
    const keysDir = config.personalKeysDir ?? config.keysDir;
    const personal = await openPersonalStore({ ...parts, store, keysDir });
    const epochs = await openEpochs(producers);
    const bucket = config.ledgerBucketFile && { ledgerFiles: openLedgerBucket(config.ledgerBucketFile, parts.clock) };
    if (config.rebuild) {
      const files = bucket?.ledgerFiles ?? (ledgerDir ? await openShardFolders(ledgerDir, parts) : undefined);
      await rebuildOnce(parts, { epochs, origin: ledgerOrigin, files: config.rebuild === "files" ? files : undefined });
    }
    const service = await openAuditor({
      ...parts,
      epochs,
      people: { personal, settings: erasureSettings(config) },
      ...(ledgerOrigin && { origin: ledgerOrigin }),
      ...(ledgerDir && { ledgerDir }),
      ...bucket,
      ...(ledgerListen && { ledgerListen }),
      ...(minInsync !== undefined && { minInsync }),
      ...(reverifyPerSecond !== undefined && { reverifyPerSecond }),
      ...(witnessPolicyFile && { witnessing: { policy: witnessPolicyFile, allow: witnessAllow } }),
      ...(tsaUrl && tsaCaFile && { timestamping: { url: tsaUrl, authorities: tsaCaFile, allow: tsaAllow } }),
    });
    const close = async () => {
      await service.close();
      await Promise.all([producers.close(), store.close()]);
    };
    return { port: service.port, ready: service.ready, failed: service.failed, close };
  },
});
