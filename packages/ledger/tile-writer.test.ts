import fc from "fast-check";
import { describe, expect, test } from "vitest";
import { decodeBundle, encodeBundle } from "./entry-bundle.ts";
import { emptyRoot, leafHash } from "./hash.ts";
import { edgeSizes, entryOf, growLog, writeLog } from "./log.test-data.ts";
import { NoteError } from "./note-error.ts";
import { type TileAddress, tilePath, tilesAt, tilesWritten } from "./tile.ts";
import { emptyEdge, growTiles, readEdge } from "./tile-writer.ts";
import { Frontier } from "./tree.ts";

const paths = (tiles: Iterable<TileAddress>) => [...tiles].map(tilePath).sort();
const base64 = (bytes: Uint8Array) => Buffer.from(bytes).toString("base64");

const log = writeLog([...edgeSizes.slice(0, -1), 70_000, 70_001, 70_500]);

test("roots are those that Tessera's driver computed over the same entries", () => {
  expect(base64(log.rootAt(70_000))).toBe("Nvok6ZFdG1Gp/WLnS5WsDH6I41oWuF/PW4be+VKsgNU=");
  expect(base64(log.rootAt(70_500))).toBe("yidZRepb1smfBbLnpxRhHI0yTq71qlroN/hvmEE+Ovk=");
});

test("the files are those of every published size, and no others", () => {
  const published = [...edgeSizes, 70_000, 70_500];
  const wanted = new Set(published.flatMap((size) => paths(tilesAt(size))));
  expect([...log.files.keys()].sort()).toEqual([...wanted].sort());
  for (const [path, bytes] of log.files) {
    const [, index = "", width = "256"] = /^tile\/entries\/([0-9]+)(?:\.p\/([0-9]+))?$/.exec(path) ?? [];
    if (index === "") continue;
    const entries = Array.from({ length: Number(width) }, (_, i) => entryOf(Number(index) * 256 + i));
    expect(encodeBundle(entries).equals(bytes), path).toBe(true);
    expect(Buffer.concat(entries.map(leafHash)).equals(log.files.get(path.replace("entries", "0")) ?? bytes)).toBe(
      true,
    );
  }
});

describe("growth", () => {
  test("however a log is cut into batches, the files of a size have the same bytes", () => {
    fc.assert(
      fc.property(fc.array(fc.integer({ min: 0, max: 1000 }), { minLength: 1, maxLength: 8 }), (batches) => {
        let size = 0;
        let before = 0;
        const sizes = batches.map((batch) => (size += batch));
        const ours = writeLog([...new Set(sizes)]);
        for (const at of new Set(sizes)) {
          const direct = writeLog([at]);
          for (const path of paths(tilesAt(at))) expect(ours.files.get(path), path).toEqual(direct.files.get(path));
          expect(ours.edgeAt(at)).toEqual(direct.edgeAt(at));
          for (const path of paths(tilesWritten(before, at))) expect(ours.files.has(path)).toBe(true);
          before = at;
        }
      }),
      { numRuns: 15 },
    );
  });

  test("a writer that starts again from the files goes on as the one that never stopped", async () => {
    for (const size of edgeSizes) {
      const edge = await readEdge(size, log.rootAt(size), log.read);
      expect(edge).toEqual(log.edgeAt(size));
    }
  });

  test("nothing grows by nothing", () => {
    expect(growTiles(emptyEdge, [], [])).toEqual({ files: [], edge: emptyEdge });
    expect(growTiles(log.edgeAt(257), [], [])).toEqual({ files: [], edge: log.edgeAt(257) });
  });

  test("nodes that are not those of the leaves are refused, and an entry too long", () => {
    const leaf = leafHash(entryOf(0));
    expect(() => growTiles(emptyEdge, [entryOf(0)], [])).toThrow(RangeError);
    expect(() => growTiles(emptyEdge, [entryOf(0)], [leaf, leaf])).toThrow(RangeError);
    expect(() => growTiles(emptyEdge, [entryOf(0)], [leaf.subarray(1)])).toThrow(RangeError);
    expect(() => growTiles(log.edgeAt(255), [entryOf(255)], [leaf])).toThrow(RangeError);
    expect(() => growTiles(emptyEdge, [new Uint8Array(65_536)], [leaf])).toThrow(RangeError);
  });
});

describe("the edge", () => {
  test("is read from full tiles where the partial ones are gone", async () => {
    const gone = new Set(paths(tilesAt(257)).filter((path) => path.includes(".p/")));
    const read = (path: string) => (gone.has(path) ? undefined : log.read(path));
    expect(await readEdge(257, log.rootAt(257), read)).toEqual(log.edgeAt(257));
  });

  test("any byte of it changed, lost or added is found", async () => {
    for (const size of [257, 65_537, 70_001])
      for (const path of paths(tilesAt(size)).filter((name) => name.includes(".p/"))) {
        const bytes = Buffer.from(log.files.get(path) ?? "");
        const changes = [
          bytes.map((byte, i) => (i === bytes.length - 1 ? byte ^ 1 : byte)),
          bytes.subarray(0, -1),
          bytes.subarray(0, -32),
          Buffer.concat([bytes, Buffer.of(0)]),
        ];
        for (const changed of changes) {
          const read = (name: string) => (name === path ? changed : log.read(name));
          await expect(readEdge(size, log.rootAt(size), read), path).rejects.toThrow(NoteError);
        }
      }
    await expect(readEdge(257, log.rootAt(256), log.read)).rejects.toThrow("root");
    await expect(readEdge(0, log.rootAt(1), log.read)).rejects.toThrow("root");
    expect(await readEdge(0, emptyRoot(), log.read)).toEqual(emptyEdge);
    await expect(
      readEdge(258, log.rootAt(257), (path) => (/p\/2$/.test(path) ? undefined : log.read(path))),
    ).rejects.toThrow(NoteError);
  });
});

test("entries from nothing to the longest are written and read back", () => {
  const leaves = [new Uint8Array(), new Uint8Array(65_535).fill(1), Buffer.from("x")];
  const { files } = growLog(emptyEdge, new Frontier(), leaves);
  expect(files.map(({ path }) => path)).toEqual(["tile/entries/000.p/3", "tile/0/000.p/3"]);
  expect(decodeBundle(files[0]?.bytes ?? Buffer.of(), 3).map((entry) => entry.length)).toEqual([0, 65_535, 1]);
});
