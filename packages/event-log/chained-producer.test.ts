import { openSqliteStore } from "@curfew/document-store/sqlite.ts";
import { type Clock, systemClock } from "@curfew/runtime/clock.ts";
import { afterEach, expect, it, vi } from "vitest";
import { BusRefused, BusUnavailable, type OutRecord } from "./bus.ts";
import { type ChainedRecord, type ChainHead, checkLink, keyHeader } from "./chain.ts";
import {
  type ChainedProducerSettings,
  maxQueuedRecords,
  NothingSent,
  openChainedProducer,
  type ProducerTransport,
} from "./chained-producer.ts";
import type { EpochRow } from "./epochs.ts";
import { verifyState } from "./producer-key.ts";
import { openIdentities } from "./testing/producer-identity.ts";

const undo: (() => unknown)[] = [];
afterEach(async () => {
  for (const step of undo.splice(0).reverse()) await step();
});

/** Time that passes only by `advance`. */
class ManualClock implements Clock {
  #ms = 0;
  #sleeps: { at: number; wake: () => void }[] = [];
  now = () => this.#ms;
  monotonicMs = () => this.#ms;
  get sleeping() {
    return this.#sleeps.length;
  }
  sleep(ms: number, signal?: AbortSignal) {
    return new Promise<void>((resolve) => {
      if (signal?.aborted) return resolve();
      const sleep = {
        at: this.#ms + ms,
        wake: () => {
          this.#sleeps = this.#sleeps.filter((other) => other !== sleep);
          resolve();
        },
      };
      this.#sleeps.push(sleep);
      signal?.addEventListener("abort", sleep.wake);
    });
  }
  advance(ms: number) {
    this.#ms += ms;
    for (const sleep of this.#sleeps) if (sleep.at <= this.#ms) sleep.wake();
  }
}

type Fault = "lost" | "unacknowledged" | "not sent" | "refused" | "partly refused" | "hangs" | "not open";

/** A topic in memory, in front of which each send meets the next fault of the list, or none. */
const setUp = async (faults: Fault[] = [], more: Partial<ChainedProducerSettings> = {}) => {
  const store = await openSqliteStore({ file: ":memory:" });
  undo.push(() => store.close());
  const epochs = await store.collection<EpochRow>("epochs");
  const clock = new ManualClock();
  const topic: ChainedRecord[] = [];
  const batches: number[] = [];
  const sent: (readonly ChainedRecord[])[] = [];
  let openTransports = 0;
  let opened = 0;
  let openSends = 0;
  const send = async (records: readonly ChainedRecord[]) => {
    if (++openSends > 1) throw new BusRefused("two sends are open at once");
    try {
      const fault = faults.shift();
      if (fault === "hangs") return await new Promise<number[]>(() => {});
      // A turn of the event loop: other callers come meanwhile.
      await new Promise(setImmediate);
      sent.push(records);
      if (fault === "refused") throw new BusRefused("no right to write");
      if (fault === "not sent") throw new NothingSent("full");
      if (fault === "lost") throw new Error("gave up");
      batches.push(records.length);
      const offsets = records
        .filter(({ partition }) => partition === 0 || fault !== "partly refused")
        .map((record) => topic.push(record) - 1);
      if (fault === "partly refused") throw new BusRefused("too large", { partly: true });
      if (fault === "unacknowledged") throw new Error("gave up");
      return offsets;
    } finally {
      openSends -= 1;
    }
  };
  const open = async (): Promise<ProducerTransport> => {
    if (faults[0] === "not open") {
      faults.shift();
      throw new Error("no broker");
    }
    openTransports += 1;
    opened += 1;
    const close = async () => {
      openTransports -= 1;
    };
    return { send, close };
  };
  const options = { topic: "t", name: "verifier/1" };
  const producer = openChainedProducer({ options, partitions: 2, epochs, clock, open, ...more });
  undo.push(() => {
    const closed = producer.close();
    clock.advance(10_000);
    return closed;
  });
  return { producer, clock, topic, batches, sent, epochs, transports: () => ({ opened, open: openTransports }) };
};

const record = (id: string, more: Partial<OutRecord> = {}): OutRecord => ({
  partition: 0,
  key: "k",
  headers: { ce_id: id },
  value: Buffer.from(id),
  ...more,
});
const told = (topic: readonly ChainedRecord[]) =>
  topic.map(({ headers: h }) => `${h.ce_id} ${h["curfew-producer"]} ${h["curfew-seq"]}`);
const assertChained = (topic: readonly ChainedRecord[]) => {
  const heads = new Map<string, ChainHead | undefined>();
  for (const [offset, r] of topic.entries()) {
    const lane = `${r.partition} ${r.headers["curfew-producer"]}`;
    const read = { ...r, topic: "t", offset, timestampMs: 1, headers: Object.entries(r.headers) };
    const { verdict, head } = checkLink(heads.get(lane), read);
    expect(verdict).toEqual({ kind: "ok" });
    heads.set(lane, head);
  }
};
const eventually = <T>(check: () => T | Promise<T>) => vi.waitFor(check, { timeout: 10_000, interval: 1 });
/** Lets time pass until the promise has settled. */
const inTime = async <T>(clock: ManualClock, promise: Promise<T>) => {
  let settled = false;
  const done = () => {
    settled = true;
  };
  promise.then(done, done);
  await eventually(() => {
    clock.advance(1000);
    expect(settled).toBe(true);
  });
  return promise;
};

it("sends the same records again in a new epoch after a give-up, whether or not they had arrived", async () => {
  for (const fault of ["lost", "unacknowledged"] as const) {
    const { producer, clock, topic, epochs, transports } = await setUp([fault]);
    const sending = producer.send([record("a"), record("b")]);
    await eventually(() => expect(producer.reachable).toBe(false));
    expect(await inTime(clock, sending)).toEqual(fault === "lost" ? [0, 1] : [2, 3]);
    expect(producer.reachable).toBe(true);
    const second = ["a verifier/1/2 1", "b verifier/1/2 2"];
    const first = ["a verifier/1/1 1", "b verifier/1/1 2"];
    expect(told(topic)).toEqual(fault === "lost" ? second : [...first, ...second]);
    assertChained(topic);
    expect(await epochs.get("verifier/1/1")).toMatchObject({ topic: "t", acknowledged: {}, ended: true });
    expect(transports()).toEqual({ opened: 2, open: 1 });
  }
});

it("tries again in the same epoch where nothing was sent, or no connection made", async () => {
  const { producer, clock, topic } = await setUp(["not open", "not open", "not sent", "not sent"]);
  await inTime(clock, producer.send([record("a")]));
  expect(told(topic)).toEqual(["a verifier/1/1 1"]);
});

it("passes a refusal to its callers; the chain goes on without a hole and without wasted epochs", async () => {
  const { producer, topic, epochs } = await setUp(["refused", "refused"]);
  for (const id of ["a", "b"]) await expect(producer.send([record(id)])).rejects.toBeInstanceOf(BusRefused);
  await producer.send([record("c")]);
  expect(told(topic)).toEqual(["c verifier/1/1 1"]);
  expect((await epochs.find({ limit: 10 })).length).toBe(1);
});

it("signs what it sends after a refusal with another key: who refused the first may have kept it, to put it in its place", async () => {
  const { identity } = await openIdentities(systemClock, ["verifier"]);
  const { producer, sent, epochs } = await setUp(["refused"], { identity: () => identity("verifier") });
  await expect(producer.send([record("a")])).rejects.toBeInstanceOf(BusRefused);
  await producer.send([record("b")]);
  const keys = sent.map(([first]) => first?.headers[keyHeader]?.split(".")[0]);
  expect(keys[0]).not.toBe(keys[1]);
  expect((await epochs.get("verifier/1/1"))?.key?.split(".")[0]).toBe(keys[1]);
});

it("begins a new epoch after a refusal of a part: the rest may be on the topic", async () => {
  const { producer, topic } = await setUp(["partly refused"]);
  const records = [record("a"), record("b", { partition: 1 })];
  await expect(producer.send(records)).rejects.toBeInstanceOf(BusRefused);
  await producer.send([record("c")]);
  expect(told(topic)).toEqual(["a verifier/1/1 1", "c verifier/1/2 1"]);
  assertChained(topic);
});

it("writes its row anew where somebody has removed it", async () => {
  const { producer, clock, epochs } = await setUp();
  await producer.send([record("a")]);
  const before = await epochs.get("verifier/1/1");
  await epochs.delete("verifier/1/1");
  await eventually(async () => {
    clock.advance(1_000);
    expect(await epochs.get("verifier/1/1")).toMatchObject({
      topic: before?.topic,
      acknowledged: { 0: 1 },
      open: true,
    });
  });
});

it("begins a new epoch after a refusal when the old one has records, with what it acknowledged in its row", async () => {
  const faults: Fault[] = [];
  const { producer, topic, epochs } = await setUp(faults);
  await producer.send([record("a")]);
  faults.push("refused");
  await expect(producer.send([record("b")])).rejects.toBeInstanceOf(BusRefused);
  await producer.send([record("c")]);
  expect(told(topic)).toEqual(["a verifier/1/1 1", "c verifier/1/2 1"]);
  expect((await epochs.get("verifier/1/1"))?.acknowledged).toEqual({ 0: 1 });
});

it("calls a refusal after a give-up unavailable: the records may be on the topic", async () => {
  const { producer, clock } = await setUp(["unacknowledged", "refused"]);
  await expect(inTime(clock, producer.send([record("a")]))).rejects.toBeInstanceOf(BusUnavailable);
});

it("keeps one send open at a time, and puts what waits into one, at most 1,000 records", async () => {
  const { producer, batches, topic } = await setUp();
  const callers = Array.from({ length: 1100 }, (_, i) => producer.send([record(`${i}.0`), record(`${i}.1`)]));
  const offsets = await Promise.all(callers);
  expect(batches).toEqual([1000, 1000, 200]);
  for (const [i, [first, second]] of offsets.entries())
    expect([first, second].map((offset) => topic[offset ?? -1]?.headers.ce_id)).toEqual([`${i}.0`, `${i}.1`]);
  assertChained(topic);
});

it("splits a call only when it alone is more than the transport takes, and keeps its order", async () => {
  const { producer, batches, topic } = await setUp([], { maxBatchBytes: 10_000 });
  const value = (i: number) => new Uint8Array(4000).fill(i);
  const large = Array.from({ length: 5 }, (_, i) => record(`l${i}`, { value: value(i) }));
  const [small, offsets] = await Promise.all([producer.send([record("s")]), producer.send(large)]);
  expect(batches).toEqual([1, 2, 2, 1]);
  expect([small, offsets]).toEqual([[0], [1, 2, 3, 4, 5]]);
  assertChained(topic);
});

it("writes what is acknowledged into the epoch's row once a second while sending", async () => {
  const { producer, clock, epochs } = await setUp();
  const row = async () => (await epochs.get("verifier/1/1"))?.acknowledged;
  await producer.send([record("a"), record("b", { partition: 1 })]);
  clock.advance(999);
  await producer.send([record("c")]);
  expect(await row()).toEqual({});
  clock.advance(1);
  await eventually(async () => expect(await row()).toEqual({ 0: 2, 1: 1 }));
  await producer.send([record("d")]);
  await eventually(() => expect(clock.sleeping).toBe(1));
  clock.advance(1000);
  await eventually(async () => expect(await row()).toEqual({ 0: 3, 1: 1 }));
});

it("shows in the epoch's row that it lives, and ends it when it is closed; each state is signed by the key that is certified there", async () => {
  const { identity, trust } = await openIdentities();
  const { producer, clock, epochs } = await setUp([], { identity: () => identity("verifier") });
  await producer.send([record("a")]);
  const row = async () => (await epochs.get("verifier/1/1")) as EpochRow;
  const isSigned = ({ key = "", signature = "", acknowledged, ended }: EpochRow) => {
    const known = trust.keyOf("verifier/1/1", "t", key, undefined) ?? "";
    const state = { acknowledged, ...(ended && { ended }) };
    return verifyState(known, "verifier/1/1", "t", state, Buffer.from(signature, "base64url"));
  };
  expect(isSigned(await row())).toBe(true);
  clock.advance(1_000);
  await eventually(async () => expect((await row()).acknowledged).toEqual({ 0: 1 }));
  const { beats = 0 } = await row();
  // Nothing is sent any more, and 20 s pass.
  for (let second = 0; second < 20; second += 1) {
    await eventually(() => expect(clock.sleeping).toBe(1));
    clock.advance(1_000);
  }
  await eventually(async () => expect((await row()).beats).toBe(beats + 1));
  expect(isSigned(await row())).toBe(true);
  expect(isSigned({ ...(await row()), acknowledged: { 0: 2 } })).toBe(false);
  expect(isSigned({ ...(await row()), ended: true })).toBe(false);
  await producer.close();
  expect(await row()).toMatchObject({ acknowledged: { 0: 1 }, ended: true });
  expect(isSigned(await row())).toBe(true);
});

it("says so while a send takes long, and closes after 2 s although it hangs", async () => {
  const { producer, clock } = await setUp(["hangs"]);
  const sending = producer.send([record("a")]);
  const outcome = expect(sending).rejects.toBeInstanceOf(BusUnavailable);
  await eventually(() => {
    clock.advance(2000);
    expect(producer.reachable).toBe(false);
  });
  const waiting = expect(producer.send([record("b")])).rejects.toBeInstanceOf(BusUnavailable);
  const closing = producer.close();
  await waiting;
  let closed = false;
  void closing.then(() => {
    closed = true;
  });
  clock.advance(1999);
  await new Promise(setImmediate);
  expect(closed).toBe(false);
  clock.advance(1);
  await closing;
  await outcome;
});

it("bounds what waits", async () => {
  const { producer, clock } = await setUp(["hangs"]);
  const batch = Array.from({ length: 1000 }, (_, i) => record(`${i}`));
  const calls = Array.from({ length: maxQueuedRecords / 1000 }, () => producer.send(batch));
  const outcomes = Promise.allSettled(calls);
  await expect(producer.send([record("one more")])).rejects.toThrow("queue is full");
  await inTime(clock, producer.close());
  expect((await outcomes).every(({ status }) => status === "rejected")).toBe(true);
});
