import { cpSync, mkdtempSync, readFileSync, renameSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { type BatchDoc, emptyHead } from "@curfew/auditor/domain.ts";
import { publishTiles } from "@curfew/auditor/public-log/tile-log.ts";
import { bound, clock, growBy, origin, quiet, seal, signer, verifierKey } from "@curfew/auditor/testing/rig.ts";
import { openLogDirectory } from "@curfew/cli/read-log.ts";
import { openDirectory } from "@curfew/ledger/directory.ts";
import { decodeBundle, encodeBundle } from "@curfew/ledger/entry-bundle.ts";
import { growLog } from "@curfew/ledger/log.test-data.ts";
import { signNote } from "@curfew/ledger/note.ts";
import { parsePolicy } from "@curfew/ledger/policy.ts";
import { tilePath, tilesAt } from "@curfew/ledger/tile.ts";
import { emptyEdge } from "@curfew/ledger/tile-writer.ts";
import { Frontier } from "@curfew/ledger/tree.ts";
import { type LogBroken, readCheckpoint, verifyLog } from "@curfew/ledger/verify-log.ts";
import { systemRandom } from "@curfew/runtime/random.ts";
import { memoryStore } from "@curfew/simulation/memory-store.ts";
import { afterAll, beforeAll, describe, expect, it, vi } from "vitest";
import { builtTools, fsck, policyOf, type Tree, tlogcheck } from "../tools/tools.ts";

/**
 * A ledger that the auditor's publisher wrote, corrupted in every way that is known to have deceived a verifier: the pair of others notices
 * what it is known to notice, and ours misses nothing.
 */

const [small, large] = [69_950, 70_001];
const policy = policyOf(verifierKey);
const scratch = mkdtempSync(join(tmpdir(), "curfew-corruption-"));
const log = join(scratch, "log");
const copy = join(scratch, "copy");
let checkpointBefore = "";
let before: Tree;
let now: Tree;

/** What a checkpoint claims, whoever signed it. */
const claimed = (dir: string): Tree => {
  const [, size = "", root = ""] = readFileSync(join(dir, "checkpoint"), "utf8").split("\n");
  return { size: Number(size), root };
};

beforeAll(async () => {
  await builtTools("verify");
  const batches = await memoryStore().collection<BatchDoc>("batches");
  const files = openDirectory(log, { clock, random: systemRandom });
  const latest = () => Number.POSITIVE_INFINITY;
  const stop = new AbortController();
  const publishing = publishTiles({ files: () => files, batches, latest, seal, clock, log: quiet }, stop.signal);
  const grownTo = (size: number) =>
    vi.waitFor(async () => expect((await files.read("checkpoint")) && claimed(log).size).toBe(size), bound);
  const head = await growBy(batches, emptyHead, small);
  await grownTo(small);
  checkpointBefore = readFileSync(join(log, "checkpoint"), "utf8");
  before = claimed(log);
  await growBy(batches, head, large - small);
  await grownTo(large);
  now = claimed(log);
  stop.abort();
  await publishing;
});
afterAll(() => rmSync(scratch, { recursive: true, force: true }));

const file = (path: string) => join(copy, path);
const alter = (path: string, change: (bytes: Buffer) => Uint8Array) => {
  const bytes = readFileSync(file(path));
  const changed = change(Buffer.from(bytes));
  if (bytes.equals(changed)) throw new Error(`${path} is as it was: there is nothing to notice`);
  writeFileSync(file(path), changed);
};
const flip = (path: string, at: number) =>
  alter(path, (bytes) => {
    bytes.writeUInt8(bytes.readUInt8(at) ^ 1, at);
    return bytes;
  });
const widthOf = (path: string) => Number(/\.p\/(\d+)$/.exec(path)?.[1] ?? 256);
const entriesIn = (path: string) => decodeBundle(readFileSync(file(path)), widthOf(path));
const alterEntries = (path: string, change: (entries: Uint8Array[]) => Uint8Array[]) =>
  writeFileSync(file(path), Buffer.concat(change(entriesIn(path)).map((entry) => encodeBundle([entry]))));
const flipEntry = (path: string, at: number) =>
  alterEntries(path, (entries) => {
    const entry = entries[at] as Uint8Array;
    entry[20] = (entry[20] as number) ^ 1;
    return entries;
  });
const cut = (path: string, bytes: number) => alter(path, (all) => all.subarray(0, all.length - bytes));
const lengthen = (path: string, bytes: number) => alter(path, (all) => Buffer.concat([all, all.subarray(0, bytes)]));
const swapped = <T>(items: T[], a: number, b: number): T[] => items.with(a, items[b] as T).with(b, items[a] as T);
const swapHashes = (path: string, a: number, b: number) =>
  alter(path, (bytes) => {
    const hashes = Array.from({ length: bytes.length / 32 }, (_, i) => bytes.subarray(i * 32, (i + 1) * 32));
    return Buffer.concat(swapped(hashes, a, b));
  });
const swapFiles = (a: string, b: string) => {
  renameSync(file(a), file("aside"));
  renameSync(file(b), file(a));
  renameSync(file("aside"), file(b));
};
/** As whoever has the signing key would. */
const resign = (size: string, root: string, line = origin) =>
  writeFileSync(file("checkpoint"), signNote(`${line}\n${size}\n${root}\n`, [signer]));

/** Another entry 5, and everything above it made again and signed: by itself as sound as the log. */
const fork = () => {
  const entries = [...tilesAt(large)]
    .filter(({ level }) => level === "entries")
    .flatMap((address) => entriesIn(tilePath(address)));
  const { files, frontier } = growLog(emptyEdge, new Frontier(), entries.with(5, Buffer.from("another")));
  for (const { path, bytes } of files) writeFileSync(file(path), bytes);
  resign(String(large), Buffer.from(frontier.root()).toString("base64"));
};

const ours = async (remembered: readonly Tree[]): Promise<string> => {
  const { read } = await openLogDirectory(copy);
  try {
    const { opened } = await readCheckpoint(read, parsePolicy(policy));
    const trees = remembered.map(({ size, root }) => ({ size, root: Buffer.from(root, "base64") }));
    await verifyLog({ read, tree: opened, remembered: trees });
    return "sound";
  } catch (error) {
    return `${(error as LogBroken).file}: ${(error as Error).message}`;
  }
};

interface Corruption {
  readonly what: string;
  readonly corrupt: () => void;
  /** What ours says; it says it without a memory too, unless `onlyWithMemory`. */
  readonly says: string;
  /** What it says with a memory, where that is something else. */
  readonly saysRemembering?: string;
  /** Default: noticed. */
  readonly passesFsck?: true;
  /** By none of them without what was seen before. */
  readonly onlyWithMemory?: true;
}

const bundleAt = (at: string) => `tile/entries/${at}`;
const [partialBundle, partialTile] = ["tile/entries/273.p/113", "tile/0/273.p/113"];

// Hash 100, level-0 tile 100: of those that golang.org/x/mod before v0.40.0 left unchecked.
const corruptions: readonly Corruption[] = [
  ...["000", "100", "272"].map((at) => ({
    what: `a bit in full bundle ${at}`,
    corrupt: () => flipEntry(bundleAt(at), 31),
    says: `${bundleAt(at)}: entry ${Number(at) * 256 + 31} is not what tile/0/${at} has the hash of`,
  })),
  {
    what: "a bit in the partial bundle",
    corrupt: () => flipEntry(partialBundle, 3),
    says: `${partialBundle}: entry 69891 is not what`,
  },
  { what: "a length in the partial bundle", corrupt: () => flip(partialBundle, 1), says: `${partialBundle}: entry ` },
  {
    what: "a bit in an L0 tile",
    corrupt: () => flip("tile/0/100", 100 * 32),
    says: "tile/0/100: its hash 100 is not that of entry 25700 in tile/entries/100",
  },
  {
    what: "a bit in each of twenty L0 tiles",
    corrupt: () => {
      for (let tile = 100; tile < 120; tile += 1) flip(`tile/0/${tile}`, 100 * 32);
    },
    says: "tile/0/100: its hash 100 is not",
  },
  {
    what: "a bit in the L1 tile",
    corrupt: () => flip("tile/1/000", 100 * 32),
    says: "tile/1/000: its hash 100 is not that of tile/0/100",
  },
  ...[partialTile, "tile/1/001.p/17", "tile/2/000.p/1"].map((path) => ({
    what: `a bit in ${path}`,
    corrupt: () => flip(path, 5),
    says: `${path}: its hash 0 is not`,
  })),
  { what: "an L0 tile cut in half", corrupt: () => cut("tile/0/050", 4096), says: "tile/0/050: it has 4096 bytes" },
  { what: "an L0 tile a byte short", corrupt: () => cut("tile/0/050", 1), says: "tile/0/050: it has 8191 bytes" },
  { what: "an L0 tile a hash longer", corrupt: () => lengthen("tile/0/050", 32), says: "tile/0/050: it is longer" },
  { what: "an empty L1 tile", corrupt: () => cut("tile/1/000", 8192), says: "tile/1/000: it has 0 bytes" },
  {
    what: "a hash too many on an L0 partial tile",
    corrupt: () => lengthen(partialTile, 32),
    passesFsck: true,
    says: `${partialTile}: it is longer than 3616 bytes`,
  },
  {
    what: "a bundle cut inside an entry",
    corrupt: () => cut(bundleAt("100"), 5),
    says: `${bundleAt("100")}: entry 256 of 256 ends within its bytes`,
  },
  {
    what: "the last entry of a bundle missing",
    corrupt: () => alterEntries(bundleAt("100"), (entries) => entries.slice(0, -1)),
    says: `${bundleAt("100")}: entry 256 of 256 is missing`,
  },
  ...[bundleAt("100"), partialBundle].map((path) => ({
    what: `an entry too many in ${path}`,
    corrupt: () => alterEntries(path, (entries) => [...entries, ...entries.slice(0, 1)]),
    passesFsck: true as const,
    says: `${path}: `,
  })),
  {
    what: "one byte too many in a bundle",
    corrupt: () => lengthen(partialBundle, 1),
    says: `${partialBundle}: 1 surplus bytes after entry 113 of 113`,
  },
  ...[partialTile, "tile/1/001.p/17", "tile/2/000.p/1", "tile/0/100", bundleAt("100"), partialBundle].map((path) => ({
    what: `${path} deleted`,
    corrupt: () => rmSync(file(path)),
    says: `${path}: it is missing`,
  })),
  ...[
    ["size", () => now.size.toString(), () => "70002"],
    ["root", () => now.root.slice(0, 8), () => before.root.slice(0, 8)],
    ["origin", () => origin, () => "test.example/other"],
    [
      "signature",
      // The signature's bytes change with its eighth character from the end, whichever of base64's it is.
      () => /(.)(.{6}\n)$/,
      () => (_: string, a: string, rest: string) => `${a === "A" ? "B" : "A"}${rest}`,
    ],
  ].map(([what, from, to]) => ({
    what: `the checkpoint's ${what}, not signed again`,
    corrupt: () =>
      alter("checkpoint", (bytes) =>
        Buffer.from(bytes.toString().replace((from as () => string)(), (to as () => string)())),
      ),
    says: "checkpoint: ",
  })),
  {
    what: "another root, signed",
    corrupt: () => resign(String(large), before.root),
    says: "checkpoint: its root is not that of the 70001 entries",
  },
  {
    what: "one entry fewer, signed",
    corrupt: () => resign("70000", now.root),
    says: "273.p/112: it is missing",
    saysRemembering: "checkpoint: rollback: it is of 70000 entries",
  },
  { what: "one entry more, signed", corrupt: () => resign("70002", now.root), says: "273.p/114: it is missing" },
  {
    what: "another origin, signed",
    corrupt: () => resign(String(large), now.root, "test.example/other"),
    says: "checkpoint: no log of the policy has signed",
  },
  {
    what: "a size with a leading zero, signed",
    corrupt: () => resign("070001", now.root),
    passesFsck: true,
    says: "checkpoint: a checkpoint's size is a canonical decimal",
  },
  {
    what: "two entries swapped",
    corrupt: () => alterEntries(bundleAt("100"), (entries) => swapped(entries, 3, 100)),
    says: `${bundleAt("100")}: entry 25603 is not what tile/0/100 has the hash of`,
  },
  {
    what: "two bundles swapped",
    corrupt: () => swapFiles(bundleAt("100"), bundleAt("101")),
    says: `${bundleAt("100")}: entry 25600 is not what`,
  },
  {
    what: "two entries swapped in bundle and L0 tile",
    corrupt: () => {
      alterEntries(bundleAt("100"), (entries) => swapped(entries, 3, 100));
      swapHashes("tile/0/100", 3, 100);
    },
    says: "tile/0/100: it is not what tile/1/000 has the hash of",
  },
  {
    what: "a bit in a partial tile of a size before",
    corrupt: () => flip("tile/0/273.p/62", 5),
    onlyWithMemory: true,
    says: `tile/0/273.p/62: it is not what the log had there at its size of 69950`,
  },
  {
    what: "a bit in a partial bundle of a size before",
    corrupt: () => flipEntry("tile/entries/273.p/62", 3),
    onlyWithMemory: true,
    says: "tile/entries/273.p/62: it is not what the log had there",
  },
  { what: "a fork, signed", corrupt: fork, onlyWithMemory: true, says: "checkpoint: fork: its first 69950 entries" },
  {
    what: "a rollback",
    corrupt: () => writeFileSync(file("checkpoint"), checkpointBefore),
    onlyWithMemory: true,
    says: "checkpoint: rollback: it is of 69950 entries, and one of 70001 was seen before",
  },
];

/** Whether the pair says no, knowing what was seen before: each also reads the log as it was then, by the checkpoint of then. */
const pairNotices = async (): Promise<boolean> => {
  const verdicts = [
    await fsck(copy, verifierKey, now),
    await tlogcheck.log(copy, policy, now),
    await tlogcheck.log(copy, policy, before),
  ];
  if (verdicts.some(({ sound }) => !sound)) return true;
  writeFileSync(file("checkpoint"), checkpointBefore);
  const then = [await fsck(copy, verifierKey, before), await tlogcheck.log(copy, policy, before)];
  return then.every(({ sound }) => !sound);
};

describe("our ledger's files", () => {
  it("are sound", async () => {
    cpSync(log, copy, { recursive: true });
    expect(await fsck(copy, verifierKey, now)).toMatchObject({ sound: true });
    expect(await tlogcheck.log(copy, policy, before)).toMatchObject({ sound: true });
    expect(await ours([before, now])).toBe("sound");
  });

  it.each(corruptions)(
    "with $what are refused",
    async ({ corrupt, says, saysRemembering = says, passesFsck, onlyWithMemory }) => {
      rmSync(copy, { recursive: true, force: true });
      cpSync(log, copy, { recursive: true });
      corrupt();
      expect(await ours([before, now])).toContain(saysRemembering);
      expect(await ours([])).toContain(onlyWithMemory ? "sound" : says);
      // By itself, of what the checkpoint claims; what they pass was measured, and shows that the corruption is the one that is meant.
      const tree = claimed(copy);
      expect((await fsck(copy, verifierKey, tree)).sound).toBe(passesFsck ?? onlyWithMemory ?? false);
      expect((await tlogcheck.log(copy, policy)).sound).toBe(onlyWithMemory ?? false);
      expect(await pairNotices()).toBe(true);
    },
  );
});
