/**
 * The bus of the embedded suite: one SQLite file of one process. Sends of all producers that wait at the same time share one
 * transaction and its fsync, in a worker thread; subscribers read the file again, so a slow one holds back nothing.
 */
import { type Collection, StoreUnavailable } from "@curfew/document-store/port.ts";
import type { Statement } from "@curfew/document-store/sqlite-job.ts";
import {
  openSqliteWriter,
  SqlError,
  type SqliteWriter,
  type SqliteWriterStats,
} from "@curfew/document-store/sqlite-writer.ts";
import type { Clock } from "@curfew/runtime/clock.ts";
import {
  type Bus,
  BusRefused,
  BusUnavailable,
  type Producer,
  type ProducerOptions,
  type SubscribeOptions,
  type TopicState,
} from "./bus.ts";
import type { ChainedRecord } from "./chain.ts";
import { NothingSent, openChainedProducer } from "./chained-producer.ts";
import type { EpochRow } from "./epochs.ts";
import { identityOf, type ProducerIdentity } from "./producer-key.ts";
import { segmentOf, segmentTables, sharedColumn } from "./sqlite-segments.ts";
import { type Feed, SqliteSubscription } from "./sqlite-subscription.ts";
import { evidenceSettings } from "./topics.ts";

export interface SqliteBusSettings {
  readonly epochs: Collection<EpochRow>;
  readonly clock: Clock;
  /** What certifies a service's producers, asked whenever a chain begins; absent: nothing is signed. */
  readonly identity?: (service: string) => ProducerIdentity;
  /** Partitions of each topic that the file does not have yet: key placement and positions depend on them, so it keeps those it has. */
  readonly topics: Readonly<Record<string, number>>;
}

export interface SqliteBus extends Bus {
  /** Commits (one fsync each) and acknowledged writes, several records each, since the start. */
  stats(): SqliteWriterStats;
}

const askMs = 5000;
/** An append is one row of up to megabytes. */
const pageBytes = 16_384;

/** Opens or makes the file (or ":memory:"). Rejects with BusUnavailable when that cannot be done. */
export const openSqliteBus = async (settings: SqliteBusSettings & { readonly file: string }): Promise<SqliteBus> => {
  const writer = await openSqliteWriter({ file: settings.file, pageBytes }).catch(rethrow);
  try {
    return await sqliteBus(writer, settings);
  } catch (error) {
    await writer.close();
    throw error;
  }
};

/** The bus on a writer that is already open; closing it closes the writer. Its tables are `segments` and `lanes`, its views `records` and `partitions`. */
export const sqliteBus = async (writer: SqliteWriter, settings: SqliteBusSettings): Promise<SqliteBus> => {
  const lanes = await prepare(writer, settings.topics).catch(rethrow);
  return new OpenSqliteBus(writer, settings, lanes);
};

const rethrow = (error: unknown): never => {
  throw error instanceof StoreUnavailable ? new BusUnavailable(error.message, { cause: error }) : error;
};

/** A partition as it is committed. This process is the file's only writer, so it knows the next offset without asking. */
interface Lane {
  end: number;
  lastTimestampMs: number;
  /** The append that is being committed: the next one begins where it ends. */
  appending: Promise<unknown> | undefined;
}

