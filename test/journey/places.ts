import { closeSync, openSync, readdirSync, readFileSync, readSync } from "node:fs";
import { basename, join } from "node:path";
import { DatabaseSync } from "node:sqlite";
import { openSqliteStore } from "@curfew/document-store/sqlite.ts";
import type { Bus, InRecord } from "@curfew/event-log/bus.ts";
import type { EpochRow } from "@curfew/event-log/epochs.ts";
import { openKafkaBus } from "@curfew/event-log/kafka.ts";
import { openSqliteBus } from "@curfew/event-log/sqlite.ts";
import { topics } from "@curfew/event-log/topics.ts";
import { systemClock } from "@curfew/runtime/clock.ts";
import { MongoClient } from "mongodb";
import type { Canary } from "./canary.ts";

/** The places where a secret could be left: topics through a consumer, databases through queries. Each is read whole. */
export type Look = Canary["look"];

const readLimitMs = 60_000;

const lookAtRecord = (look: Look, { topic, partition, offset, key, headers, value }: InRecord) => {
  const where = `${topic}/${partition}@${offset}`;
  look("key", where, key);
  look("header", where, headers.flat().join("\n"));
  look("record", where, value);
};

/** Gives every record of every topic that is there when it begins. */
const readTopics = async (bus: Bus, each: (record: InRecord) => void): Promise<void> => {
  const missing = new Set<string>();
  const ends = new Map<string, readonly number[]>();
  for (const { name } of topics) {
    const found = await bus.ends(name);
    ends.set(name, found);
    for (const [partition, end] of found.entries()) if (end > 0) missing.add(`${name}/${partition}@${end - 1}`);
  }
  if (missing.size === 0) return;
  const done = Promise.withResolvers<void>();
  const subscription = await bus.subscribe({
    name: "canary",
    topics: topics.map(({ name }) => name),
    start: () => 0,
    onRecords: (records) => {
      for (const record of records) {
        each(record);
        missing.delete(`${record.topic}/${record.partition}@${record.offset}`);
      }
      if (missing.size === 0) done.resolve();
    },
  });
  const late = AbortSignal.timeout(readLimitMs);
  late.onabort = () => done.reject(new Error(`records were not read within ${readLimitMs} ms: ${[...missing]}`));
  try {
    await Promise.race([done.promise, subscription.failed]);
  } finally {
    late.onabort = null;
    await subscription.close();
  }
};

export const lookAtTopics = (bus: Bus, look: Look) => readTopics(bus, (record) => lookAtRecord(look, record));

/** A reader of its own: it makes no producer, so where its epochs are kept does not matter. */
const withBus = async (
  open: (epochs: Parameters<typeof openSqliteBus>[0]["epochs"]) => Promise<Bus>,
  each: (record: InRecord) => void,
) => {
  const store = await openSqliteStore({ file: ":memory:" });
  try {
    const bus = await open(await store.collection<EpochRow>("epochs"));
    await readTopics(bus, each).finally(() => bus.close());
  } finally {
    await store.close();
  }
};

/** Every record in a bus file, also while a suite is at work on it. */
export const readSqliteBus = (file: string, each: (record: InRecord) => void): Promise<void> => {
  const partitions = Object.fromEntries(topics.map((topic) => [topic.name, topic.partitions]));
  return withBus((epochs) => openSqliteBus({ file, epochs, clock: systemClock, topics: partitions }), each);
};

export const lookAtSqliteBus = (file: string, look: Look): Promise<void> =>
  readSqliteBus(file, (record) => lookAtRecord(look, record));

export const lookAtKafka = (
  brokers: readonly string[],
  files: { readonly ca: string; readonly cert: string; readonly key: string },
  look: Look,
): Promise<void> => {
  const text = (file: string) => readFileSync(file, "utf8");
  const ssl = () => ({ ca: text(files.ca), cert: text(files.cert), key: text(files.key) });
  return withBus(
    (epochs) => openKafkaBus({ brokers, clientId: "canary", clock: systemClock, epochs, ssl }),
    (record) => lookAtRecord(look, record),
  );
};

const isSqlite = (file: string): boolean => {
  const start = Buffer.alloc(16);
  const fd = openSync(file, "r");
  try {
    readSync(fd, start, 0, start.length, 0);
  } finally {
    closeSync(fd);
  }
  return start.toString("latin1") === "SQLite format 3\0";
};

const separator = Buffer.from("\n");
const bytesOf = (value: unknown) => (value instanceof Uint8Array ? value : Buffer.from(String(value)));

const lookAtTable = (db: DatabaseSync, table: string, where: string, look: Look) => {
  const statement = db.prepare(`SELECT * FROM "${table}"`);
  statement.setReturnArrays(true);
  for (const row of statement.iterate() as unknown as Iterable<readonly unknown[]>)
    look("row", where, Buffer.concat(row.flatMap((value) => [bytesOf(value), separator])));
};

/** Every column of every row of every table of every SQLite file below; `lock.db` is empty and locked for as long as the suite runs. */
export const lookAtSqlite = (directory: string, look: Look): void => {
  for (const entry of readdirSync(directory, { recursive: true, withFileTypes: true })) {
    const file = join(entry.parentPath, entry.name);
    if (!entry.isFile() || basename(file) === "lock.db" || !isSqlite(file)) continue;
    const db = new DatabaseSync(file, { readOnly: true });
    try {
      const tables = db.prepare("SELECT name FROM sqlite_master WHERE type = 'table'").all() as { name: string }[];
      for (const { name } of tables) lookAtTable(db, name, `${entry.name} ${name}`, look);
    } finally {
      db.close();
    }
  }
};

/** Every document of every collection of every database, as BSON. */
export const lookAtMongo = async (url: string, look: Look): Promise<void> => {
  const client = new MongoClient(url);
  try {
    const { databases } = await client.db().admin().listDatabases();
    for (const { name } of databases)
      for (const { name: collection } of await client.db(name).listCollections().toArray())
        for await (const document of client.db(name).collection(collection).find({}, { raw: true }))
          look("row", `${name} ${collection}`, document as unknown as Uint8Array);
  } finally {
    await client.close();
  }
};
