import { fromBinary } from "@bufbuild/protobuf";
import {
  EvidenceGapFoundSchema,
  GapCause,
  GapCauseSchema,
  ProducerEpochClosedSchema,
} from "@curfew/contracts/gen/curfew/events/v1/evidence_pb.ts";
import { BusUnavailable } from "@curfew/event-log/bus.ts";
import { headerOf } from "@curfew/event-log/chain.ts";
import { beginEpoch, type EpochRow } from "@curfew/event-log/epochs.ts";
import { siemTopic, topicNames } from "@curfew/event-log/event-types.ts";
import type { Clock } from "@curfew/runtime/clock.ts";
import { virtualClock } from "@curfew/simulation/virtual-clock.ts";
import { afterEach, describe, expect, it, vi } from "vitest";
import { openFollower } from "../follower.ts";
import {
  bound,
  clock,
  type MemoryWorld,
  openWorld,
  quiet,
  seal,
  startAuditor,
  untilSealed,
  use,
} from "../testing/rig.ts";
import { watchEpochs } from "./epoch-watch.ts";

const closers: (() => Promise<unknown>)[] = [];
afterEach(async () => {
  for (const close of closers.splice(0).reverse()) await close();
});

const { uses, evidence } = topicNames;
const causeOf = (cause: GapCause) => GapCauseSchema.value[cause]?.localName;

/** An auditor that seals in real time, and a watch whose time passes only by `pass`. */
const openWatched = async (world?: MemoryWorld) => {
  const opened = world ?? (await openWorld());
  const auditor = await startAuditor(opened);
  auditor.outbox.start("localhost:1");
  closers.push(() => auditor.close());
  const follower = await openFollower({ models: auditor.models, seal, clock, log: quiet });
  closers.push(() => follower.close());
  const virtual = virtualClock();
  let asleep = 0;
  const time: Clock = {
    ...virtual,
    async sleep(ms, signal) {
      asleep += 1;
      await virtual.sleep(ms, signal);
      asleep -= 1;
    },
  };
  const looked = () => vi.waitFor(() => expect(asleep).toBe(1), bound);
  let isDown = false;
  const bus = {
    ends: async (topic: string) => {
      if (isDown) throw new BusUnavailable("the bus is down");
      return await opened.bus.ends(topic);
    },
  };
  const stop = new AbortController();
  const { outbox } = auditor;
  const watching = watchEpochs({ epochs: opened.epochs, outbox, bus, follower, clock: time, log: quiet }, stop.signal);
  const close = async () => {
    stop.abort();
    await watching;
  };
  closers.push(close);
  const said = <T>(type: string, decode: (value: Uint8Array) => T): T[] => {
    const seen = new Map<string, T>();
    for (const record of opened.bus.records(evidence))
      if (headerOf(record, "ce_type") === type) seen.set(headerOf(record, "ce_id") ?? "", decode(record.value));
    return [...seen.values()];
  };
  return {
    world: opened,
    close,
    fail: (down: boolean) => {
      isDown = down;
    },
    /** Lets looks happen, each of which may wait for what is sealed meanwhile. */
    async pass(looks: number) {
      for (let i = 0; i < looks; i += 1) {
        await looked();
        await virtual.advance(5_000);
        await looked();
        await untilSealed(opened);
      }
    },
    closings: () => said("curfew.producer-epoch.closed.v1", (value) => fromBinary(ProducerEpochClosedSchema, value)),
    gaps: () => said("curfew.evidence-gap.found.v1", (value) => fromBinary(EvidenceGapFoundSchema, value)),
  };
};

/** What a producer that was killed leaves: its row never says that it ended. */
const sendAndDie = async ({ bus, epochs }: MemoryWorld, name: string, count: number) => {
  const producer = await bus.openProducer({ topic: uses, name });
  for (let n = 0; n < count; n += 1) await producer.send([use(n, n % 3)]);
  // Its row as it is a second later, and no more: its beats are real time, 20 s apart.
  await vi.waitFor(async () => expect((await epochs.get(`${name}/1`))?.acknowledged).toMatchObject({ 0: 2 }), bound);
  closers.push(() => producer.close());
  return `${name}/1`;
};
const isAuditors = (producer: string) => producer.startsWith("auditor/");
const numbersOf = (chains: readonly { partition: number; acknowledged: bigint }[]) =>
  chains.map(({ acknowledged }) => Number(acknowledged));