/** Makes what is absent and answers the partitions of each topic, in their order. */
const prepare = async (
  writer: SqliteWriter,
  topics: Readonly<Record<string, number>>,
): Promise<Map<string, Lane[]>> => {
  await writer.transact(
    ["CREATE TABLE IF NOT EXISTS lanes (topic TEXT, partition INTEGER, PRIMARY KEY (topic, partition)) STRICT"],
    ...segmentTables,
    // The last row says where a partition ends: a row that counted would have to be written with every append.
    [
      `CREATE VIEW IF NOT EXISTS partitions AS SELECT topic, partition, coalesce((SELECT base + count FROM segments
         WHERE segments.topic = lanes.topic AND segments.partition = lanes.partition ORDER BY base DESC LIMIT 1), 0)
         AS next_offset FROM lanes`,
    ],
  );
  if ((await writer.run(sharedColumn.absent)).rows.length > 0) await writer.run(sharedColumn.add);
  const { rows } = await writer.run(
    `SELECT topic, next_offset, (SELECT timestamp_ms FROM segments WHERE segments.topic = partitions.topic
       AND segments.partition = partitions.partition ORDER BY base DESC LIMIT 1)
     FROM partitions ORDER BY topic, partition`,
  );
  const lanes = new Map<string, Lane[]>();
  for (const [topic, end, lastTimestampMs] of rows) {
    const lane = { end: Number(end), lastTimestampMs: Number(lastTimestampMs ?? 0), appending: undefined };
    lanes.set(String(topic), [...(lanes.get(String(topic)) ?? []), lane]);
  }
  const absent: Statement[] = [];
  for (const [topic, count] of Object.entries(topics)) {
    if (lanes.has(topic)) continue;
    lanes.set(
      topic,
      Array.from({ length: count }, () => ({ end: 0, lastTimestampMs: 0, appending: undefined })),
    );
    for (let partition = 0; partition < count; partition += 1)
      absent.push(["INSERT INTO lanes VALUES (?, ?)", topic, partition]);
  }
  if (absent.length > 0) await writer.transact(...absent);
  return lanes;
};

class OpenSqliteBus implements SqliteBus, Feed {
  readonly #writer: SqliteWriter;
  readonly #settings: SqliteBusSettings;
  readonly #lanes: Map<string, Lane[]>;
  readonly #producers = new Set<Producer>();
  readonly #subscriptions = new Set<SqliteSubscription>();
  #closed: Promise<void> | undefined;

  constructor(writer: SqliteWriter, settings: SqliteBusSettings, lanes: Map<string, Lane[]>) {
    this.#writer = writer;
    this.#settings = settings;
    this.#lanes = lanes;
  }

  get clock(): Clock {
    return this.#settings.clock;
  }

  async openProducer(options: ProducerOptions): Promise<Producer> {
    this.#assertOpen();
    const { epochs, clock, identity } = this.#settings;
    const producer = openChainedProducer({
      options,
      partitions: this.#lanesOf(options.topic).length,
      epochs,
      clock,
      ...identityOf(options, identity),
      open: async () => ({ send: (records) => this.#append(options.topic, records), close: async () => {} }),
    });
    this.#producers.add(producer);
    return producer;
  }

  async subscribe(options: SubscribeOptions): Promise<SqliteSubscription> {
    this.#assertOpen();
    const lanes = [...new Set(options.topics)].flatMap((topic) =>
      this.#lanesOf(topic).map((_, partition) => ({ topic, partition, position: options.start(topic, partition) })),
    );
    const subscription = new SqliteSubscription(this, options, lanes, () => this.#subscriptions.delete(subscription));
    this.#subscriptions.add(subscription);
    return subscription;
  }

  async ends(topic: string): Promise<number[]> {
    this.#lanesOf(topic);
    const { rows } = await this.#ask(
      this.#writer.run("SELECT next_offset FROM partitions WHERE topic = ? ORDER BY partition", topic),
    );
    return rows.map(([end]) => Number(end));
  }

  /** Nothing here deletes, and there are no settings: what it guarantees is what it answers. A file that was cut shows in its offsets. */
  async describe(topic: string): Promise<TopicState> {
    this.#lanesOf(topic);
    const { rows } = await this.#ask(
      this.#writer.run(
        `SELECT coalesce((SELECT min(base) FROM segments WHERE segments.topic = partitions.topic
           AND segments.partition = partitions.partition), next_offset), next_offset
         FROM partitions WHERE topic = ? ORDER BY partition`,
        topic,
      ),
    );
    return {
      starts: rows.map(([start]) => Number(start)),
      ends: rows.map(([, end]) => Number(end)),
      settings: evidenceSettings(1),
    };
  }

