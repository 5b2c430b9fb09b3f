import { randomUUID } from "node:crypto";
import { type BatchDoc, batchId } from "@curfew/auditor/domain.ts";
import {
  assertOneTree,
  partitions,
  replayAll,
  sendOn,
  startAuditor,
  tokenEvent,
  untilSealed,
  use,
  type World,
} from "@curfew/auditor/testing/rig.ts";
import { openMongoStore } from "@curfew/document-store/mongo.ts";
import type { EpochRow } from "@curfew/event-log/epochs.ts";
import { topicNames } from "@curfew/event-log/event-types.ts";
import { openKafkaBus } from "@curfew/event-log/kafka.ts";
import { systemClock } from "@curfew/runtime/clock.ts";
import { faultyStore } from "@curfew/simulation/faulty-store.ts";
import { afterAll, afterEach, beforeAll, describe, expect, it } from "vitest";
import { type FerretServer, type KafkaServer, startFerret, startKafka } from "../../deploy/dev/servers.ts";
import { createTopics } from "./bus-rig.ts";

const given = { brokers: process.env.CURFEW_TEST_KAFKA_BROKERS?.split(","), url: process.env.CURFEW_TEST_MONGODB_URL };

describe("sealing on Kafka and a MongoDB-protocol server", () => {
  let kafka: KafkaServer | undefined;
  let ferret: FerretServer | undefined;
  const closers: (() => Promise<unknown>)[] = [];
  beforeAll(async () => {
    if (!given.brokers) kafka = await startKafka();
    if (!given.url) ferret = await startFerret();
  });
  afterEach(async () => {
    for (const close of closers.splice(0).reverse()) await close();
  });
  afterAll(async () => {
    await kafka?.stop();
    await ferret?.stop();
  });

  const openWorld = async (): Promise<World> => {
    const brokers = given.brokers ?? kafka?.brokers ?? [];
    const topicPrefix = `t${randomUUID().slice(0, 8)}.`;
    await createTopics(brokers, Object.fromEntries(Object.entries(partitions).map(([t, n]) => [topicPrefix + t, n])));
    const store = await openMongoStore({ url: given.url ?? ferret?.url ?? "", database: `auditor-${randomUUID()}` });
    closers.push(() => store.close());
    const epochs = await store.collection<EpochRow>("epochs");
    const bus = await openKafkaBus({ brokers, clientId: "test", epochs, clock: systemClock, topicPrefix });
    closers.push(() => bus.close());
    return { epochs, store, bus };
  };
  const produce = async (world: World, from: number, count: number): Promise<void> => {
    const numbers = Array.from({ length: count }, (_, i) => from + i);
    await sendOn(
      world.bus,
      topicNames.tokens,
      "issuer/a",
      numbers.map((n) => tokenEvent(n, 1)),
    );
    await sendOn(
      world.bus,
      topicNames.uses,
      "verifier/b",
      numbers.map((n) => use(n, n % 3)),
    );
  };

  it("stays one tree when a sequencer is paused between reading and staging while another seals", async () => {
    const world = await openWorld();
    const paused = Promise.withResolvers<void>();
    const go = Promise.withResolvers<undefined>();
    const slow = faultyStore(world.store, async ({ collection, method }) => {
      if (collection !== "batches" || method !== "insert") return undefined;
      paused.resolve();
      return await go.promise;
    });
    await produce(world, 0, 200);
    const first = await startAuditor(world, slow);
    closers.push(() => first.close());
    await paused.promise;
    const second = await startAuditor(world);
    closers.push(() => second.close());
    await untilSealed(world);
    const { head } = await replayAll(world.store);
    go.resolve(undefined);
    await produce(world, 200, 100);
    await untilSealed(world);
    await assertOneTree(world);
    const batches = await world.store.collection<BatchDoc>("batches");
    expect((await batches.get(batchId(head.batch)))?.size).toBe(head.size);
  });
});
