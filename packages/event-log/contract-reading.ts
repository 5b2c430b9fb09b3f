import { expect, it, vi } from "vitest";
import { BusRefused, BusUnavailable, type InRecord } from "./bus.ts";
import {
  assertChained,
  assertDense,
  bound,
  type Fixture,
  manyPartitions,
  numbers,
  record,
  textOf,
} from "./contract-fixture.ts";
import { evidenceSettings } from "./topics.ts";

export const readingContract = (f: Fixture) => {
  it("gives each of two subscribers everything, what is there already and what comes", async () => {
    const producer = await f.producer(f.many);
    const send = (from: number) =>
      producer.send(numbers(20, from).map((i) => record(`v${i}`, { partition: i % manyPartitions })));
    await send(0);
    const readers = [await f.collect([f.many]), await f.collect([f.many])];
    await send(20);
    for (const { records, count } of readers) {
      await count(40);
      assertDense(records);
      expect(new Set(records.map(textOf))).toEqual(new Set(numbers(40).map((i) => `v${i}`)));
    }
  });

  it("asks where to start for every partition at every subscription, and starts there", async () => {
    const producer = await f.producer(f.many);
    await producer.send(numbers(30).map((i) => record(`v${i}`, { partition: i % manyPartitions })));
    for (const starts of [
      [0, 4, 10],
      [9, 10, 0],
    ]) {
      const asked = new Set<string>();
      const start = (topic: string, partition: number) => {
        asked.add(`${topic} ${partition}`);
        return starts[partition] ?? 0;
      };
      const { records, count, subscription } = await f.collect([f.many], { start });
      await count(30 - starts.reduce((a, b) => a + b));
      await subscription.close();
      expect(asked).toEqual(new Set(numbers(manyPartitions).map((partition) => `${f.many} ${partition}`)));
      for (const partition of numbers(manyPartitions)) {
        const from = starts[partition] ?? 0;
        const offsets = records.filter((r) => r.partition === partition).map((r) => r.offset);
        expect(offsets).toEqual(numbers(10 - from, from));
      }
    }
  });

  it("goes on at the end with the next record", async () => {
    const producer = await f.producer(f.one);
    await producer.send([record("old")]);
    const { records, count } = await f.collect([f.one], { start: () => 1 });
    await producer.send([record("new")]);
    await count(1);
    expect(records.map((r) => [r.offset, textOf(r)])).toEqual([[1, "new"]]);
  });

  it("fails when the position asked for is past the end: the topic has lost what the reader once had", async () => {
    await (await f.producer(f.one)).send([record("x")]);
    const { subscription } = await f.collect([f.one], { start: () => 2 });
    await expect(subscription.failed).rejects.toMatchObject({
      name: "OffsetGone",
      topic: f.one,
      partition: 0,
      offset: 2,
    });
    await subscription.close();
  });

  it("describes a topic: where each partition begins and ends, and each setting that evidence rests on", async () => {
    const producer = await f.producer(f.many);
    await producer.send(numbers(5).map((i) => record(`v${i}`, { partition: i % 2 })));
    const { starts, ends, settings } = await f.bus.describe(f.many);
    expect([starts, ends]).toEqual([
      [0, 0, 0],
      [3, 2, 0],
    ]);
    expect(Object.keys(settings).sort()).toEqual(Object.keys(evidenceSettings(1)).sort());
    expect(settings).toMatchObject({ "cleanup.policy": "delete", "message.timestamp.type": "LogAppendTime" });
    await expect(f.bus.describe(`${f.one}-absent`)).rejects.toBeInstanceOf(BusRefused);
  });

  it("reads two topics in one subscription", async () => {
    const [one, many] = [await f.producer(f.one), await f.producer(f.many, "tester/2")];
    const { records, count } = await f.collect([f.one, f.many]);
    await Promise.all(
      numbers(50).map((i) => (i % 2 ? one.send([record(`v${i}`)]) : many.send([record(`v${i}`, { partition: 2 })]))),
    );
    await count(50);
    assertDense(records);
    assertChained(records);
    expect(new Set(records.filter((r) => r.topic === f.one).map(textOf))).toEqual(
      new Set(numbers(25).map((i) => `v${2 * i + 1}`)),
    );
    expect(records.filter((r) => r.topic === f.many && r.partition === 2).length).toBe(25);
  });
};

