import fc from "fast-check";
import { describe, expect, test } from "vitest";
import { emptyRoot, leafHash, nodeHash } from "./hash.ts";
import { edgeSizes, entryOf, writeLog } from "./log.test-data.ts";
import { NoteError } from "./note-error.ts";
import { verifyConsistency, verifyInclusion } from "./proof.ts";
import { tilePath, tilesAt } from "./tile.ts";
import { tileNodes, verifiedNodes } from "./tile-nodes.ts";
import { proveConsistency, proveInclusion, treeRoot } from "./tree.ts";

const log = writeLog([...edgeSizes.slice(0, -1), 70_000, 70_001, 70_500]);
const sizes = [...edgeSizes, 70_500];
const leafAt = (i: number) => leafHash(entryOf(i));
const leafNode = (index: number) => [{ level: 0, index }];

describe("out of tiles alone", () => {
  test("the root of every size is made, and trusted only if it is the right one", async () => {
    for (const size of sizes) {
      expect(await treeRoot(size, tileNodes(size, log.read))).toEqual(log.rootAt(size));
      expect(await treeRoot(size, verifiedNodes(size, log.rootAt(size), log.read))).toEqual(log.rootAt(size));
      const other = verifiedNodes(
        size,
        leafAt(0).map((byte) => byte ^ 1),
        log.read,
      );
      if (size > 0) await expect(other(leafNode(0))).rejects.toThrow("partial tiles do not lead to the root");
    }
    expect(log.rootAt(0)).toEqual(emptyRoot());
  });

  test("proofs of every size are made and verify, from checked tiles as from others", async () => {
    for (const size of sizes.filter((n) => n > 0))
      for (const nodes of [tileNodes(size, log.read), verifiedNodes(size, log.rootAt(size), log.read)]) {
        const indexes = new Set([0, 1, 255, 256, 65_535, 65_536, size >> 1, size - 1].filter((i) => i < size));
        for (const index of indexes) {
          const proof = await proveInclusion(index, size, nodes);
          expect(verifyInclusion(index, size, leafAt(index), proof, log.rootAt(size)), `${index}/${size}`).toBe(true);
        }
        for (const older of sizes.filter((n) => n > 0 && n <= size)) {
          const proof = await proveConsistency(older, size, nodes);
          expect(verifyConsistency(older, size, proof, log.rootAt(older), log.rootAt(size))).toBe(true);
        }
      }
  });

  test("every node of a tree is there, at its level, and none that is not complete", async () => {
    const size = 65_537;
    const nodes = verifiedNodes(size, log.rootAt(size), log.read);
    let row = Array.from({ length: size }, (_, i) => leafAt(i));
    for (let level = 0; row.length > 0; level += 1) {
      const found = await nodes(row.map((_, index) => ({ level, index })));
      expect(Buffer.concat(found).equals(Buffer.concat(row)), `level ${level}`).toBe(true);
      await expect(async () => nodes([{ level, index: row.length }])).rejects.toThrow(RangeError);
      const below = row;
      row = Array.from({ length: below.length >> 1 }, (_, i) =>
        nodeHash(below[2 * i] as Uint8Array, below[2 * i + 1] as Uint8Array),
      );
    }
    for (const [level, index] of [
      [-1, 0],
      [0, -1],
      [0.5, 0],
      [17, 0],
      [2000, 0],
    ] as const)
      await expect(async () => nodes([{ level, index }])).rejects.toThrow(RangeError);
  });

  test("a proof reads each tile once, and a second one of the same tiles none at all", async () => {
    const read: string[] = [];
    const nodes = verifiedNodes(70_500, log.rootAt(70_500), (path) => {
      read.push(path);
      return log.read(path);
    });
    await proveInclusion(25_603, 70_500, nodes);
    expect(read.sort()).toEqual(["tile/0/100", "tile/0/275.p/100", "tile/1/000", "tile/1/001.p/19", "tile/2/000.p/1"]);
    await proveInclusion(25_604, 70_500, nodes);
    expect(read).toHaveLength(5);
  });

  test("a full tile serves where its partial one is gone, as far as the tree goes", async () => {
    const gone = (path: string) =>
      path === "tile/0/273.p/112" || path === "tile/0/273.p/113" ? undefined : log.read(path);
    for (const size of [70_000, 70_001]) {
      const nodes = verifiedNodes(size, log.rootAt(size), gone);
      expect(await nodes(leafNode(size - 1))).toEqual([leafAt(size - 1)]);
      await expect(async () => nodes(leafNode(size))).rejects.toThrow(RangeError);
    }
    const cut = (path: string) => (path === "tile/0/273" ? log.read(path)?.subarray(0, 112 * 32) : gone(path));
    const nodes = verifiedNodes(70_000, log.rootAt(70_000), cut);
    await expect(async () => nodes(leafNode(69_999))).rejects.toThrow(
      "tile/0/273: a tile 256 wide has 8192 bytes, not 3584",
    );
    const bare = verifiedNodes(70_000, log.rootAt(70_000), (path) => (path === "tile/0/273" ? undefined : gone(path)));
    await expect(async () => bare(leafNode(0))).rejects.toThrow("tile/0/273.p/112: missing");
  });
});

