/**
 * One kafkajs consumer in a group of its own. It never commits and never trusts the group: positions are ours, every record is checked
 * against them, and the first thing that is odd ends the session, so that the subscription can begin another or fail.
 */
import type { Random } from "@curfew/runtime/random.ts";
import type kafkajs from "kafkajs";
import type { Batch, EachBatchPayload, KafkaMessage } from "kafkajs";
import { type InRecord, OffsetGone } from "./bus.ts";
import { type KafkaClientSettings, openKafkaClient, within } from "./kafka-client.ts";

export const maxRecords = 1000;
const heartbeatMs = 1000;
const sessionTimeoutMs = 10_000;
const rebalanceTimeoutMs = 10_000;
const fetchWaitMs = 250;
const requestTimeoutMs = 15_000;
const retries = 5;
const disconnectMs = 2000;
/** Without one answered fetch for so long, the session is stalled (kafkajs #1431: a consumer just stops fetching). */
const stallMs = 10_000;
const watchEveryMs = 1000;
const lagEveryMs = 5000;

export interface SessionSettings extends KafkaClientSettings {
  /** Topics as the broker names them. */
  readonly topics: readonly string[];
  readonly group: string;
  readonly random: Random;
  readonly start: (topic: string, partition: number) => number;
  /** At most `maxRecords` of one partition. Never rejects; false: deliver no more. */
  readonly deliver: (topic: string, records: readonly InRecord[]) => Promise<boolean>;
  /** Offsets after the last records, on another connection. */
  readonly ends: (topic: string) => Promise<number[]>;
}

export interface Session {
  /** Why it ended: OffsetGone, or anything after which another session may begin. Resolves once. */
  readonly ended: Promise<Error>;
  /** Delivers no more. */
  end(): void;
  /** Ends it and leaves the group, within about 2 s after what is being delivered. */
  close(): Promise<void>;
}

export const openSession = (settings: SessionSettings): Session => new ConsumerSession(settings);

class ConsumerSession implements Session {
  readonly ended: Promise<Error>;
  readonly #settings: SessionSettings;
  readonly #client: ReturnType<typeof openKafkaClient>;
  readonly #consumer: kafkajs.Consumer;
  readonly #over = new AbortController();
  readonly #end: (reason: Error) => void;
  /** The next offset wanted, per topic and partition. */
  #positions = new Map<string, Map<number, number>>();
  /** Changes at every assignment: what was fetched under an earlier one is stale. */
  #generation = 0;
  #delivering: boolean = false;
  #heardMs: number;

