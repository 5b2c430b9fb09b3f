/**
 * One SQLite file behind one worker thread with group commit: every job that is waiting when a transaction begins shares its
 * fsync. A promise resolves only after that fsync, so what resolved survives a kill -9 or a power cut. Jobs run in the order in
 * which they were given, reads among them.
 */
import { Worker } from "node:worker_threads";
import { StoreUnavailable } from "./port.ts";
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
} from "./sqlite-job.ts";
import { packJobs, unpackOutcomes } from "./sqlite-wire.ts";

/** A statement failed for a reason of its own (syntax, constraint): its job wrote nothing. `code` is SQLite's extended result code. */
export class SqlError extends Error {
  override name = "SqlError";
  readonly code: number;
  constructor({ code, message }: Failure) {
    super(message);
    this.code = code;
  }
}

export interface SqliteWriterStats {
  /** Committed transactions with at least one write: each is one fsync of the write-ahead log. */
  readonly commits: number;
  /** Jobs with at least one write that were acknowledged; a batch (`transact`, `insertMany`) is one. */
  readonly operations: number;
}

export interface SqliteWriter {
  /** Runs one statement; rejects with `SqlError`, or `StoreUnavailable` (full, read-only, closed, too long a queue). */
  run(sql: string, ...params: SqlValue[]): Promise<SqlResult>;
  /** Runs statements that happen together or not at all. */
  transact(...statements: Statement[]): Promise<readonly SqlResult[]>;
  /** Resolves when the file can be read, and, after a write that the machine refused (full, read-only), written again. */
  ping(): Promise<void>;
  stats(): SqliteWriterStats;
  /** Finishes what was given, then closes the file. */
  close(): Promise<void>;
}

export interface SqliteWriterOptions {
  /** Path of the file, made if absent, or ":memory:". One process opens a file at a time. */
  readonly file: string;
  /** Of a new file: larger ones suit large rows, which are written page by page. Default 4096. A file keeps what it was made with. */
  readonly pageBytes?: number;
  /** Jobs given and not yet answered; past it `StoreUnavailable`. */
  readonly maxQueuedJobs?: number;
  /** Bytes of the parameters of these jobs; past it `StoreUnavailable`. */
  readonly maxQueuedBytes?: number;
}

interface Waiting {
  readonly bytes: number;
  readonly writes: boolean;
  resolve(results: readonly SqlResult[]): void;
  reject(error: Error): void;
}

/** Opens or makes the file; rejects with `StoreUnavailable` when that cannot be done. */
export const openSqliteWriter = (options: SqliteWriterOptions): Promise<SqliteWriter> =>
  new Promise((resolve, reject) => {
    // Flags and environment of the parent (a test runner's, secrets) are none of this thread's business.
    const worker = new Worker(new URL("./sqlite-worker.ts", import.meta.url), {
      workerData: { file: options.file, pageBytes: options.pageBytes ?? 4096 },
      execArgv: ["--disable-warning=ExperimentalWarning"],
      env: {},
    });
    const failed = (error: Error) => reject(new StoreUnavailable(`SQLite did not start: ${error.message}`));
    const ended = () => failed(new Error("its thread ended"));
    worker.once("error", failed).once("exit", ended);
    worker.once("message", (message: "open" | Failure) => {
      worker.off("error", failed).off("exit", ended);
      if (message !== "open") return reject(unavailable(message));
      resolve(new QueuedWriter(worker, options));
    });
  });

const unavailable = ({ code, message }: Failure) => new StoreUnavailable(`SQLite: ${message} (${code})`);

const sizeOf = (job: Job): number => {
  let bytes = 0;
  for (const statement of job)
    for (const part of statement)
      bytes += typeof part === "string" ? part.length : part instanceof Uint8Array ? part.byteLength : 8;
  return bytes;
};

