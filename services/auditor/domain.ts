import { HASH_BYTES, leafHash, MAX_ENTRY_BYTES, sameHash } from "@curfew/ledger/hash.ts";
import { decodeLeaf, encodeLeaf, type LogRecord, NoLeaf, type SealedRecord } from "@curfew/ledger/leaf.ts";
import { Frontier, frontierNodes } from "@curfew/ledger/tree.ts";

/**
 * The ledger grows by batches. A batch is one document, inserted under its number: that insert is the compare-and-swap between sequencers
 * and the commit, and everything else is derived from batches (design: evidence, "Sequencing"). Here: how one is made of records, and how
 * one that was read is checked against the batch before it. Pure.
 */

/** Offset of the next record of a partition. */
export type NextOffset = { topic: string; partition: number; next: number };

/** A staged batch as it is stored: insert-only, `_id` from `batchId`. */
export type BatchDoc = {
  _id: string;
  /** Index of its first leaf: the size before it. */
  first: number;
  /** Size of the tree with it. */
  size: number;
  root: Uint8Array;
  /** Frontier hashes at `size`, joined. */
  frontier: Uint8Array;
  /** Signed checkpoint of `size` and `root`. */
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
  readonly size: number;
  readonly frontier: Frontier;
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

/** Signs and opens the checkpoints of this ledger. */
export interface Seal {
  sign(size: number, root: Uint8Array): string;
  /** Throws when it is not ours: signed by the key of its size. */
  open(checkpoint: string): { readonly size: number; readonly root: Uint8Array };
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

export const emptyHead: LedgerHead = { batch: 0, size: 0, frontier: new Frontier(), positions: [] };

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

/** The batch that adds `leaves`; `records`: what they are. */
const batchOf = (before: LedgerHead, leaves: Uint8Array[], records: readonly SealedRecord[], seal: Seal): Batch => {
  const { frontier, nodes } = grow(before.frontier, leaves);
  const positions = advance(before.positions, records);
  const number = before.batch + 1;
  const root = frontier.root();
  const doc: BatchDoc = {
    _id: batchId(number),
    first: before.size,
    size: frontier.size,
    root,
    frontier: Buffer.concat(frontier.hashes),
    checkpoint: seal.turned(before.size, records).sign(frontier.size, root),
    positions,
    leaves,
  };
  return { doc, number, records, nodes, head: { batch: number, size: frontier.size, frontier, positions } };
};

/** Makes a batch of leaves that were sealed before: their bytes stay. Throws LedgerBroken where one is none. */
export const sealedBatch = (before: LedgerHead, leaves: Uint8Array[], seal: Seal): Batch =>
  batchOf(before, leaves, readLeaves({ _id: batchId(before.batch + 1), leaves }), seal);

/** Makes the next batch. `records` in the order in which they are sealed, per partition without one that is sealed already. */
export const makeBatch = (before: LedgerHead, records: readonly LogRecord[], sealedAtMs: number, seal: Seal): Batch => {
  if (records.length === 0 || records.length > maxBatchRecords)
    throw new RangeError(`a batch has 1 to ${maxBatchRecords} records`);
  const encoded = records.map((record) => encodeLeaf(record, sealedAtMs));
  const sealed = encoded.map((each) => each.sealed);
  return batchOf(
    before,
    encoded.map(({ leaf }) => leaf),
    sealed,
    seal,
  );
};

const samePositions = (a: readonly NextOffset[], b: readonly NextOffset[]) =>
  a.length === b.length &&
  a.every((p, i) => byPlace(p, b[i] as NextOffset) === 0 && p.next === (b[i] as NextOffset).next);

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
  const records = readLeaves(doc);
  const { frontier, nodes } = grow(before.frontier, doc.leaves);
  const root = frontier.root();
  must(frontier.size === doc.size, "its size is not that of its leaves");
  must(sameHash(root, doc.root), "its root is not that of its leaves");
  must(sameHash(Buffer.concat(frontier.hashes), doc.frontier), "its frontier is not that of its leaves");
  const positions = advance(before.positions, records);
  must(samePositions(positions, doc.positions), "its positions are not those of its leaves");
  const signed = openOwn(doc, seal.turned(before.size, records));
  must(signed.size === doc.size && sameHash(signed.root, root), "its checkpoint is of another tree");
  return { doc, number, records, nodes, head: { batch: number, size: doc.size, frontier, positions } };
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
    return seal.open(doc.checkpoint);
  } catch (error) {
    throw new LedgerBroken(`${doc._id}: its checkpoint is not signed by this ledger's key of that size`, {
      cause: error,
    });
  }
};

/** The head that a stored batch states. Its frontier must lead to the root that is signed; its leaves are not looked at. */
export const headOf = (doc: BatchDoc, number: number, seal: Seal): LedgerHead => {
  if (doc._id !== batchId(number)) throw new LedgerBroken(`${doc._id} stands under another number`);
  const count = frontierNodes(doc.size).length;
  if (doc.frontier.length !== count * HASH_BYTES) throw new LedgerBroken(`${doc._id}: its frontier is not of its size`);
  const hashes = Array.from({ length: count }, (_, i) => doc.frontier.subarray(i * HASH_BYTES, (i + 1) * HASH_BYTES));
  const frontier = new Frontier(doc.size, hashes);
  const signed = openOwn(doc, seal);
  if (signed.size !== doc.size || !sameHash(signed.root, frontier.root()))
    throw new LedgerBroken(`${doc._id}: its frontier is not of the tree that is signed`);
  return { batch: number, size: doc.size, frontier, positions: doc.positions };
};
