import { X509Certificate } from "node:crypto";
import { existsSync, readFileSync } from "node:fs";
import { join } from "node:path";
import { parseArgs } from "node:util";
import { openSqliteStore } from "@curfew/document-store/sqlite.ts";
import { openEpochs } from "@curfew/event-log/epochs.ts";
import { openProducerTrust } from "@curfew/event-log/producer-key.ts";
import { type Keyring, openKeyring } from "@curfew/keyring/keyring.ts";
import { systemClock } from "@curfew/runtime/clock.ts";
import { lockDirectory } from "@curfew/runtime/exclusive.ts";
import { systemRandom } from "@curfew/runtime/random.ts";
import { ledgerKeys, sealOf } from "../ledger-keys.ts";
import { openShardFolders } from "../public-log/shard-files.ts";
import { type RebuildParts, RebuildRefused, rebuild } from "./rebuild.ts";

/** What `curfew auditor rebuild` runs on the data directory of a suite that is stopped. Answers one line of JSON, and exit code 3 where it refuses. */
const refused = 3;

/** The name of the one ledger that a suite has keys of. */
const originOf = (keyring: Keyring): string => {
  const [origin, ...others] = keyring.signingNames();
  if (!origin || others.length > 0)
    throw new RebuildRefused(`the keys are of ${others.length + (origin ? 1 : 0)} ledgers`);
  return origin;
};

/** The authority's certificate names the trust domain. */
const trustOf = (caPem: string) => {
  const [, trustDomain = ""] = /URI:spiffe:\/\/([^,/]+)/.exec(new X509Certificate(caPem).subjectAltName ?? "") ?? [];
  return openProducerTrust({ caPem, trustDomain });
};

const { values } = parseArgs({
  options: { data: { type: "string", default: ".curfew" }, "from-files": { type: "boolean", default: false } },
});

const run = async (dataDir: string) => {
  const keysDir = join(dataDir, "keys");
  const caFile = join(dataDir, "ca", "ca.pem");
  for (const needed of [keysDir, caFile]) if (!existsSync(needed)) throw new RebuildRefused(`${needed} is not there`);
  const lock = lockDirectory(dataDir);
  const open = (name: string) => openSqliteStore({ file: join(dataDir, "store", `${name}.db`) });
  const store = await open("auditor");
  const producers = await open("producers");
  try {
    const edges = { clock: systemClock, random: systemRandom };
    const files = values["from-files"] ? { files: await openShardFolders(join(dataDir, "ledger"), edges) } : {};
    const keyring = openKeyring({ dir: keysDir, ...edges });
    const origin = originOf(keyring);
    const parts: RebuildParts = {
      store,
      epochs: await openEpochs(producers),
      trust: trustOf(readFileSync(caFile, "utf8")),
      seal: sealOf(origin, ledgerKeys(keyring, origin)),
      ...files,
      clock: systemClock,
    };
    const told = (entries: number) => {
      if (process.stderr.isTTY) process.stderr.write(`\r${entries} entries\x1b[K`);
    };
    const rebuilt = await rebuild(parts, told, new AbortController().signal);
    if (process.stderr.isTTY) process.stderr.write("\r\x1b[K");
    process.stdout.write(`${JSON.stringify(rebuilt)}\n`);
  } finally {
    await store.close();
    await producers.close();
    lock.release();
  }
};

try {
  await run(values.data);
} catch (error) {
  const { name, message } = error as Error;
  if (!["RebuildRefused", "DirectoryInUse", "LedgerBroken", "NotPrivate"].includes(name)) throw error;
  process.stderr.write(`${message}\n`);
  process.exitCode = refused;
}
