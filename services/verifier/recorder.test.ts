import { openSqliteStore, type SqliteStore } from "@curfew/document-store/sqlite.ts";
import type { EpochRow } from "@curfew/event-log/epochs.ts";
import { openSqliteBus, type SqliteBus } from "@curfew/event-log/sqlite.ts";
import { RpcError } from "@curfew/rpc/errors.ts";
import { systemClock } from "@curfew/runtime/clock.ts";
import { openLog } from "@curfew/runtime/log.ts";
import { afterEach, beforeEach, expect, it, vi } from "vitest";
import { maxWaiting, openRecorder, type Recorder } from "./recorder.ts";
import { gateBus } from "./testing/bus-gate.ts";

const topic = "uses";
const bound = { timeout: 15_000, interval: 5 };
const log = openLog({ service: "test", level: "error", write: () => undefined });
let store: SqliteStore;
let bus: SqliteBus;
let gate: ReturnType<typeof gateBus>;
let recorder: Recorder;

beforeEach(async () => {
  store = await openSqliteStore({ file: ":memory:" });
  bus = await openSqliteBus({
    file: ":memory:",
    epochs: await store.collection<EpochRow>("epochs"),
    clock: systemClock,
    topics: { [topic]: 2 },
  });
  gate = gateBus(bus, topic);
  recorder = openRecorder({
    producers: [
      await gate.bus.openProducer({ topic, name: "verifier/1.1" }),
      await gate.bus.openProducer({ topic, name: "verifier/1.2" }),
    ],
    clock: systemClock,
    log,
  });
});
afterEach(async () => {
  gate.release();
  await recorder.close();
  await bus.close();
  await store.close();
});

const record = (key: string) => ({ partition: 0, key, headers: {}, value: Buffer.from(key) });
const facts = (n: number, key = "k") => Array.from({ length: n }, () => ({ record: record(key) }));
const callerOf = (signal: AbortSignal) => ({
  get aborted() {
    return signal.aborted;
  },
  signal,
});
const patient = callerOf(new AbortController().signal);
const count = async () => (await bus.ends(topic)).reduce((sum, end) => sum + end, 0);

it("what waits while a send is open goes out together in the next", async () => {
  gate.hold();
  const first = recorder.record(facts(1), patient);
  await vi.waitFor(() => expect(gate.held()).toBe(1), bound);
  const others = Array.from({ length: 64 }, () => recorder.record(facts(2), patient));
  gate.release();
  await Promise.all([first, ...others]);
  expect(gate.sends()).toBe(2);
  expect(await count()).toBe(129);
});

it("a send that is refused while the callers of the one before are answered fails nobody else", async () => {
  gate.hold();
  const many = Array.from({ length: 100 }, () => recorder.record(facts(1), patient));
  await vi.waitFor(() => expect(gate.held()).toBe(1), bound);
  const unknownPartition = recorder.record([{ record: { ...record("k"), partition: 100 } }], patient);
  gate.release();
  await expect(unknownPartition).rejects.toThrow("partition");
  await Promise.all(many);
  expect(await count()).toBe(100);
});

it("one that cannot be told of its caller's leaving holds up no other, nor what is sent next", async () => {
  gate.hold();
  const leaving = new AbortController();
  const unanswered = () => {
    throw new Error("cannot be encoded");
  };
  const left = recorder.record([{ record: record("k"), unanswered }], callerOf(leaving.signal));
  const others = Array.from({ length: 40 }, () => recorder.record(facts(1), patient));
  await vi.waitFor(() => expect(gate.held()).toBe(1), bound);
  leaving.abort(new Error("gone"));
  gate.release();
  await expect(left).rejects.toThrow("gone");
  await Promise.all(others);
  await recorder.record(facts(1), patient);
  expect(await count()).toBe(42);
});

it("ten thousand waiting facts are the limit; more are refused with a time to come back, and those are kept", async () => {
  gate.hold();
  const waiting = Array.from({ length: maxWaiting / 250 }, () => recorder.record(facts(250), patient));
  const refused = recorder.record(facts(1), patient);
  await expect(refused).rejects.toBeInstanceOf(RpcError);
  await expect(refused).rejects.toMatchObject({
    failure: { status: "RESOURCE_EXHAUSTED", reason: "TOO_MANY_USES_WAITING", retryDelayMs: 1000 },
  });
  gate.release();
  await Promise.all(waiting);
  expect(await count()).toBe(maxWaiting);
});

it("callers who gave up make room for others", async () => {
  gate.hold();
  const leaving = new AbortController();
  const sent = recorder.record(facts(1), patient);
  const left = Array.from({ length: 39 }, () => recorder.record(facts(250), callerOf(leaving.signal)));
  const settled = Promise.allSettled(left);
  leaving.abort(new Error("gone"));
  const next = recorder.record(facts(1000), patient);
  gate.release();
  await Promise.all([sent, next]);
  expect((await settled).every((result) => result.status === "rejected")).toBe(true);
  expect(await count()).toBe(1001);
});

it("a fact that became durable for nobody is followed by what says so; a dropped one by nothing", async () => {
  gate.hold();
  const leaving = new AbortController();
  const fact = { record: record("decided"), unanswered: () => record("unanswered") };
  const sent = recorder.record([fact], callerOf(leaving.signal));
  await vi.waitFor(() => expect(gate.held()).toBe(1), bound);
  const queued = recorder.record([fact], callerOf(leaving.signal));
  leaving.abort(new Error("gone"));
  gate.release();
  await expect(sent).rejects.toThrow("gone");
  await expect(queued).rejects.toThrow("gone");
  await vi.waitFor(async () => expect(await count()).toBe(2), bound);
  const keys: string[] = [];
  await bus.subscribe({
    name: "r",
    topics: [topic],
    start: () => 0,
    onRecords: (rs) => void keys.push(...rs.map((r) => r.key)),
  });
  await vi.waitFor(() => expect(keys).toEqual(["decided", "unanswered"]), bound);
});

it("a report larger than one send is acknowledged once all of it is durable", async () => {
  const big = { record: { ...record("big"), value: Buffer.alloc(900_000, 1) } };
  await recorder.record(
    Array.from({ length: 12 }, () => big),
    patient,
  );
  expect(await count()).toBe(12);
  expect(gate.sends()).toBeGreaterThan(3);
});

it("facts of two partitions go through two producers at once, and an answer waits for both", async () => {
  gate.hold();
  const both = [...facts(1), { record: { ...record("other"), partition: 1 } }];
  const recorded = recorder.record(both, patient);
  await vi.waitFor(() => expect(gate.held()).toBe(2), bound);
  gate.release();
  await recorded;
  expect(await bus.ends(topic)).toEqual([1, 1]);
});

it("an outage is told to callers within seconds, and records without a caller wait it out", async () => {
  gate.hold();
  const stuck = recorder.record(facts(1), patient);
  const own = recorder.follow([record("own")]);
  await expect(stuck).rejects.toMatchObject({ name: "BusUnavailable" });
  expect(recorder.reachable).toBe(false);
  await expect(recorder.record(facts(1), patient)).rejects.toMatchObject({ name: "BusUnavailable" });
  gate.release();
  await own;
  expect(recorder.reachable).toBe(true);
  await recorder.record(facts(1), patient);
  expect(await count()).toBe(3);
});

it("closing sends what waits, then refuses", async () => {
  const last = recorder.record(facts(3), patient);
  await recorder.close();
  await last;
  expect(await count()).toBe(3);
  await expect(recorder.record(facts(1), patient)).rejects.toMatchObject({ name: "BusUnavailable" });
});
