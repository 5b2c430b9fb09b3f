import { randomUUID } from "node:crypto";
import { openMongoStore } from "@curfew/document-store/mongo.ts";
import type { EpochRow } from "@curfew/event-log/epochs.ts";
import { openKafkaBus } from "@curfew/event-log/kafka.ts";
import { topic } from "@curfew/event-log/testing/replica.ts";
import { streamContract } from "@curfew/projection/contract.ts";
import { systemClock } from "@curfew/runtime/clock.ts";
import { afterAll, beforeAll } from "vitest";
import { type FerretServer, type KafkaServer, startFerret, startKafka } from "../../deploy/dev/servers.ts";
import { createTopics } from "./bus-rig.ts";

let kafka: KafkaServer;
let ferret: FerretServer;
beforeAll(async () => {
  [kafka, ferret] = await Promise.all([startKafka(), startFerret()]);
});
afterAll(async () => {
  await Promise.all([kafka?.stop(), ferret?.stop()]);
});

streamContract("Kafka and a MongoDB-protocol server", async () => {
  const name = `t${randomUUID().slice(0, 8)}`;
  const topicPrefix = `${name}.`;
  await createTopics(kafka.brokers, { [topicPrefix + topic]: 1 });
  const store = await openMongoStore({ url: ferret.url, database: name });
  const epochs = await store.collection<EpochRow>("epochs");
  const { brokers } = kafka;
  const bus = await openKafkaBus({ brokers, clientId: name, epochs, clock: systemClock, topicPrefix });
  const close = async () => {
    await bus.close();
    await store.close();
  };
  return { store, bus, close };
});
