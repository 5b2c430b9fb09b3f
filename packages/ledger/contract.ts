import { afterEach, describe, expect, it } from "vitest";
import type { LogFiles } from "./directory.ts";
import type { TileFile } from "./tile-writer.ts";

/** What every place where a log's files are kept must do. `open` gives a new, empty place; `again` the same one, as another process has it. */
export const logFilesContract = (
  name: string,
  open: () => Promise<{ files: LogFiles; again: () => LogFiles; close?: () => Promise<void> }>,
): void => {
  const bytes = (text: string) => Buffer.from(text);
  const closers: (() => Promise<void>)[] = [];
  const opened = async () => {
    const place = await open();
    if (place.close) closers.push(place.close);
    return place;
  };

  describe(`the files of a log: ${name}`, () => {
    afterEach(async () => {
      for (const close of closers.splice(0)) await close();
    });

    it("are kept under their paths and replaced whole, as another process sees them too", async () => {
      const { files, again } = await opened();
      expect(await files.read("checkpoint")).toBeUndefined();
      expect(await files.read("tile/0/x001/000.p/3")).toBeUndefined();
      await files.write([{ path: "tile/0/x001/000.p/3", bytes: bytes("abc") }]);
      await files.write([{ path: "checkpoint", bytes: bytes("one") }]);
      await files.write([{ path: "checkpoint", bytes: bytes("two") }]);
      expect(await files.read("checkpoint")).toEqual(bytes("two"));
      expect(await again().read("tile/0/x001/000.p/3")).toEqual(bytes("abc"));
    });

    it("come back to the byte, the largest bundle too", async () => {
      const { files, again } = await opened();
      const bundle = Buffer.alloc(256 * 65_537, 7).map((byte, i) => byte + (i % 251));
      const binary = Buffer.from(Array.from({ length: 256 }, (_, i) => i));
      await files.write([
        { path: "tile/entries/x001/x234/067", bytes: bundle },
        { path: "tile/entries/000.p/1", bytes: binary },
      ]);
      expect(Buffer.compare((await again().read("tile/entries/x001/x234/067")) ?? bytes(""), bundle)).toBe(0);
      expect(await files.read("tile/entries/000.p/1")).toEqual(binary);
    });

    it("a full tile takes the place of its partial ones, and of no other's", async () => {
      const { files } = await opened();
      const partials = [1, 2, 255].map((width) => ({ path: `tile/0/000.p/${width}`, bytes: bytes("x") }));
      await files.write([...partials, { path: "tile/0/001.p/1", bytes: bytes("next") }]);
      await files.write([{ path: "tile/0/000", bytes: bytes("full") }]);
      for (const { path } of partials) expect(await files.read(path)).toBeUndefined();
      expect(await files.read("tile/0/000")).toEqual(bytes("full"));
      expect(await files.read("tile/0/001.p/1")).toEqual(bytes("next"));
    });

    it("may be written again, and by several at once", async () => {
      const { files, again } = await opened();
      const written: TileFile[] = [
        { path: "tile/0/000", bytes: bytes("h".repeat(8192)) },
        { path: "tile/entries/000", bytes: bytes("e".repeat(70_000)) },
        { path: "tile/0/001.p/9", bytes: bytes("p".repeat(288)) },
        { path: "checkpoint", bytes: bytes("same") },
      ];
      await files.write(written);
      await Promise.all([files.write(written), again().write(written), again().write(written)]);
      for (const { path, bytes: expected } of written) expect(await again().read(path)).toEqual(expected);
    });

    it("are old or new to who reads while they are replaced, never a mix", async () => {
      const { files, again } = await opened();
      const versions = ["a", "b"].map((letter) => bytes(letter.repeat(100_000)));
      const write = (n: number) => files.write([{ path: "checkpoint", bytes: versions[n % 2] as Buffer }]);
      await write(0);
      let over = false;
      const reading = (async () => {
        const seen: Uint8Array[] = [];
        while (!over) seen.push((await again().read("checkpoint")) ?? bytes("absent"));
        return seen;
      })();
      for (let n = 1; n < 40; n += 1) await write(n);
      over = true;
      const seen = await reading;
      expect(seen.length).toBeGreaterThan(0);
      for (const each of seen) expect(versions.some((version) => Buffer.compare(version, each) === 0)).toBe(true);
    });

    it("are written in their order: what comes behind one that cannot be is not there", async () => {
      const { files } = await opened();
      const broken = {
        path: "tile/0/000",
        get bytes(): Uint8Array {
          throw new Error("no bytes");
        },
      };
      const before = { path: "tile/entries/000.p/1", bytes: bytes("before") };
      await expect(files.write([before, broken, { path: "checkpoint", bytes: bytes("behind") }])).rejects.toThrow(
        "no bytes",
      );
      expect(await files.read("tile/entries/000.p/1")).toEqual(bytes("before"));
      expect(await files.read("tile/0/000")).toBeUndefined();
      expect(await files.read("checkpoint")).toBeUndefined();
    });

    it.each(["../secret", "tile/0/../../secret", "tile/0/001.p/256", "/etc/passwd", "seal", "", "tile/0/000?x"])(
      "%j is no file of a log: it is neither read nor written",
      async (path) => {
        const { files } = await opened();
        await expect(files.read(path)).rejects.toThrow(/a (partial )?tile/);
        await expect(files.write([{ path, bytes: bytes("y") }])).rejects.toThrow(/a (partial )?tile/);
      },
    );
  });
};
