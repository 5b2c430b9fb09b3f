/**
 * The thread behind `sqlite-writer.ts`: the only one that touches the file, so that a slow fsync stops nobody's event loop. Takes
 * every job that is waiting, runs them in one transaction (one fsync), and answers them all together, in order.
 */
import { DatabaseSync, type SQLInputValue, type StatementSync } from "node:sqlite";
import { parentPort, receiveMessageOnPort, workerData } from "node:worker_threads";
import { deserialize, serialize } from "bson";
import { indexKey } from "./document.ts";
import {
  type Failure,
  type FromWorker,
  isOutage,
  isRead,
  type Job,
  type Outcome,
  type SqlResult,
  type SqlValue,
  type Statement,
  type ToWorker,
} from "./sqlite-job.ts";
import { packOutcomes, unpackJobs } from "./sqlite-wire.ts";

const maxGroupJobs = 4096;
const maxStatements = 500;
const maxResultBytes = 256 * 2 ** 20;
/** Pages in the write-ahead log at which they are moved into the file, as in SQLite itself. */
const maxLogPages = 1000;
/** One process writes a file, so whoever else holds the lock is a backup or a mistake: wait for the former only. */
const busyTimeoutMs = 1000;

const failure = (error: unknown): Failure => ({
  code: (error as { errcode?: number }).errcode ?? 1,
  message: error instanceof Error ? error.message : String(error),
});

const open = (file: string, pageBytes: number): DatabaseSync => {
  const db = new DatabaseSync(file, { timeout: busyTimeoutMs });
  db.exec(`PRAGMA page_size = ${pageBytes}`);
  const mode = db.prepare("PRAGMA journal_mode = WAL").get() as { journal_mode: string };
  if (file !== ":memory:" && mode.journal_mode !== "wal")
    throw new Error("the file system cannot hold a write-ahead log");
  db.exec("PRAGMA synchronous = FULL; PRAGMA cache_size = -16384; PRAGMA wal_autocheckpoint = 0");
  type Fields = Record<string, unknown>;
  const decode = (bytes: unknown) => deserialize(bytes as Uint8Array, { promoteBuffers: true }) as Fields;
  const pure = { deterministic: true };
  db.function("bson_set", pure, (doc, fields) => serialize({ ...decode(doc), ...decode(fields) }));
  db.function("bson_unset", pure, (doc, names) => {
    const gone = new Set(JSON.parse(String(names)) as string[]);
    return serialize(Object.fromEntries(Object.entries(decode(doc)).filter(([name]) => !gone.has(name))));
  });
  db.function("bson_index_key", pure, (doc, field) => {
    const fields = decode(doc);
    return Object.hasOwn(fields, String(field)) ? indexKey(fields[String(field)], String(field)) : null;
  });
  return db;
};

class Connection {
  readonly #db: DatabaseSync;
  readonly #statements = new Map<string, { statement: StatementSync; returnsRows: boolean }>();
  readonly #log: StatementSync;

  constructor(db: DatabaseSync) {
    this.#db = db;
    this.#log = db.prepare("PRAGMA wal_checkpoint(NOOP)");
  }

  /** Moves a long write-ahead log into the file. SQLite would do so within a commit: whoever waits for that need not wait for this. */
  tidy(): void {
    try {
      const { log, checkpointed } = this.#log.get() as { log: number; checkpointed: number };
      if (log - checkpointed >= maxLogPages) this.#db.exec("PRAGMA wal_checkpoint(PASSIVE)");
    } catch {
      // As within a commit: what was committed stands in the log, and the next group tries again.
    }
  }

  runGroup(jobs: readonly Job[]): { readonly outcomes: readonly Outcome[]; readonly commits: number } {
    if (jobs.every(isRead)) return { outcomes: jobs.map((job) => this.#alone(job)), commits: 0 };
    try {
      this.#db.exec("BEGIN IMMEDIATE");
      const outcomes = jobs.map((job) => this.#inGroup(job));
      this.#db.exec("COMMIT");
      return { outcomes, commits: 1 };
    } catch (error) {
      // Nothing of this group may be called written; what only reads is answered from what was committed before.
      if (this.#db.isTransaction) this.#db.exec("ROLLBACK");
      const outcomes = jobs.map((job) => (isRead(job) ? this.#alone(job) : failure(error)));
      return { outcomes, commits: 0 };
    }
  }

  #alone(job: Job): Outcome {
    try {
      return job.map((statement) => this.#run(statement));
    } catch (error) {
      return failure(error);
    }
  }

  /** A statement that fails by itself (a constraint) undoes its own job only; an outage undoes the group. */
  #inGroup(job: Job): Outcome {
    const nested = job.length > 1;
    if (nested) this.#db.exec("SAVEPOINT job");
    try {
      const results = job.map((statement) => this.#run(statement));
      if (nested) this.#db.exec("RELEASE job");
      return results;
    } catch (error) {
      const failed = failure(error);
      // On some errors SQLite ends the transaction by itself: the jobs before this one are then gone as well.
      if (isOutage(failed.code) || !this.#db.isTransaction) throw error;
      if (nested) this.#db.exec("ROLLBACK TO job; RELEASE job");
      return failed;
    }
  }

  #run([sql, ...params]: Statement): SqlResult {
    const { statement, returnsRows } = this.#prepared(sql);
    if (!returnsRows) return { changes: Number(statement.run(...(params as SQLInputValue[])).changes), rows: [] };
    const rows: SqlValue[][] = [];
    let bytes = 0;
    for (const row of statement.iterate(...(params as SQLInputValue[])) as Iterable<unknown>) {
      for (const value of row as SqlValue[])
        bytes += typeof value === "object" && value ? value.byteLength : typeof value === "string" ? value.length : 8;
      if (bytes > maxResultBytes) throw new Error(`a result is larger than ${maxResultBytes} bytes`);
      rows.push(row as SqlValue[]);
    }
    return { changes: 0, rows };
  }

  #prepared(sql: string) {
    let prepared = this.#statements.get(sql);
    if (!prepared) {
      if (this.#statements.size >= maxStatements) this.#statements.clear();
      const statement = this.#db.prepare(sql);
      statement.setReturnArrays(true);
      prepared = { statement, returnsRows: statement.columns().length > 0 };
      this.#statements.set(sql, prepared);
    }
    return prepared;
  }
}

const serve = (port: NonNullable<typeof parentPort>, db: DatabaseSync): void => {
  const connection = new Connection(db);
  port.on("message", (first: ToWorker) => {
    let jobs: Job[] = [];
    let closing = false;
    for (let message: ToWorker | undefined = first; message && !closing; ) {
      if (message === "close") closing = true;
      else jobs = jobs.length === 0 ? unpackJobs(message) : jobs.concat(unpackJobs(message));
      if (jobs.length >= maxGroupJobs) break;
      message = receiveMessageOnPort(port)?.message;
    }
    if (jobs.length > 0) {
      const { outcomes, commits } = connection.runGroup(jobs);
      const packed = packOutcomes(outcomes);
      port.postMessage({ outcomes: packed, commits } satisfies FromWorker, [packed.buffer]);
      if (commits > 0) connection.tidy();
    }
    if (!closing) return;
    db.close();
    port.close();
  });
};

if (!parentPort) throw new Error("sqlite-worker.ts runs in a worker thread only");
try {
  const { file, pageBytes } = workerData as { file: string; pageBytes: number };
  serve(parentPort, open(file, pageBytes));
  parentPort.postMessage("open");
} catch (error) {
  parentPort.postMessage(failure(error));
  parentPort.close();
}