class QueuedWriter implements SqliteWriter {
  readonly #worker: Worker;
  readonly #maxJobs: number;
  readonly #maxBytes: number;
  #waiting: Waiting[] = [];
  #outbox: Job[] = [];
  #queuedBytes = 0;
  #commits = 0;
  #operations = 0;
  /** A full disk still answers reads, so the last write is remembered. */
  #refused: boolean = false;
  #ended: StoreUnavailable | undefined;
  #closing: boolean;
  readonly #exited: Promise<void>;

  constructor(worker: Worker, { maxQueuedJobs = 50_000, maxQueuedBytes = 256 * 2 ** 20 }: SqliteWriterOptions) {
    this.#worker = worker;
    this.#closing = false;
    this.#maxJobs = maxQueuedJobs;
    this.#maxBytes = maxQueuedBytes;
    worker.on("message", (message: FromWorker) => this.#settle(message));
    worker.on("error", (error) => this.#end(`its thread failed: ${error.message}`));
    this.#exited = new Promise((resolve) => {
      worker.on("exit", () => {
        this.#end("its thread ended");
        resolve();
      });
    });
  }

  async run(sql: string, ...params: SqlValue[]): Promise<SqlResult> {
    const [result] = await this.#enqueue([[sql, ...params]]);
    return result as SqlResult;
  }

  transact(...statements: Statement[]): Promise<readonly SqlResult[]> {
    return this.#enqueue(statements);
  }

  async ping(): Promise<void> {
    await this.run("SELECT 1");
    // Changes nothing, and needs a page of the log all the same.
    if (this.#refused) await this.run("PRAGMA user_version = 0");
  }

  stats(): SqliteWriterStats {
    return { commits: this.#commits, operations: this.#operations };
  }

  close(): Promise<void> {
    if (!this.#closing && !this.#ended) {
      this.#closing = true;
      this.#flush();
      this.#worker.postMessage("close");
    }
    return this.#exited;
  }

  #enqueue(job: Job): Promise<readonly SqlResult[]> {
    return new Promise((resolve, reject) => {
      if (this.#ended) return reject(this.#ended);
      if (this.#closing) return reject(new StoreUnavailable("SQLite: closed"));
      const bytes = sizeOf(job);
      if (this.#waiting.length >= this.#maxJobs || this.#queuedBytes + bytes > this.#maxBytes)
        return reject(
          new StoreUnavailable(`SQLite: queue is full (${this.#maxJobs} operations, ${this.#maxBytes} bytes)`),
        );
      this.#queuedBytes += bytes;
      this.#waiting.push({ bytes, writes: !isRead(job), resolve, reject });
      // One message per turn of the event loop, however many callers there are in it.
      if (this.#outbox.push(job) === 1) setImmediate(() => this.#flush());
    });
  }

  #flush(): void {
    if (this.#outbox.length === 0 || this.#ended) return;
    const packed = packJobs(this.#outbox);
    this.#worker.postMessage(packed, [packed.buffer]);
    this.#outbox = [];
  }

  #settle({ outcomes: packed, commits }: FromWorker): void {
    this.#commits += commits;
    const outcomes = unpackOutcomes(packed);
    for (const [i, waiting] of this.#waiting.splice(0, outcomes.length).entries()) {
      const outcome = outcomes[i] as Outcome;
      this.#queuedBytes -= waiting.bytes;
      if (waiting.writes) this.#refused = "code" in outcome && isOutage(outcome.code);
      if ("code" in outcome) waiting.reject(isOutage(outcome.code) ? unavailable(outcome) : new SqlError(outcome));
      else {
        if (waiting.writes) this.#operations += 1;
        waiting.resolve(outcome);
      }
    }
  }

  #end(why: string): void {
    this.#ended ??= new StoreUnavailable(this.#closing ? "SQLite: closed" : `SQLite: ${why}`);
    for (const waiting of this.#waiting.splice(0)) waiting.reject(this.#ended);
    this.#outbox = [];
    this.#queuedBytes = 0;
  }
}
