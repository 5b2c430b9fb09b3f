import type { Bus, InRecord } from "@curfew/event-log/bus.ts";
import type { EpochRow } from "@curfew/event-log/epochs.ts";
import { siemTopic } from "@curfew/event-log/event-types.ts";
import { openLog } from "@curfew/runtime/log.ts";
import { memoryBus } from "@curfew/simulation/memory-bus.ts";
import { memoryStore } from "@curfew/simulation/memory-store.ts";
import { afterEach, beforeEach, describe, expect, it } from "vitest";
import { type BatchDoc, emptyHead, type LedgerHead } from "../domain.ts";
import { bound, clock, growBy, quiet } from "../testing/rig.ts";
import { ledgerIndexOf } from "./cloud-event.ts";
import { publishSiem, type SiemParts } from "./publisher.ts";

let bus: ReturnType<typeof memoryBus>;
let batches: Awaited<ReturnType<typeof openBatches>>;
let head: LedgerHead;
const openBatches = () => memoryStore().collection<BatchDoc>("batches");
const running: { stop(): Promise<void> }[] = [];

beforeEach(async () => {
  const epochs = await memoryStore().collection<EpochRow>("epochs");
  bus = memoryBus({ epochs, clock, topics: { [siemTopic]: 1 } });
  batches = await openBatches();
  head = emptyHead;
});
afterEach(async () => {
  for (const each of running.splice(0)) await each.stop();
  await bus.close();
});

const start = (more: Partial<SiemParts> = {}) => {
  const stopping = new AbortController();
  const latest = () => head.batch;
  const instance = `a${running.length}`;
  const done = publishSiem({ bus, batches, latest, instance, clock, log: quiet, ...more }, stopping.signal);
  const one = {
    async stop() {
      stopping.abort();
      await done;
    },
  };
  running.push(one);
  return one;
};
const grow = async (count: number) => {
  head = await growBy(batches, head, count);
};
const indices = () => bus.records(siemTopic).map(({ value }) => ledgerIndexOf(value));
const upTo = (end: number, from = 0) => Array.from({ length: end - from }, (_, i) => from + i);
const untilTold = (count: number) => expect.poll(() => bus.records(siemTopic).length, bound).toBe(count);

describe("the topic for compliance tooling", () => {
  it("gets every leaf in the ledger's order, as the ledger grows", async () => {
    await grow(1_500);
    start();
    await untilTold(1_500);
    await grow(3);
    await untilTold(1_503);
    expect(indices()).toEqual(upTo(1_503));
    const [{ value, ...record }] = bus.records(siemTopic) as [InRecord];
    expect(record.headers[0]).toEqual(["content-type", "application/cloudevents+json; charset=UTF-8"]);
    expect(JSON.parse(Buffer.from(value).toString())).toMatchObject({ data: { class_uid: 6003 } });
  });

  it("is gone on with behind the last leaf that stands there, in the middle of a batch too", async () => {
    await grow(1_000);
    const first = start();
    await untilTold(1_000);
    await first.stop();
    const whole = bus.records(siemTopic);
    await grow(500);
    // What a kill in the middle leaves: part of a batch.
    const part = memoryBus({
      epochs: await memoryStore().collection<EpochRow>("epochs"),
      clock,
      topics: { [siemTopic]: 1 },
    });
    const producer = await part.openProducer({ topic: siemTopic, name: "auditor/before" });
    await producer.send(whole.slice(0, 700).map(({ key, value }) => ({ partition: 0, key, value, headers: {} })));
    bus = part;
    start();
    await untilTold(1_500);
    expect(indices()).toEqual(upTo(1_500));
  });

  it("is filled anew where it was made anew, with the same bytes", async () => {
    await grow(40);
    const first = start();
    await untilTold(40);
    await first.stop();
    const before = bus.records(siemTopic).map(({ value }) => Buffer.from(value).toString());
    const epochs = await memoryStore().collection<EpochRow>("epochs");
    bus = memoryBus({ epochs, clock, topics: { [siemTopic]: 1 } });
    start();
    await untilTold(40);
    expect(bus.records(siemTopic).map(({ value }) => Buffer.from(value).toString())).toEqual(before);
  });

  it("may get a leaf twice, from one that was stopped after its send: the same bytes, recognised by the index", async () => {
    await grow(10);
    const lossy = bus.seenBy(({ n, kind }) => (kind === "send" && n === 1 ? "unacknowledged" : undefined));
    start({ bus: lossy });
    await untilTold(20);
    expect(indices()).toEqual([...upTo(10), ...upTo(10)]);
    const values = bus.records(siemTopic).map(({ value }) => Buffer.from(value).toString());
    expect(new Set(values).size).toBe(10);
    await grow(1);
    await untilTold(21);
  });

  it("goes on after what a paused publisher sent late, and after what is none of ours", async () => {
    await grow(30);
    const first = start();
    await untilTold(30);
    await first.stop();
    const late = await bus.openProducer({ topic: siemTopic, name: "auditor/paused" });
    const again = bus.records(siemTopic).slice(5, 8);
    await late.send(again.map(({ key, value }) => ({ partition: 0, key, value, headers: {} })));
    for (const text of ["no json", "null", '{"ledgerindex":"-1"}', '{"ledgerindex":9999}', '"text"'])
      await late.send([{ partition: 0, key: "k", value: Buffer.from(text), headers: {} }]);
    await grow(1);
    start();
    await untilTold(30 + 3 + 5 + 1);
    expect(indices().at(-1)).toBe(30);
  });

  it("waits while the bus or the store is out, and loses nothing", async () => {
    let out = true;
    const flaky: Bus = {
      ...bus.seenBy(({ kind }) => (out && kind === "send" ? "lost" : undefined)),
      ends: (topic) => (out ? Promise.reject(new Error("the bus is out")) : bus.ends(topic)),
    };
    await grow(20);
    let reads = 0;
    const patchy: SiemParts["batches"] = {
      findLatest: (query) => batches.findLatest(query),
      get: (id) => {
        reads += 1;
        return reads % 2 === 1 ? Promise.reject(new Error("the store is out")) : batches.get(id);
      },
    };
    const lines: string[] = [];
    const log = openLog({ service: "test", level: "warn", write: (line) => void lines.push(line) });
    start({ bus: flaky, batches: patchy, log });
    await expect.poll(() => lines.length, bound).toBeGreaterThan(0);
    out = false;
    await untilTold(20);
    out = true;
    await grow(20);
    await expect.poll(() => reads, bound).toBeGreaterThan(4);
    out = false;
    await untilTold(40);
    expect(indices()).toEqual(upTo(40));
  });

  it("ends soon when it is told to, in the middle of an outage", async () => {
    await grow(5);
    const hung = bus.seenBy(({ kind }) => (kind === "send" ? "unanswered" : undefined));
    const one = start({ bus: hung });
    await untilTold(5);
    await one.stop();
  });

  it("is not written where it tells more than the ledger has", async () => {
    await grow(30);
    const first = start();
    await untilTold(30);
    await first.stop();
    batches = await openBatches();
    head = emptyHead;
    await grow(10);
    const lines: string[] = [];
    start({ log: openLog({ service: "test", level: "warn", write: (line) => void lines.push(line) }) });
    await expect.poll(() => lines.join(), bound).toContain("tells 30 entries, more than the ledger has");
    await grow(5);
    expect(bus.records(siemTopic)).toHaveLength(30);
  });
});
