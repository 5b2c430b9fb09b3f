import { generateKeyPairSync } from "node:crypto";
import { describe, expect, it } from "vitest";
import { formatCheckpoint, signCheckpoint } from "./checkpoint.ts";
import { emptyRoot } from "./hash.ts";
import { edgeSizes, entryOf, writeLog } from "./log.test-data.ts";
import { signNote } from "./note.ts";
import { NoteError } from "./note-error.ts";
import { cosignerKeyText, noteCosigner, noteSigner, verifierKeyText } from "./note-key.ts";
import { parsePolicy } from "./policy.ts";
import { type LogBroken, type ReadLogFile, readCheckpoint, verifyLog } from "./verify-log.ts";

const pair = generateKeyPairSync("ed25519");
const origin = "log.example/verified";
const signer = noteSigner(origin, pair.privateKey);
const policy = parsePolicy(`log ${verifierKeyText(origin, pair.publicKey)}\nquorum none\n`);

const readerOf =
  (files: ReadonlyMap<string, Uint8Array>): ReadLogFile =>
  async (path, mostBytes) => {
    const bytes = files.get(path);
    if (bytes && bytes.length > mostBytes) throw new NoteError(`it is longer than ${mostBytes} bytes`);
    return bytes;
  };

const log = writeLog([69_000, 70_000, 70_500]);
const tree = { size: 70_500, root: log.rootAt(70_500) };
const older = { size: 70_000, root: log.rootAt(70_000) };

type Files = Map<string, Uint8Array>;
const alter = (files: Files, path: string, change: (bytes: Buffer) => Uint8Array) =>
  files.set(path, change(Buffer.from(files.get(path) as Uint8Array)));
const flip = (at: number) => (bytes: Buffer) => {
  bytes.writeUInt8(bytes.readUInt8(at) ^ 1, at);
  return bytes;
};
/** Of bundles and tiles alike: an entry with its length has as many bytes as a hash. */
const recordBytes = 32;
const swap = (bytes: Buffer) => {
  const third = Buffer.from(bytes.subarray(3 * recordBytes, 4 * recordBytes));
  bytes.copy(bytes, 3 * recordBytes, 5 * recordBytes, 6 * recordBytes);
  third.copy(bytes, 5 * recordBytes);
  return bytes;
};
const longer = (by: number) => (bytes: Buffer) => Buffer.concat([bytes, bytes.subarray(0, by)]);
const shorter = (by: number) => (bytes: Buffer) => bytes.subarray(0, bytes.length - by);

const verdictOn = (damage: (files: Files) => void, remembered = [older]) => {
  const files = new Map(log.files);
  damage(files);
  return verifyLog({ read: readerOf(files), tree, remembered }).then(
    () => "sound",
    (error: LogBroken) => `${error.file}: ${error.message}`,
  );
};

describe("a log is verified", () => {
  it.each(edgeSizes)("of %i entries, each entry told of once and in order", async (size) => {
    const { read, rootAt } = writeLog(size === 0 ? [] : [size]);
    const told: number[] = [];
    const done: number[] = [];
    await verifyLog({
      read: async (path) => read(path),
      tree: { size, root: size === 0 ? emptyRoot() : rootAt(size) },
      onEntries: (first, entries) => {
        for (const [i, entry] of entries.entries()) {
          expect(Buffer.compare(entry, entryOf(first + i))).toBe(0);
          told.push(first + i);
        }
      },
      progress: (entries) => done.push(entries),
    });
    expect(told).toEqual(Array.from({ length: size }, (_, i) => i));
    expect(done.at(-1) ?? 0).toBe(size);
  });

  it("with what it was before, at every size that it had published", async () => {
    const remembered = [0, 69_000, 70_000, 70_500].map((size) => ({
      size,
      root: size === 0 ? Buffer.alloc(32) : log.rootAt(size),
    }));
    expect(await verdictOn(() => undefined, remembered)).toBe("sound");
  });

  it("with full tiles in place of partial ones that they replaced", async () => {
    const grown = writeLog([69_000, 70_000, 70_500, 80_000]);
    const files = new Map([...grown.files].filter(([path]) => !/^tile\/(0|entries)\/27\d\.p/.test(path)));
    await verifyLog({ read: readerOf(files), tree, remembered: [older] });
  });

  it("holding few files at once", async () => {
    let [open, most] = [0, 0];
    const read: ReadLogFile = async (path) => {
      open += 1;
      most = Math.max(most, open);
      await new Promise(setImmediate);
      open -= 1;
      return log.read(path);
    };
    await verifyLog({ read, tree, ahead: 3 });
    expect(most).toBe(4);
  });
});

