import { copyFileSync, existsSync, mkdirSync, mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { create, type Message } from "@bufbuild/protobuf";
import { TokenRevokedSchema } from "@curfew/contracts/gen/curfew/events/v1/revocations_pb.ts";
import type { Collection } from "@curfew/document-store/port.ts";
import { openSqliteStore, type SqliteStore } from "@curfew/document-store/sqlite.ts";
import { systemClock } from "@curfew/runtime/clock.ts";
import { systemRandom } from "@curfew/runtime/random.ts";
import { afterEach, beforeEach, describe, expect, it } from "vitest";
import type { Bus, InRecord } from "./bus.ts";
import { BusUnavailable } from "./bus.ts";
import { readEvent } from "./envelope.ts";
import type { EpochRow } from "./epochs.ts";
import { topicNames } from "./event-types.ts";
import { type Aggregates, openAggregates } from "./handle-command.ts";
import { type Outbox, openOutbox } from "./outbox.ts";
import { compareWithTopic, type OwnTopic, StoreBehind, StreamForked } from "./own-topic.ts";
import { readTopic } from "./read-topic.ts";
import { restoredAtMs, restoreFromTopic, restoreStore } from "./restore.ts";
import { openSqliteBus } from "./sqlite.ts";
import { type CommitDoc, openCommits } from "./streams.ts";
import { type Collect, collected, collecting, listLog } from "./testing/collected.ts";

const service = "issuer";
const topic = topicNames.tokens;
const bound = { timeout: 20_000, interval: 10 };
const clock = systemClock;

let dir: string;
let bus: Bus;
let store: SqliteStore;
let producers: SqliteStore;
let outbox: Outbox | undefined;
let aggregates: Aggregates<readonly number[], Collect, ReturnType<typeof collected>>;
const file = (name: string) => join(dir, name);
const openStore = () => openSqliteStore({ file: file("issuer.db") });

beforeEach(async () => {
  dir = mkdtempSync(join(tmpdir(), "curfew-restore-"));
  mkdirSync(file("backup"));
  store = await openStore();
  producers = await openSqliteStore({ file: ":memory:" });
  const epochs = await producers.collection<EpochRow>("epochs");
  bus = await openSqliteBus({ file: file("bus.db"), epochs, clock, topics: { [topic]: 1 } });
});
afterEach(async () => {
  await stop();
  await bus.close();
  await store.close();
  await producers.close();
  rmSync(dir, { recursive: true });
});

/** A service with its relay, as it starts; whether it may serve is for `compared` to say. */
const start = async (on: Bus = bus): Promise<Outbox> => {
  const parts = { store, bus: on, service, topic, clock, random: systemRandom, log: listLog() };
  const instance = Buffer.from(systemRandom(6)).toString("hex");
  outbox = await openOutbox({ ...parts, instance, exclusive: true, wake: async () => [] });
  aggregates = openAggregates({ streams: outbox.streams, decider: collecting, clock });
  outbox.start("localhost:1");
  return outbox;
};
const stop = async () => {
  await outbox?.close();
  outbox = undefined;
};
const serving = async () => void (await (await start()).compared);

/** Published when it resolves. */
const write = async (stream: string, ...numbers: number[]) => {
  const { commit } = await aggregates.handle(stream, { numbers, again: true });
  if (commit) await expect.poll(() => outbox?.relay.published(commit), bound).toBeDefined();
};
const databaseFiles = ["issuer.db", "issuer.db-wal", "issuer.db-shm"];
const copyFiles = (from: string, to: string) => {
  for (const name of databaseFiles) {
    rmSync(join(to, name), { force: true });
    if (existsSync(join(from, name))) copyFileSync(join(from, name), join(to, name));
  }
};
const backUp = async () => {
  await stop();
  await store.close();
  copyFiles(dir, file("backup"));
  store = await openStore();
};
/** The store as it was when it was backed up. */
const rollBack = async () => {
  await stop();
  await store.close();
  copyFiles(file("backup"), dir);
  store = await openStore();
};

const own = async (more: Partial<OwnTopic> = {}) => ({
  ...{ bus, commits: await openCommits(store), topic, service, log: listLog() },
  ...more,
});
/** All commits, as they stand in the store once they are published. */
const docs = async (): Promise<CommitDoc[]> => {
  const found = await (await openCommits(store)).find({ limit: 10_000 });
  return found.map(({ unpublished: _, ...doc }) => doc);
};
const onTopic = async () => {
  const records: InRecord[] = [];
  await readTopic({ bus, topic, name: "test" }, (batch) => void records.push(...batch));
  return records.map(readEvent);
};
/** Every event once, numbers in a row, in each stream. */
const assertWhole = async () => {
  for (const [stream, events] of Map.groupBy(await onTopic(), ({ subject }) => subject))
    expect([stream, events.map(({ sequence }) => sequence)]).toEqual([stream, events.map((_, i) => i + 1)]);
};
/** `bus`, which hands over at most `size` records at a time, and counts what it handed over. */
const inSmallBatches = (size: number) => {
  const handed: number[] = [];
  const small: Bus = {
    ...{
      openProducer: (o) => bus.openProducer(o),
      ends: (t) => bus.ends(t),
      describe: (t) => bus.describe(t),
      ping: () => bus.ping(),
      close: async () => {},
    },
    subscribe: (options) =>
      bus.subscribe({
        ...options,
        onRecords: async (records) => {
          for (let i = 0; i < records.length; i += size) {
            handed.push(Math.min(size, records.length - i));
            await options.onRecords(records.slice(i, i + size));
          }
        },
      }),
  };
  return { small, handed };
};
/** Appended as it was by somebody else: nothing is decided. */
const append = async (stream: string, version: number, sequence: number, events: readonly Message[]) =>
  (await outbox?.streams.append(stream, { version, sequence }, events)) as CommitDoc;

/** A history of which the backup has the first part. */
const history = async () => {
  await serving();
  await write("tokens/a", 1);
  await write("tokens/b", 1, 2, 3);
  await write("tokens/a", 2);
  await backUp();
  await serving();
  await write("tokens/a", 3, 4);
  await write("tokens/c", 1);
  await write("tokens/b", 4);
  for (let n = 1; n <= 20; n += 1) await write(`tokens/${n % 3}`, n, n + 1);
  await write("tokens/a", 5);
  await stop();
};

describe("a store that was restored from a backup", () => {
  it("is not served, and publishes nothing, until the missing commits are copied back exactly as they were", async () => {
    await history();
    const before = await docs();
    const published = (await onTopic()).length;
    await rollBack();
    const behind = await start();
    await expect(behind.compared).rejects.toThrow(StoreBehind);
    await expect(behind.compared).rejects.toThrow(/curfew restore.*CURFEW_RESTORE=true/);
    await expect(behind.failed).rejects.toThrow(StoreBehind);
    const { commit } = await aggregates.handle("tokens/new", { numbers: [1] });
    expect(commit && (await behind.relay.published(commit, 1_500))).toBeUndefined();
    expect(await onTopic()).toHaveLength(published);
    await rollBack();
    expect(await restoreFromTopic(await own())).toEqual({ records: 50, commits: 24, replaced: 0 });
    expect(await docs()).toEqual(before);
    expect((await (await openCommits(store)).find({ where: { unpublished: true }, limit: 10 })).length).toBe(0);
    await serving();
    for (const stream of ["tokens/a", "tokens/b", "tokens/d", "tokens/2"]) await write(stream, 99, 100);
    expect(await onTopic()).toHaveLength(published + 8);
    await assertWhole();
    expect(await aggregates.load("tokens/a")).toEqual([1, 2, 3, 4, 5, 99, 100]);
  });

  it("is copied back whatever the batches in which the topic is read, a second time without effect", async () => {
    await history();
    const before = await docs();
    for (const size of [1, 2, 3, 7]) {
      await rollBack();
      await restoreFromTopic(await own({ bus: inSmallBatches(size).small }));
      expect(await docs()).toEqual(before);
    }
    expect(await restoreFromTopic(await own())).toMatchObject({ commits: 0, replaced: 0 });
    expect(await docs()).toEqual(before);
  });

  it("is made whole from nothing, too, and from a topic on which events came twice", async () => {
    await history();
    const before = await docs();
    const producer = await bus.openProducer({ topic, name: "issuer/again" });
    const records: InRecord[] = [];
    await readTopic({ bus, topic, name: "test" }, (batch) => void records.push(...batch));
    const again = records.slice(-20).map(({ key, headers, value }) => {
      const kept = headers.filter(([name]) => !name.startsWith("curfew-"));
      return { partition: 0, key, headers: Object.fromEntries(kept), value };
    });
    await producer.send([...again.slice(5), ...again]);
    await producer.close();
    await store.close();
    for (const name of databaseFiles) rmSync(file(name), { force: true });
    store = await openStore();
    await expect(compareWithTopic(await own())).rejects.toThrow("issuer has no event");
    await restoreFromTopic(await own());
    expect(await docs()).toEqual(before);
    await compareWithTopic(await own());
  });

  it("is behind after a restore that was ended at any write, and the next one goes on", async () => {
    await history();
    const before = await docs();
    for (const allowed of [0, 1, 2, 11, 22, 23]) {
      await rollBack();
      const { commits, ...rest } = await own();
      let inserts = 0;
      const dying: Collection<CommitDoc> = {
        ...commits,
        get: (id) => commits.get(id),
        insert: async (doc) => {
          inserts += 1;
          if (inserts > allowed) throw new Error("killed");
          return await commits.insert(doc);
        },
      };
      await expect(restoreFromTopic({ ...rest, commits: dying })).rejects.toThrow("killed");
      await expect(compareWithTopic({ ...rest, commits })).rejects.toThrow(StoreBehind);
      await restoreFromTopic({ ...rest, commits });
      expect(await docs()).toEqual(before);
    }
  });
});

describe("what is published of a stream and stands otherwise in the store", () => {
  const fork = async (published: boolean, events: readonly Message[] = [collected(7)]) => {
    await history();
    await rollBack();
    await start();
    const mine = await append("tokens/a", 2, 2, events);
    if (published) await (await openCommits(store)).unset(mine._id, "unpublished");
    await append("tokens/a", 3, 2 + events.length, [collected(8)]);
    await stop();
    return await docs();
  };

  it("is a fork: it is not served, and no program changes it", async () => {
    const before = await fork(true);
    const behind = await start();
    await expect(behind.compared).rejects.toThrow(StoreBehind);
    await expect(restoreFromTopic(await own())).rejects.toThrow(StreamForked);
    expect(await docs()).toEqual(before);
  });

  it("makes way when it was never published: the log wins", async () => {
    await fork(false);
    await expect(compareWithTopic(await own())).rejects.toThrow(StoreBehind);
    const mine = await own();
    expect(await restoreFromTopic(mine)).toMatchObject({ replaced: 2 });
    expect(mine.log.lines.join()).toContain("never published");
    await serving();
    expect(await aggregates.load("tokens/a")).toEqual([1, 2, 3, 4, 5]);
    await write("tokens/a", 6);
    await assertWhole();
  });

  it("stays when it ends a token that the log does not end", async () => {
    const before = await fork(false, [create(TokenRevokedSchema, { tokenId: "tok_a" })]);
    await expect(restoreFromTopic(await own())).rejects.toThrow("tokens/a was revoked in the store");
    expect(await docs()).toEqual(before);
  });

  it("is a fork when the topic has both, published or not in the store", async () => {
    await fork(false);
    const { commits } = await own();
    const [mine] = (await commits.find({ where: { unpublished: true }, limit: 1 })) as [CommitDoc];
    const producer = await bus.openProducer({ topic, name: "issuer/other" });
    await producer.send(mine.events.map(({ headers, value }) => ({ partition: 0, key: mine.stream, headers, value })));
    await producer.close();
    await expect(restoreFromTopic(await own())).rejects.toThrow("the topic has both");
  });
});

it("a store remembers when it was last restored, however often and however it ended", async () => {
  await history();
  await rollBack();
  expect(await restoredAtMs(store)).toBe(0);
  let nowMs = 1_000;
  const { commits: _, ...parts } = await own();
  const restoring = () => restoreStore({ ...parts, store, clock: { ...clock, now: () => nowMs } });
  expect(await restoring()).toMatchObject({ commits: 24 });
  expect(await restoredAtMs(store)).toBe(1_000);
  nowMs = 20_000;
  expect(await restoring()).toMatchObject({ commits: 0 });
  expect(await restoredAtMs(store)).toBe(20_000);
});

it("what a service did not write is no part of its store", async () => {
  await history();
  await expect(compareWithTopic(await own({ service: "revocation" }))).rejects.toThrow("was not written by revocation");
  await expect(restoreFromTopic(await own({ service: "revocation" }))).rejects.toThrow(StreamForked);
});

it("a store is served when topic and store are empty, and when the topic is only behind", async () => {
  await serving();
  await write("tokens/a", 1);
  await stop();
  await aggregates.handle("tokens/a", { numbers: [2, 3] });
  await aggregates.handle("tokens/b", { numbers: [1] });
  expect(await onTopic()).toHaveLength(1);
  await serving();
  await expect.poll(async () => (await onTopic()).length, bound).toBe(4);
  await assertWhole();
});

it("while the bus cannot be asked nothing is compared, and who must go on hears of it", async () => {
  await history();
  await rollBack();
  let down = true;
  const flaky: Bus = {
    ...inSmallBatches(1_000).small,
    ends: async (name) => {
      if (down) throw new BusUnavailable("down");
      return await bus.ends(name);
    },
  };
  const { compared, comparedOrUnasked } = await start(flaky);
  let ended = false;
  compared.catch(() => {
    ended = true;
  });
  await comparedOrUnasked;
  expect(ended).toBe(false);
  down = false;
  await expect(compared).rejects.toThrow(StoreBehind);
});

it("a large topic is read a batch at a time, and compared by its end", async () => {
  await serving();
  const rounds = 12;
  for (let round = 0; round < rounds; round += 1) {
    const streams = Array.from({ length: 5 }, (_, i) => `tokens/large-${i}`);
    const numbers = Array.from({ length: 200 }, (_, i) => round * 200 + i);
    await Promise.all(streams.map((stream) => write(stream, ...numbers)));
    if (round === 1) {
      await backUp();
      await serving();
    }
  }
  const before = await docs();
  await rollBack();
  const { small, handed } = inSmallBatches(1_000);
  await expect(compareWithTopic(await own({ bus: small }))).rejects.toThrow(StoreBehind);
  expect(handed.reduce((sum, n) => sum + n, 0)).toBe(5_000);
  const { commits, ...rest } = await own();
  let reading = 0;
  let most = 0;
  const watched: Collection<CommitDoc> = {
    ...commits,
    insert: (doc) => commits.insert(doc),
    get: async (id) => {
      reading += 1;
      most = Math.max(most, reading);
      return await commits.get(id).finally(() => {
        reading -= 1;
      });
    },
  };
  expect(await restoreFromTopic({ ...rest, commits: watched })).toMatchObject({ records: rounds * 1_000 });
  expect(most).toBeLessThanOrEqual(50);
  expect(await docs()).toEqual(before);
  await compareWithTopic(await own());
}, 60_000);
