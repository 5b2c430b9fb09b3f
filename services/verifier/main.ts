import { join } from "node:path";
import { openMongoStore } from "@curfew/document-store/mongo.ts";
import { runService } from "@curfew/rpc/process.ts";
import { environment, verifierSpec } from "./config.ts";
import { openVerifier } from "./service.ts";

const hostPort = ({ host, port }: { host: string; port: number }) =>
  `${host.includes(":") ? `[${host}]` : host}:${port}`;

await runService({
  name: "verifier",
  spec: verifierSpec,
  env: environment,
  open: async (parts, config) => {
    const { mongoUrl, mongoTls, personalDatabase, revocationAddresses, caFile, identityDir } = config;
    const personal = await openMongoStore({
      url: mongoUrl,
      database: personalDatabase,
      ...(mongoTls && {
        tls: { ca: caFile, cert: join(identityDir, "cert.pem"), key: join(identityDir, "key.pem") },
      }),
    });
    const service = await openVerifier({
      ...parts,
      personal,
      revocationAddresses: revocationAddresses.map(hostPort),
    });
    const close = async () => {
      await service.close();
      await personal.close();
    };
    return { port: service.port, ready: service.ready, failed: service.failed, close };
  },
});
