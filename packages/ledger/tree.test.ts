import fc from "fast-check";
import { expect, test } from "vitest";
import { emptyRoot, isHash, leafHash, MAX_ENTRY_BYTES, nodeHash } from "./hash.ts";
import { verifyConsistency, verifyInclusion } from "./proof.ts";
import {
  Frontier,
  frontierNodes,
  type NodeAddress,
  proveConsistency,
  proveInclusion,
  proveInclusions,
  treeRoot,
} from "./tree.ts";
import { hex, vectors } from "./vectors.test-data.ts";

const bytes = (text: string) => Buffer.from(text, "hex");

/** A tree in memory: frontier, every node it completed, its leaves. */
const build = (leaves: readonly Uint8Array[]) => {
  const nodes = new Map<string, Uint8Array>();
  const frontier = new Frontier();
  for (const leaf of leaves)
    frontier.append(leaf, (level, index, hash) => {
      expect(nodes.has(`${level}/${index}`), "a stored node is written once").toBe(false);
      nodes.set(`${level}/${index}`, hash);
    });
  const read = (wanted: readonly NodeAddress[]) =>
    wanted.map(({ level, index }) => {
      const hash = nodes.get(`${level}/${index}`);
      if (hash === undefined) throw new Error(`node ${level}/${index} is not complete`);
      return hash;
    });
  return { frontier, nodes, read };
};

// RFC 6962 word for word: recursive, from the leaves, none of our code but the two hashes.
const k = (n: number): number => 2 ** (Math.ceil(Math.log2(n)) - 1);
const naiveRoot = (d: readonly Uint8Array[]): Uint8Array => {
  const [only] = d;
  if (only === undefined) return emptyRoot();
  if (d.length === 1) return only;
  return nodeHash(naiveRoot(d.slice(0, k(d.length))), naiveRoot(d.slice(k(d.length))));
};
const naivePath = (m: number, d: readonly Uint8Array[]): Uint8Array[] => {
  if (d.length <= 1) return [];
  const [left, right] = [d.slice(0, k(d.length)), d.slice(k(d.length))];
  return m < left.length
    ? [...naivePath(m, left), naiveRoot(right)]
    : [...naivePath(m - left.length, right), naiveRoot(left)];
};
const naiveSubproof = (m: number, d: readonly Uint8Array[], whole: boolean): Uint8Array[] => {
  if (m === d.length) return whole ? [] : [naiveRoot(d)];
  const [left, right] = [d.slice(0, k(d.length)), d.slice(k(d.length))];
  return m <= left.length
    ? [...naiveSubproof(m, left, whole), naiveRoot(right)]
    : [...naiveSubproof(m - left.length, right, false), naiveRoot(left)];
};

test("leaf hashes and roots of every size are those of the reference vectors", async () => {
  const leaves = vectors.leaves_hex.map((leaf) => leafHash(bytes(leaf)));
  expect(leaves.map(hex)).toEqual(vectors.leaf_hashes);
  const { frontier, read } = build(leaves);
  expect(hex(frontier.root())).toBe("5dc9da79a70659a9ad559cb701ded9a2ab9d823aad2f4960cfe370eff4604328");
  for (const [size, root] of vectors.roots_by_size.entries()) {
    expect(hex(build(leaves.slice(0, size)).frontier.root())).toBe(root);
    expect(hex(await treeRoot(size, read))).toBe(root);
  }
  const words = build(["one", "two", "three"].map((word) => leafHash(Buffer.from(word))));
  expect(Buffer.from(words.frontier.root()).toString("base64")).toBe("Wqx3HImawpLnS/Gv4ubjAvi1WIOy0b8Ze0amvqbavKk=");
});

test("proofs made and proofs verified are those of the reference vectors", async () => {
  const leaves = vectors.leaf_hashes.map(bytes);
  const root = (size: number) => bytes(vectors.roots_by_size[size] ?? "");
  const { read } = build(leaves);
  expect(vectors.inclusion.length + vectors.consistency.length).toBe(72);
  for (const { index, size, proof } of vectors.inclusion) {
    expect((await proveInclusion(index, size, read)).map(hex)).toEqual(proof);
    expect(verifyInclusion(index, size, leaves[index] ?? root(0), proof.map(bytes), root(size))).toBe(true);
  }
  for (const { old, new: size, proof } of vectors.consistency) {
    expect((await proveConsistency(old, size, read)).map(hex)).toEqual(proof);
    expect(verifyConsistency(old, size, proof.map(bytes), root(old), root(size))).toBe(true);
  }
});

