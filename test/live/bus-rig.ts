import { openSqliteStore } from "@curfew/document-store/sqlite.ts";
import type { Bus, InRecord, OutRecord, SubscribeOptions } from "@curfew/event-log/bus.ts";
import { type ChainHead, checkLink } from "@curfew/event-log/chain.ts";
import type { EpochRow } from "@curfew/event-log/epochs.ts";
import { type KafkaTls, openKafkaBus } from "@curfew/event-log/kafka.ts";
import { type Clock, systemClock } from "@curfew/runtime/clock.ts";
import kafkajs from "kafkajs";
import { expect, vi } from "vitest";

/** What a test opened, closed after it in reverse order. */
export const cleanups: (() => unknown)[] = [];
export const later = (cleanup: () => unknown) => cleanups.push(cleanup);
export const cleanUp = async () => {
  for (const cleanup of cleanups.splice(0).reverse()) await cleanup();
};
export const bound = { timeout: 60_000, interval: 10 };

export const openAdmin = async (brokers: string[], ssl?: KafkaTls) => {
  const quiet = { logLevel: kafkajs.logLevel.NOTHING, retry: { retries: 30, maxRetryTime: 500 } };
  const admin = new kafkajs.Kafka({ brokers, ...quiet, ...(ssl && { ssl }) }).admin();
  await admin.connect();
  return admin;
};

/** Creates topics (partitions by name) as production has them, but for copies. */
export const createTopics = async (brokers: string[], topics: Readonly<Record<string, number>>, ssl?: KafkaTls) => {
  const admin = await openAdmin(brokers, ssl);
  try {
    await admin.createTopics({
      topics: Object.entries(topics).map(([topic, numPartitions]) => ({
        topic,
        numPartitions,
        configEntries: [{ name: "message.timestamp.type", value: "LogAppendTime" }],
      })),
    });
  } finally {
    await admin.disconnect();
  }
};

export const openEpochs = async () => {
  const store = await openSqliteStore({ file: ":memory:" });
  return { store, epochs: await store.collection<EpochRow>("epochs") };
};

/** A bus of one test. */
export const openBus = async (
  brokers: string[],
  more: { clock?: Clock; ssl?: KafkaTls; topicPrefix?: string } = {},
) => {
  const { store, epochs } = await openEpochs();
  later(() => store.close());
  const bus = await openKafkaBus({ brokers, clientId: "test", epochs, clock: systemClock, ...more });
  later(() => bus.close());
  return { bus, epochs };
};

/** A clock on which minutes of a watchdog's patience are seconds. */
export const fasterClock = (times: number): Clock => ({
  now: () => systemClock.now(),
  monotonicMs: () => systemClock.monotonicMs() * times,
  sleep: (ms, signal) => systemClock.sleep(ms / times, signal),
});

export const record = (id: string, partition = 0): OutRecord => ({
  partition,
  key: `k-${id}`,
  headers: { ce_id: id },
  value: Buffer.from(`value of ${id}`),
});
export const idOf = ({ headers }: InRecord) => headers.find(([name]) => name === "ce_id")?.[1] ?? "";

/** Subscribes from the beginning and keeps what comes; `failure` is set when the subscription fails. */
export const collect = async (bus: Bus, topic: string, options: Partial<SubscribeOptions> = {}) => {
  const records: InRecord[] = [];
  const found: { failure?: unknown } = {};
  const subscription = await bus.subscribe({
    name: "reader",
    topics: [topic],
    start: (_, partition) => records.filter((r) => r.partition === partition).length,
    onRecords: (batch) => void records.push(...batch),
    ...options,
  });
  subscription.failed.catch((error: unknown) => {
    found.failure = error;
  });
  const count = (n: number) => vi.waitFor(() => expect(records.length).toBeGreaterThanOrEqual(n), bound);
  return { records, subscription, found, count };
};

/** Offsets are 0, 1, 2 … per partition as delivered, and every chain of every epoch is whole; answers the epochs seen. */
export const assertWhole = (records: readonly InRecord[]) => {
  const heads = new Map<string, ChainHead | undefined>();
  const next = new Map<number, number>();
  const epochs = new Set<string>();
  for (const r of records) {
    const offset = next.get(r.partition) ?? 0;
    expect(r.offset).toBe(offset);
    next.set(r.partition, offset + 1);
    const producer = r.headers.find(([name]) => name === "curfew-producer")?.[1] ?? "";
    epochs.add(producer);
    const lane = `${producer} ${r.partition}`;
    const { verdict, head } = checkLink(heads.get(lane), r);
    expect(verdict).toEqual({ kind: "ok" });
    heads.set(lane, head);
  }
  return [...epochs];
};

/** Many callers share a producer, each sending batches one after the other, until told to stop; answers where each record is said to be. */
export const sendUntil = (bus: Bus, topic: string, options: { callers: number; partitions: number; name?: string }) => {
  const acknowledged = new Map<string, string>();
  const stop = new AbortController();
  const run = async () => {
    const producer = await bus.openProducer({ topic, name: options.name ?? "tester/1" });
    const caller = async (c: number) => {
      for (let i = 0; !stop.signal.aborted; i += 1) {
        const batch = [0, 1, 2].map((n) => record(`${c}.${i}.${n}`, (c + n) % options.partitions));
        const offsets = await producer.send(batch);
        for (const [n, r] of batch.entries()) acknowledged.set(r.key.slice(2), `${r.partition}@${offsets[n]}`);
      }
    };
    await Promise.all(Array.from({ length: options.callers }, (_, c) => caller(c)));
  };
  const finished = run();
  finished.catch(() => {});
  return {
    acknowledged,
    async stop() {
      stop.abort();
      await finished;
    },
  };
};

/** Every acknowledged record was delivered from the offset it was acknowledged with; answers how many ids are on the topic twice. */
export const assertAcknowledged = (acknowledged: ReadonlyMap<string, string>, records: readonly InRecord[]) => {
  const places = new Map<string, string[]>();
  for (const r of records) places.set(idOf(r), [...(places.get(idOf(r)) ?? []), `${r.partition}@${r.offset}`]);
  const lost = [...acknowledged].filter(([id, place]) => !places.get(id)?.includes(place));
  expect(lost).toEqual([]);
  return [...places.values()].filter((found) => found.length > 1).length;
};
