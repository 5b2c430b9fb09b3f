import type { Clock } from "@curfew/runtime/clock.ts";
import type { Log } from "@curfew/runtime/log.ts";
import { span, withSpan } from "@curfew/runtime/telemetry.ts";
import type { Producer } from "./bus.ts";
import type { Lease, Tenure } from "./lease.ts";
import { type CommitDoc, commitId, type EventStreams } from "./streams.ts";

/**
 * Publishes commits: at once those it was woken with, by a scan of the `unpublished` flag once a second the rest; then unsets the flag.
 * Never by a cursor over time or numbers: a slow commit cannot be skipped. Within a stream the order is kept; delivery is at least once.
 */
export interface Relay {
  /** Offset of the commit's last record once it is on the topic; undefined when that takes longer than `waitMs` (it will follow). */
  published(commit: CommitDoc, waitMs?: number): Promise<number | undefined>;
  /**
   * For a fellow replica that was told by `wake`: one offset per id, in order, once all are on the topic. Rejects with NotHolder when this
   * replica does not hold the lease, did not publish one of them itself, or could not within 10 s.
   */
  publishNow(commitIds: readonly string[]): Promise<number[]>;
  /**
   * Resolves once every commit that is unpublished in a read begun now has been published: the base of freshness marks. Rejects when
   * `signal` aborts before, when the store cannot be asked, or when more than 1,000 wait.
   */
  settled(signal?: AbortSignal): Promise<void>;
  /** What `openLease` runs. */
  work(tenure: Tenure): Promise<void>;
}

export class NotHolder extends Error {
  override name = "NotHolder";
}

export interface RelayParts {
  readonly streams: EventStreams;
  readonly topic: string;
  readonly openProducer: () => Promise<Producer>;
  readonly clock: Clock;
  readonly log: Log;
  /** The lease, once opened with this relay's `work`. */
  readonly lease: () => Lease | undefined;
  /** Calls `publishNow` on the replica at `address`. */
  readonly wake: (address: string, commitIds: readonly string[]) => Promise<number[]>;
}

const scanEveryMs = 1_000;
const scanLimit = 1_000;
const maxRecordsPerSend = 1_000;
const maxBytesPerSend = 2 * 1024 * 1024;
/** Allowed for key and headers of a record. */
const recordOverheadBytes = 1_024;
/** Commits in memory waiting to be sent; what comes on top is left to the scan. */
const maxQueued = 10_000;
const maxRemembered = 50_000;
const defaultWaitMs = 1_000;
const publishNowMs = 10_000;
/** Cleared at once: a slow database has its connections for other things between, and a tenure that ends waits for no more than these. */
const flagsAtOnce = 32;
/** After the end of a tenure flags are still cleared for so long: one that stays means a second publication. */
const lateFlagsMs = 500;
/** The reason why a wait ended: without one each makes an error with its stack. */
const waited = "waited";
/** How often the flag of a commit that another replica publishes is looked at. */
const settledPollMs = 100;

export const openRelay = (parts: RelayParts): Relay => {
  const relay = new CommitRelay(parts);
  return {
    published: (commit, waitMs) => relay.published(commit, waitMs),
    publishNow: (commitIds) => relay.publishNow(commitIds),
    settled: (signal) => relay.settled(signal),
    work: (tenure) => relay.work(tenure),
  };
};

class CommitRelay implements Relay {
  readonly #parts: RelayParts;
  /** Offsets of commits known to be on the topic, oldest first; spares a second publication and answers waiters. */
  readonly #done = new Map<string, number>();
  readonly #queue = new Map<string, CommitDoc>();
  readonly #waiting = new Map<string, Set<(offset: number) => void>>();
  #producer: Producer | undefined;
  #pump: Promise<void> | undefined;
  /** On the monotonic clock: past it no flag is cleared. */
  #flagsUntilMs = Number.POSITIVE_INFINITY;

  constructor(parts: RelayParts) {
    this.#parts = parts;
  }

