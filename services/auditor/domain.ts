import { HASH_BYTES, leafHash, MAX_ENTRY_BYTES, sameHash } from "@curfew/ledger/hash.ts";
import {
  decodeLeaf,
  encodeLeaf,
  type LogRecord,
  NoLeaf,
  type SealedRecord,
  type ShardOpening,
} from "@curfew/ledger/leaf.ts";
import { isShardYear, yearOf, yearsAhead } from "@curfew/ledger/shard.ts";
import { Frontier, frontierNodes } from "@curfew/ledger/tree.ts";

/**
 * The ledger grows by batches. A batch is one document, inserted under its number: that insert is the compare-and-swap between sequencers
 * and the commit, and everything else is derived from batches (design: evidence, "Sequencing"). Here: how one is made of records, and how
 * one that was read is checked against the batch before it. Pure.
 *
 * The first batch of a new year begins a new tree, the next shard. Since it stands under the next number like any other batch, no two
 * sequencers can disagree on where a shard ends: there is no closing that could race with a batch. Numbers of batches, indexes of entries
 * and sizes run on through all shards; what a tree's own proofs and files count by is that less the shard's `first`.
 */

/** One tree of the ledger: a log of its own. */
export type Shard = {
  /** UTC year in which its first batch was sealed. */
  year: number;
  /** Index in the ledger of its first leaf: entries in all shards before it. */
  first: number;
};

/** Offset of the next record of a partition. */
export type NextOffset = { topic: string; partition: number; next: number };

/** A staged batch as it is stored: insert-only, `_id` from `batchId`. */
export type BatchDoc = {
  _id: string;
  shard: Shard;
  /** Index in the ledger of its first leaf: entries before it. */
  first: number;
  /** Entries in the ledger with it. */
  size: number;
  /** Of its shard. */
  root: Uint8Array;
  /** Frontier hashes of its shard, joined. */
  frontier: Uint8Array;
  /** Signed checkpoint of its shard. */
  checkpoint: string;
  /** After its records: every partition that was ever sealed, in order of topic and partition. */
  positions: NextOffset[];
  /** Exact leaf bytes. */
  leaves: Uint8Array[];
};

/** All that the next batch is built on. */
export interface LedgerHead {
  /** Number of the last batch; 0: none. */
  readonly batch: number;
  readonly shard: Shard;
  /** Entries in the ledger. */
  readonly size: number;
  /** Of the shard. */
  readonly frontier: Frontier;
  /** That of the last batch; empty: none. */
  readonly checkpoint: string;
  readonly positions: readonly NextOffset[];
}

/** A batch together with what it takes to derive everything else from it. */
export interface Batch {
  readonly doc: BatchDoc;
  readonly number: number;
  readonly records: readonly SealedRecord[];
  /** Per leaf the hashes of the subtrees that it completes, its own first, joined. */
  readonly nodes: readonly Uint8Array[];
  /** The ledger with it. */
  readonly head: LedgerHead;
}

/** Signs and opens the checkpoints of this ledger's shards. Sizes are the ledger's, as everywhere in here. */
export interface Seal {
  sign(shard: Shard, size: number, root: Uint8Array): string;
  /** Throws when it is not ours: of that shard, signed by the key of its size. */
  open(shard: Shard, checkpoint: string): { readonly size: number; readonly root: Uint8Array };
  /** As it is with the rotations of its key among `records`, the first of which has index `first`. Throws LedgerBroken. */
  turned(first: number, records: readonly SealedRecord[]): Seal;
  /** Makes those rotations last: for a batch that is staged. */
  keep(): void;
}

/** What is stored contradicts itself or its signature: nothing may be signed on top of it. */
export class LedgerBroken extends Error {
  override name = "LedgerBroken";
}

export const maxBatchRecords = 1_000;
/** Of leaves, by their estimate: even at three times as much a batch stays below a document's 8 MiB. */
export const maxBatchBytes = 2 * 2 ** 20;

/** Of a ledger without a shard. */
export const emptyHead: LedgerHead = {
  batch: 0,
  shard: { year: 0, first: 0 },
  size: 0,
  frontier: new Frontier(),
  checkpoint: "",
  positions: [],
};

export const batchId = (number: number) => `seal/${String(number).padStart(10, "0")}`;

export const nextOffset = (positions: readonly NextOffset[], topic: string, partition: number): number =>
  positions.find((p) => p.topic === topic && p.partition === partition)?.next ?? 0;

const byPlace = (a: NextOffset, b: NextOffset) =>
  a.topic < b.topic ? -1 : a.topic > b.topic ? 1 : a.partition - b.partition;

