import { emptyRoot, isCount, isHash, nodeHash } from "./hash.ts";

/**
 * The complete subtree over leaves [index·2^level, (index+1)·2^level). Its hash never changes once its last leaf is
 * there, so an append-only store can keep it under this address.
 */
export type NodeAddress = { readonly level: number; readonly index: number };

/** Random access to stored nodes: the hashes of `nodes`, in the same order. */
export type ReadNodes = (nodes: readonly NodeAddress[]) => readonly Uint8Array[] | Promise<readonly Uint8Array[]>;

/** Called for every node that an appended leaf completes, the leaf itself (level 0) first, then upwards. */
export type NodeCompleted = (level: number, index: number, hash: Uint8Array) => void;

/** The complete subtrees that make up leaves [low, high), left to right; `low` is a multiple of the power of two ≥ high − low. */
const completeSubtrees = (low: number, high: number): NodeAddress[] => {
  const nodes: NodeAddress[] = [];
  let start = low;
  while (start < high) {
    let level = 0;
    let width = 1;
    while (width * 2 <= high - start) {
      width *= 2;
      level += 1;
    }
    nodes.push({ level, index: start / width });
    start += width;
  }
  return nodes;
};

/** The nodes of the frontier at `size`, largest first: what to read to rebuild a `Frontier` from a store. */
export const frontierNodes = (size: number): NodeAddress[] => {
  if (!isCount(size)) throw new RangeError("a tree size is a non-negative safe integer");
  return completeSubtrees(0, size);
};

const foldRight = (hashes: readonly Uint8Array[]): Uint8Array =>
  hashes.reduceRight((right, left) => nodeHash(left, right));

/**
 * The state needed to append to a tree and to know its root: one hash for each one-bit of the size, largest subtree
 * first. Hashes handed in and out are shared, not copied: nobody may write to them.
 */
export class Frontier {
  #size: number;
  readonly #hashes: Uint8Array[];

  /** Without arguments the empty tree; else a state written earlier. Throws a RangeError when hashes and size do not fit. */
  constructor(size = 0, hashes: readonly Uint8Array[] = []) {
    if (frontierNodes(size).length !== hashes.length || !hashes.every(isHash))
      throw new RangeError(`these are not the frontier hashes of a tree of size ${size}`);
    this.#size = size;
    this.#hashes = [...hashes];
  }

  get size(): number {
    return this.#size;
  }

  /** The state to keep beside `size`; a copy, so later appends do not change it. */
  get hashes(): readonly Uint8Array[] {
    return [...this.#hashes];
  }

  /** An independent frontier in the same state: to try a batch and drop it. */
  copy(): Frontier {
    return new Frontier(this.#size, this.#hashes);
  }

  /** Appends one leaf by its `leafHash`. Throws a RangeError for anything but 32 bytes; the state is then unchanged. */
  append(leaf: Uint8Array, completed?: NodeCompleted): void {
    if (!isHash(leaf)) throw new RangeError("a leaf hash has 32 bytes");
    if (!isCount(this.#size + 1)) throw new RangeError("the tree is full");
    let hash = leaf;
    let level = 0;
    let index = this.#size;
    completed?.(level, index, hash);
    while (index % 2 === 1) {
      hash = nodeHash(this.#hashes.pop() as Uint8Array, hash);
      level += 1;
      index = (index - 1) / 2;
      completed?.(level, index, hash);
    }
    this.#hashes.push(hash);
    this.#size += 1;
  }

  /** The RFC 6962 tree head at the present size. */
  root(): Uint8Array {
    return this.#size === 0 ? emptyRoot() : foldRight(this.#hashes);
  }
}

/** The half-open ranges of leaves whose tree heads make up a proof, in the order of the proof. */
type Range = readonly [low: number, high: number];

const splitPoint = (low: number, high: number): number => {
  let width = 1;
  while (width * 2 < high - low) width *= 2;
  return low + width;
};

const inclusionRanges = (index: number, size: number): Range[] => {
  const ranges: Range[] = [];
  let [low, high] = [0, size];
  while (high - low > 1) {
    const middle = splitPoint(low, high);
    if (index < middle) {
      ranges.push([middle, high]);
      high = middle;
    } else {
      ranges.push([low, middle]);
      low = middle;
    }
  }
  return ranges.reverse();
};

const consistencyRanges = (older: number, newer: number): Range[] => {
  const ranges: Range[] = [];
  let [low, high] = [0, newer];
  while (older !== high) {
    const middle = splitPoint(low, high);
    if (older <= middle) {
      ranges.push([middle, high]);
      high = middle;
    } else {
      ranges.push([low, middle]);
      low = middle;
    }
  }
  // When the older tree is itself a subtree of the newer one the verifier already has its root.
  if (low > 0) ranges.push([low, high]);
  return ranges.reverse();
};

/** `items` cut into pieces of these lengths, in order. */
const cut = <T>(items: readonly T[], lengths: readonly number[]): T[][] => {
  let at = 0;
  return lengths.map((length) => {
    at += length;
    return items.slice(at - length, at);
  });
};

/** The tree heads of the ranges; one read. */
const hashRanges = async (ranges: readonly Range[], readNodes: ReadNodes): Promise<Uint8Array[]> => {
  const groups = ranges.map(([low, high]) => completeSubtrees(low, high));
  const wanted = groups.flat();
  const hashes = wanted.length === 0 ? [] : await readNodes(wanted);
  if (hashes.length !== wanted.length || !hashes.every(isHash))
    throw new Error(`the node store gave ${hashes.length} hashes for ${wanted.length} nodes, or malformed ones`);
  const lengths = groups.map(({ length }) => length);
  return cut(hashes, lengths).map(foldRight);
};

/** The root at `size` out of stored nodes; for any size the store has covered. Rejects when the store does not answer in full. */
export const treeRoot = async (size: number, readNodes: ReadNodes): Promise<Uint8Array> => {
  if (!isCount(size)) throw new RangeError("a tree size is a non-negative safe integer");
  const [root] = size === 0 ? [] : await hashRanges([[0, size]], readNodes);
  return root ?? emptyRoot();
};

/**
 * The audit paths of leaves in the tree of `size` leaves, each from leaf to root (RFC 6962, 2.1.1), at most 53 hashes. One read for all of
 * them, in which nodes that they share stand several times.
 */
export const proveInclusions = async (
  indexes: readonly number[],
  size: number,
  readNodes: ReadNodes,
): Promise<Uint8Array[][]> => {
  for (const index of indexes)
    if (!isCount(index) || !isCount(size) || index >= size)
      throw new RangeError(`no leaf ${index} in a tree of size ${size}`);
  const ranges = indexes.map((index) => inclusionRanges(index, size));
  const lengths = ranges.map(({ length }) => length);
  return cut(await hashRanges(ranges.flat(), readNodes), lengths);
};

/** As `proveInclusions`, of one leaf. */
export const proveInclusion = async (index: number, size: number, readNodes: ReadNodes): Promise<Uint8Array[]> => {
  const [proof] = await proveInclusions([index], size, readNodes);
  return proof as Uint8Array[];
};

/** The proof that the tree of `newer` leaves extends that of `older`, 0 < older ≤ newer (RFC 6962, 2.1.2). One read; at most 54 hashes. */
export const proveConsistency = async (older: number, newer: number, readNodes: ReadNodes): Promise<Uint8Array[]> => {
  if (!isCount(older) || !isCount(newer) || older === 0 || older > newer)
    throw new RangeError(`no consistency proof from size ${older} to size ${newer}`);
  return hashRanges(consistencyRanges(older, newer), readNodes);
};
