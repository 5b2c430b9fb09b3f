import { randomUUID } from "node:crypto";
import { driftCauseName } from "@curfew/auditor/checks/drift.ts";
import { reverifyTopics } from "@curfew/auditor/checks/reverify-topics.ts";
import { openTopicWatch } from "@curfew/auditor/checks/topic-watch.ts";
import type { BatchDoc } from "@curfew/auditor/domain.ts";
import { identities, quiet, sendOn, startAuditor, tokenEvent, use, type World } from "@curfew/auditor/testing/rig.ts";
import { openEpochs } from "@curfew/event-log/epochs.ts";
import { topicNames } from "@curfew/event-log/event-types.ts";
import { openKafkaBus } from "@curfew/event-log/kafka.ts";
import { applyTopics, evidenceSettings } from "@curfew/event-log/topics.ts";
import { systemClock } from "@curfew/runtime/clock.ts";
import { memoryStore } from "@curfew/simulation/memory-store.ts";
import kafkajs from "kafkajs";
import { afterAll, afterEach, beforeAll, describe, expect, it, vi } from "vitest";
import { type KafkaServer, startKafka } from "../../deploy/dev/servers.ts";
import { bound, cleanUp, later, openAdmin } from "./bus-rig.ts";

const given = process.env.CURFEW_TEST_KAFKA_BROKERS?.split(",");
const numbers = (n: number) => Array.from({ length: n }, (_, i) => i);

/** What an administrator of the broker can do to the topics, on a real one, and what is found of it. */
describe("drift of topics on Kafka", () => {
  let server: KafkaServer | undefined;
  const brokers = () => given ?? server?.brokers ?? [];
  beforeAll(async () => {
    if (!given) server = await startKafka();
  });
  afterEach(cleanUp);
  afterAll(() => server?.stop());

  const open = async () => {
    const prefix = `t${randomUUID().slice(0, 8)}.`;
    const topics = { replicationFactor: 1, minInsync: 1, prefix };
    await applyTopics(brokers(), topics);
    const admin = await openAdmin(brokers());
    later(() => admin.disconnect());
    const store = memoryStore();
    const epochs = await openEpochs(store);
    const openBus = async () => {
      const settings = {
        clientId: "test",
        epochs,
        clock: systemClock,
        topicPrefix: prefix,
        identity: identities.identity,
      };
      const bus = await openKafkaBus({ brokers: brokers(), ...settings });
      later(() => bus.close());
      return bus;
    };
    const world: World = { epochs, store, bus: await openBus() };
    const count = 10;
    await sendOn(
      world.bus,
      topicNames.tokens,
      "issuer/a",
      numbers(count).map((n) => tokenEvent(n, 1)),
    );
    await sendOn(
      world.bus,
      topicNames.uses,
      "verifier/b",
      numbers(count).map((n) => use(n)),
    );
    const auditor = await startAuditor(world);
    const { models, drifts, ledger } = auditor;
    const going = new AbortController().signal;
    await vi.waitFor(async () => expect((await ledger.load(going)).size).toBe(2 * count), bound);
    await auditor.close();
    const [last] = await models.checkpoints.find({ order: -1, limit: 1 });
    const latest = () => last;
    const batches = await store.collection<BatchDoc>("batches");
    const places = { batches, checkpoints: models.checkpoints, latest, drifts, perSecond: 1e6, clock: systemClock };
    const found = async () =>
      (await drifts.open())
        .map(
          (d) => `${driftCauseName(d.cause).slice(12)} ${d.topic} ${d.setting || d.partition} ${d.seen.slice(0, 12)}`,
        )
        .sort();
    return {
      prefix,
      topics,
      admin,
      openBus,
      count,
      compare: async (minInsync = 1) => {
        const wanted = evidenceSettings(minInsync);
        const watch = openTopicWatch({ bus: world.bus, drifts, latest, wanted, clock: systemClock, log: quiet });
        expect(await watch.compare()).toBe(2 * count);
        return found();
      },
      again: async (bus = world.bus) => {
        await reverifyTopics({ ...places, bus }, async () => undefined, going);
        return found();
      },
    };
  };

  it("shows every setting that was changed, and that it was set right", async () => {
    const { admin, prefix, compare } = await open();
    expect(await compare()).toEqual([]);
    const set = async (changed: Readonly<Record<string, string>>) => {
      const configEntries = Object.entries({ ...evidenceSettings(1), ...changed }).map(([name, value]) => ({
        name,
        value,
      }));
      const resource = { type: kafkajs.ConfigResourceTypes.TOPIC, name: prefix + topicNames.tokens, configEntries };
      await admin.alterConfigs({ validateOnly: false, resources: [resource] });
    };
    const changes = {
      "cleanup.policy": "compact",
      "retention.ms": "86400000",
      "retention.bytes": "1000",
      "message.timestamp.type": "CreateTime",
      "unclean.leader.election.enable": "true",
    };
    await set(changes);
    const expected = Object.entries(changes).map(([name, seen]) => `SETTING ${topicNames.tokens} ${name} ${seen}`);
    await vi.waitFor(async () => expect(await compare()).toEqual(expected.sort()), bound);
    await set({});
    await vi.waitFor(async () => expect(await compare()).toEqual([]), bound);
    const all = Object.values(topicNames).map((topic) => `SETTING ${topic} min.insync.replicas 1`);
    expect(await compare(2)).toEqual(all.sort());
  });

  it("shows records deleted after they were sealed, by the ledger index of the first", async () => {
    const { admin, prefix, compare, again } = await open();
    expect(await again()).toEqual([]);
    const partitions = [{ partition: 0, offset: "3" }];
    await admin.fetchTopicOffsets(prefix + topicNames.tokens); // kafkajs deletes only where it knows who leads
    await admin.deleteTopicRecords({ topic: prefix + topicNames.tokens, partitions });
    const missing = [`RECORD_MISSING ${topicNames.tokens} 0 `];
    await vi.waitFor(async () => expect(await again()).toEqual(missing), bound);
    expect(await compare()).toEqual(missing);
  });

  it("shows a topic deleted, made again, and filled with as much as was sealed", async () => {
    const { admin, prefix, topics, openBus, count, compare, again } = await open();
    await admin.deleteTopics({ topics: [prefix + topicNames.tokens] });
    await vi.waitFor(async () => expect(await compare()).toEqual([`SHRUNK ${topicNames.tokens} 0 `]), bound);
    await vi.waitFor(() => applyTopics(brokers(), topics), bound);
    const bus = await openBus();
    await sendOn(
      bus,
      topicNames.tokens,
      "issuer/c",
      numbers(count + 1).map((n) => tokenEvent(100 + n, 1)),
    );
    // Long enough: what it lacks no offset tells. Its records do.
    await vi.waitFor(async () => expect(await compare()).toEqual([]), bound);
    const changed = (await again(bus)).map((line) => line.slice(0, line.lastIndexOf(" ")));
    expect(changed).toEqual([`RECORD_CHANGED ${topicNames.tokens} 0`, `RECREATED ${topicNames.tokens} 0`]);
  });
}, 300_000);