  async published(commit: CommitDoc, waitMs = defaultWaitMs): Promise<number | undefined> {
    const offset = this.#until(commit._id, waitMs);
    const holder = this.#parts.lease()?.holder();
    if (this.#producer) this.#enqueue([commit]);
    else if (holder)
      void this.#parts
        .wake(holder.address, [commit._id])
        .then(([at]) => at !== undefined && this.#remember(commit._id, at))
        .catch(() => undefined); // best effort: the holder's next scan finds it
    return await offset;
  }

  async publishNow(commitIds: readonly string[]): Promise<number[]> {
    if (!this.#producer) throw new NotHolder("this replica does not hold the relay's lease");
    const missing = commitIds.filter((id) => !this.#done.has(id));
    const docs = await Promise.all(missing.map((id) => this.#parts.streams.commits.get(id)));
    // A commit whose flag is gone was published elsewhere, unless this replica has just done it.
    if (docs.some((doc, i) => !doc?.unpublished && !this.#done.has(missing[i] as string)))
      throw new NotHolder("not published by this replica");
    this.#enqueue(docs.filter((doc) => doc?.unpublished) as CommitDoc[]);
    const offsets = await Promise.all(commitIds.map((id) => this.#until(id, publishNowMs)));
    if (offsets.includes(undefined)) throw new NotHolder("not published in time");
    return offsets as number[];
  }

  async settled(signal?: AbortSignal): Promise<void> {
    const open = await this.#scan();
    if (open.length >= scanLimit) throw new Error("too many unpublished commits to vouch for");
    if (this.#producer) this.#enqueue(open);
    for (const { _id } of open) {
      while ((await this.#until(_id, settledPollMs)) === undefined) {
        const doc = await this.#parts.streams.commits.get(_id);
        if (!doc?.unpublished) break; // another replica has published it
        if (signal?.aborted) throw new Error("not settled in time");
      }
    }
  }

  async work({ signal }: Tenure): Promise<void> {
    const { clock, log, openProducer } = this.#parts;
    const producer = await openProducer();
    this.#producer = producer;
    this.#flagsUntilMs = Number.POSITIVE_INFINITY;
    const ending = () => {
      this.#flagsUntilMs = clock.monotonicMs() + lateFlagsMs;
    };
    signal.addEventListener("abort", ending, { once: true });
    if (signal.aborted) ending();
    try {
      while (!signal.aborted) {
        const full = await this.#scanOnce().catch((error) => {
          log.warn({ err: error }, "the scan for unpublished commits failed");
          return false;
        });
        const resting = clock.sleep(scanEveryMs, signal);
        // More than a page waits: the next one follows as soon as this one is out, and has made way for it.
        await (full ? Promise.race([this.#emptied(), resting]) : resting);
      }
    } finally {
      this.#producer = undefined;
      // What is left is the next holder's, who may have published it by the time this replica holds the lease again.
      this.#queue.clear();
      await producer.close();
      await this.#pump;
    }
  }

  #scan(): Promise<CommitDoc[]> {
    return this.#parts.streams.commits.find({ where: { unpublished: true }, limit: scanLimit });
  }

  /** Whether there may be more. */
  async #scanOnce(): Promise<boolean> {
    const docs = await this.#scan();
    // Published already, and the flag is still there: clearing it has failed, or is on its way.
    const known = docs.filter((doc) => this.#done.has(doc._id));
    this.#enqueue(docs);
    await this.#clearFlags(known);
    return docs.length === scanLimit && known.length < scanLimit;
  }

  /** Resolves when the queue was emptied; never where that failed. */
  async #emptied(): Promise<void> {
    await this.#pump;
    if (this.#queue.size > 0) await new Promise<never>(() => undefined);
  }

  #enqueue(docs: readonly CommitDoc[]): void {
    if (!this.#producer) return;
    for (const doc of docs) if (!this.#done.has(doc._id) && this.#queue.size < maxQueued) this.#queue.set(doc._id, doc);
    this.#pump ??= this.#run()
      .catch((error) => this.#parts.log.error({ err: error }, "publishing failed; the next scan tries again"))
      .finally(() => {
        this.#pump = undefined;
      });
  }

  /** One at a time; what comes in meanwhile goes out together in the next send. */
  async #run(): Promise<void> {
    let clearing: Promise<void> = Promise.resolve();
    while (this.#producer && this.#queue.size > 0) {
      const producer = this.#producer;
      const batch = await this.#nextBatch();
      if (batch.length > 0) await withSpan(span.publish(this.#parts.topic), {}, () => this.#send(producer, batch));
      for (const { _id } of batch) this.#queue.delete(_id);
      // Beside the next send, which need not wait for it.
      await clearing;
      clearing = this.#clearFlags(batch);
    }
    await clearing;
  }

  /** What goes out in one send: no more than a producer takes, no commit before an older one of its stream. They stay queued until sent. */
  async #nextBatch(): Promise<CommitDoc[]> {
    const batch = new Map<string, CommitDoc>();
    let records = 0;
    let bytes = 0;
    for (const [id, commit] of this.#queue) {
      if (this.#done.has(id)) this.#queue.delete(id);
      if (this.#done.has(id) || batch.has(id)) continue;
      for (const next of [...(await this.#predecessors(commit, batch)), commit]) {
        const size = next.events.reduce((sum, event) => sum + event.value.length + recordOverheadBytes, 0);
        const full = records + next.events.length > maxRecordsPerSend || bytes + size > maxBytesPerSend;
        if (full && batch.size > 0) return [...batch.values()];
        batch.set(next._id, next);
        records += next.events.length;
        bytes += size;
      }
    }
    return [...batch.values()];
  }

  /** The commits before `commit` in its stream that are neither published nor in `batch`, oldest first: they have to go before it. */
  async #predecessors(commit: CommitDoc, batch: ReadonlyMap<string, CommitDoc>): Promise<CommitDoc[]> {
    const before: CommitDoc[] = [];
    for (let version = commit.version - 1; version >= 1; version -= 1) {
      const id = commitId(commit.stream, version);
      if (this.#done.has(id) || batch.has(id)) break;
      const found = this.#queue.get(id) ?? (await this.#parts.streams.commits.get(id));
      if (!found?.unpublished) break;
      before.push(found);
    }
    return before.reverse();
  }

  async #send(producer: Producer, batch: readonly CommitDoc[]): Promise<void> {
    const records = batch.flatMap((commit) =>
      commit.events.map(({ headers, value }) => ({ partition: 0, key: commit.stream, headers, value })),
    );
    const offsets = await producer.send(records);
    let end = 0;
    for (const commit of batch) {
      end += commit.events.length;
      this.#remember(commit._id, offsets[end - 1] as number);
    }
  }

  async #clearFlags(batch: readonly CommitDoc[]): Promise<void> {
    const { clock, log, streams } = this.#parts;
    const ids = batch.map(({ _id }) => _id);
    for (let at = 0; at < ids.length && clock.monotonicMs() < this.#flagsUntilMs; at += flagsAtOnce)
      try {
        await streams.commits.unsetMany(ids.slice(at, at + flagsAtOnce), "unpublished");
      } catch (err) {
        return log.warn({ err, commits: ids.length - at }, "published commits keep their flag until the next scan");
      }
  }

  #remember(id: string, offset: number): void {
    this.#done.set(id, offset);
    if (this.#done.size > maxRemembered) this.#done.delete(this.#done.keys().next().value as string);
    for (const resolve of this.#waiting.get(id) ?? []) resolve(offset);
  }

  #until(id: string, waitMs: number): Promise<number | undefined> {
    const known = this.#done.get(id);
    if (known !== undefined) return Promise.resolve(known);
    return new Promise((resolve) => {
      const over = new AbortController();
      const waiters = this.#waiting.get(id) ?? new Set();
      const finish = (offset?: number) => {
        over.abort(waited);
        waiters.delete(finish);
        if (waiters.size === 0 && this.#waiting.get(id) === waiters) this.#waiting.delete(id);
        resolve(offset);
      };
      this.#waiting.set(id, waiters.add(finish));
      void this.#parts.clock.sleep(waitMs, over.signal).then(() => finish());
    });
  }
}