  constructor(settings: SessionSettings) {
    const { promise, resolve } = Promise.withResolvers<Error>();
    this.ended = promise;
    this.#end = (reason) => {
      this.#over.abort();
      resolve(reason);
    };
    this.#settings = settings;
    this.#heardMs = settings.clock.monotonicMs();
    const onError = (line: { message: string }) => {
      // kafkajs resets to the earliest offset by itself; this line is the only word about it before the next batch.
      if (line.message.startsWith("Offset out of range")) this.#end(this.#gone(line as typeof line & Lane));
    };
    this.#client = openKafkaClient(settings, { requestTimeoutMs, retries, onError });
    const unique = Buffer.from(settings.random(16)).toString("hex");
    this.#consumer = this.#client.kafka.consumer({
      groupId: `${settings.group}-${unique}`,
      heartbeatInterval: heartbeatMs,
      sessionTimeout: sessionTimeoutMs,
      rebalanceTimeout: rebalanceTimeoutMs,
      minBytes: 1,
      maxWaitTimeInMs: fetchWaitMs,
      allowAutoTopicCreation: false,
      // A transaction that somebody leaves open would hold back every record after it.
      readUncommitted: true,
      // kafkajs would begin again in the same group, and wait there for its former self.
      retry: { ...this.#client.retry, restartOnFailure: async () => false },
    });
    void this.#run();
    void this.#watch();
  }

  end(): void {
    this.#end(new Error("closed"));
  }

  async close(): Promise<void> {
    this.end();
    await within(this.#settings.clock, disconnectMs, this.#consumer.disconnect()).catch(() => {});
    this.#client.end();
  }

  async #run(): Promise<void> {
    const consumer = this.#consumer;
    const { CRASH, FETCH, GROUP_JOIN, START_BATCH_PROCESS } = consumer.events;
    consumer.on(CRASH, ({ payload }) => this.#end(payload.error));
    consumer.on(GROUP_JOIN, ({ payload }) => this.#assigned(payload.memberAssignment));
    consumer.on(FETCH, () => this.#heard());
    consumer.on(START_BATCH_PROCESS, ({ payload }) => {
      // Only control records: kafkajs passes over them without calling eachBatch.
      const { topic, partition, batchSize, firstOffset, lastOffset } = payload;
      if (batchSize === 0 && Number(firstOffset) === this.#position(topic, partition))
        this.#positions.get(topic)?.set(partition, Number(lastOffset) + 1);
    });
    try {
      await consumer.connect();
      await consumer.subscribe({ topics: [...this.#settings.topics], fromBeginning: true });
      await consumer.run({
        autoCommit: false,
        eachBatchAutoResolve: false,
        eachBatch: (payload) => this.#batch(payload),
      });
    } catch (error) {
      this.#end(error as Error);
    }
  }

  #heard(): void {
    this.#heardMs = this.#settings.clock.monotonicMs();
  }

  #position(topic: string, partition: number): number | undefined {
    return this.#positions.get(topic)?.get(partition);
  }

  /** Called between the join and the first fetch after it. */
  #assigned(assignment: Readonly<Record<string, readonly number[]>>): void {
    if (this.#over.signal.aborted) return;
    this.#generation += 1;
    this.#positions = new Map();
    try {
      for (const [topic, partitions] of Object.entries(assignment)) {
        const positions = new Map<number, number>();
        this.#positions.set(topic, positions);
        for (const partition of partitions) {
          const offset = this.#settings.start(topic, partition);
          positions.set(partition, offset);
          this.#consumer.seek({ topic, partition, offset: String(offset) });
        }
      }
    } catch (error) {
      this.#end(error as Error);
    }
  }

  async #batch({ batch, resolveOffset, heartbeat, isRunning, isStale }: EachBatchPayload): Promise<void> {
    const { topic, partition } = batch;
    const generation = this.#generation;
    const stale = () => this.#over.signal.aborted || !isRunning() || isStale() || generation !== this.#generation;
    const position = this.#position(topic, partition);
    if (stale() || position === undefined) return;
    const fresh = batch.messages.filter((message) => Number(message.offset) >= position);
    if (hasHole(batch, fresh, position)) return this.#end(this.#gone({ topic, partition }));
    for (let from = 0; from < fresh.length; from += maxRecords) {
      const messages = fresh.slice(from, from + maxRecords);
      const last = messages.at(-1) as KafkaMessage;
      await heartbeat();
      if (stale()) return;
      const records = messages.map((message) => toRecord(topic, partition, message));
      if (!(await this.#deliver(topic, records, heartbeat)) || stale()) return;
      resolveOffset(last.offset);
      const next = last === batch.messages.at(-1) ? batch.lastOffset() : last.offset;
      this.#positions.get(topic)?.set(partition, Number(next) + 1);
    }
  }

  /** Keeps the membership alive however long it takes. */
  async #deliver(topic: string, records: readonly InRecord[], heartbeat: () => Promise<void>): Promise<boolean> {
    const delivered = new AbortController();
    const beat = async () => {
      for (;;) {
        await this.#settings.clock.sleep(heartbeatMs, delivered.signal);
        if (delivered.signal.aborted) return;
        // What it rejects with comes again at the next one, in the course of the batch.
        await heartbeat().catch(() => {});
      }
    };
    this.#delivering = true;
    void beat();
    try {
      return await this.#settings.deliver(topic, records);
    } finally {
      this.#delivering = false;
      delivered.abort();
      this.#heard();
    }
  }

  async #watch(): Promise<void> {
    const { clock } = this.#settings;
    let before = new Map<string, number>();
    let nextLagMs = clock.monotonicMs() + lagEveryMs;
    for (;;) {
      await clock.sleep(watchEveryMs, this.#over.signal);
      if (this.#over.signal.aborted) return;
      const nowMs = clock.monotonicMs();
      if (this.#delivering) continue;
      if (nowMs - this.#heardMs > stallMs) return this.#end(new Error(`no fetch was answered for ${stallMs} ms`));
      if (nowMs < nextLagMs) continue;
      const behind = await this.#behind().catch(() => new Map<string, number>());
      for (const [lane, position] of behind)
        if (before.get(lane) === position && !this.#delivering)
          return this.#end(new Error(`${lane} is behind and does not move`));
      before = behind;
      nextLagMs = clock.monotonicMs() + lagEveryMs;
    }
  }

  /** Position of each partition that has more. */
  async #behind(): Promise<Map<string, number>> {
    const behind = new Map<string, number>();
    for (const topic of this.#settings.topics)
      for (const [partition, end] of (await this.#settings.ends(topic)).entries()) {
        const position = this.#position(topic, partition) ?? -1;
        if (position < end) behind.set(`${topic} ${partition}`, position);
      }
    return behind;
  }

  #gone({ topic, partition }: Lane): OffsetGone {
    return new OffsetGone({ topic, partition, offset: this.#position(topic, partition) ?? 0 });
  }
}

interface Lane {
  readonly topic: string;
  readonly partition: number;
}

/** Whether offsets from `position` on are absent that are no control records (which kafkajs keeps to itself). */
const hasHole = (batch: Batch, fresh: readonly KafkaMessage[], position: number): boolean => {
  const first = batch.firstOffset();
  if (first === null || Number(first) > position) return true;
  const last = Number(fresh.at(-1)?.offset ?? position - 1);
  if (last - position + 1 === fresh.length) return false;
  const { rawMessages } = batch as Batch & { rawMessages: readonly { offset: string }[] };
  const offsets = new Set(rawMessages.map((message) => Number(message.offset)));
  for (let offset = position; offset <= last; offset += 1) if (!offsets.has(offset)) return true;
  return false;
};

const toRecord = (topic: string, partition: number, message: KafkaMessage): InRecord => ({
  topic,
  partition,
  offset: Number(message.offset),
  timestampMs: Number(message.timestamp),
  key: message.key?.toString() ?? "",
  headers: Object.entries(message.headers ?? {}).flatMap(([name, value]) =>
    (Array.isArray(value) ? value : [value]).map((text) => [name, text?.toString() ?? ""] as const),
  ),
  value: message.value ?? new Uint8Array(),
});
