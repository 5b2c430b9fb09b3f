import { mkdtempSync, readdirSync, readFileSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import type { Collection } from "@curfew/document-store/port.ts";
import { type LogFiles, openDirectory } from "@curfew/ledger/directory.ts";
import { systemRandom } from "@curfew/runtime/random.ts";
import { memoryStore } from "@curfew/simulation/memory-store.ts";
import { afterEach, beforeEach, expect } from "vitest";
import { type BatchDoc, emptyHead, type LedgerHead } from "../domain.ts";
import { publishTiles } from "../public-log/tile-log.ts";
import { bound, clock, growBy, quiet, seal, shard } from "./rig.ts";

/** Batches that are staged, and the files that are made of them: new for each test of the file that imports this. */

export const latest = () => Number.POSITIVE_INFINITY;
export const machine = { clock, random: systemRandom };
export let dir = "";
export let batches: Collection<BatchDoc>;
/** As if the store had been lost. */
export const openBatches = async () => {
  batches = await memoryStore().collection<BatchDoc>("batches");
};
beforeEach(async () => {
  dir = mkdtempSync(join(tmpdir(), "curfew-tiles-"));
  await openBatches();
});
afterEach(() => rmSync(dir, { recursive: true, force: true }));

export const checkpointIn = (of = dir) => seal.open(shard, readFileSync(join(of, "checkpoint"), "utf8"));
/** Publishes until the files are at `size`. */
export const publishTo = async (size: number, files: LogFiles = openDirectory(dir, machine), last = latest) => {
  const stop = new AbortController();
  const parts = { files: () => files, batches, latest: last, seal, clock, log: quiet };
  const running = publishTiles(parts, stop.signal);
  const there = expect.poll(() => checkpointIn().size, bound).toBe(size);
  try {
    await Promise.race([running, there]);
  } finally {
    stop.abort();
    there.catch(() => undefined);
  }
  await running;
};
export const filesIn = (of: string) =>
  new Map(
    readdirSync(of, { recursive: true, withFileTypes: true })
      .filter((entry) => entry.isFile())
      .map((entry) => join(entry.parentPath, entry.name))
      .map((file) => [file.slice(of.length + 1), readFileSync(file, "base64")] as const),
  );
export const stage = async (sizes: readonly number[], from: LedgerHead = emptyHead) => {
  let head = from;
  for (const size of sizes) head = await growBy(batches, head, size - head.size);
  return head;
};

/** Files whose writer stands still, once they have 100 entries, before it writes such a path. */
export const stoppedAt = (isAt: (path: string) => boolean) => {
  const files = openDirectory(dir, machine);
  const [stopped, goOn] = [Promise.withResolvers<void>(), Promise.withResolvers<void>()];
  const slow: LogFiles = {
    read: files.read,
    async write(some) {
      if (isAt(some[0]?.path ?? "") && checkpointIn().size === 100) {
        stopped.resolve();
        await goOn.promise;
      }
      await files.write(some);
    },
  };
  return { slow, stopped, goOn };
};
