import { randomUUID } from "node:crypto";
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { type BatchDoc, batchId } from "@curfew/auditor/domain.ts";
import { publishTiles } from "@curfew/auditor/public-log/tile-log.ts";
import { clock, partitions, quiet, seal, shard, startAuditor, use, type World } from "@curfew/auditor/testing/rig.ts";
import { openFiles } from "@curfew/auditor/testing/sequencer-process.ts";
import { openMongoStore } from "@curfew/document-store/mongo.ts";
import type { EpochRow } from "@curfew/event-log/epochs.ts";
import { topicNames } from "@curfew/event-log/event-types.ts";
import { openKafkaBus } from "@curfew/event-log/kafka.ts";
import { CHECKPOINT_PATH, openDirectory } from "@curfew/ledger/directory.ts";
import { decodeLeaf } from "@curfew/ledger/leaf.ts";
import { systemRandom } from "@curfew/runtime/random.ts";
import { ferretAvailable, kafkaAvailable, startFerret, startKafka } from "../../deploy/dev/servers.ts";
import { createTopics } from "../live/bus-rig.ts";
import { type Figure, millis, quantile } from "./figures.ts";
import { watchOthers } from "./machine.ts";

/** From an event that is durable to a signed checkpoint, published in the ledger's directory, that it is under. */

const perSecond = 1_000;
const everyMs = 10;

/** Sends at a steady rate; answers when each record, by its key, was acknowledged. */
const sendSteadily = async ({ bus }: World, seconds: number): Promise<Map<string, number>> => {
  const producer = await bus.openProducer({ topic: topicNames.uses, name: "verifier/steady" });
  const durable = new Map<string, number>();
  const count = (perSecond * everyMs) / 1_000;
  const sends: Promise<void>[] = [];
  const startedMs = performance.now();
  for (let group = 0; group < (seconds * 1_000) / everyMs; group += 1) {
    const late = performance.now() - startedMs - group * everyMs;
    if (late < 0) await clock.sleep(-late);
    const records = Array.from({ length: count }, (_, i) => use(group * count + i, i % 3));
    const sent = producer.send(records).then(() => {
      for (const { key } of records) durable.set(key, performance.now());
    });
    sends.push(sent);
  }
  await Promise.all(sends);
  await producer.close();
  return durable;
};

/** When the published checkpoint first had each size that it was seen to have. */
const watchSizes = (dir: string) => {
  const files = openDirectory(dir, { clock, random: systemRandom });
  const seen: { size: number; atMs: number }[] = [];
  const stop = new AbortController();
  const watching = (async () => {
    while (!stop.signal.aborted) {
      const bytes = await files.read(CHECKPOINT_PATH);
      const size = bytes ? seal.open(shard, Buffer.from(bytes).toString()).size : 0;
      if (size > (seen.at(-1)?.size ?? 0)) seen.push({ size, atMs: performance.now() });
      await clock.sleep(5, stop.signal);
    }
  })();
  return {
    seen,
    stop: async () => {
      stop.abort();
      await watching;
    },
  };
};

/** Index of the leaf of each record, by its key. */
const indexes = async ({ store }: World): Promise<Map<string, number>> => {
  const batches = await store.collection<BatchDoc>("batches");
  const found = new Map<string, number>();
  for (let number = 1; ; number += 1) {
    const doc = await batches.get(batchId(number));
    if (!doc) return found;
    for (const [i, leaf] of doc.leaves.entries()) found.set(decodeLeaf(leaf).key, doc.first + i);
  }
};

/** Ms for each event. */
const measure = async (world: World, seconds: number): Promise<number[]> => {
  const dir = mkdtempSync(join(tmpdir(), "curfew-bench-"));
  const files = openDirectory(dir, { clock, random: systemRandom });
  const batches = await world.store.collection<BatchDoc>("batches");
  const auditor = await startAuditor(world);
  const stop = new AbortController();
  const latest = () => Number.POSITIVE_INFINITY;
  const publishing = publishTiles({ files: () => files, batches, latest, seal, clock, log: quiet }, stop.signal);
  const watch = watchSizes(dir);
  try {
    const warmUp = await sendSteadily(world, 1); // everything is compiled, and every connection open
    const durable = await sendSteadily(world, seconds);
    while ((watch.seen.at(-1)?.size ?? 0) < warmUp.size + durable.size) await clock.sleep(10);
    const places = await indexes(world);
    return [...durable].map(([key, atMs]) => {
      const index = places.get(key) ?? Number.NaN;
      return (watch.seen.find(({ size }) => size > index)?.atMs ?? Number.NaN) - atMs;
    });
  } finally {
    await watch.stop();
    stop.abort();
    await publishing;
    await auditor.close();
    rmSync(dir, { recursive: true });
  }
};

const figure = (where: string, delays: readonly number[], others: string): Figure => ({
  what: `merge delay, durable to published, at ${perSecond} events/s, p99, ${where}`,
  value: quantile(delays, 0.99),
  show: millis,
  target: { most: 2_000 },
  notes: [`median ${millis(median(delays))}, most ${millis(quantile(delays, 1))} of ${delays.length} events`, others],
});
const median = (delays: readonly number[]) => quantile(delays, 0.5);

const measured = async (where: string, world: World, seconds: number): Promise<Figure> => {
  const others = watchOthers();
  const own = process.cpuUsage();
  const delays = await measure(world, seconds);
  const { user, system } = process.cpuUsage(own);
  return figure(where, delays, others((user + system) / 1_000));
};

const embedded = async (seconds: number): Promise<Figure> => {
  const dir = mkdtempSync(join(tmpdir(), "curfew-bench-"));
  const world = await openFiles(dir);
  try {
    return await measured("embedded", world, seconds);
  } finally {
    await world.close();
    rmSync(dir, { recursive: true });
  }
};

const throughKafka = async (seconds: number): Promise<Figure> => {
  const what = `through Kafka, FerretDB`;
  const lacking = [kafkaAvailable(), ferretAvailable()].find(({ ok }) => !ok);
  if (lacking && !lacking.ok)
    return { what: `merge delay, ${what}: NOT MEASURED, ${lacking.why}`, value: Number.NaN, show: () => "-" };
  const [kafka, ferret] = [await startKafka(), await startFerret()];
  const store = await openMongoStore({ url: ferret.url, database: `auditor-${randomUUID()}` });
  try {
    await createTopics(kafka.brokers, partitions);
    const epochs = await store.collection<EpochRow>("epochs");
    const bus = await openKafkaBus({ brokers: kafka.brokers, clientId: "bench", epochs, clock });
    try {
      return await measured(what, { epochs, store, bus }, seconds);
    } finally {
      await bus.close();
    }
  } finally {
    await store.close();
    await kafka.stop();
    await ferret.stop();
  }
};

/** At 1,000 events a second, embedded, and with `live` through Kafka. */
export const mergeDelays = async (seconds: number, live: boolean): Promise<Figure[]> => [
  await embedded(seconds),
  ...(live ? [await throughKafka(seconds)] : []),
];
