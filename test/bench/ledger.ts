import { hash } from "node:crypto";
import { mkdirSync, mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { dirname, join } from "node:path";
import { type Batch, emptyHead, type LedgerHead, makeBatch, maxBatchRecords } from "@curfew/auditor/domain.ts";
import { origin, seal, shard, verifierKey } from "@curfew/auditor/testing/rig.ts";
import { openCompleteness } from "@curfew/cli/log-completeness.ts";
import { openLogDirectory } from "@curfew/cli/read-log.ts";
import { HASH_BYTES } from "@curfew/ledger/hash.ts";
import { parsePolicy } from "@curfew/ledger/policy.ts";
import { TILE_WIDTH } from "@curfew/ledger/tile.ts";
import { emptyEdge, growTiles, type RightEdge } from "@curfew/ledger/tile-writer.ts";
import { Frontier, frontierNodes } from "@curfew/ledger/tree.ts";
import { readCheckpoint, verifyLog } from "@curfew/ledger/verify-log.ts";
import { systemRandom } from "@curfew/runtime/random.ts";
import { durable } from "./durable-ledger.ts";
import { type Figure, median, micros, ofRounds, perSecond, ratio } from "./figures.ts";
import { collectGarbage } from "./machine.ts";
import { mergeDelays } from "./merge-delay.ts";
import { openRecords, sealedAtMs } from "./sealing-records.ts";

/**
 * The ledger against bare SHA-256 of the same bytes (each leaf, and a node for each), by the CPU time of the one thread that works.
 */

/** µs of CPU that `work` takes of this thread. */
const cpuMicros = (work: () => void): number => {
  collectGarbage();
  const before = process.threadCpuUsage();
  work();
  const { user, system } = process.threadCpuUsage(before);
  return user + system;
};

/** Bare hashing of leaves, the prefix already before each, and of as many nodes: µs for each leaf. */
const bareMicros = (leaves: readonly Uint8Array[]): number => {
  const prefixed = leaves.map((leaf) => Buffer.concat([Buffer.of(0), leaf]));
  const node = Buffer.alloc(1 + 2 * HASH_BYTES, 1);
  const micros = cpuMicros(() => {
    for (const leaf of prefixed) hash("sha256", leaf, "buffer");
    for (let i = 0; i < prefixed.length; i += 1) hash("sha256", node, "buffer");
  });
  return micros / leaves.length;
};

const sealing = (rounds: number): Figure[] => {
  const records = openRecords();
  const batchesARound = 20;
  const ours: number[] = [];
  const ratios: number[] = [];
  let head = emptyHead;
  for (let round = -1; round < rounds; round += 1) {
    const groups = Array.from({ length: batchesARound }, () => records(maxBatchRecords));
    const made: Batch[] = [];
    const took = cpuMicros(() => {
      for (const group of groups) {
        const batch = makeBatch(head, group, sealedAtMs, seal);
        made.push(batch);
        head = batch.head;
      }
    });
    const own = took / (batchesARound * maxBatchRecords);
    const bare = bareMicros(made.flatMap(({ doc }) => doc.leaves));
    if (round < 0) continue; // not compiled yet
    ours.push(1_000_000 / own);
    ratios.push(bare / own);
  }
  return [
    ofRounds(ratios, { what: "sealing / bare SHA-256 of leaves and nodes", show: ratio, target: { least: 0.3 } }),
    ofRounds(ours, {
      what: "events sealed into signed checkpoints by one core",
      show: perSecond,
      target: { least: 50_000 },
    }),
  ];
};

/** A ledger of that size, of hashes that mean nothing: what it takes to grow does not depend on them. */
const grownTo = (size: number): { head: LedgerHead; edge: RightEdge } => {
  const some = (count: number) => Array.from({ length: count }, () => systemRandom(HASH_BYTES));
  const tiles: Buffer[] = [];
  for (let count = size; count > 0; count = Math.floor(count / TILE_WIDTH))
    tiles.push(Buffer.concat(some(count % TILE_WIDTH)));
  const entries = Buffer.concat(Array.from({ length: size % TILE_WIDTH }, () => Buffer.of(0, 1, 7)));
  const frontier = new Frontier(size, some(frontierNodes(size).length));
  return {
    head: { ...emptyHead, shard, batch: size / maxBatchRecords, size, frontier },
    edge: { size, entries, tiles },
  };
};

const growth = (rounds: number): Figure[] => {
  const sizes = [1e4, 1e5, 1e6, 1e7];
  const costs = new Map<number, number[]>(sizes.map((size) => [size, []]));
  for (let round = -1; round < rounds; round += 1)
    // Each in its turn first: what came before is felt.
    for (const [i] of sizes.entries()) {
      const size = sizes[(i + round + sizes.length) % sizes.length] as number;
      const records = openRecords();
      let { head, edge } = grownTo(size);
      const groups = Array.from({ length: 10 }, () => records(maxBatchRecords));
      const took = cpuMicros(() => {
        for (const group of groups) {
          const batch = makeBatch(head, group, sealedAtMs, seal);
          edge = growTiles(edge, batch.doc.leaves, batch.nodes).edge;
          head = batch.head;
        }
      });
      if (round >= 0) costs.get(size)?.push(took / (10 * maxBatchRecords));
    }
  const medians = sizes.map((size) => median(costs.get(size) ?? []));
  const each = sizes.map((size, i) => ({
    what: `sealed and in tiles, an entry at ${size}`,
    value: medians[i] as number,
    show: micros,
  }));
  const value = Math.max(...medians) / Math.min(...medians);
  return [...each, { what: "the dearest of these / the cheapest", value, show: ratio, target: { most: 1.3 } }];
};

/** A log of `size` entries in `dir`; answers some of its leaves. */
const writeLedger = (dir: string, size: number): Uint8Array[] => {
  const records = openRecords();
  const write = (path: string, bytes: Uint8Array | string) => {
    mkdirSync(dirname(join(dir, path)), { recursive: true });
    writeFileSync(join(dir, path), bytes);
  };
  const sample: Uint8Array[] = [];
  let head = emptyHead;
  let edge = emptyEdge;
  while (head.size < size) {
    const batch = makeBatch(head, records(maxBatchRecords), sealedAtMs, seal);
    const grown = growTiles(edge, batch.doc.leaves, batch.nodes);
    for (const { path, bytes } of grown.files)
      if (batch.head.size === size || !/^tile.(0|entries).*[.]p/.test(path)) write(path, bytes);
    if (sample.length < 20_000) sample.push(...batch.doc.leaves);
    [head, edge] = [batch.head, grown.edge];
    write("checkpoint", batch.doc.checkpoint);
  }
  return sample;
};

const verification = async (size: number, rounds: number): Promise<Figure> => {
  const dir = mkdtempSync(join(tmpdir(), "curfew-bench-"));
  try {
    const sample = writeLedger(dir, size);
    const source = await openLogDirectory(dir);
    const ratios: number[] = [];
    const costs: number[] = [];
    for (let round = 0; round < rounds; round += 1) {
      const bare = bareMicros(sample);
      const { opened } = await readCheckpoint(source.read, parsePolicy(`log ${verifierKey}\nquorum none\n`));
      const completeness = openCompleteness(undefined);
      const before = process.threadCpuUsage();
      await verifyLog({
        ...source,
        tree: opened,
        onEntries: (first, entries) => {
          for (const [i, entry] of entries.entries()) completeness.add(entry, first + i);
        },
      });
      if (completeness.verdict().verdict !== "holds" || opened.origin !== origin)
        throw new Error("not what was written");
      const { user, system } = process.threadCpuUsage(before);
      costs.push((user + system) / size);
      ratios.push((bare + bareMicros(sample)) / 2 / ((user + system) / size));
    }
    const what = `curfew verify of ${size} entries, integrity and completeness / bare SHA-256 of leaves and nodes`;
    const notes = [`${micros(median(costs))} an entry`];
    return ofRounds(ratios, { what, show: ratio, target: { least: 0.25 }, notes });
  } finally {
    rmSync(dir, { recursive: true });
  }
};

export const ledger = async ({
  quick,
  live,
}: {
  readonly quick: boolean;
  readonly live: boolean;
}): Promise<Figure[]> => {
  const rounds = quick ? 3 : 9;
  return [
    ...sealing(rounds),
    await durable(rounds + 2),
    ...growth(rounds),
    await verification(quick ? 100_000 : 1_000_000, 3),
    ...(await mergeDelays(quick ? 5 : 20, live)),
  ];
};
