import { leafHash } from "@curfew/ledger/hash.ts";
import { decodeLeaf, type ShardOpening } from "@curfew/ledger/leaf.ts";
import { leastOf } from "@curfew/runtime/halving.ts";
import { nextOffset } from "../domain.ts";
import { type Batches, batchAt } from "../ledger.ts";
import { type CheckpointRow, type Checkpoints, checkpointAt } from "../projections.ts";

/** What was sealed of a partition, found by offset. */
export interface SealedPlaces {
  readonly batches: Batches;
  readonly checkpoints: Checkpoints;
}

/** A leaf that was sealed of a partition. */
export interface SealedPlace {
  readonly offset: number;
  /** In the ledger. */
  readonly index: number;
  readonly leafHash: Uint8Array;
  readonly sealedAtMs: number;
  /** What its leaf states beside the record. */
  readonly opening: ShardOpening | undefined;
}

type Partition = { readonly topic: string; readonly partition: number };

/**
 * Number of the first batch after which the partition is past `offset`, between `low` and `latest`, whose own is. Steps grow from `low`, so
 * that what is near is found at once.
 */
export const batchPast = async (
  checkpoints: SealedPlaces["checkpoints"],
  { topic, partition }: Partition,
  offset: number,
  { low, latest }: { readonly low: number; readonly latest: number },
): Promise<number> => {
  const isPast = async (batch: number) =>
    nextOffset((await checkpointAt(checkpoints, batch)).positions, topic, partition) > offset;
  let from = low;
  let to = low;
  for (let step = 1; to < latest && !(await isPast(to)); step *= 2) {
    from = to + 1;
    to = Math.min(latest, to + step);
  }
  return await leastOf(from, to, isPast);
};

/** The leaves of a partition from offset `from` on, up to the batch `latest`, in their order; those of one batch are in memory. */
export async function* sealedPlaces(
  { batches, checkpoints }: SealedPlaces,
  place: Partition,
  from: number,
  latest: CheckpointRow,
): AsyncGenerator<SealedPlace> {
  const { topic, partition } = place;
  const end = nextOffset(latest.positions, topic, partition);
  let low = 1;
  for (let offset = from; offset < end; ) {
    const number = await batchPast(checkpoints, place, offset, { low, latest: latest.batch });
    const doc = await batchAt(batches, number);
    for (const [at, leaf] of doc.leaves.entries()) {
      const record = decodeLeaf(leaf);
      if (record.topic !== topic || record.partition !== partition || record.offset < offset) continue;
      const { sealedAtMs, opening } = record;
      yield { offset: record.offset, index: doc.first + at, leafHash: leafHash(leaf), sealedAtMs, opening };
    }
    offset = Math.max(offset + 1, nextOffset(doc.positions, topic, partition));
    low = number + 1;
  }
}
