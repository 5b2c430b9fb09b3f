import { type ChildProcess, fork } from "node:child_process";
import { once } from "node:events";
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { DatabaseSync } from "node:sqlite";
import { fileURLToPath } from "node:url";
import { openSqliteStore } from "@curfew/document-store/sqlite.ts";
import { openSqliteWriter } from "@curfew/document-store/sqlite-writer.ts";
import { systemClock } from "@curfew/runtime/clock.ts";
import { afterEach, expect, it, vi } from "vitest";
import { type Bus, BusUnavailable, type InRecord } from "./bus.ts";
import { type ChainHead, checkLink, producerHeader } from "./chain.ts";
import { busContract } from "./contract.ts";
import type { EpochRow } from "./epochs.ts";
import { openSqliteBus, sqliteBus } from "./sqlite.ts";

const clock = systemClock;
const bound = { timeout: 20_000, interval: 5 };
const undo: (() => unknown)[] = [];
afterEach(async () => {
  for (const step of undo.splice(0).reverse()) await step();
});
const newFolder = () => mkdtempSync(join(tmpdir(), "curfew-bus-"));
const folderOf = () => {
  const folder = newFolder();
  undo.push(() => rmSync(folder, { recursive: true, force: true }));
  return folder;
};
const epochsIn = async (file: string) => {
  const store = await openSqliteStore({ file });
  undo.push(() => store.close());
  return store.collection<EpochRow>("epochs");
};

busContract("a SQLite file", async (topics) => {
  const folder = newFolder();
  const store = await openSqliteStore({ file: ":memory:" });
  const epochs = await store.collection<EpochRow>("epochs");
  const open = () => openSqliteBus({ file: join(folder, "bus.db"), epochs, clock, topics });
  let bus = await open();
  return {
    bus,
    epochs,
    reopen: async () => {
      await bus.close();
      bus = await open();
      return bus;
    },
    close: async () => {
      await bus.close();
      await store.close();
      rmSync(folder, { recursive: true });
    },
  };
});

busContract("SQLite in memory", async (topics) => {
  const store = await openSqliteStore({ file: ":memory:" });
  const epochs = await store.collection<EpochRow>("epochs");
  const bus = await openSqliteBus({ file: ":memory:", epochs, clock, topics });
  return { bus, epochs, close: () => bus.close().then(() => store.close()) };
});

const readAll = async (bus: Bus, topic: string): Promise<InRecord[]> => {
  const total = (await bus.ends(topic)).reduce((a, b) => a + b, 0);
  const records: InRecord[] = [];
  const onRecords = (batch: readonly InRecord[]) => void records.push(...batch);
  const subscription = await bus.subscribe({ name: "reader", topics: [topic], start: () => 0, onRecords });
  await vi.waitFor(() => expect(records.length).toBe(total), bound);
  await subscription.close();
  return records;
};
const assertChained = (records: readonly InRecord[]) => {
  const heads = new Map<string, ChainHead | undefined>();
  for (const r of records) {
    const lane = `${r.partition} ${r.headers.find(([name]) => name === producerHeader)?.[1]}`;
    const { verdict, head } = checkLink(heads.get(lane), r);
    expect(verdict).toEqual({ kind: "ok" });
    heads.set(lane, head);
  }
};
const textRecord = (text: string) => ({ partition: 0, key: "k", headers: {}, value: Buffer.from(text) });
const textOf = ({ value }: InRecord) => Buffer.from(value).toString();

it("keeps every acknowledged record when the writing process is killed with -9, again and again", async () => {
  const folder = folderOf();
  const acknowledged = new Set<string>();
  for (const kill of [50, 500, 1500]) {
    const child: ChildProcess = fork(fileURLToPath(new URL("./sqlite-test-child.ts", import.meta.url)), [folder], {
      execArgv: ["--disable-warning=ExperimentalWarning"],
      env: {},
    });
    undo.push(() => child.kill("SIGKILL"));
    const exited = once(child, "exit");
    let here = 0;
    child.on("message", (text: string) => {
      acknowledged.add(text);
      here += 1;
      // The other callers are in the middle of their sends.
      if (here === kill) child.kill("SIGKILL");
    });
    expect(await exited).toEqual([null, "SIGKILL"]);
  }
  const epochs = await epochsIn(join(folder, "producers.db"));
  const bus = await openSqliteBus({ file: join(folder, "bus.db"), epochs, clock, topics: { uses: 3 } });
  undo.push(() => bus.close());
  const records = await readAll(bus, "uses");
  const texts = new Set(records.map(textOf));
  expect(texts.size).toBe(records.length);
  expect(acknowledged.size).toBeGreaterThanOrEqual(2050);
  expect([...acknowledged].filter((text) => !texts.has(text))).toEqual([]);
  assertChained(records);
});

