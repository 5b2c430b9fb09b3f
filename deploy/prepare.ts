import { mkdirSync, readFileSync, writeFileSync } from "node:fs";
import { join, resolve } from "node:path";
import { fileURLToPath } from "node:url";
import { parseArgs } from "node:util";
import { parsePaging } from "@curfew/breach-notifier/paging.ts";
import { applyTopics } from "@curfew/event-log/topics.ts";
import { KeyringError } from "@curfew/keyring/key-files.ts";
import { openKeyring } from "@curfew/keyring/keyring.ts";
import { systemClock } from "@curfew/runtime/clock.ts";
import { ConfigError } from "@curfew/runtime/config.ts";
import { openLog } from "@curfew/runtime/log.ts";
import { systemRandom } from "@curfew/runtime/random.ts";
import { onShutdown } from "@curfew/runtime/shutdown.ts";
import { readSuiteConfig, type SuiteConfig } from "./embedded/suite-config.ts";
import { openIdentities } from "./installation.ts";

/**
 * Makes what an installation of separate processes needs: authority, identities, directories for keys, the broker's and the database's
 * certificates (30 days), the sections of curfew.yaml as files; with --keep it stays and renews the services' certificates; with --brokers it
 * creates the topics instead. Harmless to repeat: what is there stays.
 */
const serverCertificateMs = 30 * 86_400_000;
/** Who may hold peppers shares a keys directory, as do those who work on the personal store; the others have their own. */
const keyGroups = ["tokens", "auditor", "breach-notifier", "personal"] as const;

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

/** What every process may read, in one folder of its own, so that nothing else has to be given to it. */
const writePublic = (dataDir: string, caFile: string, config: SuiteConfig) => {
  const folder = join(dataDir, "public");
  mkdirSync(folder, { recursive: true, mode: 0o755 });
  writeFileSync(join(folder, "ca.pem"), readFileSync(caFile), { mode: 0o644 });
  for (const [name, text] of Object.entries(config.sections))
    writeFileSync(join(folder, `${name}.yaml`), text, { mode: 0o644 });
  for (const group of keyGroups) mkdirSync(join(dataDir, "keys", group), { recursive: true, mode: 0o700 });
};

const createTopics = async (brokers: readonly string[], dataDir: string, replicationFactor: number) => {
  const file = (path: string) => readFileSync(join(dataDir, path), "utf8");
  const created = await applyTopics([...brokers], {
    replicationFactor,
    minInsync: Math.max(1, replicationFactor - 1),
    ssl: {
      ca: file("public/ca.pem"),
      cert: file("identity/service/issuer/cert.pem"),
      key: file("identity/service/issuer/key.pem"),
    },
  });
  process.stdout.write(`topics created: ${created.join(", ") || "none, all were there"}\n`);
};

const main = async () => {
  const { values } = parseArgs({
    options: {
      data: { type: "string", default: "/curfew" },
      config: { type: "string", default: fileURLToPath(new URL("./embedded/curfew.yaml", import.meta.url)) },
      keep: { type: "boolean", default: false },
      brokers: { type: "string" },
      replicas: { type: "string", default: "3" },
    },
  });
  const dataDir = resolve(values.data);
  if (values.brokers) return await createTopics(values.brokers.split(","), dataDir, Number(values.replicas));
  const config = readSuiteConfig(values.config, parsePaging);
  mkdirSync(dataDir, { recursive: true, mode: 0o700 });
  const log = openLog({ service: "prepare", level: "info" });
  const identities = await openIdentities({ dir: dataDir, config, clock: systemClock, log });
  await prepareServer(identities.files, "kafka", ["kafka", "localhost"]);
  await prepareServer(identities.files, "mongo", ["mongo", "localhost"]);
  writePublic(dataDir, identities.files.caFile, config);
  process.stdout.write("ready\n");
  if (values.keep) onShutdown([{ name: "identities", close: () => identities.close() }], { graceMs: 2_000, log });
  else await identities.close();
};

if (import.meta.main)
  await main().catch((error: Error & { code?: unknown }) => {
    const mistaken =
      error instanceof ConfigError || error instanceof KeyringError || String(error.code).startsWith("ERR_PARSE_ARGS");
    if (!mistaken) throw error;
    const problems = error instanceof ConfigError ? error.problems : [error.message];
    process.stderr.write(`cannot prepare:\n${problems.map((problem) => `  ${problem}\n`).join("")}`);
    process.exitCode = 2;
  });
