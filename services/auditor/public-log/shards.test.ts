import { generateKeyPairSync } from "node:crypto";
import { existsSync, mkdtempSync, readdirSync, readFileSync, rmSync, symlinkSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { DriftCause } from "@curfew/contracts/gen/curfew/events/v1/evidence_pb.ts";
import type { LogFiles } from "@curfew/ledger/directory.ts";
import { formatSignature, parseNote } from "@curfew/ledger/note.ts";
import { noteCosigner } from "@curfew/ledger/note-key.ts";
import { verifyLog } from "@curfew/ledger/verify-log.ts";
import { systemRandom } from "@curfew/runtime/random.ts";
import { memoryStore } from "@curfew/simulation/memory-store.ts";
import { afterEach, beforeEach, describe, expect, it } from "vitest";
import { curfew } from "../../../test/tools/curfew.ts";
import { reverifyLedger } from "../checks/reverify-ledger.ts";
import { type BatchDoc, emptyHead, LedgerBroken, type LedgerHead, replayBatch, type Shard } from "../domain.ts";
import { sealOf } from "../ledger-keys.ts";
import { restage } from "../rebuild/restage.ts";
import { clock, growBy, ledgerName, quiet, seal } from "../testing/rig.ts";
import { openCosigned } from "./cosigned.ts";
import { openShardFolders, type ShardFiles } from "./shard-files.ts";
import { publishedSize, publishTiles } from "./tile-log.ts";
import type { Witnesses } from "./witnesses.ts";

/** A ledger over a turn of the year: two trees, each a log of its own in its own folder. */

const [lastDay, newYear] = [Date.UTC(2026, 11, 31), Date.UTC(2027, 0, 1)];
const sizes = { old: 300, all: 1_000 };
const before: Shard = { year: 2026, first: 0 };
const after: Shard = { year: 2027, first: sizes.old };
const machine = { clock: { ...clock, now: () => newYear }, random: systemRandom };
const bound = { timeout: 20_000, interval: 5 };

let dir = "";
let batches: Awaited<ReturnType<typeof openBatches>>;
let ended: LedgerHead;
let head: LedgerHead;
const openBatches = () => memoryStore().collection<BatchDoc>("batches");
beforeEach(async () => {
  dir = mkdtempSync(join(tmpdir(), "curfew-shards-"));
  batches = await openBatches();
  ended = await growBy(batches, emptyHead, sizes.old, lastDay);
  head = await growBy(batches, await growBy(batches, ended, 200, newYear), sizes.all - sizes.old - 200, newYear);
});
afterEach(() => rmSync(dir, { recursive: true, force: true }));

const verifierKeyOf = (year: number) => seal.verifierKeyAt(year, 0);
const noteOf = ({ year }: Shard) => {
  const file = join(dir, String(year), "checkpoint");
  return existsSync(file) ? readFileSync(file, "utf8") : undefined;
};
const standing = (shard: Shard) => {
  const note = noteOf(shard);
  return note === undefined ? undefined : seal.open(shard, note);
};
const filesIn = () =>
  new Map(
    readdirSync(dir, { recursive: true, withFileTypes: true })
      .filter((entry) => entry.isFile())
      .map((entry) => join(entry.parentPath, entry.name))
      .map((file) => [file.slice(dir.length + 1), readFileSync(file, "base64")] as const),
  );
const partsOf = (files: ShardFiles) => {
  return { files, batches, latest: () => head.batch, seal, clock: machine.clock, log: quiet };
};
const publishAll = async () => {
  const stop = new AbortController();
  const running = publishTiles(partsOf(await openShardFolders(dir, machine)), stop.signal);
  const there = expect.poll(() => standing(after)?.size, bound).toBe(sizes.all);
  await Promise.race([running, there]).finally(() => stop.abort());
  await running;
};
const treeOf = (shard: Shard) => {
  const { size = 0, root = new Uint8Array() } = standing(shard) ?? {};
  return { size: size - shard.first, root };
};

it("is two logs, each of which verifies by itself; the first leaf of the second names the end of the first", async () => {
  await publishAll();
  const files = await openShardFolders(dir, machine);
  expect([before, after].map((shard) => noteOf(shard)?.split("\n").slice(0, 2))).toEqual([
    ["test.example/ledger/2026", "300"],
    ["test.example/ledger/2027", "700"],
  ]);
  for (const shard of [before, after]) await verifyLog({ read: files(shard.year).read, tree: treeOf(shard) });
  expect(treeOf(before).root).toEqual(ended.frontier.root());
  expect(treeOf(after).root).toEqual(head.frontier.root());
});

it("comes out the same, whichever write a kill cut off, and never has the new year before the old one is whole", async () => {
  await publishAll();
  const whole = filesIn();
  for (let survived = 0; ; survived += 1) {
    rmSync(dir, { recursive: true });
    let left = survived;
    const stop = new AbortController();
    const folders = await openShardFolders(dir, machine);
    const dying = (year: number): LogFiles => ({
      read: folders(year).read,
      async write(some) {
        for (const file of some) {
          left -= 1;
          if (left < 0) {
            stop.abort();
            throw new Error("killed");
          }
          if (year === after.year) expect(standing(before)?.size).toBe(sizes.old);
          await folders(year).write([file]);
        }
        if (standing(after)?.size === sizes.all) stop.abort();
      },
    });
    await publishTiles(partsOf(dying), stop.signal);
    await publishAll();
    expect(filesIn(), `after ${survived} writes`).toEqual(whole);
    if (left >= 0) break;
  }
});

it("does not verify with another old year than the one that the new one follows, nor without it", async () => {
  await publishAll();
  const verify = async () => {
    const { code, out, err } = await curfew("verify", dir, "--key", verifierKeyOf(2026), "-o", "json");
    expect(out, err).not.toBe("");
    return { code, ...JSON.parse(out) };
  };
  // The uses were made without a producer: of completeness it says so, and that is all.
  expect(await verify()).toMatchObject({ code: 3, integrity: { holds: true } });
  const [kept, own] = [head, batches];
  batches = await openBatches();
  head = await growBy(batches, emptyHead, sizes.old + 1, lastDay);
  rmSync(join(dir, "2026"), { recursive: true });
  const stop = new AbortController();
  const running = publishTiles(partsOf(await openShardFolders(dir, machine)), stop.signal);
  await expect.poll(() => standing(before)?.size, bound).toBe(sizes.old + 1);
  stop.abort();
  await running;
  [head, batches] = [kept, own];
  const why = "its first entry does not name the checkpoint with which test.example/ledger/2026 ends";
  expect(await verify()).toMatchObject({
    code: 1,
    integrity: { holds: false, file: "2027/tile/entries/000", why },
  });
  rmSync(join(dir, "2026"), { recursive: true });
  expect(await verify()).toMatchObject({
    code: 1,
    integrity: { file: "2027/tile/entries/000", why: "it follows 300 entries of years before it, which are not here" },
  });
  // Nor with one that is somewhere else.
  symlinkSync(join(dir, "2027"), join(dir, "2026"));
  expect((await curfew("verify", dir, "--key", verifierKeyOf(2026))).err).toMatch(/a folder of it is a link/);
});

it("verifies by the newest key alone, though another one has signed the old year; not where nothing follows that", async () => {
  const [one, two] = [1, 2].map(() => generateKeyPairSync("ed25519"));
  const keyOf = (number: number, pair = one) => ({ number, ...(pair as NonNullable<typeof pair>) });
  const [first, second] = [
    { ...keyOf(1), after: -1 },
    { ...keyOf(2, two), after: sizes.old },
  ];
  const old = sealOf(ledgerName, { all: () => [first], follow: () => undefined });
  const retired = { ...first, privateKey: undefined };
  const now = sealOf(ledgerName, { all: () => [retired, second], follow: () => undefined });
  batches = await openBatches();
  head = await growBy(batches, await growBy(batches, emptyHead, sizes.old, lastDay, old), 200, newYear, now);
  const stop = new AbortController();
  const running = publishTiles({ ...partsOf(await openShardFolders(dir, machine)), seal: now }, stop.signal);
  await expect.poll(() => noteOf(after)?.split("\n")[1], bound).toBe("200");
  stop.abort();
  await running;
  const verify = async (key: string) => {
    const { code, out } = await curfew("verify", dir, "--key", key, "-o", "json");
    return { code, ...JSON.parse(out) };
  };
  const newest = now.verifierKeyAt(2027, 500);
  // 3: the uses were made without a producer.
  expect(await verify(newest)).toMatchObject({
    code: 3,
    logs: [{ size: 300, vouched: true }, { size: 200 }],
    integrity: { holds: true },
  });
  expect(await verify(old.verifierKeyAt(2026, 300))).toMatchObject({ code: 1, integrity: { file: "2027/checkpoint" } });
  const file = join(dir, "2026/checkpoint");
  const note = readFileSync(file, "utf8");
  writeFileSync(file, note.replace("\n300\n", "\n299\n"));
  expect(await verify(newest)).toMatchObject({ code: 1, integrity: { holds: false } });
  writeFileSync(file, note);
  rmSync(join(dir, "2027"), { recursive: true });
  expect(await verify(newest)).toMatchObject({ code: 1, integrity: { file: "2026/checkpoint" } });
});

describe("a store that was put back", () => {
  const published = async (of: LedgerHead) =>
    await publishedSize({ ...partsOf(await openShardFolders(dir, machine)) }, of);

  it("behind what is published is told by the files of whichever year", async () => {
    expect(await published(emptyHead)).toBe(0);
    await publishAll();
    expect(await published(head)).toBe(sizes.all);
    expect(await published(ended)).toBeGreaterThan(ended.size);
    expect(await published(emptyHead)).toBeGreaterThan(0);
  });

  it("before the turn is refused by the files' writer too", async () => {
    await publishAll();
    const kept = await openBatches();
    await growBy(kept, await growBy(kept, emptyHead, 10, lastDay), 10, newYear);
    const parts = { ...partsOf(await openShardFolders(dir, machine)), batches: kept };
    await expect(publishTiles(parts, new AbortController().signal)).rejects.toThrow(LedgerBroken);
  });

  it("to nothing comes back from the folders of all years, and not without one of them", async () => {
    await publishAll();
    const files = await openShardFolders(dir, machine);
    const parts = { files, seal, clock: machine.clock };
    const again = await openBatches();
    await restage({ ...parts, batches: again }, new AbortController().signal);
    const [last] = await again.find({ order: -1, limit: 1 });
    expect(last).toMatchObject({ shard: after, size: sizes.all, positions: head.positions });
    expect(Buffer.from(last?.root ?? "")).toEqual(Buffer.from(head.frontier.root()));
    rmSync(join(dir, "2026"), { recursive: true });
    await expect(restage({ ...parts, batches: await openBatches() }, new AbortController().signal)).rejects.toThrow(
      LedgerBroken,
    );
  });
});

const replayed = {
  verifyAll: async (visit: (batch: ReturnType<typeof replayBatch>) => Promise<void>) => {
    let at = emptyHead;
    for (const doc of await batches.find({ limit: 100 })) {
      const batch = replayBatch(at, doc, seal);
      await visit(batch);
      at = batch.head;
    }
  },
};

it("is compared with its files, year by year", async () => {
  await publishAll();
  const files = await openShardFolders(dir, machine);
  const found: string[] = [];
  const drifts = {
    found: async ({ setting }: { setting: string }) => void found.push(setting),
    settle: async () => undefined,
  };
  const pass = () =>
    reverifyLedger({ ledger: replayed, seal, files, drifts }, async () => undefined, new AbortController().signal);
  expect([await pass(), found]).toEqual([sizes.all, []]);
  rmSync(join(dir, "2027/tile/0/001"));
  await pass();
  expect(found).toEqual(["2027/tile/0/001"]);
});

it("of which an old year's checkpoint is gone or put back tells it: nobody writes that again before later years are away", async () => {
  await publishAll();
  const whole = filesIn();
  const files = await openShardFolders(dir, machine);
  const found: unknown[] = [];
  const drifts = { found: async (drift: object) => void found.push(drift), settle: async () => undefined };
  const pass = () =>
    reverifyLedger({ ledger: replayed, seal, files, drifts }, async () => undefined, new AbortController().signal);
  const older = await growBy(await openBatches(), emptyHead, 256, lastDay);
  const checkpoint = join(dir, "2026/checkpoint");
  writeFileSync(checkpoint, older.checkpoint);
  await pass();
  const expected = Buffer.from(ended.frontier.root()).toString("hex");
  const seen = Buffer.from(older.frontier.root()).toString("hex");
  const drift = { cause: DriftCause.LEDGER_FILE, setting: "2026/checkpoint", expected };
  expect(found).toMatchObject([{ ...drift, seen }]);
  rmSync(checkpoint);
  await pass();
  expect(found.slice(1)).toMatchObject([{ ...drift, seen: "" }]);
  await publishAll();
  expect(filesIn()).not.toEqual(whole);
  for (const year of [2026, 2027]) rmSync(join(dir, String(year)), { recursive: true });
  await publishAll();
  expect(filesIn()).toEqual(whole);
});

it("waits with the new year until the old one's last checkpoint is cosigned, which counts from nothing again", async () => {
  const { privateKey } = generateKeyPairSync("ed25519");
  const rows = await openCosigned(memoryStore());
  const asked: string[] = [];
  let isThere = false;
  const witnesses: Witnesses = {
    due: () => true,
    async cosign({ size, checkpoint }) {
      const { text } = parseNote(checkpoint);
      asked.push(`${text.split("\n")[0]?.slice(-4)} ${size}`);
      if (!isThere) return undefined;
      const { keyId, sign } = noteCosigner("w1", privateKey, 1_795_000_000);
      return `${checkpoint}${formatSignature({ name: "w1", keyId, signature: sign(text) })}`;
    },
    status: async () => ({ quorum: "unknown", answers: [] }),
  };
  const stop = new AbortController();
  const parts = { ...partsOf(await openShardFolders(dir, machine)), witnessed: { witnesses, rows } };
  const running = publishTiles(parts, stop.signal);
  await expect.poll(() => asked.filter((each) => each === "2026 300").length, bound).toBeGreaterThan(3);
  expect([existsSync(join(dir, "2027")), noteOf(before)]).toEqual([false, undefined]);
  isThere = true;
  await expect.poll(() => standing(after)?.size, bound).toBe(sizes.all);
  stop.abort();
  await running;
  expect(standing(before)?.size).toBe(sizes.old);
  expect(asked.at(-1)).toBe("2027 700");
  expect((await rows.find({ limit: 10 })).map(({ shard: { year }, size }) => [year, size])).toEqual([
    [2026, 300],
    [2027, 1_000],
  ]);
});