it("shares one commit among sends that wait at the same time", async () => {
  const folder = folderOf();
  const epochs = await epochsIn(":memory:");
  const bus = await openSqliteBus({ file: join(folder, "bus.db"), epochs, clock, topics: { a: 1, b: 1 } });
  undo.push(() => bus.close());
  const producers = [
    await bus.openProducer({ topic: "a", name: "a/1" }),
    await bus.openProducer({ topic: "b", name: "b/1" }),
  ];
  const before = bus.stats();
  await Promise.all(producers.flatMap((p) => Array.from({ length: 500 }, (_, i) => p.send([textRecord(`v${i}`)]))));
  const after = bus.stats();
  expect(after.commits - before.commits).toBeLessThan(20);
  expect(await bus.ends("a")).toEqual([500]);
});

it("waits out a full disk: nothing acknowledged is lost, nothing waiting is given up, and it says so meanwhile", async () => {
  const epochs = await epochsIn(":memory:");
  const writer = await openSqliteWriter({ file: join(folderOf(), "bus.db") });
  const bus = await sqliteBus(writer, { epochs, clock, topics: { uses: 1 } });
  undo.push(() => bus.close());
  const producer = await bus.openProducer({ topic: "uses", name: "verifier/1" });
  const other = await bus.openProducer({ topic: "uses", name: "verifier/2" });
  await writer.run("PRAGMA max_page_count = 30");
  const acknowledged: string[] = [];
  const send = async (text: string) => {
    await producer.send([textRecord(text.padEnd(2000, "."))]);
    acknowledged.push(text.padEnd(2000, "."));
  };
  const sends = Array.from({ length: 200 }, (_, i) => send(`v${i}`));
  await vi.waitFor(() => expect(producer.reachable).toBe(false), bound);
  await expect(bus.ping()).rejects.toBeInstanceOf(BusUnavailable);
  expect((await readAll(bus, "uses")).map(textOf)).toEqual(acknowledged);
  const closed = other.send([textRecord("x".repeat(200_000))]);
  const rejected = expect(closed).rejects.toBeInstanceOf(BusUnavailable);
  await vi.waitFor(() => expect(other.reachable).toBe(false), bound);
  await other.close();
  await rejected;
  await writer.run("PRAGMA max_page_count = 100000");
  await Promise.all(sends);
  expect(producer.reachable).toBe(true);
  await bus.ping();
  const records = await readAll(bus, "uses");
  expect(records.map(textOf)).toEqual(acknowledged);
  expect(acknowledged.length).toBe(200);
  assertChained(records);
  // The outage began no epochs: what SQLite rolled back is known not to be there.
  expect((await epochs.find({ limit: 10 })).map((row) => row._id)).toEqual(["verifier/1/1", "verifier/2/1"]);
});

it("a file keeps the partitions that its topic has: keys stay where they are", async () => {
  const file = join(folderOf(), "bus.db");
  const epochs = await epochsIn(":memory:");
  await (await openSqliteBus({ file, epochs, clock, topics: { uses: 3 } })).close();
  const again = await openSqliteBus({ file, epochs, clock, topics: { uses: 1, tokens: 1 } });
  expect([await again.ends("uses"), await again.ends("tokens")]).toEqual([[0, 0, 0], [0]]);
  await again.close();
});

it("opens a file made before rows had shared headers, reads it and appends to it", async () => {
  const file = join(folderOf(), "bus.db");
  const db = new DatabaseSync(file);
  db.exec(`CREATE TABLE segments (topic TEXT NOT NULL, partition INTEGER NOT NULL, base INTEGER NOT NULL,
    count INTEGER NOT NULL, timestamp_ms INTEGER NOT NULL, places TEXT NOT NULL, body BLOB NOT NULL) STRICT;
    CREATE TABLE lanes (topic TEXT, partition INTEGER, PRIMARY KEY (topic, partition)) STRICT;
    CREATE VIEW records AS SELECT 1 AS old; INSERT INTO lanes VALUES ('uses', 0)`);
  const body = Buffer.from('k{"ce_id":"1"}x');
  db.prepare("INSERT INTO segments VALUES ('uses', 0, 0, 1, 5000, '[[0,1,13,1]]', ?)").run(body);
  db.close();
  const bus = await openSqliteBus({ file, epochs: await epochsIn(":memory:"), clock, topics: { uses: 1 } });
  const producer = await bus.openProducer({ topic: "uses", name: "verifier/1" });
  await producer.send([textRecord("y")]);
  const records = await readAll(bus, "uses");
  expect(records.map(textOf)).toEqual(["x", "y"]);
  expect(records[0]).toMatchObject({ key: "k", offset: 0, headers: [["ce_id", "1"]] });
  await bus.close();
});

it("dates records by the clock, never backwards within a partition, also over a restart", async () => {
  const file = join(folderOf(), "bus.db");
  const epochs = await epochsIn(":memory:");
  const times: number[] = [];
  for (const nowMs of [5000, 4000, 6000]) {
    const bus = await openSqliteBus({ file, epochs, clock: { ...clock, now: () => nowMs }, topics: { uses: 2 } });
    const producer = await bus.openProducer({ topic: "uses", name: "verifier/1" });
    await producer.send([textRecord("x")]);
    times.push((await readAll(bus, "uses")).at(-1)?.timestampMs ?? 0);
    await bus.close();
  }
  expect(times).toEqual([5000, 5000, 6000]);
});