export const backPressureContract = (f: Fixture) => {
  it("gives a slow subscriber at most 1,000 records at a time, one call after the other, and loses nothing", async () => {
    const producer = await f.producer(f.one);
    const send = (n: number, from: number) => producer.send(numbers(n, from).map((i) => record(`v${i}`)));
    for (const from of [0, 1000, 2000]) await send(1000, from);
    const gate = Promise.withResolvers<void>();
    const sizes: number[] = [];
    const texts: string[] = [];
    let running = 0;
    let overlapped = false;
    const onRecords = async (batch: readonly InRecord[]) => {
      overlapped ||= ++running > 1;
      sizes.push(batch.length);
      await gate.promise;
      for (const r of batch) texts.push(textOf(r));
      running -= 1;
    };
    await f.collect([f.one], { onRecords });
    await vi.waitFor(() => expect(sizes.length).toBe(1), bound);
    for (const from of numbers(20, 0)) await send(25, 3000 + 25 * from);
    expect(sizes.length).toBe(1);
    gate.resolve();
    await vi.waitFor(() => expect(texts.length).toBe(3500), bound);
    expect(texts).toEqual(numbers(3500).map((i) => `v${i}`));
    expect(Math.max(...sizes)).toBeLessThanOrEqual(1000);
    expect(overlapped).toBe(false);
  });

  it("carries large values: 64 KB each, and a send of nearly 4 MiB", async () => {
    const producer = await f.producer(f.one);
    const large = numbers(100).map((i) => record(new Uint8Array(65_535).fill(i)));
    const huge = numbers(4).map((i) => record(new Uint8Array(1_000_000).fill(100 + i)));
    const reader = await f.collect([f.one]);
    await Promise.all([...large.map((r) => producer.send([r])), producer.send(huge)]);
    await reader.count(104);
    assertDense(reader.records);
    assertChained(reader.records);
    expect(reader.records.map((r) => [r.value.length, r.value[0], r.value.at(-1)])).toEqual(
      [...large, ...huge].map(({ value }, i) => [value.length, i, i]),
    );
  });
};

export const endingContract = (f: Fixture) => {
  it("fails a subscription whose onRecords rejects, with that error, and calls it no more", async () => {
    const producer = await f.producer(f.one);
    let calls = 0;
    const onRecords = async () => {
      calls += 1;
      throw new Error("unknown event type");
    };
    const { subscription } = await f.collect([f.one], { onRecords });
    const other = await f.collect([f.one]);
    await producer.send([record("x")]);
    await expect(subscription.failed).rejects.toThrow("unknown event type");
    await producer.send([record("y")]);
    await other.count(2);
    expect(calls).toBe(1);
    await subscription.close();
  });

  it("closes a subscription after the running onRecords, and calls it no more, whatever else there is", async () => {
    const producer = await f.producer(f.many);
    await producer.send(numbers(9).map((i) => record(`v${i}`, { partition: i % manyPartitions })));
    const gate = Promise.withResolvers<void>();
    const story: string[] = [];
    const onRecords = async () => {
      story.push("called");
      await gate.promise;
      story.push("done");
    };
    const { subscription } = await f.collect([f.many], { onRecords });
    const other = await f.collect([f.many]);
    await vi.waitFor(() => expect(story).toEqual(["called"]), bound);
    const closed = subscription.close().then(() => story.push("closed"));
    for (const i of numbers(20)) await producer.send([record(`later${i}`)]);
    await other.count(29);
    gate.resolve();
    await closed;
    await producer.send([record("last")]);
    await other.count(30);
    expect(story).toEqual(["called", "done", "closed"]);
  });

  it("closes a producer: what it acknowledged is there, the rest is rejected as unavailable", async () => {
    const producer = await f.producer(f.one);
    const sends = numbers(30).map((i) => producer.send([record(`v${i}`)]));
    const outcomes = Promise.allSettled(sends);
    await sends[0];
    const more = Promise.allSettled(numbers(30, 30).map((i) => producer.send([record(`v${i}`)])));
    await producer.close();
    await producer.close();
    await expect(producer.send([record("late")])).rejects.toBeInstanceOf(BusUnavailable);
    const texts = new Set((await f.readAll(f.one)).map(textOf));
    for (const [i, outcome] of [...(await outcomes), ...(await more)].entries())
      if (outcome.status === "fulfilled") expect(texts).toContain(`v${i}`);
      else expect(outcome.reason).toBeInstanceOf(BusUnavailable);
  });

  it("answers a ping, and nothing once it is closed", async () => {
    await f.bus.ping();
    const producer = await f.producer(f.one);
    await f.bus.close();
    for (const late of [f.bus.ping(), f.bus.ends(f.one), f.producer(f.one), f.collect([f.one])])
      await expect(late).rejects.toBeInstanceOf(BusUnavailable);
    await expect(producer.send([record("x")])).rejects.toBeInstanceOf(BusUnavailable);
  });
};
