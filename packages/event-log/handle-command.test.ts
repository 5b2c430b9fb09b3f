import { type DocumentStore, StoreUnavailable } from "@curfew/document-store/port.ts";
import { openSqliteStore } from "@curfew/document-store/sqlite.ts";
import { type Clock, systemClock } from "@curfew/runtime/clock.ts";
import { systemRandom } from "@curfew/runtime/random.ts";
import { type Fault, faultyStore, never } from "@curfew/simulation/faulty-store.ts";
import { virtualClock } from "@curfew/simulation/virtual-clock.ts";
import { afterEach, beforeEach, describe, expect, it } from "vitest";
import { CommandConflict, openAggregates } from "./handle-command.ts";
import { commitId, maxEventsPerCommit, openEventStreams } from "./streams.ts";
import { collecting } from "./testing/collected.ts";

const stream = "token/tok_test";
/** Pauses between tries take no time. */
const hasty: Clock = { ...systemClock, sleep: async () => undefined };

let store: DocumentStore;
beforeEach(async () => {
  store = await openSqliteStore({ file: ":memory:" });
});
afterEach(() => store.close());

const replica = async (seen: DocumentStore = store, clock: Clock = hasty) => {
  const streams = await openEventStreams({ store: seen, source: "/issuer", clock, random: systemRandom });
  return { streams, ...openAggregates({ streams, decider: collecting, clock }) };
};

/** The whole stream as it is stored: numbers collected, and the sequence of each event. */
const stored = async () => {
  const { commits } = await replica().then((r) => r.streams);
  const docs = await commits.find({ limit: 10_000 });
  const { streams } = await replica();
  const numbers: number[] = [];
  for (const doc of docs) {
    const read = await streams.read(doc.stream, doc.version);
    for (const message of read?.events ?? []) numbers.push((message as unknown as { generation: number }).generation);
  }
  return {
    docs,
    numbers,
    sequences: docs.flatMap((doc) => doc.events.map((e) => Number(e.headers.ce_sequence))),
    ids: docs.flatMap((doc) => doc.events.map((e) => e.headers.ce_id)),
  };
};
const upTo = (n: number) => Array.from({ length: n }, (_, i) => i + 1);