describe("a producer epoch", () => {
  it("is closed when its producer is silent for a minute, once, with what it wrote down as acknowledged", async () => {
    const watch = await openWatched();
    const producer = await sendAndDie(watch.world, "verifier/a", 5);
    await watch.pass(11);
    expect(watch.closings()).toEqual([]);
    await watch.pass(2);
    await vi.waitFor(() => expect(watch.closings().length).toBe(1), bound);
    const [closing] = watch.closings();
    expect(closing).toMatchObject({ producer, topic: uses, ended: false });
    expect(numbersOf(closing?.chains ?? [])).toEqual([2, 2, 1]);
    expect((await watch.world.epochs.get(producer))?.open).toBeUndefined();
    await untilSealed(watch.world);
    await watch.pass(14);
    expect(watch.closings().filter((each) => each.producer === producer).length).toBe(1);
    expect(watch.gaps()).toEqual([]);
  });

  it("is not closed while its producer lives, however little it sends", async () => {
    const watch = await openWatched();
    const producer = await sendAndDie(watch.world, "verifier/a", 5);
    for (let beats = 100; beats < 110; beats += 1) {
      await watch.world.epochs.set(producer, { beats });
      await watch.pass(4);
    }
    expect(watch.closings().map((closing) => closing.producer)).not.toContain(producer);
  });

  it("says that its producer ended it, where it did", async () => {
    const watch = await openWatched();
    const open = await watch.world.bus.openProducer({ topic: uses, name: "verifier/a" });
    await open.send([use(1), use(2)]);
    await open.close();
    await watch.pass(14);
    await vi.waitFor(() => expect(watch.closings()).toMatchObject([{ producer: "verifier/a/1", ended: true }]), bound);
    await untilSealed(watch.world);
    expect(watch.gaps()).toEqual([]);
  });

  it("is short where its last record was removed before it was sealed: a gap, and one only", async () => {
    const world = await openWorld();
    const producer = await sendAndDie(world, "verifier/a", 4);
    world.bus.cut(uses, 0);
    const watch = await openWatched(world);
    await watch.pass(14);
    await vi.waitFor(() => expect(watch.gaps().length).toBe(1), bound);
    expect(watch.gaps()).toMatchObject([
      {
        producer,
        cause: GapCause.SHORT,
        position: { topic: uses, partition: 0, offset: 1n },
        expectedSequence: 2n,
        seenSequence: 1n,
      },
    ]);
  });

  it("is left open for as long as the bus cannot say where its topic ends", async () => {
    const watch = await openWatched();
    const producer = await sendAndDie(watch.world, "verifier/a", 4);
    watch.fail(true);
    await watch.pass(20);
    expect(watch.closings()).toEqual([]);
    watch.fail(false);
    await watch.pass(2);
    await vi.waitFor(() => expect(watch.closings()).toMatchObject([{ producer }]), bound);
  });

  it("is closed again, further on, where it was not over", async () => {
    const watch = await openWatched();
    const producer = await sendAndDie(watch.world, "verifier/a", 4);
    // The auditor's own producer beats in real time, so that it is closed too.
    const closings = () => watch.closings().filter((closing) => closing.producer === producer);
    await watch.pass(14);
    await vi.waitFor(() => expect(closings().length).toBe(1), bound);
    // It could not reach the store of producers, and can again.
    const row = await watch.world.epochs.get(producer);
    await watch.world.epochs.set(producer, { beats: 1_000, open: true });
    await watch.pass(14);
    expect(closings().length).toBe(1);
    expect((await watch.world.epochs.get(producer))?.open).toBeUndefined();
    await watch.world.epochs.set(producer, { acknowledged: { ...row?.acknowledged, 0: 9 }, beats: 1_001, open: true });
    await watch.pass(14);
    await vi.waitFor(() => expect(closings().map(({ chains }) => numbersOf(chains)[0])).toEqual([2, 9]), bound);
    // Whoever raised the number in the store could not sign it.
    await vi.waitFor(() => expect(watch.gaps().map(({ cause }) => causeOf(cause))).toEqual(["BAD_SIGNATURE"]), bound);
  });

  it("is closed with the largest numbers seen: a row that was put back hides nothing", async () => {
    const watch = await openWatched();
    const producer = await sendAndDie(watch.world, "verifier/a", 4);
    const row = await watch.world.epochs.get(producer);
    await watch.pass(3);
    await watch.world.epochs.set(producer, { acknowledged: {}, signature: "AAAA" });
    await watch.pass(14);
    await vi.waitFor(() => expect(watch.closings().length).toBe(1), bound);
    expect(numbersOf(watch.closings()[0]?.chains ?? [])).toEqual([2, 1, 1]);
    expect(row?.acknowledged).toEqual({ 0: 2, 1: 1, 2: 1 });
    await untilSealed(watch.world);
    expect(watch.gaps()).toEqual([]);
  });

  it.each([
    ["removed", (epochs: MemoryWorld["epochs"], id: string) => epochs.delete(id)],
    ["said to be closed", (epochs: MemoryWorld["epochs"], id: string) => epochs.unset(id, "open")],
    ["moved to another topic", (epochs: MemoryWorld["epochs"], id: string) => epochs.set(id, { topic: siemTopic })],
    ["spoilt", (epochs: MemoryWorld["epochs"], id: string) => epochs.set(id, { signature: 7 })],
  ] as const)("is closed with what it had said where its row was %s", async (_, tamper) => {
    const watch = await openWatched();
    const producer = await sendAndDie(watch.world, "verifier/a", 4);
    await watch.pass(2);
    await tamper(watch.world.epochs, producer);
    await watch.pass(14);
    const closings = () => watch.closings().filter((closing) => closing.producer === producer);
    await vi.waitFor(() => expect(closings().map(({ chains }) => numbersOf(chains))).toEqual([[2, 1, 1]]), bound);
    await untilSealed(watch.world);
    expect(watch.gaps()).toEqual([]);
  });

  it("is closed although there are rows that no producer would write", async () => {
    const watch = await openWatched();
    const { epochs } = watch.world;
    const strange: Record<string, unknown>[] = [
      { _id: "no producer \u2028", topic: uses, acknowledged: {} },
      { _id: "verifier/x/1", topic: uses, acknowledged: null },
      { _id: "verifier/x/2", topic: uses, acknowledged: { 0: "9", 1: -1, 2: 1.5, "-1": 7, x: [] } },
      { _id: "verifier/x/3", topic: 7, acknowledged: {} },
      { _id: "verifier/x/4", topic: uses, acknowledged: {}, key: "..", signature: { a: 1 } },
      { _id: "verifier/x/6", topic: uses, acknowledged: {}, key: "k".repeat(2_000_000) },
      { _id: "verifier/x/5", topic: uses, acknowledged: {}, key: "..", signature: "!" },
    ];
    for (const row of strange) await epochs.insert({ ...row, open: true } as EpochRow);
    const producer = await sendAndDie(watch.world, "verifier/a", 4);
    await watch.pass(14);
    const closed = () => watch.closings().map((closing) => closing.producer);
    await vi.waitFor(() => expect(closed()).toContain(producer), bound);
    expect(new Set(closed())).toEqual(
      new Set(["verifier/x/2", "verifier/x/5", producer, ...closed().filter(isAuditors)]),
    );
    await untilSealed(watch.world);
    await vi.waitFor(
      () => expect(watch.gaps()).toMatchObject([{ producer: "verifier/x/5", cause: GapCause.BAD_SIGNATURE }]),
      bound,
    );
  });

  it("of a topic that is not sealed, or of evidence itself, makes no closings without end", async () => {
    const watch = await openWatched();
    await beginEpoch(watch.world.epochs, "auditor/siem", siemTopic);
    await sendAndDie(watch.world, "verifier/a", 4);
    for (let i = 0; i < 40; i += 1) {
      await watch.pass(1);
      // The auditor's own producer lives.
      for (const row of await watch.world.epochs.find({ where: { open: true }, limit: 10 }))
        if (row.topic === evidence) await watch.world.epochs.set(row._id, { beats: 1_000 + i });
    }
    expect((await watch.world.epochs.get("auditor/siem/1"))?.open).toBeUndefined();
    expect(watch.closings().map((closing) => closing.producer)).toEqual(["verifier/a/1"]);
  });
});
