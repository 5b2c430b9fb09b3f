import { spawn } from "node:child_process";
import { once } from "node:events";
import { createInterface } from "node:readline";
import { BusUnavailable } from "@curfew/event-log/bus.ts";
import { afterAll, afterEach, beforeAll, describe, expect, test, vi } from "vitest";
import { type KafkaServer, startKafka } from "../../deploy/dev/servers.ts";
import {
  assertAcknowledged,
  assertWhole,
  bound,
  cleanUp,
  collect,
  createTopics,
  fasterClock,
  idOf,
  later,
  openAdmin,
  openBus,
  record,
  sendUntil,
} from "./bus-rig.ts";
import { type Fate, type FaultyLink, fetchKey, openFaultyLink, produceKey } from "./faulty-link.ts";

const numbers = (n: number) => Array.from({ length: n }, (_, i) => i);

// One broker, reached through a link that can lose answers: every rule for kafkajs in the design's table, against the real thing.
describe("the Kafka adapter under faults", { timeout: 120_000 }, () => {
  let link: FaultyLink;
  let kafka: KafkaServer;
  let brokers: string[];
  let topic = "";
  beforeAll(async () => {
    link = await openFaultyLink();
    kafka = await startKafka({ settings: { "advertised.listeners": `BROKER://localhost:${link.port}` } });
    link.target = Number(kafka.brokers[0]?.split(":")[1]);
    brokers = [`localhost:${link.port}`];
  });
  afterAll(async () => {
    await kafka.stop();
    await link.close();
  });
  afterEach(async () => {
    link.fate = () => "pass";
    await cleanUp();
  });
  const newTopic = async (partitions: number) => {
    topic = `faults-${process.hrtime.bigint()}`;
    await createTopics(brokers, { [topic]: partitions });
  };

  test("lost acknowledgements lose nothing that is acknowledged and repeat nothing", async () => {
    await newTopic(3);
    const { bus } = await openBus(brokers);
    const reader = await collect(bus, topic);
    let produced = 0;
    let lost = 0;
    link.fate = (apiKey) => {
      if (apiKey !== produceKey || ++produced % 3 !== 0 || lost >= 30) return "pass";
      lost += 1;
      return "destroy";
    };
    const load = sendUntil(bus, topic, { callers: 24, partitions: 3 });
    await vi.waitFor(() => expect(lost).toBe(30), bound);
    await load.stop();
    await reader.count(load.acknowledged.size);
    expect(assertWhole(reader.records)).toEqual(["tester/1/1"]);
    expect(assertAcknowledged(load.acknowledged, reader.records)).toBe(0);
    expect(reader.records.length).toBe(load.acknowledged.size);
  });

  test("a rejected send is given up: a new producer, a new epoch, the same ids, nothing lost", async () => {
    await newTopic(3);
    const { bus, epochs } = await openBus(brokers);
    const reader = await collect(bus, topic);
    let produced = 0;
    let spoilt = 0;
    link.fate = (apiKey, frame) => {
      if (apiKey !== produceKey || ++produced % 20 !== 0 || spoilt >= 3) return "pass";
      spoilt += 1;
      // The first partition's error code: OUT_OF_ORDER_SEQUENCE_NUMBER, though the records were appended.
      frame.writeInt16BE(45, 12 + 2 + frame.readInt16BE(12) + 4 + 4);
      return "pass";
    };
    const load = sendUntil(bus, topic, { callers: 24, partitions: 3 });
    await vi.waitFor(() => expect(spoilt).toBe(3), bound);
    const sizeThen = load.acknowledged.size;
    await vi.waitFor(() => expect(load.acknowledged.size).toBeGreaterThan(sizeThen + 100), bound);
    await load.stop();
    const [end0 = 0, end1 = 0, end2 = 0] = await bus.ends(topic);
    await reader.count(end0 + end1 + end2);
    const names = [1, 2, 3, 4].map((epoch) => `tester/1/${epoch}`);
    expect(assertWhole(reader.records)).toEqual(names);
    for (const name of names) expect(await epochs.get(name)).toMatchObject({ topic });
    expect(assertAcknowledged(load.acknowledged, reader.records)).toBeGreaterThan(0);
    expect(new Set(reader.records.map(idOf))).toEqual(new Set(load.acknowledged.keys()));
  });

  test("a send that gets no response, while the broker answers others, is given up and goes out in a new epoch", async () => {
    await newTopic(1);
    const { bus } = await openBus(brokers, { clock: fasterClock(10) });
    const producer = await bus.openProducer({ topic, name: "tester/1" });
    await producer.send([record("before")]);
    let swallowed = 0;
    link.fate = (apiKey) => (apiKey === produceKey && swallowed++ === 0 ? "swallow" : "pass");
    expect(await producer.send([record("twice"), record("also twice")])).toEqual([3, 4]);
    const reader = await collect(bus, topic);
    await reader.count(5);
    expect(reader.records.map(idOf)).toEqual(["before", "twice", "also twice", "twice", "also twice"]);
    expect(assertWhole(reader.records)).toEqual(["tester/1/1", "tester/1/2"]);
    expect(producer.reachable).toBe(true);
  });

  /** Empty answers to fetches are kept and given again: the consumer fetches, and gets no further. */
  const neverMore = () => {
    let empty: Buffer | undefined;
    return (frame: Buffer): Fate => {
      if (!empty || frame.length <= empty.length) empty = frame;
      const again = Buffer.from(empty);
      frame.copy(again, 4, 4, 8);
      return again;
    };
  };
  const stalls: [what: string, stall: () => (frame: Buffer) => Fate, recordsBefore: number][] = [
    ["whose fetches are answered no more", () => () => "swallow", 0],
    ["that fetches and gets no further", neverMore, 20],
  ];
  test.each(stalls)("a consumer %s begins again by itself, without a gap or a repeat", async (_, stall, before) => {
    await newTopic(1);
    const { bus } = await openBus(brokers, { clock: fasterClock(10) });
    const reader = await collect(bus, topic);
    const producer = await bus.openProducer({ topic, name: "tester/1" });
    await producer.send([record("first")]);
    await reader.count(1);
    const admin = await openAdmin(brokers);
    later(() => admin.disconnect());
    const groups = async () => (await admin.listGroups()).groups.filter((g) => g.groupId.startsWith("reader-")).length;
    const groupsBefore = await groups();
    let stuck = 0;
    let again = false;
    const fate = stall();
    link.fate = (apiKey, frame) => {
      if (apiKey !== fetchKey || again) return "pass";
      stuck += 1;
      return fate(frame);
    };
    await vi.waitFor(() => expect(stuck).toBeGreaterThan(0), bound);
    await producer.send(numbers(before).map((i) => record(`r${i}`)));
    // Only another consumer, in another group, can get further.
    await vi.waitFor(async () => expect(await groups()).toBeGreaterThan(groupsBefore), bound);
    again = true;
    await producer.send(numbers(20).map((i) => record(`s${i}`)));
    await reader.count(1 + before + 20);
    assertWhole(reader.records);
    expect(reader.found.failure).toBeUndefined();
  });

  test("a broker that stands still for 12 s delays everything and breaks nothing", async () => {
    await newTopic(2);
    const { bus } = await openBus(brokers);
    const reader = await collect(bus, topic);
    const load = sendUntil(bus, topic, { callers: 8, partitions: 2 });
    const probe = await bus.openProducer({ topic, name: "probe/1" });
    await probe.send([record("probe 1")]);
    await vi.waitFor(() => expect(load.acknowledged.size).toBeGreaterThan(100), bound);
    kafka.pause();
    later(() => kafka.resume());
    const [pausedMs, sentMeanwhile] = [performance.now(), probe.send([record("probe 2")])];
    await expect(bus.ends(topic)).rejects.toBeInstanceOf(BusUnavailable);
    await expect(bus.ping()).rejects.toBeInstanceOf(BusUnavailable);
    expect(performance.now() - pausedMs).toBeLessThan(11_000);
    expect(probe.reachable).toBe(false);
    const acknowledgedThen = load.acknowledged.size;
    // The length is the fault itself: longer than a session, a stall and a question may take.
    await vi.waitFor(() => expect(performance.now() - pausedMs).toBeGreaterThan(12_000), bound);
    expect(load.acknowledged.size).toBe(acknowledgedThen);
    kafka.resume();
    await sentMeanwhile;
    await vi.waitFor(() => expect(load.acknowledged.size).toBeGreaterThan(acknowledgedThen + 100), bound);
    await load.stop();
    await bus.ping();
    await reader.count(load.acknowledged.size + 2);
    expect(new Set(assertWhole(reader.records))).toEqual(new Set(["probe/1/1", "tester/1/1"]));
    expect(assertAcknowledged(load.acknowledged, reader.records)).toBe(0);
    expect(reader.found.failure).toBeUndefined();
  });

  test("kill -9 of the broker while sending and reading loses and repeats nothing, and both go on by themselves", async () => {
    await newTopic(3);
    const { bus } = await openBus(brokers);
    const reader = await collect(bus, topic);
    const load = sendUntil(bus, topic, { callers: 16, partitions: 3 });
    for (const _ of numbers(2)) {
      const before = load.acknowledged.size;
      await vi.waitFor(() => expect(load.acknowledged.size).toBeGreaterThan(before + 200), bound);
      await kafka.kill();
      await expect(bus.ends(topic)).rejects.toBeInstanceOf(BusUnavailable);
      await kafka.restart();
    }
    const before = load.acknowledged.size;
    await vi.waitFor(() => expect(load.acknowledged.size).toBeGreaterThan(before + 200), bound);
    await load.stop();
    await reader.count(load.acknowledged.size);
    assertWhole(reader.records);
    expect(assertAcknowledged(load.acknowledged, reader.records)).toBe(0);
    expect(reader.records.length).toBe(load.acknowledged.size);
    expect(reader.found.failure).toBeUndefined();
  });

  test("a bus opened while the broker is down comes to life with it", async () => {
    await kafka.kill();
    // A topic of ours: its partitions are known without asking.
    topic = "curfew.tokens.v1";
    const { bus } = await openBus(brokers, { topicPrefix: "down." });
    const producer = await bus.openProducer({ topic, name: "tester/1" });
    const reader = await collect(bus, topic);
    const sent = producer.send([record("sent into an outage")]);
    await vi.waitFor(() => expect(producer.reachable).toBe(false), bound);
    await kafka.restart();
    await createTopics(brokers, { [`down.${topic}`]: 1 });
    expect(await sent).toEqual([0]);
    await reader.count(1);
    expect(reader.records[0]?.topic).toBe(topic);
    assertWhole(reader.records);
  });

  test("during an outage a bus closes in seconds, and its unsent records are rejected", async () => {
    await newTopic(1);
    const { bus } = await openBus(brokers);
    const producer = await bus.openProducer({ topic, name: "tester/1" });
    await producer.send([record("before")]);
    await collect(bus, topic);
    link.fate = () => "swallow";
    const sent = producer.send([record("unanswered")]);
    const outcome = expect(sent).rejects.toBeInstanceOf(BusUnavailable);
    await bus.close();
    await outcome;
  }, 20_000);

  test("a consumer that died without leaving blocks nobody: its successor reads while it is still a member", async () => {
    await newTopic(1);
    const { bus } = await openBus(brokers);
    const producer = await bus.openProducer({ topic, name: "tester/1" });
    await producer.send([record("one")]);
    const code = `
      const { openKafkaBus } = await import(${JSON.stringify(import.meta.resolve("@curfew/event-log/kafka.ts"))});
      const { systemClock } = await import(${JSON.stringify(import.meta.resolve("@curfew/runtime/clock.ts"))});
      const bus = await openKafkaBus({ brokers: ${JSON.stringify(brokers)}, clientId: "dying", clock: systemClock });
      const onRecords = () => console.log("read");
      await bus.subscribe({ name: "successor", topics: [${JSON.stringify(topic)}], start: () => 0, onRecords });
    `;
    const child = spawn(process.execPath, ["--input-type=module", "-e", code], {
      stdio: ["ignore", "pipe", "inherit"],
    });
    later(() => child.kill("SIGKILL"));
    await once(createInterface(child.stdout), "line");
    child.kill("SIGKILL");
    await once(child, "exit");
    const reader = await collect(bus, topic, { name: "successor" });
    await reader.count(1);
    const admin = await openAdmin(brokers);
    later(() => admin.disconnect());
    const { groups } = await admin.listGroups();
    const ids = groups.map((g) => g.groupId).filter((id) => id.startsWith("successor-"));
    const members = (await admin.describeGroups(ids)).groups.map((g) => g.members.length);
    expect(members).toEqual([1, 1]);
  });

  test("an offset that is not on the topic any more, or not yet, fails the subscription instead of skipping", async () => {
    await newTopic(1);
    const { bus } = await openBus(brokers);
    const producer = await bus.openProducer({ topic, name: "tester/1" });
    await producer.send(numbers(10).map((i) => record(`r${i}`)));
    const admin = await openAdmin(brokers);
    later(() => admin.disconnect());
    // kafkajs deletes only where it has loaded a topic's metadata before.
    await admin.fetchTopicOffsets(topic);
    await admin.deleteTopicRecords({ topic, partitions: [{ partition: 0, offset: "4" }] });
    for (const wanted of [3, 11]) {
      const reader = await collect(bus, topic, { start: () => wanted });
      await expect(reader.subscription.failed).rejects.toThrow(`${topic}/0 has no offset ${wanted}`);
      expect(reader.records).toEqual([]);
    }
    const reader = await collect(bus, topic, { start: () => 4 });
    await reader.count(6);
    expect(reader.records.map((r) => r.offset)).toEqual([4, 5, 6, 7, 8, 9]);
    expect(reader.found.failure).toBeUndefined();
  });

  test("an answer about ends is never older than the question", async () => {
    await newTopic(1);
    const { bus } = await openBus(brokers);
    const producer = await bus.openProducer({ topic, name: "tester/1" });
    const asking = numbers(50).map(async (i) => {
      const [offset = -1] = await producer.send([record(`r${i}`)]);
      const [end = -1] = await bus.ends(topic);
      return { offset, end };
    });
    for (const { offset, end } of await Promise.all(asking)) expect(end).toBeGreaterThan(offset);
  });
});