describe("a log is refused, and the file named", () => {
  it.each<[string, (files: Files) => void, string]>([
    ...[0, 100, 274].map((bundle): [string, (files: Files) => void, string] => {
      const name = String(bundle).padStart(3, "0");
      const what = `tile/entries/${name}: entry ${bundle * 256 + 7} is not what tile/0/${name} has the hash of`;
      return [
        `a bit of an entry in bundle ${name}`,
        (f) => alter(f, `tile/entries/${name}`, flip(7 * recordBytes + 9)),
        what,
      ];
    }),
    [
      "a bit of an entry in the partial bundle",
      (f) => alter(f, "tile/entries/275.p/100", flip(9)),
      "tile/entries/275.p/100: entry 70400 is not what tile/0/275.p/100 has the hash of",
    ],
    ["a length", (f) => alter(f, "tile/entries/275.p/100", flip(1)), "tile/entries/275.p/100: entry "],
    [
      "a bit of a level-0 tile",
      (f) => alter(f, "tile/0/100", flip(100 * 32)),
      "tile/0/100: its hash 100 is not that of entry 25700 in tile/entries/100",
    ],
    [
      "a bit of a level-1 tile",
      (f) => alter(f, "tile/1/000", flip(100 * 32)),
      "tile/1/000: its hash 100 is not that of tile/0/100",
    ],
    [
      "a bit of the level-0 partial tile",
      (f) => alter(f, "tile/0/275.p/100", flip(40)),
      "tile/0/275.p/100: its hash 1 ",
    ],
    ["a bit of the level-1 partial tile", (f) => alter(f, "tile/1/001.p/19", flip(40)), "tile/1/001.p/19: its hash 1 "],
    ["a bit of the level-2 partial tile", (f) => alter(f, "tile/2/000.p/1", flip(4)), "tile/2/000.p/1: its hash 0 "],
    [
      "twenty tiles",
      (f) => {
        for (let tile = 100; tile < 120; tile += 1) alter(f, `tile/0/${tile}`, flip(0));
      },
      "tile/0/100: its hash 0 ",
    ],
    [
      "a tile cut in half",
      (f) => alter(f, "tile/0/050", shorter(4096)),
      "tile/0/050: it has 4096 bytes, and must have 8192",
    ],
    ["a tile a byte short", (f) => alter(f, "tile/0/050", shorter(1)), "tile/0/050: it has 8191 bytes"],
    ["an empty tile", (f) => alter(f, "tile/1/000", shorter(8192)), "tile/1/000: it has 0 bytes"],
    ["a hash too many", (f) => alter(f, "tile/0/050", longer(32)), "tile/0/050: it is longer than 8192 bytes"],
    [
      "a hash too many in a partial tile",
      (f) => alter(f, "tile/0/275.p/100", longer(32)),
      "tile/0/275.p/100: it is longer than 3200",
    ],
    [
      "a bundle cut within an entry",
      (f) => alter(f, "tile/entries/100", shorter(5)),
      "tile/entries/100: entry 256 of 256 ends within its bytes",
    ],
    [
      "the last entry missing",
      (f) => alter(f, "tile/entries/100", shorter(32)),
      "tile/entries/100: entry 256 of 256 is missing",
    ],
    ["an entry too many", (f) => alter(f, "tile/entries/100", longer(32)), "tile/entries/100: 32 surplus bytes"],
    [
      "an entry too many at the edge",
      (f) => alter(f, "tile/entries/275.p/100", longer(32)),
      "tile/entries/275.p/100: 32 surplus bytes",
    ],
    [
      "one byte too many",
      (f) => alter(f, "tile/entries/275.p/100", longer(1)),
      "tile/entries/275.p/100: 1 surplus bytes",
    ],
    ...[
      "tile/0/275.p/100",
      "tile/1/001.p/19",
      "tile/2/000.p/1",
      "tile/0/100",
      "tile/entries/100",
      "tile/entries/275.p/100",
    ].map((path): [string, (files: Files) => void, string] => [
      `${path} deleted`,
      (f) => f.delete(path),
      `${path}: it is missing`,
    ]),
    ["two entries swapped", (f) => alter(f, "tile/entries/100", swap), "tile/entries/100: entry 25603 is not what"],
    [
      "two entries swapped in bundle and tile",
      (f) => {
        alter(f, "tile/entries/100", swap);
        alter(f, "tile/0/100", swap);
      },
      "tile/0/100: it is not what tile/1/000 has the hash of",
    ],
    [
      "two bundles swapped",
      (f) => {
        const [a, b] = ["tile/entries/100", "tile/entries/101"].map((path) => f.get(path) as Uint8Array);
        f.set("tile/entries/101", a as Uint8Array).set("tile/entries/100", b as Uint8Array);
      },
      "tile/entries/100: entry 25600 is not what",
    ],
    [
      "a bit of a partial tile of a remembered size",
      (f) => alter(f, "tile/0/273.p/112", flip(0)),
      "tile/0/273.p/112: it is not what the log had there at its size of 70000",
    ],
    [
      "a bit of a partial bundle of a remembered size",
      (f) => alter(f, "tile/entries/273.p/112", flip(9)),
      "tile/entries/273.p/112: it is not what the log had",
    ],
  ])("%s", async (_what, damage, why) => {
    expect(await verdictOn(damage)).toContain(why);
  });
});

