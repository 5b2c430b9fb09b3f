import { create } from "@bufbuild/protobuf";
import type { Position } from "@curfew/contracts/gen/curfew/events/v1/common_pb.ts";
import { SecretCollectedSchema } from "@curfew/contracts/gen/curfew/events/v1/tokens_pb.ts";
import { UseCompletedSchema } from "@curfew/contracts/gen/curfew/events/v1/uses_pb.ts";
import { type Bus, BusUnavailable, type InRecord, type OutRecord } from "@curfew/event-log/bus.ts";
import { encodeEvent, type ReadEvent } from "@curfew/event-log/envelope.ts";
import type { EpochRow } from "@curfew/event-log/epochs.ts";
import { topicNames } from "@curfew/event-log/event-types.ts";
import { listLog } from "@curfew/event-log/testing/collected.ts";
import { type BusPlan, type MemoryBus, memoryBus } from "@curfew/simulation/memory-bus.ts";
import { memoryStore } from "@curfew/simulation/memory-store.ts";
import { seededRandom } from "@curfew/simulation/seeded-random.ts";
import { settle, type VirtualClock, virtualClock } from "@curfew/simulation/virtual-clock.ts";
import { beforeEach, describe, expect, it } from "vitest";
import { type FeedOptions, openFeed, type StreamAlarm } from "./feed.ts";
import { past } from "./progress.ts";

const { tokens, uses } = topicNames;
let clock: VirtualClock;
let bus: MemoryBus;
const random = seededRandom(1);

beforeEach(async () => {
  clock = virtualClock();
  const epochs = await memoryStore().collection<EpochRow>("epochs");
  bus = memoryBus({ epochs, clock, topics: { [tokens]: 1, [uses]: 3 } });
});

/** Event `generation` of `stream`, which is its number there too unless said otherwise. */
const event = (stream: string, generation: number, more: { sequence?: number; id?: string } = {}): OutRecord => {
  const { headers, value } = encodeEvent(create(SecretCollectedSchema, { tokenId: stream, generation }), {
    source: "/issuer",
    subject: stream,
    nowMs: clock.now(),
    random: random.bytes,
    traceparent: "",
    sequence: more.sequence ?? generation,
    id: more.id ?? `${stream}-${generation}`,
  });
  return { partition: 0, key: stream, headers, value };
};
const use = (id: string, partition: number): OutRecord => {
  const { headers, value } = encodeEvent(create(UseCompletedSchema, { useId: id, tokenId: "tok_1" }), {
    source: "/verifier",
    subject: "tok_1",
    nowMs: clock.now(),
    random: random.bytes,
    traceparent: "",
    id,
  });
  return { partition, key: id, headers, value };
};
const send = async (records: readonly OutRecord[], topic: string = tokens) =>
  (await bus.openProducer({ topic, name: "issuer/1" })).send(records);

const open = async (more: Partial<FeedOptions> = {}) => {
  const applied: string[] = [];
  const alarms: StreamAlarm[] = [];
  const log = listLog();
  const feed = await openFeed({
    bus,
    name: "test",
    topics: [tokens],
    clock,
    log,
    apply: (read: ReadEvent) => void applied.push(read.id),
    onAlarm: (alarm) => void alarms.push(alarm),
    ...more,
  });
  feed.failed.catch(() => undefined);
  await settle();
  return { feed, applied, alarms, lines: log.lines };
};
const seenBy = (plan: BusPlan): Bus => bus.seenBy(plan);
const kinds = (alarms: readonly StreamAlarm[]) => alarms.map((a) => [a.kind, a.event.subject, a.expected]);

