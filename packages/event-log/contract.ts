import { afterEach, beforeEach, describe, expect, it } from "vitest";
import { BusRefused, type OutRecord } from "./bus.ts";
import { sequenceHeader } from "./chain.ts";
import {
  assertChained,
  assertDense,
  type ContractTopics,
  Fixture,
  headerOf,
  manyPartitions,
  numbers,
  type OpenedBus,
  record,
  textOf,
} from "./contract-fixture.ts";
import { backPressureContract, endingContract, readingContract } from "./contract-reading.ts";

const testMs = 120_000;

/** What every adapter of the port must do; `open` makes the topics it is given, empty. */
export const busContract = (name: string, open: (topics: ContractTopics) => Promise<OpenedBus>): void => {
  describe(`bus on ${name}`, { timeout: testMs }, () => {
    const fixture = new Fixture();
    beforeEach(async () => {
      fixture.rename();
      fixture.use(await open({ [fixture.one]: 1, [fixture.many]: manyPartitions }));
    });
    afterEach(() => fixture.opened.close());

    sendingContract(fixture);
    refusalContract(fixture);
    readingContract(fixture);
    backPressureContract(fixture);
    endingContract(fixture);
    restartContract(fixture);
  });
};

const sendingContract = (f: Fixture) => {
  it("answers the offsets of what was sent and delivers it in that order, each partition by itself", async () => {
    const producer = await f.producer(f.many);
    const sent = numbers(30).map((i) => record(`v${i}`, { partition: i % manyPartitions, key: `k${i}` }));
    const offsets = await producer.send(sent);
    expect(offsets).toEqual(numbers(30).map((i) => Math.floor(i / manyPartitions)));
    expect(await producer.send([record("again", { partition: 1 })])).toEqual([10]);
    expect(await producer.send([])).toEqual([]);
    expect(await f.bus.ends(f.many)).toEqual([10, 11, 10]);
    const records = await f.readAll(f.many);
    assertDense(records);
    for (const partition of numbers(manyPartitions)) {
      const here = records.filter((r) => r.partition === partition).map((r) => `${r.key}=${textOf(r)}`);
      const expected = sent.filter((r) => r.partition === partition).map((r) => `${r.key}=${textOf(r)}`);
      expect(here).toEqual(partition === 1 ? [...expected, "k=again"] : expected);
    }
  });

  it("loses, repeats and reorders nothing when many callers send at once, and the chain is unbroken", async () => {
    const producer = await f.producer(f.many);
    const reader = await f.collect([f.many]);
    const where = new Map<string, string>();
    const caller = async (c: number) => {
      for (const s of numbers(8)) {
        const batch = numbers(3).map((i) => record(`${c}.${s}.${i}`, { partition: (c + i) % manyPartitions }));
        const offsets = await producer.send(batch);
        for (const [i, r] of batch.entries()) where.set(textOf(r), `${r.partition}@${offsets[i]}`);
      }
    };
    await Promise.all(numbers(40).map(caller));
    await reader.count(40 * 8 * 3);
    assertDense(reader.records);
    expect(assertChained(reader.records)).toEqual({ "tester/1/1": 320 });
    expect(new Map(reader.records.map((r) => [textOf(r), `${r.partition}@${r.offset}`]))).toEqual(where);
    expect(reader.records.length).toBe(where.size);
    await reader.subscription.close();
  });

  it("keeps the chains of two producers apart, also of the same name", async () => {
    const producers = await Promise.all(["a/1", "b/1", "b/1"].map((name) => f.producer(f.one, name)));
    await Promise.all(numbers(60).map((i) => producers[i % 3]?.send([record(`v${i}`)])));
    const records = await f.readAll(f.one);
    assertDense(records);
    expect(assertChained(records)).toEqual({ "a/1/1": 20, "b/1/1": 20, "b/1/2": 20 });
    expect(new Set(records.map(textOf)).size).toBe(60);
  });

  it("keeps key, headers and value exactly, in the order of the headers, and adds the chain after them", async () => {
    const headers = { ce_id: "0190", b: "", "content-type": "application/protobuf", a: " ~x y ", traceparent: "00-ab" };
    const value = Uint8Array.from(numbers(256));
    const producer = await f.producer(f.one);
    await producer.send([record(value, { key: "schlüssel-鍵-🔑", headers }), record(Uint8Array.of(0))]);
    const [first, second] = await f.readAll(f.one);
    expect(first?.key).toBe("schlüssel-鍵-🔑");
    expect(first?.headers.slice(0, 5)).toEqual(Object.entries(headers));
    expect(first?.headers.slice(5).map(([name]) => name)).toEqual(["curfew-producer", "curfew-seq", "curfew-prev"]);
    expect(Buffer.from(first?.value ?? []).equals(value)).toBe(true);
    expect([...(second?.value ?? [])]).toEqual([0]);
  });

  it("keeps in the epoch's row what was acknowledged, at the latest when the producer is closed", async () => {
    const producer = await f.producer(f.many);
    await producer.send(numbers(5).map((i) => record(`v${i}`, { partition: i % 2 })));
    await producer.close();
    const expected = { _id: "tester/1/1", topic: f.many, acknowledged: { 0: 3, 1: 2 }, ended: true };
    expect(await f.opened.epochs.get("tester/1/1")).toMatchObject(expected);
  });
};