describe("tiles that nobody vouches for", () => {
  const size = 70_500;
  const root = log.rootAt(size);
  const flip = (bytes: Uint8Array, at: number, bit = 1) => bytes.map((byte, i) => (i === at ? byte ^ bit : byte));
  const lying = (changes: ReadonlyMap<string, Uint8Array | undefined>) =>
    verifiedNodes(size, root, (path) => (changes.has(path) ? changes.get(path) : log.read(path)));

  test("a bit flipped in any one of them is found by whoever asks for a node that it has", async () => {
    for (const tile of tilesAt(size)) {
      if (tile.level === "entries") continue;
      const path = tilePath(tile);
      const bytes = log.files.get(path) ?? Buffer.of();
      const node = { level: 8 * tile.level, index: 256 * tile.index + tile.width - 1 };
      for (const at of [0, bytes.length - 1]) {
        const nodes = lying(new Map([[path, flip(bytes, at)]]));
        await expect(async () => nodes([node]), path).rejects.toThrow(tile.width < 256 ? "partial tiles" : path);
        // And by whoever asks for a leaf below it.
        if (tile.level > 0)
          await expect(async () => nodes(leafNode(node.index * 256 ** Number(tile.level)))).rejects.toThrow(NoteError);
      }
    }
  });

  test("a change carried upwards is found at the first tile that it was not carried to (CVE-2026-56865)", async () => {
    const swap = (bytes: Uint8Array) =>
      Buffer.concat([bytes.subarray(32, 64), bytes.subarray(0, 32), bytes.subarray(64)]);
    const leaves = swap(log.files.get("tile/0/100") ?? Buffer.of());
    const tile = (bytes: Uint8Array) => {
      let row = Array.from({ length: 256 }, (_, i) => bytes.subarray(32 * i, 32 * i + 32));
      while (row.length > 1)
        row = row.filter((_, i) => i % 2 === 0).map((left, i) => nodeHash(left, row[2 * i + 1] as Uint8Array));
      return row[0] as Uint8Array;
    };
    const above = Buffer.from(log.files.get("tile/1/000") ?? "");
    above.set(tile(leaves), 100 * 32);
    const top = Buffer.from(tile(above));
    const changes = new Map<string, Uint8Array>([["tile/0/100", leaves]]);
    await expect(lying(changes)(leafNode(25_600))).rejects.toThrow("tile/0/100: not what the tile above it says");
    changes.set("tile/1/000", above);
    await expect(lying(changes)(leafNode(25_600))).rejects.toThrow("tile/1/000: not what the tile above it says");
    await expect(lying(changes)(leafNode(0))).rejects.toThrow("tile/1/000");
    changes.set("tile/2/000.p/1", top);
    await expect(lying(changes)(leafNode(0))).rejects.toThrow(
      "the partial tiles do not lead to the root of size 70500",
    );
  });

  test("one that is cut, lengthened, missing, or another one is refused", async () => {
    for (const path of ["tile/0/100", "tile/1/000", "tile/0/275.p/100", "tile/1/001.p/19", "tile/2/000.p/1"]) {
      const bytes = log.files.get(path) ?? Buffer.of();
      const other = log.files.get("tile/0/101")?.subarray(0, bytes.length);
      for (const change of [
        bytes.subarray(0, -1),
        bytes.subarray(32),
        Buffer.concat([bytes, bytes]),
        other,
        undefined,
        Buffer.of(),
      ])
        await expect(async () => lying(new Map([[path, change]]))(leafNode(25_600)), path).rejects.toThrow(NoteError);
    }
  });

  test("whatever is changed, a node is the true one or an error; and good tiles are read after bad ones", async () => {
    const paths = [...tilesAt(size)].filter(({ level }) => level !== "entries").map(tilePath);
    const truth = tileNodes(size, log.read);
    const change = fc.tuple(fc.constantFrom(...paths.slice(-12)), fc.nat(), fc.integer({ min: 1, max: 255 }));
    const property = fc.asyncProperty(
      fc.array(change, { minLength: 1, maxLength: 3 }),
      fc.array(fc.integer({ min: 267 * 256, max: size - 1 }), { minLength: 1, maxLength: 5 }),
      async (changed, wanted) => {
        const changes = new Map<string, Uint8Array>();
        for (const [path, at, bits] of changed) {
          const bytes = changes.get(path) ?? log.files.get(path) ?? Buffer.of();
          changes.set(path, flip(bytes, at % bytes.length, bits));
        }
        const nodes = lying(changes);
        for (const index of wanted)
          try {
            expect(await nodes(leafNode(index))).toEqual(await truth(leafNode(index)));
          } catch (error) {
            expect(error).toBeInstanceOf(NoteError);
          }
        changes.clear();
        for (const index of wanted) expect(await nodes(leafNode(index))).toEqual(await truth(leafNode(index)));
      },
    );
    await fc.assert(property, { numRuns: 100 });
  });
});