test("every proof of every tree up to 70 leaves, and of one of 300, equals the recursive definition and verifies", async () => {
  const all = Array.from({ length: 300 }, (_, i) => leafHash(Buffer.from(`entry ${i}`)));
  const { read } = build(all);
  const roots = all.map((_, i) => naiveRoot(all.slice(0, i + 1)));
  for (const size of [...Array.from({ length: 70 }, (_, i) => i + 1), 255, 256, 257, 300]) {
    const leaves = all.slice(0, size);
    const root = roots[size - 1] ?? emptyRoot();
    expect(await treeRoot(size, read)).toEqual(root);
    for (const [i, leaf] of leaves.entries()) {
      const path = await proveInclusion(i, size, read);
      expect(path).toEqual(naivePath(i, leaves));
      if (!verifyInclusion(i, size, leaf, path, root)) expect.fail(`inclusion ${i} of ${size}`);
      const proof = await proveConsistency(i + 1, size, read);
      expect(proof).toEqual(naiveSubproof(i + 1, leaves, true));
      if (!verifyConsistency(i + 1, size, proof, roots[i] ?? emptyRoot(), root)) expect.fail(`${i + 1} to ${size}`);
    }
  }
});

const anyTree = fc
  .array(fc.uint8Array({ maxLength: 40 }), { minLength: 1, maxLength: 300 })
  .map((entries) => entries.map(leafHash));

test("a frontier written down and read back, also out of stored nodes, goes on like the one that never stopped", async () => {
  const property = fc.asyncProperty(anyTree, fc.nat(), async (leaves, at) => {
    const stop = at % (leaves.length + 1);
    const { read, frontier } = build(leaves);
    const early = build(leaves.slice(0, stop)).frontier;
    expect(read(frontierNodes(stop))).toEqual(early.hashes);
    const resumed = new Frontier(stop, early.hashes);
    const tried = early.copy();
    for (const leaf of leaves.slice(stop)) {
      resumed.append(leaf);
      tried.append(leaf);
    }
    expect(resumed.hashes).toEqual(frontier.hashes);
    expect(resumed.root()).toEqual(naiveRoot(leaves));
    expect(tried.root()).toEqual(frontier.root());
    expect(early.root()).toEqual(naiveRoot(leaves.slice(0, stop)));
  });
  await fc.assert(property, { numRuns: 60 });
});

test("the proofs of many leaves are those of each, by one read", async () => {
  const property = fc.asyncProperty(anyTree, fc.array(fc.nat(), { maxLength: 20 }), async (leaves, picks) => {
    const { read } = build(leaves);
    const indexes = picks.map((pick) => pick % leaves.length);
    let reads = 0;
    const counted = (wanted: readonly NodeAddress[]) => {
      reads += 1;
      return read(wanted);
    };
    const each = await Promise.all(indexes.map((index) => proveInclusion(index, leaves.length, read)));
    expect(await proveInclusions(indexes, leaves.length, counted)).toEqual(each);
    expect(reads).toBeLessThanOrEqual(1);
  });
  await fc.assert(property, { numRuns: 60 });
});

test("a proof with anything about it changed does not verify", async () => {
  const property = fc.asyncProperty(anyTree, fc.nat(), fc.nat(), fc.nat(), async (leaves, a, b, bit) => {
    const size = leaves.length;
    const { read, frontier } = build(leaves);
    const root = frontier.root();
    const index = a % size;
    const leaf = leaves[index] ?? root;
    const flip = (hash: Uint8Array) => hash.map((byte, i) => (i === (bit >> 3) % 32 ? byte ^ (1 << (bit & 7)) : byte));
    const broken = (proof: readonly Uint8Array[]) => [
      ...proof.map((_, i) => proof.map((hash, j) => (i === j ? flip(hash) : hash))),
      ...proof.map((_, i) => proof.toSpliced(i, 1)),
      [...proof, leaf],
      [root, ...proof],
    ];
    const path = await proveInclusion(index, size, read);
    for (const bad of broken(path)) expect(verifyInclusion(index, size, leaf, bad, root)).toBe(false);
    expect(verifyInclusion(index, size, flip(leaf), path, root)).toBe(false);
    expect(verifyInclusion(index, size, leaf, path, flip(root))).toBe(false);
    expect(verifyInclusion(size, size, leaf, path, root)).toBe(false);

    const older = 1 + (b % size);
    const proof = await proveConsistency(older, size, read);
    const olderRoot = naiveRoot(leaves.slice(0, older));
    for (const bad of broken(proof)) expect(verifyConsistency(older, size, bad, olderRoot, root)).toBe(false);
    expect(verifyConsistency(older, size, proof, flip(olderRoot), root)).toBe(false);
    expect(verifyConsistency(older, size, proof, olderRoot, flip(root))).toBe(false);
  });
  await fc.assert(property, { numRuns: 60 });
});

test("a history that changed before the older size has no consistency proof", async () => {
  const property = fc.asyncProperty(anyTree, fc.nat(), fc.nat(), async (leaves, a, b) => {
    const older = 1 + (a % leaves.length);
    const changed = leaves.with(b % older, leafHash(Buffer.alloc(100, 7)));
    const olderRoot = naiveRoot(leaves.slice(0, older));
    const { read, frontier } = build(changed);
    const proof = await proveConsistency(older, leaves.length, read);
    expect(verifyConsistency(older, leaves.length, proof, olderRoot, frontier.root())).toBe(false);
  });
  await fc.assert(property, { numRuns: 60 });
});

