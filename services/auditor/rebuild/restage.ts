import type { Collection } from "@curfew/document-store/port.ts";
import { CHECKPOINT_PATH, type LogFiles } from "@curfew/ledger/directory.ts";
import { decodeBundle } from "@curfew/ledger/entry-bundle.ts";
import { leafHash, sameHash } from "@curfew/ledger/hash.ts";
import { NoteError } from "@curfew/ledger/note-error.ts";
import { shardYears } from "@curfew/ledger/shard.ts";
import { readTileItems, TILE_WIDTH } from "@curfew/ledger/tile.ts";
import { Frontier } from "@curfew/ledger/tree.ts";
import {
  type BatchDoc,
  emptyHead,
  headOf,
  LedgerBroken,
  type LedgerHead,
  maxBatchBytes,
  maxBatchRecords,
  replayBatch,
  type Seal,
  type Shard,
  sealedBatch,
} from "../domain.ts";
import type { ShardFiles } from "../public-log/shard-files.ts";

/** Batches staged again from the published files. Only what they publish comes back: what was sealed after it is sealed again, from the topics. */

const broken = (error: Error) =>
  new LedgerBroken(`the ledger's files are not as they were written: ${error.message}`, { cause: error });

/** Every leaf of the tree of `size` from `first` on, in order; one bundle is in memory. */
async function* leavesOf(files: LogFiles, first: number, size: number): AsyncGenerator<Uint8Array> {
  for (let index = Math.floor(first / TILE_WIDTH); index * TILE_WIDTH < size; index += 1) {
    const width = Math.min(TILE_WIDTH, size - index * TILE_WIDTH);
    const leaves = await readTileItems({ level: "entries", index, width }, files.read, decodeBundle);
    for (const [at, leaf] of leaves.entries()) if (index * TILE_WIDTH + at >= first) yield leaf;
  }
}

/** As many as go into a batch. */
async function* inBatches(leaves: AsyncIterable<Uint8Array>): AsyncGenerator<Uint8Array[]> {
  let batch: Uint8Array[] = [];
  let bytes = 0;
  for await (const leaf of leaves) {
    if (batch.length >= maxBatchRecords || (batch.length > 0 && bytes + leaf.length > maxBatchBytes)) {
      yield batch;
      batch = [];
      bytes = 0;
    }
    batch.push(leaf);
    bytes += leaf.length;
  }
  if (batch.length > 0) yield batch;
}

/** Entries of a shard that are published, once every leaf is known to lead to the root: nothing is signed before. Undefined: it has no checkpoint. */
const openPublished = async (files: LogFiles, seal: Seal, shard: Shard): Promise<number | undefined> => {
  const note = await files.read(CHECKPOINT_PATH);
  if (!note) return undefined;
  const { size, root } = seal.open(shard, Buffer.from(note).toString());
  const inShard = size - shard.first;
  const frontier = new Frontier();
  for await (const leaf of leavesOf(files, 0, inShard)) frontier.append(leafHash(leaf));
  if (!sameHash(frontier.root(), root))
    throw new LedgerBroken(`the ledger's entries of ${shard.year} do not lead to the published root`);
  return inShard;
};

/** Goes on after the last batch that is there. Rejects with LedgerBroken. */
export const restage = async (
  parts: {
    readonly files: ShardFiles;
    readonly batches: Collection<BatchDoc>;
    readonly seal: Seal;
    readonly clock: { now(): number };
  },
  signal: AbortSignal,
): Promise<void> => {
  const { batches, seal } = parts;
  const [last] = await batches.findLatest({ order: -1, limit: 1 });
  let head: LedgerHead = last ? headOf(last, Number(last._id.slice(last._id.indexOf("/") + 1)), seal) : emptyHead;
  let found = false;

  const restageShard = async (year: number): Promise<void> => {
    const files = parts.files(year);
    const shard = year === head.shard.year ? head.shard : { year, first: head.size };
    const inShard = await openPublished(files, seal, shard);
    found ||= inShard !== undefined;
    for await (const leaves of inBatches(leavesOf(files, head.size - shard.first, inShard ?? 0))) {
      signal.throwIfAborted();
      // Replayed in full, so that the first leaf is seen to name the shard before it.
      const batch = replayBatch(head, sealedBatch(head, year, leaves, seal).doc, seal);
      await batches.insert(batch.doc);
      head = batch.head;
    }
  };

  try {
    for (const year of shardYears(parts.clock.now(), head.shard.year)) await restageShard(year);
    if (!found) throw new LedgerBroken("the ledger's files have no checkpoint");
  } catch (error) {
    throw error instanceof NoteError ? broken(error) : error;
  }
};