describe("handling a command", () => {
  it("appends the events as one document with headers and an unpublished flag, and answers the state after them", async () => {
    const { handle, load } = await replica();
    const handled = await handle(stream, { numbers: [5, 6] }, { attach: (events) => ({ sealed: events.length }) });
    expect(handled.state).toEqual([5, 6]);
    expect(await load(stream)).toEqual([5, 6]);
    const { docs } = await stored();
    expect(handled.commit?._id).toBe(docs[0]?._id);
    expect(docs).toHaveLength(1);
    expect(docs[0]).toMatchObject({
      _id: `${stream}@0000000001`,
      version: 1,
      unpublished: true,
      attached: { sealed: 2 },
    });
    expect(docs[0]?.events[1]?.headers).toMatchObject({
      ce_type: "curfew.secret.collected.v1",
      ce_source: "/issuer",
      ce_subject: stream,
      ce_sequence: "2",
    });
  });

  it("appends nothing when it is already so, and nothing when it is refused", async () => {
    const { handle } = await replica();
    await handle(stream, { numbers: [1] });
    expect(await handle(stream, { numbers: [1] })).toEqual({ state: [1], events: [], commit: undefined });
    await expect(handle(stream, { numbers: [2_000_000] })).rejects.toMatchObject({ code: "TOO_LARGE" });
    expect((await stored()).numbers).toEqual([1]);
  });

  it("appends each of 64 concurrent commands on one stream exactly once, densely", async () => {
    const { handle } = await replica();
    await Promise.all(upTo(64).map((n) => handle(stream, { numbers: [n] })));
    const { numbers, sequences, ids } = await stored();
    expect([...numbers].sort((a, b) => a - b)).toEqual(upTo(64));
    expect(sequences).toEqual(upTo(64));
    expect(new Set(ids).size).toBe(64);
  });

  it("lets two replicas write to one stream, each command once, whoever gets it", async () => {
    const [one, other] = [await replica(), await replica()];
    await one.handle(stream, { numbers: [1000] });
    const handled = await Promise.all(
      upTo(32).flatMap((n) => [one.handle(stream, { numbers: [n] }), other.handle(stream, { numbers: [n] })]),
    );
    const { numbers, sequences } = await stored();
    expect([...numbers].sort((a, b) => a - b)).toEqual([...upTo(32), 1000]);
    expect(sequences).toEqual(upTo(33));
    expect(handled.filter((h) => h.commit)).toHaveLength(32);
    expect(await one.load(stream)).toEqual(await other.load(stream));
  });

  it("of a stream that is most likely new reads nothing, and is decided again on what is there where the guess was wrong", async () => {
    const reads: string[] = [];
    const watched = faultyStore(store, ({ kind, method }) => {
      if (kind === "read") reads.push(method);
      return undefined;
    });
    const guessing = async (command: Parameters<Awaited<ReturnType<typeof replica>>["handle"]>[1]) =>
      (await replica(watched)).handle(stream, command, { isNew: true });
    expect(await guessing({ numbers: [1] })).toMatchObject({ state: [1], commit: { version: 1 } });
    expect(reads).toEqual([]);
    expect(await guessing({ numbers: [1] })).toEqual({ state: [1], events: [], commit: undefined });
    expect(await guessing({ numbers: [2] })).toMatchObject({ state: [1, 2], commit: { version: 2 } });
    // What would be refused or change nothing is not believed on a guess.
    expect(await guessing({ numbers: [] })).toEqual({ state: [1, 2], events: [], commit: undefined });
    await expect(guessing({ numbers: [2_000_000] })).rejects.toMatchObject({ code: "TOO_LARGE" });
    expect((await stored()).numbers).toEqual([1, 2]);
  });

  it("gives up after a bounded number of lost races", async () => {
    const rival = await replica();
    let races = 0;
    // Before each insert of ours a rival inserts.
    const beaten = faultyStore(store, async ({ method }) => {
      if (method !== "insert") return undefined;
      races += 1;
      await rival.handle(stream, { numbers: [races], again: true });
      return undefined;
    });
    const { handle } = await replica(beaten);
    await expect(handle(stream, { numbers: [999] })).rejects.toThrow(CommandConflict);
    expect(races).toBe(100);
    expect((await stored()).numbers).not.toContain(999);
  });

  it("reads a stream longer than its cache knows, from another writer", async () => {
    const [one, other] = [await replica(), await replica()];
    for (const n of upTo(3)) await one.handle(stream, { numbers: [n, n + 100] });
    expect(await other.load(stream)).toEqual([1, 101, 2, 102, 3, 103]);
    await other.handle(stream, { numbers: [4] });
    expect((await one.handle(stream, { numbers: [5] })).state).toEqual([1, 101, 2, 102, 3, 103, 4, 5]);
  });

  it("refuses a commit that could not be published, before it is written", async () => {
    const { handle } = await replica();
    await expect(handle(stream, { numbers: upTo(maxEventsPerCommit + 1) })).rejects.toThrow(RangeError);
    await expect(handle("token/ümlaut", { numbers: [1] })).rejects.toThrow(RangeError);
    await expect(handle(`token/${"x".repeat(500)}`, { numbers: [1] })).rejects.toThrow(RangeError);
    expect((await stored()).docs).toEqual([]);
  });
});

