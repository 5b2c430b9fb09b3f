import { execFileSync, spawnSync } from "node:child_process";
import { mkdtempSync, rmSync, truncateSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { deflateRawSync } from "node:zlib";
import { seededRandom } from "@curfew/simulation/seeded-random.ts";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { openTsa } from "../../test/tools/tsa.ts";
import { BundleBroken, NotABundle } from "./broken.ts";
import { sourceOf } from "./byte-source.ts";
import { draftName, entryName, file, MAX_FILE_BYTES, stampFiles } from "./layout.ts";
import { archiveOf, type Files, filesOf } from "./testing/archive.ts";
import { allOf, bytesOf, partsOf, policy, sampleLog, sampleRecords, stampOf, verifierKey } from "./testing/sample.ts";
import { openBundle } from "./verify-bundle.ts";
import { localHeader } from "./zip.ts";

const seed = 20_261_127;
const folder = mkdtempSync(join(tmpdir(), "curfew-fuzz-"));
afterAll(() => rmSync(folder, { recursive: true, force: true }));

const hasOpenssl = !process.env.ABSENT_PROGRAMS?.includes("openssl");
const log = sampleLog(sampleRecords(2));
let bundle: Buffer;
let files: Files;
beforeAll(async () => {
  const tsa = hasOpenssl ? await openTsa() : undefined;
  const stamp = tsa && (await stampOf(log, 3, tsa));
  tsa?.close();
  bundle = await bytesOf({ ...partsOf(log, allOf(log)), stamp: async () => stamp });
  files = await filesOf(bundle);
});

/** Why a bundle is refused; "" when it is not. Anything else than a refusal with a reason fails the test. */
const refusalOf = (bytes: Uint8Array): Promise<string> =>
  openBundle(sourceOf(bytes), policy).then(
    () => "",
    (error: unknown) => {
      if (error instanceof BundleBroken || error instanceof NotABundle) return error.message;
      throw error;
    },
  );

const changed = (bytes: Uint8Array, at: number, by = 1): Buffer => {
  const copy = Buffer.from(bytes);
  copy[at] = (copy[at] as number) ^ by;
  return copy;
};
const with16 = (bytes: Uint8Array, at: number, value: number): Buffer => {
  const copy = Buffer.from(bytes);
  copy.writeUInt16LE(value, at);
  return copy;
};

/** The archive put together anew around each file with one bit of it changed. */
const changedInside = () =>
  files.map(([name, bytes], i) => {
    const other: Files[number] = [name, changed(bytes, bytes.length >> 1)];
    return [name, archiveOf(files.with(i, other))] as const;
  });

describe("a changed bundle", () => {
  it(`is refused whichever byte was changed (seed ${seed})`, async () => {
    const random = seededRandom(seed);
    const passed: number[] = [];
    for (let at = 0; at < bundle.length; at += 1)
      if ((await refusalOf(changed(bundle, at, 1 + random.below(255)))) === "") passed.push(at);
    expect(passed).toEqual([]);
    expect(await refusalOf(bundle)).toBe("");
  }, 180_000);

  it(`is refused wherever it was cut, or grew by a byte (seed ${seed})`, async () => {
    const random = seededRandom(seed);
    for (let round = 0; round < 400; round += 1) {
      const at = random.below(bundle.length);
      expect(await refusalOf(bundle.subarray(0, at))).not.toBe("");
      const grown = [bundle.subarray(0, at), random.bytes(1), bundle.subarray(at)];
      expect(await refusalOf(Buffer.concat(grown))).not.toBe("");
    }
  });

  it("is refused, naming the file, when it was put together anew around a changed file", async () => {
    for (const [name, other] of changedInside())
      expect(await refusalOf(other)).toMatch(name === file.manifest ? file.note : name);
  });

  it.skipIf(/python3|openssl/.test(process.env.ABSENT_PROGRAMS ?? ""))(
    "is refused by the script too, whichever file was changed (needs python3)",
    () => {
      for (const [name, other] of changedInside()) {
        const path = join(folder, "changed.zip");
        writeFileSync(path, other);
        const script = spawnSync("python3", [join(import.meta.dirname, "verify.py"), path, verifierKey], {
          encoding: "utf8",
        });
        expect({ name, status: script.status }).toEqual({ name, status: 1 });
        expect(script.stderr).toMatch(/^NOT VERIFIED: /);
      }
    },
    180_000,
  );

  it.runIf(hasOpenssl)("has a timestamp, whose files are changed like all others (needs openssl)", () => {
    expect(files.map(([name]) => name)).toEqual(expect.arrayContaining([...stampFiles]));
  });

  it("is refused without one of its files, with a file twice, and with any two in each other's place", async () => {
    for (const [i, [name]] of files.entries()) {
      expect(await refusalOf(archiveOf(files.toSpliced(i, 1)))).not.toBe("");
      expect(await refusalOf(archiveOf(files.toSpliced(i, 0, files[i] as Files[number])))).toBe(
        `${name}: stands twice`,
      );
    }
    const random = seededRandom(seed);
    for (let round = 0; round < 50; round += 1) {
      const [a, b] = [random.below(files.length), random.below(files.length)];
      if (a === b) continue;
      const swapped = files.with(a, files[b] as Files[number]).with(b, files[a] as Files[number]);
      expect(await refusalOf(archiveOf(swapped))).not.toBe("");
    }
  });

  it("is refused with a file under a name that could lead elsewhere, or that no bundle has", async () => {
    const names = [
      "../../etc/passwd",
      "/etc/passwd",
      "C:\\windows",
      "entries/../../x",
      "entries\\0000000000000000.bin",
      "entries/0000000000000000.bin/x",
      "entries/00000000000000009.bin",
      "entries/9999999999999999.bin",
      "extra.txt",
      "MANIFEST.json",
      "décodé.json",
      "",
    ];
    const refused = /has a name that no file of a bundle has|has too long a name/;
    for (const name of [...names, "a".repeat(60_000)])
      expect(await refusalOf(archiveOf([...files, [name, Buffer.from("x")]]))).toMatch(refused);
  });

  it("is refused with a second entry that is sound by itself, and with one that nobody listed", async () => {
    const [, leaf = Buffer.alloc(0)] = files.find(([name]) => name === entryName(0)) ?? [];
    const at = files.findIndex(([name]) => name === draftName(3));
    const surplus = archiveOf(files.toSpliced(at, 0, [entryName(77), leaf]));
    expect(await refusalOf(surplus)).toBe(`${entryName(77)}: manifest.json has ${draftName(3)} in its place`);
  });
});

describe("an archive with tricks", () => {
  const first = () => files[0] as Files[number];

  it("is refused when its headers say more or other than they need to", async () => {
    const directory = bundle.indexOf("PK\x01\x02");
    const tricks: readonly (readonly [Buffer, RegExp])[] = [
      [with16(bundle, 6, 1), /VERIFY.md: its header has flags: it is encrypted/],
      [with16(bundle, 6, 8), /states its size behind its bytes/],
      [with16(bundle, 8, 8), /is compressed/],
      [with16(bundle, 10, 0x6000), /carries a date/],
      [with16(bundle, 4, 45), /another version of the format/],
      [with16(bundle, 18, 1), /states two sizes/],
      [with16(bundle, 28, 4), /carries an extra field/],
      // In the directory only: a symlink's mode, a comment's length, another disk.
      [with16(bundle, directory + 40, 0o120777), /VERIFY.md: its entry in the directory/],
      [with16(bundle, directory + 32, 5), /VERIFY.md: its entry in the directory/],
      [with16(bundle, directory + 34, 1), /VERIFY.md: its entry in the directory/],
      [with16(bundle, bundle.length - 2, 3), /the record that ends the archive/],
      [Buffer.concat([bundle, Buffer.from("!")]), /1 surplus bytes after the end/],
      [Buffer.concat([bundle, bundle]), /surplus bytes after the end/],
      [Buffer.concat([Buffer.from("#!/bin/sh\n"), bundle]), /not an evidence bundle/],
    ];
    for (const [bytes, reason] of tricks) expect(await refusalOf(bytes)).toMatch(reason);
  });

  it("is refused when a file says to be larger than a bundle's may be, or than the archive is", async () => {
    const [name, bytes] = first();
    const stated = (size: number) => Buffer.concat([localHeader({ name, size, crc: 0 }), bytes]);
    expect(await refusalOf(stated(0xffff_ffff))).toMatch(
      `VERIFY.md: says to have 4294967295 bytes, over ${MAX_FILE_BYTES}`,
    );
    expect(await refusalOf(stated(MAX_FILE_BYTES))).toBe("VERIFY.md: the archive ends within it");
  });

  it.skipIf(process.env.ABSENT_PROGRAMS?.includes("python3"))(
    "is refused when it was written by another program, even of the same files",
    async () => {
      const path = join(folder, "other.zip");
      const source = join(folder, "bundle.zip");
      writeFileSync(source, bundle);
      const python = `
import sys, zipfile
with zipfile.ZipFile(sys.argv[1]) as old, zipfile.ZipFile(sys.argv[2], "w", zipfile.ZIP_DEFLATED) as new:
    for info in old.infolist(): new.writestr(info.filename, old.read(info))`;
      execFileSync("python3", ["-c", python, source, path]);
      execFileSync("python3", ["-m", "zipfile", "-t", path]);
      const { verdict } = inChild(path);
      expect(verdict).toMatch(/VERIFY.md: its header/);
    },
  );

  it("costs bounded memory: bombs, a file of 2 GB, and more files than there may be", () => {
    const path = join(folder, "bomb.zip");
    const [name, bytes] = first();
    const bomb = deflateRawSync(Buffer.alloc(256 * 2 ** 20));
    const declared = with16(localHeader({ name, size: bomb.length, crc: 0 }), 8, 8);
    declared.writeUInt32LE(256 * 2 ** 20, 22);
    const undeclared = with16(with16(localHeader({ name, size: 0, crc: 0 }), 8, 8), 6, 8);
    const large = localHeader({ name: file.script, size: 2 ** 31 - 2 ** 20, crc: 0 });
    const begin = archiveOf([[name, bytes]]).subarray(0, 30 + name.length + bytes.length);
    const empty = Array.from({ length: 65_600 }, (_, i) => localHeader({ name: entryName(i), size: 0, crc: 0 }));
    const cases: readonly (readonly [Uint8Array, number, RegExp])[] = [
      [Buffer.concat([declared, bomb]), 0, /its header/],
      [Buffer.concat([undeclared, bomb]), 0, /its header/],
      [Buffer.concat([begin, large]), 2 ** 31 - 1, /verify.py: says to have/],
      [
        Buffer.concat([begin, localHeader({ name: file.script, size: MAX_FILE_BYTES, crc: 0 })]),
        MAX_FILE_BYTES * 2,
        /verify.py: its bytes were changed/,
      ],
      [Buffer.concat([begin, ...empty]), 0, /more than 65534 files/],
    ];
    for (const [head, size, reason] of cases) {
      writeFileSync(path, head);
      if (size > 0) truncateSync(path, size);
      const { verdict, maxRssKiB } = inChild(path);
      expect(verdict).toMatch(reason);
      expect(maxRssKiB).toBeLessThan(256 * 1024);
    }
  });
});

it("a bundle of 500 MB is written, and read again, in bounded memory", () => {
  const path = join(folder, "large.zip");
  const child = join(import.meta.dirname, "testing/write-child.ts");
  const written = JSON.parse(execFileSync(process.execPath, [child, path, "8000"], { encoding: "utf8" }));
  expect(written.bytes).toBeGreaterThan(500_000_000);
  expect(written.maxRssKiB).toBeLessThan(420 * 1024);
  const { verdict, maxRssKiB } = inChild(path);
  // Its tree is made up: that is found after every byte was read.
  expect(verdict).toMatch(/checkpoints\/consistency: the tree of checkpoint does not begin with/);
  expect(maxRssKiB).toBeLessThan(256 * 1024);
}, 180_000);

const inChild = (path: string): { verdict: string; maxRssKiB: number } =>
  JSON.parse(
    execFileSync(process.execPath, [join(import.meta.dirname, "testing/open-child.ts"), path], { encoding: "utf8" }),
  );