const refusalContract = (f: Fixture) => {
  const refused: [what: string, records: () => OutRecord[]][] = [
    ["an empty value", () => [record("")]],
    ["a value over 1 MB", () => [record(new Uint8Array(1_000_001))]],
    ["more than 4 MiB", () => numbers(5).map(() => record(new Uint8Array(900_000)))],
    ["more than 1,000 records", () => numbers(1001).map(() => record("x"))],
    ["a key that is empty", () => [record("x", { key: "" })]],
    ["a header that is not printable", () => [record("x", { headers: { a: "ü" } })]],
    ["a chain header", () => [record("x", { headers: { "curfew-seq": "1" } })]],
    ["a partition that is not there", () => [record("x", { partition: 1 })]],
  ];
  it.each(refused)("refuses %s, all of that send and nothing else", async (_, records) => {
    const producer = await f.producer(f.one);
    const outcomes = await Promise.allSettled([
      producer.send([record("before")]),
      producer.send([record("beside"), ...records()]),
      producer.send([record("after")]),
    ]);
    expect(outcomes.map((outcome) => outcome.status)).toEqual(["fulfilled", "rejected", "fulfilled"]);
    expect(outcomes[1]).toMatchObject({ reason: expect.any(BusRefused) });
    const all = await f.readAll(f.one);
    expect(all.map(textOf)).toEqual(["before", "after"]);
    assertChained(all);
    expect(producer.reachable).toBe(true);
  });

  it("refuses a topic that does not exist", async () => {
    const topic = `${f.one}-absent`;
    const send = async () => (await f.producer(topic)).send([record("x")]);
    await expect(send()).rejects.toThrow();
    await expect(f.bus.ends(topic)).rejects.toThrow();
    await expect(f.collect([topic])).rejects.toThrow();
  });
};

const restartContract = (f: Fixture) => {
  it("keeps everything over a restart, where each producer begins its next epoch at number 1", async () => {
    await (await f.producer(f.many)).send(numbers(9).map((i) => record(`v${i}`, { partition: i % manyPartitions })));
    if (!(await f.reopen())) return;
    expect(await f.bus.ends(f.many)).toEqual([3, 3, 3]);
    const producer = await f.producer(f.many);
    expect(await producer.send(numbers(2).map((i) => record(`w${i}`)))).toEqual([3, 4]);
    const records = await f.readAll(f.many);
    assertDense(records);
    expect(assertChained(records)).toEqual({ "tester/1/1": 3, "tester/1/2": 2 });
    const [w0] = records.filter((r) => textOf(r) === "w0");
    expect(w0 && headerOf(w0, sequenceHeader)).toBe("1");
  });
};