test("a proof longer than its tree is deep is refused, even where the hashes work out", async () => {
  const leaves = ["one", "two", "three", "four", "five"].map((word) => leafHash(Buffer.from(word)));
  const { read, frontier } = build(leaves);
  const extra = leafHash(Buffer.from("extra"));
  const path = await proveInclusion(4, 5, read);
  const [leaf = extra] = leaves.slice(4);
  expect(verifyInclusion(4, 5, leaf, path, frontier.root())).toBe(true);
  expect(verifyInclusion(4, 5, leaf, [...path, extra], nodeHash(extra, frontier.root()))).toBe(false);
  const proof = await proveConsistency(3, 5, read);
  const older = naiveRoot(leaves.slice(0, 3));
  expect(verifyConsistency(3, 5, proof, older, frontier.root())).toBe(true);
  const [higherOlder, higherNewer] = [nodeHash(extra, older), nodeHash(extra, frontier.root())];
  expect(verifyConsistency(3, 5, [...proof, extra], higherOlder, higherNewer)).toBe(false);
});

test("hostile proofs are refused without an exception", () => {
  const h = emptyRoot();
  const junk = [
    null,
    undefined,
    "x",
    {},
    [null],
    new Array(3),
    [new Uint8Array(31)],
    ["a".repeat(32)],
    Array(64).fill(h),
  ];
  const wrong = [-1, 1.5, Number.NaN, Number.POSITIVE_INFINITY, 2 ** 53, "1", 1n, null, undefined];
  for (const bad of junk as never[]) {
    expect(verifyInclusion(1, 8, h, bad, h)).toBe(false);
    expect(verifyConsistency(3, 8, bad, h, h)).toBe(false);
    expect(verifyInclusion(0, 1, bad, [], h)).toBe(false);
    expect(verifyInclusion(0, 1, h, [], bad)).toBe(false);
    expect(verifyConsistency(1, 1, [], bad, bad)).toBe(false);
  }
  for (const bad of wrong as never[]) {
    expect(verifyInclusion(bad, 8, h, [h, h, h], h)).toBe(false);
    expect(verifyInclusion(0, bad, h, [], h)).toBe(false);
    expect(verifyConsistency(bad, 8, [h], h, h)).toBe(false);
    expect(verifyConsistency(1, bad, [h], h, h)).toBe(false);
  }
  expect(verifyConsistency(0, 8, [], h, h)).toBe(false);
  expect(verifyConsistency(0, 0, [], h, h)).toBe(false);
  expect(verifyConsistency(9, 8, [], h, h)).toBe(false);
  expect(verifyConsistency(3, 8, [], h, h)).toBe(false);
});

test("sizes past 2^31 are counted exactly", async () => {
  const size = 2 ** 40 + 2 ** 33 + 5;
  const node = ({ level, index }: NodeAddress) => leafHash(Buffer.from(`${level}/${index}`));
  const read = (wanted: readonly NodeAddress[]) => wanted.map(node);
  const frontier = new Frontier(size, read(frontierNodes(size)));
  expect(frontier.hashes.length).toBe(4);
  const last = size - 1;
  const proof = await proveInclusion(last, size, read);
  expect(verifyInclusion(last, size, node({ level: 0, index: last }), proof, frontier.root())).toBe(true);
  expect(verifyInclusion(last - 2 ** 32, size, node({ level: 0, index: last }), proof, frontier.root())).toBe(false);
  const before = new Frontier(2 ** 40 + 2 ** 33, read(frontierNodes(2 ** 40 + 2 ** 33)));
  const extension = await proveConsistency(before.size, size, read);
  expect(verifyConsistency(before.size, size, extension, before.root(), frontier.root())).toBe(true);
});

test("what cannot be right is refused, and leaves the frontier as it was", async () => {
  const frontier = new Frontier();
  frontier.append(leafHash(Buffer.from("one")));
  const before = frontier.root();
  expect(() => frontier.append(new Uint8Array(31))).toThrow(RangeError);
  expect(frontier.root()).toEqual(before);
  expect(frontier.size).toBe(1);
  expect(() => new Frontier(3, [before])).toThrow(RangeError);
  expect(() => new Frontier(1, [new Uint8Array(5)])).toThrow(RangeError);
  expect(() => new Frontier(-1)).toThrow(RangeError);
  expect(isHash(leafHash(new Uint8Array(MAX_ENTRY_BYTES)))).toBe(true);
  expect(() => leafHash(new Uint8Array(MAX_ENTRY_BYTES + 1))).toThrow(RangeError);
  await expect(proveInclusion(1, 1, () => [])).rejects.toThrow(RangeError);
  await expect(proveConsistency(0, 1, () => [])).rejects.toThrow(RangeError);
  await expect(proveInclusion(0, 2, () => [])).rejects.toThrow("node store");
  await expect(treeRoot(2, async () => [new Uint8Array(3)])).rejects.toThrow("node store");
});
