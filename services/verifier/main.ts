import { join } from "node:path";
import { openMongoStore } from "@curfew/document-store/mongo.ts";
import { openPersonalStore } from "@curfew/personal-data/personal-store.ts";
import { runService } from "@curfew/rpc/process.ts";
import { environment, verifierSpec } from "./config.ts";
import { openVerifier } from "./service.ts";

const hostPort = ({ host, port }: { host: string; port: number }) =>
  `${host.includes(":") ? `[${host}]` : host}:${port}`;

await runService({
  name: "verifier",
  spec: verifierSpec,
  keys: /^(pepper-\d+|epoch-\d+|secret-identifiers)\.key$/,
  env: environment,
  open: async (parts, config) => {
    const { mongoUrl, mongoTls, personalDatabase, revocationAddresses, caFile, identityDir, keysDir } = config;
    const store = await openMongoStore({
      url: mongoUrl,
      database: personalDatabase,
      ...(mongoTls && {
        tls: { ca: caFile, cert: join(identityDir, "cert.pem"), key: join(identityDir, "key.pem") },
      }),
    });
    const personal = { ...parts, store, keysDir: config.personalKeysDir ?? keysDir };
    const service = await openVerifier({
      ...parts,
      personal: await openPersonalStore(personal),
      revocationAddresses: revocationAddresses.map(hostPort),
    });
    const close = async () => {
      await service.close();
      await store.close();
    };
    return { port: service.port, ready: service.ready, failed: service.failed, close };
  },
});