/** Positions after `records`. Throws LedgerBroken for a record that lies below: it is sealed already. */
const advance = (before: readonly NextOffset[], records: readonly LogRecord[]): NextOffset[] => {
  const after = new Map<string, Map<number, NextOffset>>();
  const at = (topic: string, partition: number): NextOffset => {
    const known = after.get(topic)?.get(partition);
    if (known) return known;
    const place = { topic, partition, next: 0 };
    after.set(topic, (after.get(topic) ?? new Map()).set(partition, place));
    return place;
  };
  for (const { topic, partition, next } of before) at(topic, partition).next = next;
  for (const { topic, partition, offset } of records) {
    const place = at(topic, partition);
    if (offset < place.next) throw new LedgerBroken(`${topic}/${partition}@${offset} would be sealed twice`);
    place.next = offset + 1;
  }
  return [...after.values()].flatMap((places) => [...places.values()]).sort(byPlace);
};

/** The tree with `leaves`; the old frontier stays as it is. */
const grow = (before: Frontier, leaves: readonly Uint8Array[]) => {
  const frontier = before.copy();
  // One buffer for all: as many nodes as leaves, but for those that the leaves before these had begun.
  const joined = Buffer.allocUnsafe((2 * leaves.length + before.hashes.length) * HASH_BYTES);
  let end = 0;
  const completed = (_level: number, _index: number, node: Uint8Array) => {
    joined.set(node, end);
    end += HASH_BYTES;
  };
  const nodes = leaves.map((leaf) => {
    const start = end;
    frontier.append(leafHash(leaf), completed);
    return joined.subarray(start, end);
  });
  return { frontier, nodes };
};

/**
 * Where a batch of `year` goes that follows `before`: into its shard, or into a new one. A clock that was set back begins none; one that was
 * set forward by far, or not at all, throws LedgerBroken: a ledger that began in 1970 would stop for ever once it is right.
 */
const shardAfter = (before: LedgerHead, year: number): Shard => {
  if (year <= before.shard.year) return before.shard;
  if (!isShardYear(year)) throw new LedgerBroken(`the clock says ${year}: set it`);
  if (before.batch > 0 && year > before.shard.year + yearsAhead)
    throw new LedgerBroken(`the clock says ${year}, and the last entry was sealed in ${before.shard.year}`);
  return { year, first: before.size };
};

/** What the first leaf of `shard` must state, if the next leaf is that. */
const openingOf = (before: LedgerHead, shard: Shard): ShardOpening | undefined =>
  before.batch === 0 || shard.year === before.shard.year
    ? undefined
    : { previousCheckpoint: before.checkpoint, first: shard.first };

/** The tree that a batch of `shard` adds to. */
const frontierIn = (before: LedgerHead, shard: Shard) =>
  shard.year === before.shard.year ? before.frontier : new Frontier();

/** The batch that adds `leaves` to `shard`; `records`: what they are. */
const batchOf = (
  before: LedgerHead,
  shard: Shard,
  leaves: Uint8Array[],
  records: readonly SealedRecord[],
  seal: Seal,
): Batch => {
  const { frontier, nodes } = grow(frontierIn(before, shard), leaves);
  const positions = advance(before.positions, records);
  const number = before.batch + 1;
  const root = frontier.root();
  const size = before.size + leaves.length;
  const checkpoint = seal.turned(before.size, records).sign(shard, size, root);
  const doc: BatchDoc = {
    _id: batchId(number),
    shard,
    first: before.size,
    size,
    root,
    frontier: Buffer.concat(frontier.hashes),
    checkpoint,
    positions,
    leaves,
  };
  return { doc, number, records, nodes, head: { batch: number, shard, size, frontier, checkpoint, positions } };
};

/** Makes a batch of leaves that were sealed before, in the shard of `year`: their bytes stay. Throws LedgerBroken where one is none. */
export const sealedBatch = (before: LedgerHead, year: number, leaves: Uint8Array[], seal: Seal): Batch => {
  const shard = shardAfter(before, year);
  const records = readLeaves({ _id: batchId(before.batch + 1), leaves });
  return batchOf(before, shard, leaves, records, seal);
};