describe("of a log that is sound in itself", () => {
  const verdict = (now: { size: number; root: Uint8Array }, files: ReadonlyMap<string, Uint8Array>) =>
    verifyLog({ read: readerOf(files), tree: now, remembered: [{ size: 0, root: emptyRoot() }, older, tree] });

  it("a rollback is named, before anything else is read", async () => {
    await expect(verdict(older, new Map())).rejects.toMatchObject({
      file: "checkpoint",
      message: "rollback: it is of 70000 entries, and one of 70500 was seen before",
    });
  });

  const forked = (at: number, size: number) =>
    writeLog([size], (i) => (i === at ? Buffer.from("entry 0000000x of the test log") : entryOf(i)));

  it.each([
    ["an early entry", 5, "fork: its first 70000 entries are not"],
    ["an entry after the first tree that was seen", 70_400, "fork: its first 70500 entries are not"],
  ])("a fork is named: %s", async (_what, at, message) => {
    const fork = forked(at, 70_500);
    const files = new Map([...log.files, ...fork.files]);
    await expect(verdict({ size: 70_500, root: fork.rootAt(70_500) }, files)).rejects.toMatchObject({
      file: "checkpoint",
      message: expect.stringContaining(message),
    });
  });

  it("a partial tile that was published, and stands in no full one, must stay", async () => {
    const small = { size: 70_450, root: writeLog([70_450]).rootAt(70_450) };
    await expect(verifyLog({ read: readerOf(log.files), tree, remembered: [small] })).rejects.toMatchObject({
      file: "tile/entries/275.p/50",
      message: "it is missing",
    });
  });
});

describe("a log's checkpoint", () => {
  const read = (checkpoint: string | undefined, by = policy) =>
    readCheckpoint(async () => (checkpoint === undefined ? undefined : Buffer.from(checkpoint)), by);
  const signed = signCheckpoint({ origin, ...tree }, [signer]);
  const resigned = (from: string | RegExp, to: string) =>
    signNote(formatCheckpoint({ origin, ...tree }).replace(from, to), [signer]);

  it("is believed as the policy says", async () => {
    const { size, root } = tree;
    expect(await read(signed)).toMatchObject({
      opened: { size, root: Buffer.from(root) },
      note: signed,
      witnesses: [],
    });
  });

  it.each([
    ["without one", undefined, "NotALog", "there is no file checkpoint in it"],
    ["that is no note", "<html>\n", "NotALog", "its checkpoint is no signed note: "],
    ["with another size", signed.replace("70500", "70501"), "LogBroken", "a signature of a known key does not hold"],
    ["re-signed with a leading zero", resigned("70500", "070500"), "LogBroken", "a canonical decimal below 2^53"],
    ["re-signed with a size of 2^53", resigned("70500", "9007199254740992"), "LogBroken", "below 2^53"],
    ["re-signed with a size of 2^63", resigned("70500", "9223372036854775808"), "LogBroken", "below 2^53"],
    ["re-signed as of another log", resigned(origin, "log.example/other"), "LogBroken", "no log of the policy"],
    ["re-signed with a fourth line", resigned(/$/, "more\n"), "LogBroken", "three lines"],
  ])("is refused %s", async (_what, checkpoint, name, message) => {
    await expect(read(checkpoint)).rejects.toMatchObject({ name, message: expect.stringContaining(message) });
  });

  it("is refused without its quorum", async () => {
    const witnesses = ["w1", "w2"].map((name) => ({ name, key: generateKeyPairSync("ed25519") }));
    const lines = witnesses.map(({ name, key }) => `witness ${name} ${cosignerKeyText(name, key.publicKey)}\n`);
    const own = `log ${verifierKeyText(origin, pair.publicKey)}\n`;
    const both = parsePolicy(`${own}${lines.join("")}group both all w1 w2\nquorum both\n`);
    const cosigners = witnesses.map(({ name, key }) => noteCosigner(name, key.privateKey, 1_795_000_000));
    const by = (...signers: typeof cosigners) => signCheckpoint({ origin, ...tree }, [signer, ...signers]);
    await expect(read(signed, both)).rejects.toThrow("the policy's quorum has not cosigned it: nobody has");
    await expect(read(by(...cosigners.slice(0, 1)), both)).rejects.toThrow("has not cosigned it: w1 has");
    expect(await read(by(...cosigners), both)).toMatchObject({ quorum: true });
  });

  it.each([
    ["another root", { ...tree, root: older.root }, "checkpoint: its root is not that of the 70500 entries"],
    ["one entry fewer", { ...tree, size: 70_499 }, "tile/entries/275.p/99: it is missing"],
    ["one entry more", { ...tree, size: 70_501 }, "tile/entries/275.p/101: it is missing"],
    ["2^53 - 1 entries", { ...tree, size: Number.MAX_SAFE_INTEGER }, "tile/entries/275: it is missing"],
  ])("re-signed with %s is refused by the files", async (_what, claimed, why) => {
    const said = await verifyLog({ read: readerOf(log.files), tree: claimed }).catch(
      (error: LogBroken) => `${error.file}: ${error.message}`,
    );
    expect(said).toContain(why);
  });
});