  async ping(): Promise<void> {
    // A full disk still answers reads; that nothing can be appended shows where a send waits.
    if ([...this.#producers].some((producer) => !producer.reachable)) throw new BusUnavailable("a send is waiting");
    await this.#ask(this.#writer.run("SELECT 1"));
  }

  stats(): SqliteWriterStats {
    return this.#writer.stats();
  }

  close(): Promise<void> {
    this.#closed ??= (async () => {
      await Promise.all([...this.#producers, ...this.#subscriptions].map((part) => part.close()));
      await this.#writer.close();
    })();
    return this.#closed;
  }

  end(topic: string, partition: number): number {
    return this.#lanes.get(topic)?.[partition]?.end ?? 0;
  }

  query(...[sql, ...params]: Statement) {
    return this.#writer.run(sql, ...params);
  }

  async #append(topic: string, records: readonly ChainedRecord[]): Promise<number[]> {
    const lanes = this.#lanesOf(topic);
    const touched = [...new Set(records.map(({ partition }) => lanes[partition] as Lane))];
    // Offsets are given here, so an append waits for the one before it in a partition: its rows may not come to be.
    for (let busy = touched.find(isBusy); busy; busy = touched.find(isBusy)) await busy.appending;
    const appending = this.#write(topic, lanes, records);
    const settled = appending.catch(() => undefined);
    for (const lane of touched) lane.appending = settled;
    try {
      return await appending;
    } finally {
      for (const lane of touched) lane.appending = undefined;
      for (const subscription of this.#subscriptions) subscription.wake();
    }
  }

  async #write(topic: string, lanes: readonly Lane[], records: readonly ChainedRecord[]): Promise<number[]> {
    const nowMs = this.#settings.clock.now();
    const byPartition = Map.groupBy(records, ({ partition }) => partition);
    const next = new Map<number, { offset: number; readonly timestampMs: number }>();
    const statements: Statement[] = [];
    for (const [partition, some] of byPartition) {
      const { end, lastTimestampMs } = lanes[partition] as Lane;
      // The broker's clock never goes back within a partition.
      const timestampMs = Math.max(lastTimestampMs, nowMs);
      statements.push(segmentOf(topic, partition, end, timestampMs, some));
      next.set(partition, { offset: end, timestampMs });
    }
    await this.#writer.transact(...statements).catch((error: unknown) => {
      if (error instanceof StoreUnavailable) throw new NothingSent(error.message, { cause: error });
      throw error instanceof SqlError ? new BusRefused(error.message, { cause: error }) : error;
    });
    const offsets = records.map(({ partition }) => (next.get(partition) as { offset: number }).offset++);
    for (const [partition, { offset, timestampMs }] of next) {
      const lane = lanes[partition] as Lane;
      lane.end = offset;
      lane.lastTimestampMs = timestampMs;
    }
    return offsets;
  }

  #lanesOf(topic: string): Lane[] {
    const lanes = this.#lanes.get(topic);
    if (!lanes) throw new BusRefused(`no topic ${topic}`);
    return lanes;
  }

  #assertOpen(): void {
    if (this.#closed !== undefined) throw new BusUnavailable("bus is closed");
  }

  async #ask<T>(answer: Promise<T>): Promise<T> {
    const late = new AbortController();
    const timeout = this.#settings.clock.sleep(askMs, late.signal).then(() => {
      throw new BusUnavailable(`SQLite: no answer in ${askMs} ms`);
    });
    timeout.catch(() => {});
    try {
      return await Promise.race([answer, timeout]);
    } catch (error) {
      return rethrow(error);
    } finally {
      late.abort();
    }
  }
}

const isBusy = (lane: Lane): boolean => lane.appending !== undefined;
