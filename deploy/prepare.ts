import { mkdirSync, readFileSync, writeFileSync } from "node:fs";
import { join, resolve } from "node:path";
import { parseArgs } from "node:util";
import { parsePaging } from "@curfew/breach-notifier/paging.ts";
import { applyTopics } from "@curfew/event-log/topics.ts";
import { openKeyring } from "@curfew/keyring/keyring.ts";
import { systemClock } from "@curfew/runtime/clock.ts";
import { openLog } from "@curfew/runtime/log.ts";
import { systemRandom } from "@curfew/runtime/random.ts";
import { readSuiteConfig, type SuiteConfig } from "./embedded/suite-config.ts";
import { openIdentities } from "./installation.ts";

/**
 * Makes what an installation of separate processes needs: authority, identities, keys, the broker's and the database's certificates, the
 * sections of curfew.yaml as files; and, with --brokers, the topics. Harmless to repeat: what is there stays.
 */
const serverCertificateMs = 30 * 86_400_000;

/** Key and certificate of a server that is not ours in one PEM file, as Kafka and MongoDB want it. */
export const prepareServer = async (
  files: Awaited<ReturnType<typeof openIdentities>>["files"],
  name: string,
  dnsNames: readonly string[],
): Promise<string> => {
  const issued = await files.ensure(`service/${name}`, { validMs: serverCertificateMs, dnsNames });
  const keystore = join(files.dir(`service/${name}`), "keystore.pem");
  writeFileSync(keystore, `${issued.keyPem}\n${issued.certPem}\n`, { mode: 0o600 });
  return keystore;
};

/** The data directory of an installation, with everything but the servers' keystores. */
export const prepareInstallation = async (dataDir: string, config: SuiteConfig) => {
  mkdirSync(dataDir, { recursive: true, mode: 0o700 });
  const log = openLog({ service: "prepare", level: "warn" });
  const identities = await openIdentities({ dir: dataDir, config, clock: systemClock, log });
  const keysDir = join(dataDir, "keys");
  openKeyring({ dir: keysDir, random: systemRandom, clock: systemClock });
  for (const [name, text] of Object.entries(config.sections))
    writeFileSync(join(dataDir, `${name}.yaml`), text, { mode: 0o600 });
  return { identities, keysDir };
};

const main = async () => {
  const { values } = parseArgs({
    options: {
      data: { type: "string", default: "/curfew" },
      config: { type: "string", default: new URL("./embedded/curfew.yaml", import.meta.url).pathname },
      brokers: { type: "string" },
      replicas: { type: "string", default: "3" },
    },
  });
  const dataDir = resolve(values.data);
  const { identities } = await prepareInstallation(dataDir, readSuiteConfig(values.config, parsePaging));
  await prepareServer(identities.files, "kafka", ["kafka", "localhost"]);
  await prepareServer(identities.files, "mongo", ["mongo", "localhost"]);
  if (values.brokers) {
    const own = identities.sourceOf("issuer").current();
    const replicationFactor = Number(values.replicas);
    const created = await applyTopics(values.brokers.split(","), {
      replicationFactor,
      minInsync: Math.max(1, replicationFactor - 1),
      ssl: { ca: readFileSync(identities.files.caFile, "utf8"), cert: own.certPem, key: own.keyPem },
    });
    process.stdout.write(`topics created: ${created.join(", ") || "none, all were there"}\n`);
  }
  await identities.close();
};

if (import.meta.main) await main();
