import fc from "fast-check";
import { expect, test } from "vitest";
import { edgeSizes } from "./log.test-data.ts";
import { NoteError } from "./note-error.ts";
import { decodeTile, encodeTile, parseTilePath, type TileAddress, tilePath, tilesAt, tilesWritten } from "./tile.ts";
import { vectors } from "./vectors.test-data.ts";

const paths = (tiles: Iterable<TileAddress>) => [...tiles].map(tilePath);

test("paths are those of the reference vectors", () => {
  expect(Object.keys(vectors.tile_paths).length).toBe(5);
  for (const [index, path] of Object.entries(vectors.tile_paths)) {
    expect(tilePath({ level: 0, index: Number(index), width: 256 })).toBe(`tile/0/${path}`);
    expect(tilePath({ level: 63, index: Number(index), width: 1 })).toBe(`tile/63/${path}.p/1`);
    expect(tilePath({ level: "entries", index: Number(index), width: 255 })).toBe(`tile/entries/${path}.p/255`);
  }
});

test("every address is read back, and every path that is read is the one that is written", () => {
  const address = fc.record({
    level: fc.oneof(fc.constant("entries" as const), fc.integer({ min: 0, max: 63 })),
    index: fc.maxSafeNat(),
    width: fc.integer({ min: 1, max: 256 }),
  });
  fc.assert(
    fc.property(address, (tile) => {
      expect(parseTilePath(tilePath(tile))).toEqual(tile);
    }),
  );
  const piece = fc.constantFrom(
    "tile",
    "/",
    "entries",
    "0",
    "63",
    "x000",
    "x001",
    "234",
    "067",
    ".p/",
    "1",
    "256",
    "\n",
  );
  const text = fc.array(fc.oneof({ weight: 9, arbitrary: piece }, fc.string())).map((parts) => parts.join(""));
  fc.assert(
    fc.property(text, (path) => {
      try {
        expect(tilePath(parseTilePath(path))).toBe(path);
      } catch (error) {
        expect(error).toBeInstanceOf(NoteError);
      }
    }),
    { numRuns: 5000 },
  );
});

test("any other path is refused, for what is wrong with it", () => {
  const form = "a tile's path is";
  const bad: [string, string][] = [
    ["", form],
    ["tile/0/000\n", form],
    ["/tile/0/000", form],
    ["tile/0/000/", form],
    ["tile/0//000", form],
    ["tile/8/0/000", form],
    ["tile/data/000", form],
    ["tile/0/0", form],
    ["tile/0/0000", form],
    ["tile/0/001/000", form],
    ["tile/0/x001", form],
    ["tile/0/X001/000", form],
    ["tile/0/x001/x000", form],
    ["tile/0/000.p", form],
    ["tile/0/000.p/", form],
    ["tile/0/000.p/1000", form],
    ["tile/0/000.p/+1", form],
    ["tile/0/../000", form],
    ["tile/-1/000", form],
    ["tile/0/٠٠٠", form],
    [`tile/0/${"x001/".repeat(40)}000`, form],
    ["tile/00/000", "level"],
    ["tile/01/000", "level"],
    ["tile/64/000", "level"],
    ["tile/0/x000/001", "groups"],
    ["tile/0/x000/x001/000", "groups"],
    ["tile/0/x009/x007/x199/x254/x740/992", "2^53"],
    ["tile/0/x009/x223/x372/x036/x854/x775/808", "2^53"],
    ["tile/0/000.p/0", "width"],
    ["tile/0/000.p/01", "width"],
    ["tile/0/000.p/256", "width"],
    ["tile/entries/000.p/256", "width"],
  ];
  for (const [path, rule] of bad) {
    expect(() => parseTilePath(path), path).toThrow(NoteError);
    expect(() => parseTilePath(path), path).toThrow(rule);
  }
  for (const tile of [
    { level: 64, index: 0, width: 1 },
    { level: -1, index: 0, width: 1 },
    { level: 0, index: -1, width: 1 },
    { level: 0, index: 2 ** 53, width: 1 },
    { level: 0, index: 0.5, width: 1 },
    { level: 0, index: 0, width: 0 },
    { level: 0, index: 0, width: 257 },
  ])
    expect(() => tilePath(tile)).toThrow(RangeError);
});

test("a tree has the tiles of the specification", () => {
  expect(paths(tilesAt(0))).toEqual([]);
  expect(paths(tilesAt(1))).toEqual(["tile/entries/000.p/1", "tile/0/000.p/1"]);
  expect(paths(tilesAt(256))).toEqual(["tile/entries/000", "tile/0/000", "tile/1/000.p/1"]);
  // The specification's own example.
  const all = paths(tilesAt(70_000)).filter((path) => !path.includes("entries"));
  expect(all.filter((path) => /^tile\/0\/\d+$/.test(path))).toHaveLength(273);
  expect(all.slice(273)).toEqual(["tile/0/273.p/112", "tile/1/000", "tile/1/001.p/17", "tile/2/000.p/1"]);
  expect(
    paths(
      tilesAt(2 ** 53 - 1)
        [Symbol.iterator]()
        .take(1),
    ),
  ).toEqual(["tile/entries/000"]);
});

test("growth writes what the newer tree has and the older one has not", () => {
  expect(paths(tilesWritten(70_000, 70_000))).toEqual([]);
  expect(paths(tilesWritten(70_000, 70_001))).toEqual(["tile/entries/273.p/113", "tile/0/273.p/113"]);
  const count = fc.oneof(fc.nat(1000), fc.integer({ min: 65_000, max: 66_500 }), fc.constantFrom(...edgeSizes));
  fc.assert(
    fc.property(count, count, (a, b) => {
      const [older, newer] = [Math.min(a, b), Math.max(a, b)];
      const had = new Set(paths(tilesAt(older)));
      expect(paths(tilesWritten(older, newer))).toEqual(paths(tilesAt(newer)).filter((path) => !had.has(path)));
    }),
    { numRuns: 300 },
  );
  for (const [older, newer] of [
    [1, 0],
    [-1, 0],
    [0, 2 ** 53],
  ] as const)
    expect(() => [...tilesWritten(older, newer)]).toThrow(RangeError);
});

test("a tile is its hashes, exactly as many as it is wide", () => {
  const hash = fc.uint8Array({ minLength: 32, maxLength: 32 });
  fc.assert(
    fc.property(fc.array(hash, { minLength: 1, maxLength: 256 }), (hashes) => {
      const bytes = encodeTile(hashes);
      expect(bytes.length).toBe(32 * hashes.length);
      expect(Buffer.concat(decodeTile(bytes, hashes.length)).equals(bytes)).toBe(true);
      for (const length of [0, bytes.length - 1, bytes.length - 32, bytes.length + 1, bytes.length + 32])
        expect(() => decodeTile(new Uint8Array(length), hashes.length)).toThrow(NoteError);
    }),
    { numRuns: 30 },
  );
  expect(() => encodeTile([])).toThrow(RangeError);
  expect(() => encodeTile(Array(257).fill(new Uint8Array(32)))).toThrow(RangeError);
  expect(() => encodeTile([new Uint8Array(31)])).toThrow(RangeError);
});
