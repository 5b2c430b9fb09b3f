import { mkdtempSync, rmSync } from "node:fs";
import { readFile, unlink, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { DatabaseSync } from "node:sqlite";
import { type Bus, type InRecord, OffsetGone } from "@curfew/event-log/bus.ts";
import { topicNames } from "@curfew/event-log/event-types.ts";
import { openSqliteBus } from "@curfew/event-log/sqlite.ts";
import { openDirectory } from "@curfew/ledger/directory.ts";
import { decodeLeaf } from "@curfew/ledger/leaf.ts";
import { systemRandom } from "@curfew/runtime/random.ts";
import { afterEach, describe, expect, it, vi } from "vitest";
import type { BatchDoc } from "../domain.ts";
import { publishTiles } from "../public-log/tile-log.ts";
import {
  bound,
  clock,
  openWorld,
  partitions,
  quiet,
  seal,
  sendOn,
  shard,
  startAuditor,
  tokenEvent,
  untilSealed,
  use,
  type World,
} from "../testing/rig.ts";
import { driftCauseName } from "./drift.ts";
import type { OpenDrift } from "./drift-log.ts";
import { goRound, type PassRow } from "./passes.ts";
import { reverifyLedger } from "./reverify-ledger.ts";
import { reverifyTopics } from "./reverify-topics.ts";

const undo: (() => unknown)[] = [];
afterEach(async () => {
  for (const step of undo.splice(0).reverse()) await step();
});
const numbers = (n: number, from = 0) => Array.from({ length: n }, (_, i) => from + i);
const going = new AbortController().signal;
const silent = async () => undefined;

/** Records of two topics, each send a batch of the producer's own: on SQLite a row each. */
const produce = async ({ bus }: World, count: number) => {
  for (const n of numbers(count)) {
    await sendOn(bus, topicNames.uses, "verifier/b", [use(n, n % 3)]);
    await sendOn(bus, topicNames.tokens, "issuer/a", [tokenEvent(n, 1)]);
  }
};

/** Seals all of it, and then reads it again through whatever bus it is given. */
const sealed = async (world: World) => {
  const auditor = await startAuditor(world);
  await untilSealed(world);
  await auditor.close();
  const { models, drifts, ledger } = auditor;
  const batches = await world.store.collection<BatchDoc>("batches");
  const [latest] = await models.checkpoints.find({ order: -1, limit: 1 });
  const places = { batches, checkpoints: models.checkpoints, latest: () => latest, drifts, perSecond: 1e6, clock };
  return {
    drifts,
    ledger,
    batches,
    size: latest?.size,
    indexOf: async (topic: string, partition: number, offset: number) => {
      const rows = await models.entries.find({ limit: 1_000 });
      return rows.findIndex(({ leaf }) => {
        const record = decodeLeaf(leaf);
        return record.topic === topic && record.partition === partition && record.offset === offset;
      });
    },
    again: (bus: Bus) => reverifyTopics({ ...places, bus }, silent, going),
  };
};
const said = (drifts: readonly OpenDrift[]) =>
  drifts.map((d) => [driftCauseName(d.cause).slice(12), d.topic, d.partition, d.offset, d.ledgerIndex]);

/** A bus whose broker hands over other records than it once did. */
const lying = (bus: Bus, tamper: (record: InRecord) => readonly InRecord[]): Bus => ({
  ...bus,
  subscribe: (options) =>
    bus.subscribe({
      ...options,
      onRecords: async (records) => {
        const changed = records.flatMap(tamper);
        if (changed.length > 0) await options.onRecords(changed);
      },
    }),
});
const at = (topic: string, partition: number, offset: number) => (r: InRecord) =>
  r.topic === topic && r.partition === partition && r.offset === offset;

describe("topics read again", () => {
  it("are what was sealed: nothing is found, and all of it was compared", async () => {
    const world = await openWorld();
    await produce(world, 30);
    const { again, drifts, size } = await sealed(world);
    expect(await again(world.bus)).toBe(size);
    expect(await drifts.open()).toEqual([]);
  });

  const hit = at(topicNames.uses, 1, 4);
  const changes: [what: string, cause: string, tamper: (r: InRecord) => readonly InRecord[]][] = [
    [
      "a bit of a value",
      "RECORD_CHANGED",
      (r) => [{ ...r, value: r.value.map((byte, i) => (i === 3 ? byte ^ 1 : byte)) }],
    ],
    ["its key", "RECORD_CHANGED", (r) => [{ ...r, key: `${r.key}x` }]],
    ["its time", "RECORD_CHANGED", (r) => [{ ...r, timestampMs: r.timestampMs + 1 }]],
    [
      "a header",
      "RECORD_CHANGED",
      (r) => [{ ...r, headers: r.headers.map(([n, v], i) => [n, i === 0 ? `${v}x` : v]) }],
    ],
    ["the order of its headers", "RECORD_CHANGED", (r) => [{ ...r, headers: r.headers.toReversed() }]],
    ["that it is there at all", "RECORD_MISSING", () => []],
  ];
  it.each(changes)("show where one differs in %s: %s, by its ledger index, once", async (_, cause, tamper) => {
    const world = await openWorld();
    await produce(world, 30);
    const { again, drifts, indexOf } = await sealed(world);
    const bus = lying(world.bus, (r) => (hit(r) ? tamper(r) : [r]));
    await again(bus);
    await again(bus);
    const index = await indexOf(topicNames.uses, 1, 4);
    expect(said(await drifts.open())).toEqual([[cause, topicNames.uses, 1, 4, index]]);
    // And that it is over, once a whole pass finds all as it was.
    await again(world.bus);
    expect(await drifts.open()).toEqual([]);
  });

  it("show nothing where a client lost its place once, and reads on when it is asked again", async () => {
    const world = await openWorld();
    await produce(world, 30);
    const { again, drifts, size } = await sealed(world);
    let lost = 0;
    const bus: Bus = {
      ...world.bus,
      subscribe: async (options) => {
        if (!options.topics.includes(topicNames.uses) || lost > 0) return await world.bus.subscribe(options);
        lost += 1;
        const failed = Promise.reject(new OffsetGone({ topic: topicNames.uses, partition: 1, offset: 0 }));
        failed.catch(() => undefined);
        return { failed, close: silent };
      },
    };
    expect(await again(bus)).toBe(size);
    expect(lost).toBe(1);
    expect(await drifts.open()).toEqual([]);
  });

  it("show a record put where none was when what follows it was sealed", async () => {
    const world = await openWorld();
    await produce(world, 30);
    const hole = lying(world.bus, (r) => (hit(r) ? [] : [r]));
    const auditor = await startAuditor(world, world.store, hole);
    await vi.waitFor(async () => expect((await auditor.ledger.load(going)).size).toBe(59), bound);
    await auditor.close();
    const { drifts, models } = auditor;
    const batches = await world.store.collection<BatchDoc>("batches");
    const [latest] = await models.checkpoints.find({ order: -1, limit: 1 });
    const parts = { batches, checkpoints: models.checkpoints, latest: () => latest, drifts, perSecond: 1e6, clock };
    await reverifyTopics({ ...parts, bus: world.bus }, silent, going);
    expect(said(await drifts.open())).toEqual([["RECORD_INSERTED", topicNames.uses, 1, 4, undefined]]);
  });

  it("are others of the same name where already the first record differs; then nothing may be sealed", async () => {
    const world = await openWorld();
    await produce(world, 30);
    const { again, drifts, size } = await sealed(world);
    const { bus } = await openWorld();
    await produce({ ...world, bus }, 40); // longer than what was sealed: its ends tell nothing
    await again(bus);
    const causes = new Set(said(await drifts.open()).map(([cause]) => cause));
    expect(causes).toContain("RECREATED");
    let [asked, subscribed] = [0, 0];
    const counted: Bus = {
      ...bus,
      describe: (topic) => {
        asked += 1;
        return bus.describe(topic);
      },
      subscribe: (options) => {
        subscribed += 1;
        return bus.subscribe(options);
      },
    };
    const auditor = await startAuditor(world, world.store, counted);
    // It looks a second time: after the first it would have begun.
    await vi.waitFor(() => expect(asked).toBeGreaterThan(5), bound);
    await auditor.close();
    expect([subscribed, (await auditor.ledger.load(going)).size]).toEqual([0, size]);
  });

  it("may be pruned below what is sealed, and that is found", async () => {
    const world = await openWorld();
    await produce(world, 30);
    const { again, drifts, indexOf } = await sealed(world);
    const pruned: Bus = {
      ...world.bus,
      describe: async (topic) => {
        const state = await world.bus.describe(topic);
        return topic === topicNames.tokens ? { ...state, starts: [7] } : state;
      },
      subscribe: (options) => {
        if (options.topics.includes(topicNames.tokens) && options.start(topicNames.tokens, 0) < 7)
          throw new OffsetGone({ topic: topicNames.tokens, partition: 0, offset: 0 });
        return world.bus.subscribe(options);
      },
    };
    await again(pruned);
    const index = await indexOf(topicNames.tokens, 0, 0);
    expect(said(await drifts.open())).toEqual([["RECORD_MISSING", topicNames.tokens, 0, 0, index]]);
  });
});

describe("topics in a SQLite file, changed behind the bus's back", () => {
  const open = async (change: (db: DatabaseSync) => void) => {
    const dir = mkdtempSync(join(tmpdir(), "curfew-reverify-"));
    undo.push(() => rmSync(dir, { recursive: true, force: true }));
    const world = await openWorld();
    const file = join(dir, "bus.db");
    const openBus = () => openSqliteBus({ file, epochs: world.epochs, clock, topics: partitions });
    const bus = await openBus();
    await produce({ ...world, bus }, 20);
    const { again, drifts } = await sealed({ ...world, bus });
    await bus.close();
    const db = new DatabaseSync(file);
    change(db);
    db.close();
    const changed = await openBus();
    undo.push(() => changed.close());
    await again(changed);
    return said(await drifts.open());
  };
  const place = `topic = '${topicNames.uses}' AND partition = 2`;

  it.each([
    ["one record deleted", "base = 3", [3]],
    ["the first records deleted", "base < 4", [0]],
    ["many deleted in two places", "base IN (1, 2, 3, 5)", [1]],
  ])("show %s", async (_, which, [offset]) => {
    const found = await open((db) => db.exec(`DELETE FROM segments WHERE ${place} AND ${which}`));
    expect(found).toEqual([["RECORD_MISSING", topicNames.uses, 2, offset, expect.any(Number)]]);
  });

  it("show a record written over", async () => {
    const found = await open((db) => db.exec(`UPDATE segments SET timestamp_ms = 1 WHERE ${place} AND base = 5`));
    expect(found).toEqual([["RECORD_CHANGED", topicNames.uses, 2, 5, expect.any(Number)]]);
  });
});

describe("the ledger's files compared again", () => {
  /** A ledger of 300 entries in a directory, and what a pass over it finds. */
  const open = async () => {
    const dir = mkdtempSync(join(tmpdir(), "curfew-reverify-"));
    undo.push(() => rmSync(dir, { recursive: true, force: true }));
    const world = await openWorld();
    for (const from of [0, 100, 200]) {
      await sendOn(
        world.bus,
        topicNames.uses,
        "verifier/b",
        numbers(100, from).map((n) => use(n, n % 3)),
      );
      const auditor = await startAuditor(world);
      await untilSealed(world);
      await auditor.close();
    }
    const { ledger, drifts, batches } = await sealed(world);
    const files = openDirectory(dir, { clock, random: systemRandom });
    const stop = new AbortController();
    const latest = (await ledger.load(going)).batch;
    const publishing = publishTiles(
      { files: () => files, batches, latest: () => latest, seal, clock, log: quiet },
      stop.signal,
    );
    const size = async () => seal.open(shard, String(await files.read("checkpoint"))).size;
    await vi.waitFor(async () => expect(await size()).toBe(300), bound);
    stop.abort();
    await publishing;
    const again = async (read: typeof files.read = files.read) => {
      expect(await reverifyLedger({ ledger, seal, files: () => ({ ...files, read }), drifts }, silent, going)).toBe(
        300,
      );
      return (await drifts.open()).map(({ setting, seen }) => [setting.replace(`${shard.year}/`, ""), seen !== ""]);
    };
    return { again, files, batches, fileOf: (path: string) => join(dir, path) };
  };

  it.each(["tile/0/000", "tile/0/001.p/44", "tile/1/000.p/1", "tile/entries/000", "tile/entries/001.p/44"])(
    "show a bit of %s, that it is gone, and that it is mended",
    async (path) => {
      const { again, fileOf } = await open();
      expect(await again()).toEqual([]);
      const bytes = await readFile(fileOf(path));
      const wrong = Buffer.from(bytes);
      wrong[7] = (wrong[7] as number) ^ 1;
      await writeFile(fileOf(path), wrong);
      expect(await again()).toEqual([[path, true]]);
      await writeFile(fileOf(path), bytes);
      expect(await again()).toEqual([]);
      await unlink(fileOf(path));
      expect(await again()).toEqual([[path, false]]);
    },
  );

  it("show no partial file as gone that a full one replaced since the pass began", async () => {
    const { again, files, batches } = await open();
    const docs = await batches.find({ limit: 10 });
    const before = docs.find(({ size }) => size < 256)?.checkpoint;
    expect(before).toBeDefined();
    const read = async (path: string) => (path === "checkpoint" ? Buffer.from(before ?? "") : await files.read(path));
    expect(await again(read)).toEqual([]);
  });

  it("show a checkpoint that this ledger did not sign", async () => {
    const { again, fileOf } = await open();
    await writeFile(fileOf("checkpoint"), "test.example/ledger\n300\nAAAA\n\n— test.example/ledger AAAA\n");
    expect(await again()).toEqual([["checkpoint", true]]);
  });
});

it("passes follow one another, each counted, with what it compared; one that fails begins anew", async () => {
  const { store } = await openWorld();
  const rows = await store.collection<PassRow>("passes");
  const stop = new AbortController();
  let made = 0;
  const pass = async (compared: (n: number, at: string) => Promise<void>) => {
    made += 1;
    if (made === 1) throw new Error("not now");
    await compared(5, "here");
    return made === 4 ? undefined : 5;
  };
  const sleep = () => clock.sleep(1);
  const fast = { ...clock, sleep };
  const running = goRound(
    { id: "topics", rows, restMs: 1, clock: fast, log: quiet, pass, isFatal: () => false },
    stop.signal,
  );
  await vi.waitFor(() => expect(made).toBeGreaterThan(5), bound);
  stop.abort();
  await running;
  const row = await rows.get("topics");
  expect(row?.size).toBe(5);
  expect(row?.passes).toBe(made - 2);
  expect(row?.endedMs).toBeGreaterThan(0);
});
