import type { Collection } from "@curfew/document-store/port.ts";
import { CHECKPOINT_PATH, type LogFiles } from "@curfew/ledger/directory.ts";
import { decodeBundle } from "@curfew/ledger/entry-bundle.ts";
import { leafHash, sameHash } from "@curfew/ledger/hash.ts";
import { NoteError } from "@curfew/ledger/note-error.ts";
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
  type Seal,
  sealedBatch,
} from "../domain.ts";

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

/** The published checkpoint, once every leaf is known to lead to its root: nothing is signed before. */
const openPublished = async (files: LogFiles, seal: Seal): Promise<number> => {
  const note = await files.read(CHECKPOINT_PATH);
  if (!note) throw new LedgerBroken("the ledger's files have no checkpoint");
  const { size, root } = seal.open(Buffer.from(note).toString());
  const frontier = new Frontier();
  for await (const leaf of leavesOf(files, 0, size)) frontier.append(leafHash(leaf));
  if (!sameHash(frontier.root(), root))
    throw new LedgerBroken("the ledger's entries do not lead to the published root");
  return size;
};

/** Goes on after the last batch that is there. Rejects with LedgerBroken. */
export const restage = async (
  parts: { readonly files: LogFiles; readonly batches: Collection<BatchDoc>; readonly seal: Seal },
  signal: AbortSignal,
): Promise<void> => {
  const { files, batches, seal } = parts;
  try {
    const size = await openPublished(files, seal);
    const [last] = await batches.findLatest({ order: -1, limit: 1 });
    let head: LedgerHead = last ? headOf(last, Number(last._id.slice(last._id.indexOf("/") + 1)), seal) : emptyHead;
    for await (const leaves of inBatches(leavesOf(files, head.size, size))) {
      signal.throwIfAborted();
      const batch = sealedBatch(head, leaves, seal);
      await batches.insert(batch.doc);
      head = batch.head;
    }
  } catch (error) {
    throw error instanceof NoteError ? broken(error) : error;
  }
};
