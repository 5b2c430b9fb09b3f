import { X509Certificate } from "node:crypto";
import { existsSync, readFileSync } from "node:fs";
import { join } from "node:path";
import { parseArgs } from "node:util";
import { openSqliteStore } from "@curfew/document-store/sqlite.ts";
import { openEpochs } from "@curfew/event-log/epochs.ts";
import { openProducerTrust } from "@curfew/event-log/producer-key.ts";
import { openKeyring } from "@curfew/keyring/keyring.ts";
import { CHECKPOINT_PATH, openDirectory } from "@curfew/ledger/directory.ts";
import { systemClock } from "@curfew/runtime/clock.ts";
import { lockDirectory } from "@curfew/runtime/exclusive.ts";
import { systemRandom } from "@curfew/runtime/random.ts";
import type { BatchDoc } from "../domain.ts";
import { ledgerKeys, sealOf } from "../ledger-keys.ts";
import { type RebuildParts, RebuildRefused, rebuild } from "./rebuild.ts";

/** What `curfew auditor rebuild` runs on the data directory of a suite that is stopped. Answers one line of JSON, and exit code 3 where it refuses. */
const refused = 3;

/** The ledger says its name itself, in the first line of each checkpoint. */
const originOf = async ({ store, files }: Pick<RebuildParts, "store" | "files">): Promise<string> => {
  const [batch] = await (await store.collection<BatchDoc>("batches")).find({ limit: 1 });
  const note = batch?.checkpoint ?? String((await files?.read(CHECKPOINT_PATH)) ?? "");
  const [origin] = Buffer.from(note).toString().split("\n");
  if (!origin) throw new RebuildRefused("nothing was sealed here: neither batches nor files of a ledger");
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
    const files = values["from-files"] ? { files: openDirectory(join(dataDir, "ledger"), edges) } : {};
    const origin = await originOf({ store, ...files });
    const parts: RebuildParts = {
      store,
      epochs: await openEpochs(producers),
      trust: trustOf(readFileSync(caFile, "utf8")),
      seal: sealOf(origin, ledgerKeys(openKeyring({ dir: keysDir, ...edges }), origin)),
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