describe("a feed", () => {
  it("applies everything from the beginning, then what comes, and knows when it has caught up", async () => {
    await send([event("a", 1), event("b", 1), event("a", 2)]);
    const { feed, applied, alarms } = await open();
    await feed.caughtUp;
    expect(applied).toEqual(["a-1", "b-1", "a-2"]);
    await send([event("b", 2)]);
    await settle();
    expect(applied).toEqual(["a-1", "b-1", "a-2", "b-2"]);
    expect([feed.next(tokens, 0), feed.next(uses, 2), alarms]).toEqual([4, 0, []]);
    expect(feed.positions()).toMatchObject([{ topic: tokens, partition: 0, offset: 4n }]);
    await feed.close();
    await send([event("b", 3)]);
    await settle();
    expect(applied).toHaveLength(4);
  });

  it("has caught up at once on empty topics, and not before everything that was there is applied", async () => {
    await (await open()).feed.caughtUp;
    await send([event("a", 1), event("a", 2)]);
    const gate = Promise.withResolvers<void>();
    const { feed } = await open({ apply: ({ sequence }) => (sequence === 2 ? gate.promise : undefined) });
    let caughtUp = false;
    void feed.caughtUp.then(() => {
      caughtUp = true;
    });
    await settle();
    expect(caughtUp).toBe(false);
    gate.resolve();
    await settle();
    expect(caughtUp).toBe(true);
  });

  it("drops what was published twice, and what the bus delivers again", async () => {
    await send([event("a", 1), event("a", 2), event("a", 1), event("a", 2), event("b", 1), event("a", 3)]);
    const { applied, alarms } = await open({ bus: seenBy(({ kind }) => (kind === "deliver" ? "lost" : undefined)) });
    expect([applied, alarms]).toEqual([["a-1", "a-2", "b-1", "a-3"], []]);
  });

  it("drops redelivered uses, which have no sequence, by their offsets", async () => {
    await send([use("u1", 0), use("u2", 1), use("u3", 0)], uses);
    const again = seenBy(({ kind }) => (kind === "deliver" ? "lost" : undefined));
    const { applied } = await open({ bus: again, topics: [uses] });
    expect([...applied].sort()).toEqual(["u1", "u2", "u3"]);
  });

  it("raises the alarm for a gap in a stream, once, and goes on", async () => {
    await send([event("a", 1), event("a", 3), event("a", 4), event("b", 2)]);
    const { applied, alarms, lines } = await open();
    expect(applied).toEqual(["a-1", "a-3", "a-4", "b-2"]);
    expect(kinds(alarms)).toEqual([
      ["gap", "a", 2],
      ["gap", "b", 1],
    ]);
    expect(lines.filter((line) => line.startsWith("error"))).toHaveLength(2);
  });

  it("raises the alarm for another event under the same sequence, and applies only the first", async () => {
    await send([event("a", 1), event("a", 2), event("a", 9, { sequence: 2 }), event("a", 3)]);
    const { applied, alarms } = await open();
    expect(applied).toEqual(["a-1", "a-2", "a-3"]);
    expect(kinds(alarms)).toEqual([["fork", "a", 3]]);
  });

  it("applies all it gets where the fold needs no deduplication", async () => {
    await send([event("a", 1), event("a", 1), event("a", 5)]);
    const { applied, alarms } = await open({ dedupe: false });
    expect([applied, alarms]).toEqual([["a-1", "a-1", "a-5"], []]);
  });

  it("resumes from the positions committed with the output, and commits after the output", async () => {
    const story: string[] = [];
    let stored: readonly Position[] = [];
    const rows: Partial<FeedOptions> = {
      topics: [tokens, uses],
      apply: ({ id }) => void story.push(id),
      commit: async (positions, records) => {
        story.push(`commit ${records.length}`);
        stored = positions;
      },
    };
    await send([event("a", 1), event("a", 2)]);
    await send([use("u1", 1)], uses);
    const first = await open(rows);
    await first.feed.close();
    expect([...story].sort()).toEqual(["a-1", "a-2", "commit 1", "commit 2", "u1"]);
    expect(story.indexOf("commit 2")).toBeGreaterThan(story.indexOf("a-2"));
    story.length = 0;
    await send([event("a", 3)]);
    const second = await open({ ...rows, from: stored });
    expect(story).toEqual(["a-3", "commit 1"]);
    expect([second.alarms, second.feed.next(tokens, 0), second.feed.next(uses, 1)]).toEqual([[], 3, 1]);
  });

  it("applies the last batch again after a death before its commit", async () => {
    await send([event("a", 1), event("a", 2)]);
    const first = await open({ commit: () => new Promise(() => undefined) });
    expect([first.applied, first.feed.next(tokens, 0)]).toEqual([["a-1", "a-2"], 0]);
    expect(await first.feed.reached([{ topic: tokens, partition: 0, offset: 0n }], 0)).toBe(true);
    const second = await open({ commit: async () => undefined, from: first.feed.positions() });
    expect(second.applied).toEqual(["a-1", "a-2"]);
  });

  it("still sees a gap and a fork after it was resumed, but for the first event of each stream", async () => {
    await send([event("a", 1), event("a", 2), event("a", 3), event("a", 5), event("a", 6, { sequence: 5 })]);
    const from = [{ topic: tokens, partition: 0, offset: 1n } as Position];
    const { applied, alarms } = await open({ from });
    expect(applied).toEqual(["a-2", "a-3", "a-5"]);
    expect(kinds(alarms)).toEqual([
      ["gap", "a", 4],
      ["fork", "a", 6],
    ]);
  });

  it.each<[string, (record: OutRecord) => OutRecord]>([
    ["an unknown event type", (r) => ({ ...r, headers: { ...r.headers, ce_type: "curfew.token.teleported.v1" } })],
    ["bytes that are no message", (r) => ({ ...r, value: Uint8Array.of(0xff) })],
  ])("stops loudly at %s, and applies nothing behind it", async (_, spoil) => {
    await send([event("a", 1), spoil(event("a", 2)), event("a", 3)]);
    const { feed, applied, lines } = await open();
    await expect(feed.failed).rejects.toThrow(`${tokens}/0@1`);
    await expect(feed.caughtUp).rejects.toThrow(`${tokens}/0@1`);
    expect([applied, feed.next(tokens, 0)]).toEqual([["a-1"], 1]);
    expect(lines).toEqual(["error the feed cannot go on"]);
  });

  it.each(["apply", "commit"] as const)("fails when %s does, and commits no position past that", async (which) => {
    await send([event("a", 1)]);
    const broken = () => Promise.reject(new Error("disk full"));
    const { feed } = await open({ commit: async () => undefined, [which]: broken });
    await expect(feed.failed).rejects.toThrow("disk full");
    expect(feed.next(tokens, 0)).toBe(0);
  });

  it("waits for an unavailable bus at start", async () => {
    await send([event("a", 1)]);
    let tries = 0;
    const late: Bus = {
      ...bus,
      ends: (topic) => {
        tries += 1;
        return tries < 4 ? Promise.reject(new BusUnavailable("not yet")) : bus.ends(topic);
      },
    };
    const opening = open({ bus: late });
    await clock.advance(2_000);
    const { feed, applied, lines } = await opening;
    await feed.caughtUp;
    expect([tries, applied, lines]).toEqual([4, ["a-1"], ["warn waiting for the bus"]]);
  });
});