/** Makes the next batch. `records` in the order in which they are sealed, per partition without one that is sealed already. */
export const makeBatch = (before: LedgerHead, records: readonly LogRecord[], sealedAtMs: number, seal: Seal): Batch => {
  if (records.length === 0 || records.length > maxBatchRecords)
    throw new RangeError(`a batch has 1 to ${maxBatchRecords} records`);
  const shard = shardAfter(before, yearOf(sealedAtMs));
  const opening = openingOf(before, shard);
  const encoded = records.map((record, at) => encodeLeaf(record, sealedAtMs, at === 0 ? opening : undefined));
  const sealed = encoded.map((each) => each.sealed);
  return batchOf(
    before,
    shard,
    encoded.map(({ leaf }) => leaf),
    sealed,
    seal,
  );
};

const samePositions = (a: readonly NextOffset[], b: readonly NextOffset[]) =>
  a.length === b.length &&
  a.every((p, i) => byPlace(p, b[i] as NextOffset) === 0 && p.next === (b[i] as NextOffset).next);

const isOpening = (record: SealedRecord | undefined, wanted: ShardOpening | undefined): boolean =>
  record?.opening?.first === wanted?.first && record?.opening?.previousCheckpoint === wanted?.previousCheckpoint;

/** Makes a batch again out of what is stored of it and compares every part; throws LedgerBroken where one differs. */
export const replayBatch = (before: LedgerHead, doc: BatchDoc, seal: Seal): Batch => {
  const number = before.batch + 1;
  const must = (holds: boolean, what: string) => {
    if (!holds) throw new LedgerBroken(`${batchId(number)}: ${what}`);
  };
  must(doc._id === batchId(number), "stands under another number");
  must(doc.first === before.size, "does not follow the batch before it");
  must(
    doc.leaves.every((leaf) => leaf.length <= MAX_ENTRY_BYTES),
    "a leaf is too large",
  );
  const shard = shardAfter(before, doc.shard.year);
  must(shard.year === doc.shard.year && shard.first === doc.shard.first, "its shard does not follow the one before it");
  const records = readLeaves(doc);
  must(isOpening(records[0], openingOf(before, shard)), "its first leaf does not state the shard before it");
  must(
    records.every(({ opening }, at) => at === 0 || !opening),
    "a leaf within it opens a shard",
  );
  const { frontier, nodes } = grow(frontierIn(before, shard), doc.leaves);
  const root = frontier.root();
  must(shard.first + frontier.size === doc.size, "its size is not that of its leaves");
  must(sameHash(root, doc.root), "its root is not that of its leaves");
  must(sameHash(Buffer.concat(frontier.hashes), doc.frontier), "its frontier is not that of its leaves");
  const positions = advance(before.positions, records);
  must(samePositions(positions, doc.positions), "its positions are not those of its leaves");
  const signed = openOwn(doc, seal.turned(before.size, records));
  must(signed.size === doc.size && sameHash(signed.root, root), "its checkpoint is of another tree");
  const { size, checkpoint } = doc;
  return { doc, number, records, nodes, head: { batch: number, shard, size, frontier, checkpoint, positions } };
};

const readLeaves = (doc: Pick<BatchDoc, "_id" | "leaves">): SealedRecord[] => {
  try {
    return doc.leaves.map(decodeLeaf);
  } catch (error) {
    if (error instanceof NoLeaf) throw new LedgerBroken(`${doc._id}: ${error.message}`, { cause: error });
    throw error;
  }
};

const openOwn = (doc: BatchDoc, seal: Seal) => {
  try {
    return seal.open(doc.shard, doc.checkpoint);
  } catch (error) {
    throw new LedgerBroken(`${doc._id}: its checkpoint is not signed by this ledger's key of that size`, {
      cause: error,
    });
  }
};

/** The head that a stored batch states. Its frontier must lead to the root that is signed; its leaves are not looked at. */
export const headOf = (doc: BatchDoc, number: number, seal: Seal): LedgerHead => {
  if (doc._id !== batchId(number)) throw new LedgerBroken(`${doc._id} stands under another number`);
  const { shard, size, checkpoint, positions } = doc;
  const count = frontierNodes(size - shard.first).length;
  if (doc.frontier.length !== count * HASH_BYTES) throw new LedgerBroken(`${doc._id}: its frontier is not of its size`);
  const hashes = Array.from({ length: count }, (_, i) => doc.frontier.subarray(i * HASH_BYTES, (i + 1) * HASH_BYTES));
  const frontier = new Frontier(size - shard.first, hashes);
  const signed = openOwn(doc, seal);
  if (signed.size !== size || !sameHash(signed.root, frontier.root()))
    throw new LedgerBroken(`${doc._id}: its frontier is not of the tree that is signed`);
  return { batch: number, shard, size, frontier, checkpoint, positions };
};
