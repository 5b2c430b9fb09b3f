import type { Collection } from "@curfew/document-store/port.ts";
import {
  type Bus,
  BusRefused,
  BusUnavailable,
  type InRecord,
  OffsetGone,
  type SubscribeOptions,
  type Subscription,
  type TopicState,
} from "@curfew/event-log/bus.ts";
import type { ChainedRecord } from "@curfew/event-log/chain.ts";
import { NothingSent, openChainedProducer, type ProducerTransport } from "@curfew/event-log/chained-producer.ts";
import type { EpochRow } from "@curfew/event-log/epochs.ts";
import { identityOf, type ProducerIdentity } from "@curfew/event-log/producer-key.ts";
import { evidenceSettings } from "@curfew/event-log/topics.ts";
import type { Clock } from "@curfew/runtime/clock.ts";
import { type Fault, never } from "./faulty-store.ts";

const maxBatch = 1_000;

export interface BusOperation {
  /** From 1, counted for each kind by itself. */
  readonly n: number;
  readonly kind: "send" | "deliver";
  readonly topic: string;
}

/**
 * Asked before each send of a transport and after each delivery; a promise delays it, one that never settles hangs it. The producer is
 * the real one and patient, so a "lost" send is tried again and an "unacknowledged" one goes out once more, in a new epoch. A delivery
 * with any fault comes again.
 */
export type BusPlan = (operation: BusOperation) => Fault | undefined | Promise<Fault | undefined>;

export interface MemoryBus extends Bus {
  /** The same topics as seen by one process, whose sends and deliveries fail by `plan`. */
  seenBy(plan: BusPlan): Bus;
  /** What stands on the topic, all partitions, in offset order within each. */
  records(topic: string): readonly InRecord[];
  /** Takes the last record off a partition, as who administers the broker can. */
  cut(topic: string, partition: number): void;
}

export interface MemoryBusParts {
  readonly epochs: Collection<EpochRow>;
  readonly clock: Clock;
  /** As the real buses have it. */
  readonly identity?: (service: string) => ProducerIdentity;
  /** Partitions of each topic. */
  readonly topics: Readonly<Record<string, number>>;
}

/** A bus in arrays, for simulation: like the memory store it takes no turn of its own. Producers are the real ones but for their transport. */
export const memoryBus = (parts: MemoryBusParts): MemoryBus => {
  const none = (length: number): InRecord[][] => Array.from({ length }, () => []);
  const topics = new Map(Object.entries(parts.topics).map(([topic, count]) => [topic, none(count)]));
  const readers = new Set<() => void>();
  const opened = new Set<{ close(): Promise<void> }>();
  let closed = false;

  const partitionsOf = (topic: string): InRecord[][] => {
    const partitions = topics.get(topic);
    if (!partitions) throw new BusRefused(`no topic ${topic}`);
    return partitions;
  };
  const assertOpen = async () => {
    if (closed) throw new BusUnavailable("closed");
  };

  const append = (topic: string, record: ChainedRecord): number => {
    const partition = partitionsOf(topic)[record.partition] as InRecord[];
    const length = partition.push({
      topic,
      partition: record.partition,
      offset: partition.length,
      timestampMs: parts.clock.now(),
      key: record.key,
      headers: Object.entries(record.headers),
      value: Uint8Array.from(record.value),
    });
    return length - 1;
  };

  const transport = (topic: string, plan: BusPlan, counts: Counts): ProducerTransport => ({
    async send(records) {
      counts.send += 1;
      const fault = await plan({ n: counts.send, kind: "send", topic });
      if (closed || fault === "lost") throw new NothingSent("simulated: lost");
      const offsets = records.map((record) => append(topic, record));
      for (const wake of readers) wake();
      if (fault === "unanswered") return await never();
      if (fault === "unacknowledged") throw new Error("simulated: sent, and reported lost");
      return offsets;
    },
    close: async () => undefined,
  });

  const seenBy = (plan: BusPlan): Bus => {
    const counts: Counts = { send: 0, deliver: 0 };
    return {
      async openProducer(options) {
        await assertOpen();
        const producer = openChainedProducer({
          options,
          partitions: partitionsOf(options.topic).length,
          epochs: parts.epochs,
          clock: parts.clock,
          ...identityOf(options, parts.identity),
          open: async () => transport(options.topic, plan, counts),
        });
        opened.add(producer);
        return producer;
      },
      async subscribe(options) {
        await assertOpen();
        const reading = options.topics.flatMap((topic) => partitionsOf(topic).map((_, p) => ({ topic, partition: p })));
        const onRecords = async (records: readonly InRecord[]) => {
          await options.onRecords(records);
          counts.deliver += 1;
          const fault = await plan({ n: counts.deliver, kind: "deliver", topic: records[0]?.topic ?? "" });
          if (fault) await options.onRecords(records);
        };
        const subscription = follow({ ...options, onRecords }, reading, (t, p) => partitionsOf(t)[p] ?? [], readers);
        opened.add(subscription);
        return subscription;
      },
      async ends(topic) {
        await assertOpen();
        return partitionsOf(topic).map((records) => records.length);
      },
      describe: (topic) => assertOpen().then(() => stateOf(partitionsOf(topic))),
      ping: assertOpen,
      async close() {
        closed = true;
        await Promise.all([...opened].map((each) => each.close()));
      },
    };
  };

  const cut = (topic: string, partition: number) => void partitionsOf(topic)[partition]?.pop();
  return { ...seenBy(() => undefined), seenBy, cut, records: (topic) => partitionsOf(topic).flat() };
};

const stateOf = (partitions: readonly InRecord[][]): TopicState => {
  const ends = partitions.map((records) => records.length);
  return { starts: ends.map(() => 0), ends, settings: evidenceSettings(1) };
};

interface Counts {
  send: number;
  deliver: number;
}

const follow = (
  { start, onRecords }: SubscribeOptions,
  reading: readonly { topic: string; partition: number }[],
  recordsOf: (topic: string, partition: number) => readonly InRecord[],
  readers: Set<() => void>,
): Subscription => {
  let closed = false;
  let wake = Promise.withResolvers<void>();
  const notify = () => {
    wake.resolve();
    wake = Promise.withResolvers();
  };
  readers.add(notify);

  // One call at a time, whatever the partition.
  let last: Promise<void> = Promise.resolve();
  const deliver = (batch: readonly InRecord[]): Promise<void> => {
    last = last.then(() => (closed ? undefined : onRecords(batch)));
    return last;
  };

  const readOne = async ({ topic, partition }: (typeof reading)[number]) => {
    let next = start(topic, partition);
    const end = recordsOf(topic, partition).length;
    if (next > end) throw new OffsetGone({ topic, partition, offset: next }, `: it ends at ${end}`);
    while (!closed) {
      const woken = wake.promise;
      const batch = recordsOf(topic, partition).slice(next, next + maxBatch);
      if (batch.length === 0) await woken;
      else await deliver(batch);
      next += batch.length;
    }
  };
  const running = reading.map(readOne);
  const failed = Promise.withResolvers<never>();
  failed.promise.catch(() => undefined);
  for (const each of running) each.catch(failed.reject);
  return {
    failed: failed.promise,
    async close() {
      closed = true;
      readers.delete(notify);
      wake.resolve();
      await Promise.allSettled(running);
    },
  };
};