describe("reading your writes", () => {
  const at = (offset: bigint, topic: string = tokens): Position => ({ topic, partition: 0, offset }) as Position;

  it("waits until the record named is applied, and not a record less", async () => {
    const { feed } = await open();
    const outcomes: boolean[] = [];
    void feed.reached(past([at(1n)]), 250).then((reached) => outcomes.push(reached));
    await send([event("a", 1)]);
    await settle();
    expect(outcomes).toEqual([]);
    await send([event("a", 2)]);
    await settle();
    expect(outcomes).toEqual([true]);
    expect(await feed.reached(past([at(1n)]), 0)).toBe(true);
  });

  it("answers false when the time is over", async () => {
    const { feed } = await open();
    const outcomes: boolean[] = [];
    void feed.reached(past([at(7n)]), 250).then((reached) => outcomes.push(reached));
    await clock.advance(249);
    expect(outcomes).toEqual([]);
    await clock.advance(1);
    expect(outcomes).toEqual([false]);
  });

  it("asks nothing for topics that the feed does not read, and all of those it does", async () => {
    const { feed } = await open();
    expect(await feed.reached(past([at(9n, uses)]), 0)).toBe(true);
    await send([event("a", 1)]);
    await settle();
    const both = feed.reached(past([at(0n), at(1n)]), 10);
    await clock.advance(10);
    expect(await both).toBe(false);
  });

  it("lets nobody wait in a feed that is closed, nor more than 10,000", async () => {
    const { feed } = await open();
    const waiting = Array.from({ length: 10_000 }, () => feed.reached(past([at(0n)]), 60_000));
    expect(await feed.reached(past([at(0n)]), 60_000)).toBe(false);
    await feed.close();
    expect(new Set(await Promise.all(waiting))).toEqual(new Set([false]));
    expect(await feed.reached(past([at(0n)]), 60_000)).toBe(false);
  });

  it("sees a batch only once it is committed, where rows are written", async () => {
    const gate = Promise.withResolvers<void>();
    const records: InRecord[] = [];
    const { feed } = await open({
      commit: async (_, batch) => {
        records.push(...batch);
        await gate.promise;
      },
    });
    await send([event("a", 1)]);
    await settle();
    const early = feed.reached(past([at(0n)]), 10);
    await clock.advance(10);
    expect([await early, records.length]).toEqual([false, 1]);
    gate.resolve();
    await settle();
    expect(await feed.reached(past([at(0n)]), 0)).toBe(true);
  });
});
