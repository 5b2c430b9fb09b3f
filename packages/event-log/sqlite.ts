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
} from "./bus.ts";
import type { ChainedRecord } from "./chain.ts";
import { NothingSent, openChainedProducer } from "./chained-producer.ts";
import type { EpochRow } from "./epochs.ts";
import { type Feed, SqliteSubscription } from "./sqlite-subscription.ts";

export interface SqliteBusSettings {
  readonly epochs: Collection<EpochRow>;
  readonly clock: Clock;
  /** Partitions of each topic; fixed once the file has it. */
  readonly topics: Readonly<Record<string, number>>;
}

export interface SqliteBus extends Bus {
  /** Commits (one fsync each) and acknowledged writes, several records each, since the start. */
  stats(): SqliteWriterStats;
}

const askMs = 5000;

/** Opens or makes the file (or ":memory:"). Rejects with BusUnavailable when that cannot be done. */
export const openSqliteBus = async (settings: SqliteBusSettings & { readonly file: string }): Promise<SqliteBus> => {
  const writer = await openSqliteWriter({ file: settings.file }).catch(rethrow);
  try {
    return await sqliteBus(writer, settings);
  } catch (error) {
    await writer.close();
    throw error;
  }
};

/** The bus on a writer that is already open; closing it closes the writer. Its tables are `records` and `partitions`. */
export const sqliteBus = async (writer: SqliteWriter, settings: SqliteBusSettings): Promise<SqliteBus> => {
  const ends = await prepare(writer, settings.topics).catch(rethrow);
  return new OpenSqliteBus(writer, settings, ends);
};

const rethrow = (error: unknown): never => {
  throw error instanceof StoreUnavailable ? new BusUnavailable(error.message, { cause: error }) : error;
};

/** Makes what is absent and answers the offset after the last record, per topic and partition. */
const prepare = async (
  writer: SqliteWriter,
  topics: Readonly<Record<string, number>>,
): Promise<Map<string, number[]>> => {
  await writer.transact(
    [
      `CREATE TABLE IF NOT EXISTS partitions (topic TEXT, partition INTEGER, next_offset INTEGER NOT NULL,
         last_timestamp_ms INTEGER NOT NULL, PRIMARY KEY (topic, partition)) STRICT, WITHOUT ROWID`,
    ],
    [
      `CREATE TABLE IF NOT EXISTS records (topic TEXT NOT NULL, partition INTEGER NOT NULL, offset INTEGER NOT NULL,
         timestamp_ms INTEGER NOT NULL, key TEXT NOT NULL, headers TEXT NOT NULL, value BLOB NOT NULL) STRICT`,
    ],
    // Records lie in the order of their writing and only this small index is spread over the partitions: a commit to twelve of
    // them writes half the pages.
    ["CREATE UNIQUE INDEX IF NOT EXISTS places ON records (topic, partition, offset)"],
  );
  const { rows } = await writer.run("SELECT topic, next_offset FROM partitions ORDER BY topic, partition");
  const ends = new Map<string, number[]>();
  for (const [topic, end] of rows) ends.set(String(topic), [...(ends.get(String(topic)) ?? []), Number(end)]);
  const absent: Statement[] = [];
  for (const [topic, count] of Object.entries(topics)) {
    const found = ends.get(topic);
    // Key placement and positions depend on it.
    if (found && found.length !== count) throw new Error(`topic ${topic} has ${found.length} partitions, not ${count}`);
    if (found) continue;
    ends.set(topic, Array<number>(count).fill(0));
    for (let partition = 0; partition < count; partition += 1)
      absent.push(["INSERT INTO partitions VALUES (?, ?, 0, 0)", topic, partition]);
  }
  if (absent.length > 0) await writer.transact(...absent);
  return ends;
};

class OpenSqliteBus implements SqliteBus, Feed {
  readonly #writer: SqliteWriter;
  readonly #settings: SqliteBusSettings;
  /** Of what is committed. Exact, because this process is the file's only writer. */
  readonly #ends: Map<string, number[]>;
  readonly #producers = new Set<Producer>();
  readonly #subscriptions = new Set<SqliteSubscription>();
  #closed: Promise<void> | undefined;

  constructor(writer: SqliteWriter, settings: SqliteBusSettings, ends: Map<string, number[]>) {
    this.#writer = writer;
    this.#settings = settings;
    this.#ends = ends;
  }

  get clock(): Clock {
    return this.#settings.clock;
  }

  async openProducer(options: ProducerOptions): Promise<Producer> {
    this.#assertOpen();
    const { epochs, clock } = this.#settings;
    const producer = openChainedProducer({
      options,
      partitions: this.#endsOf(options.topic).length,
      epochs,
      clock,
      open: async () => ({ send: (records) => this.#append(options.topic, records), close: async () => {} }),
    });
    this.#producers.add(producer);
    return producer;
  }

  async subscribe(options: SubscribeOptions): Promise<SqliteSubscription> {
    this.#assertOpen();
    const lanes = [...new Set(options.topics)].flatMap((topic) =>
      this.#endsOf(topic).map((_, partition) => ({ topic, partition, position: options.start(topic, partition) })),
    );
    const subscription = new SqliteSubscription(this, options, lanes, () => this.#subscriptions.delete(subscription));
    this.#subscriptions.add(subscription);
    return subscription;
  }

  async ends(topic: string): Promise<number[]> {
    this.#endsOf(topic);
    const { rows } = await this.#ask(
      this.#writer.run("SELECT next_offset FROM partitions WHERE topic = ? ORDER BY partition", topic),
    );
    return rows.map(([end]) => Number(end));
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
    return this.#ends.get(topic)?.[partition] ?? 0;
  }

  query(...[sql, ...params]: Statement) {
    return this.#writer.run(sql, ...params);
  }

  async #append(topic: string, records: readonly ChainedRecord[]): Promise<number[]> {
    const nowMs = this.#settings.clock.now();
    const counts = new Map<number, number>();
    const statements = records.map(({ partition, key, headers, value }): Statement => {
      const before = counts.get(partition) ?? 0;
      counts.set(partition, before + 1);
      const pairs = JSON.stringify(Object.entries(headers));
      return [insertion, before, nowMs, key, pairs, value, topic, partition];
    });
    for (const [partition, count] of counts) statements.push([advance, count, nowMs, topic, partition]);
    const results = await this.#writer.transact(...statements).catch((error: unknown) => {
      if (error instanceof StoreUnavailable) throw new NothingSent(error.message, { cause: error });
      throw error instanceof SqlError ? new BusRefused(error.message, { cause: error }) : error;
    });
    const offsets = results.slice(0, records.length).map(({ rows }) => Number(rows[0]?.[0]));
    const ends = this.#endsOf(topic);
    for (const [i, { partition }] of records.entries()) ends[partition] = (offsets[i] ?? 0) + 1;
    for (const subscription of this.#subscriptions) subscription.wake();
    return offsets;
  }

  #endsOf(topic: string): number[] {
    const ends = this.#ends.get(topic);
    if (!ends) throw new BusRefused(`no topic ${topic}`);
    return ends;
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

/** The broker's clock never goes back within a partition. */
const insertion = `INSERT INTO records SELECT topic, partition, next_offset + ?, max(last_timestamp_ms, ?), ?, ?, ?
  FROM partitions WHERE topic = ? AND partition = ? RETURNING offset`;
const advance = `UPDATE partitions SET next_offset = next_offset + ?, last_timestamp_ms = max(last_timestamp_ms, ?)
  WHERE topic = ? AND partition = ?`;