describe("a failing database", () => {
  const faults: Fault[] = ["lost", "unacknowledged"];
  // A command that is not idempotent by itself: only the commit's identity keeps it to one effect.
  const command = (n: number) => ({ numbers: [n], again: true });

  it.each(faults.flatMap((fault) => upTo(6).map((n) => [fault, n] as const)))(
    "has one effect per command when a write is %s, at position %i",
    async (fault, position) => {
      const seen = faultyStore(store, ({ kind, n }) => (kind === "write" && n === position ? fault : undefined));
      const { handle } = await replica(seen);
      for (const n of upTo(5)) {
        const handled = await handle(stream, command(n));
        expect(handled.commit?._id).toBe(commitId(stream, n));
        expect(handled.state).toEqual(upTo(n));
      }
      const { numbers, sequences } = await stored();
      expect(numbers).toEqual(upTo(5));
      expect(sequences).toEqual(upTo(5));
    },
  );

  it("has one effect when the lost write was done, and a rival appended before the next try", async () => {
    const rival = await replica();
    const seen = faultyStore(store, ({ kind, n }) => (kind === "write" && n === 1 ? "unacknowledged" : undefined));
    const clock: Clock = { ...hasty, sleep: async () => void (await rival.handle(stream, command(77))) };
    const { handle } = await replica(seen, clock);
    const handled = await handle(stream, command(1));
    expect([handled.commit?.version, handled.state]).toEqual([1, [1, 77]]);
    expect((await stored()).numbers).toEqual([1, 77]);
  });

  it("has one effect when the lost write arrives only after the next try has begun", async () => {
    const late = Promise.withResolvers<void>();
    let inserts = 0;
    const seen: DocumentStore = {
      ...store,
      collection: async (name, options) => {
        const inner = await store.collection(name, options);
        const insert: typeof inner.insert = async (doc) => {
          inserts += 1;
          if (inserts === 2) await late.promise;
          if (inserts > 1) return await inner.insert(doc);
          setImmediate(() => inner.insert(doc).then(() => late.resolve(), late.reject));
          throw new StoreUnavailable("no answer in time");
        };
        return { ...bound(inner), insert } as never;
      },
    };
    const { handle } = await replica(seen);
    expect((await handle(stream, command(1))).state).toEqual([1]);
    expect(inserts).toBe(2);
    expect((await stored()).numbers).toEqual([1]);
  });

  it("tells an outage after three tries, or when the caller's time is over", async () => {
    let tries = 0;
    const seen = faultyStore(store, ({ kind }) => {
      tries += 1;
      return kind === "read" ? "lost" : undefined;
    });
    await expect((await replica(seen)).handle(stream, command(1))).rejects.toThrow(StoreUnavailable);
    expect(tries).toBe(3);

    const clock = virtualClock();
    const deadline = new AbortController();
    const { handle } = await replica(seen, clock);
    const refused = expect(handle(stream, command(1), { signal: deadline.signal })).rejects.toThrow(StoreUnavailable);
    await clock.advance(10_000);
    expect(tries).toBeGreaterThan(10);
    expect(tries).toBeLessThan(20);
    deadline.abort();
    await refused;
    expect((await stored()).docs).toEqual([]);
  });

  it("tells an outage while the caller still listens, however long a try takes to fail", async () => {
    const clock = virtualClock();
    const hanging: DocumentStore = {
      ...store,
      collection: async (name, options) => {
        const get = async () => {
          await clock.sleep(3_000);
          throw new StoreUnavailable("no answer in time");
        };
        return { ...bound(await store.collection(name, options)), get } as never;
      },
    };
    const { handle } = await replica(hanging, clock);
    const options = { signal: new AbortController().signal, deadlineMs: clock.now() + 10_000 };
    let toldMs = Number.POSITIVE_INFINITY;
    const refused = expect(
      handle(stream, command(1), options).finally(() => {
        toldMs = clock.monotonicMs();
      }),
    ).rejects.toThrow(StoreUnavailable);
    const startMs = clock.monotonicMs();
    await clock.advance(10_000);
    await refused;
    expect(toldMs - startMs).toBeGreaterThan(6_000);
    expect(toldMs - startMs).toBeLessThan(9_700);
  });

  it("goes on when the database comes back within the caller's time", async () => {
    const clock = virtualClock();
    const seen = faultyStore(store, () => (clock.monotonicMs() < 5_000 ? "lost" : undefined));
    const { handle } = await replica(seen, clock);
    const handling = handle(stream, command(1), { signal: new AbortController().signal });
    await clock.advance(4_999);
    expect((await stored()).docs).toEqual([]);
    await clock.advance(2_000);
    expect((await handling).state).toEqual([1]);
  });

  it("hangs no other command when one hangs", async () => {
    const seen = faultyStore(store, ({ kind, n }) => (kind === "write" && n === 1 ? never<Fault>() : undefined));
    const { handle } = await replica(seen);
    void handle(stream, command(1));
    expect((await handle(stream, command(2))).state).toEqual([2]);
  });
});

/** Methods of a class instance as own properties. */
const bound = <T extends object>(of: T): T =>
  Object.fromEntries(
    Object.getOwnPropertyNames(Object.getPrototypeOf(of)).map((name) => {
      const member = of[name as keyof T] as unknown;
      return [name, typeof member === "function" ? member.bind(of) : member];
    }),
  ) as T;
