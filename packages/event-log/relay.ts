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
  /** For a fellow replica that was told by `wake`: offsets in order. Rejects with NotHolder when this replica does not hold the lease. */
  publishNow(commitIds: readonly string[]): Promise<number[]>;
  /** Resolves once every commit that is unpublished in a read begun now has been published: the base of freshness marks. */
  settled(signal?: AbortSignal): Promise<void>;
  /** What `openLease` runs. */
  work(tenure: Tenure): Promise<void>;
}

export class NotHolder extends Error {
  override name = "NotHolder";
}

const scanEveryMs = 1_000;
const scanLimit = 1_000;
const maxRecordsPerSend = 1_000;
const maxBytesPerSend = 2 * 1024 * 1024;
const maxRemembered = 50_000;
const defaultWaitMs = 1_000;

export const openRelay = (parts: {
  streams: EventStreams;
  topic: string;
  openProducer: () => Promise<Producer>;
  clock: Clock;
  log: Log;
  /** The lease, once opened with this relay's `work`. */
  lease: () => Lease | undefined;
  /** Calls `publishNow` on the replica at `address`. */
  wake: (address: string, commitIds: readonly string[]) => Promise<number[]>;
}): Relay => {
  const { streams, clock, log } = parts;
  const { commits } = streams;
  /** Offsets of commits published here, newest last; tells a second publication and answers waiters. */
  const done = new Map<string, number>();
  const queue = new Map<string, CommitDoc>();
  const waiting = new Map<string, ((offset: number) => void)[]>();
  let producer: Producer | undefined;
  let pump: Promise<void> | undefined;

  const remember = (id: string, offset: number) => {
    done.set(id, offset);
    if (done.size > maxRemembered) done.delete(done.keys().next().value as string);
    for (const resolve of waiting.get(id) ?? []) resolve(offset);
    waiting.delete(id);
  };

  /** The commits before `commit` in its stream that are not published, oldest first: they have to go before it. */
  const predecessors = async (commit: CommitDoc): Promise<CommitDoc[]> => {
    const before: CommitDoc[] = [];
    for (let version = commit.version - 1; version >= 1; version -= 1) {
      const id = commitId(commit.stream, version);
      if (done.has(id)) break;
      const queued = queue.get(id) ?? (await commits.get(id));
      if (!queued?.unpublished) break;
      before.unshift(queued);
    }
    return before;
  };

  /** What goes out in one send: never more than a producer takes, never a commit before one of its stream that is older. */
  const nextBatch = async (): Promise<CommitDoc[]> => {
    const batch = new Map<string, CommitDoc>();
    let records = 0;
    let bytes = 0;
    for (const [id, commit] of queue) {
      for (const next of [...(await predecessors(commit)), commit]) {
        if (batch.has(next._id) || done.has(next._id)) continue;
        const size = next.events.reduce((sum, event) => sum + event.value.length + 1_024, 0);
        const full = records + next.events.length > maxRecordsPerSend || bytes + size > maxBytesPerSend;
        if (full && batch.size > 0) return [...batch.values()];
        batch.set(next._id, next);
        records += next.events.length;
        bytes += size;
      }
      queue.delete(id);
    }
    return [...batch.values()];
  };

  const send = async (to: Producer, batch: readonly CommitDoc[]) => {
    const records = batch.flatMap((commit) =>
      commit.events.map((event) => ({ partition: 0, key: commit.stream, headers: event.headers, value: event.value })),
    );
    const offsets = await to.send(records);
    let end = 0;
    for (const commit of batch) {
      end += commit.events.length;
      remember(commit._id, offsets[end - 1] as number);
    }
  };

  const clearFlags = async (batch: readonly CommitDoc[]) => {
    const results = await Promise.allSettled(batch.map((commit) => commits.unset(commit._id, "unpublished")));
    for (const result of results)
      if (result.status === "rejected") log.warn({ err: result.reason }, "a published commit keeps its flag until the next scan");
  };

  /** One pump at a time empties the queue; what comes in meanwhile goes out together in the next send. */
  const run = () => {
    pump ??= (async () => {
      while (producer && queue.size > 0) {
        const batch = await nextBatch();
        if (batch.length > 0 && producer)
          await withSpan(span.publish(parts.topic), {}, () => send(producer as Producer, batch));
        await clearFlags(batch);
      }
    })()
      .catch((error) => log.error({ err: error }, "publishing failed; the next scan tries again"))
      .finally(() => {
        pump = undefined;
      });
    return pump;
  };

  const enqueue = (docs: readonly CommitDoc[]) => {
    for (const doc of docs) if (!done.has(doc._id)) queue.set(doc._id, doc);
    void run();
  };

  const scanned = async (docs: readonly CommitDoc[]) => {
    enqueue(docs);
    // Published already, and the flag is still there: clearing it had failed.
    await clearFlags(docs.filter((doc) => done.has(doc._id)));
  };

  const until = (id: string, waitMs: number): Promise<number | undefined> => {
    const known = done.get(id);
    if (known !== undefined) return Promise.resolve(known);
    return new Promise((resolve) => {
      const over = new AbortController();
      const finish = (offset?: number) => {
        over.abort();
        const left = waiting.get(id)?.filter((f) => f !== finish);
        if (left?.length) waiting.set(id, left);
        else waiting.delete(id);
        resolve(offset);
      };
      waiting.set(id, [...(waiting.get(id) ?? []), finish]);
      void clock.sleep(waitMs, over.signal).then(() => finish());
    });
  };

  const scan = () => commits.find({ where: { unpublished: true }, limit: scanLimit });

  return {
    async published(commit, waitMs = defaultWaitMs) {
      const offset = until(commit._id, waitMs);
      const holder = parts.lease()?.holder();
      if (producer) enqueue([commit]);
      else if (holder)
        void parts
          .wake(holder.address, [commit._id])
          .then(([at]) => at !== undefined && remember(commit._id, at))
          .catch(() => undefined); // best effort: the holder's next scan finds it
      return await offset;
    },
    async publishNow(commitIds) {
      if (!producer) throw new NotHolder("this replica does not hold the relay's lease");
      const missing = commitIds.filter((id) => !done.has(id));
      const docs = await Promise.all(missing.map((id) => commits.get(id)));
      enqueue(docs.filter((doc) => doc?.unpublished) as CommitDoc[]);
      const offsets = await Promise.all(commitIds.map((id) => until(id, 10_000)));
      return offsets.filter((offset) => offset !== undefined);
    },
    async settled(signal) {
      const open = new Map((await scan()).map((doc) => [doc._id, doc]));
      if (open.size >= scanLimit) throw new Error("too many unpublished commits to vouch for");
      for (const id of open.keys()) if (done.has(id)) open.delete(id);
      if (producer) enqueue([...open.values()]);
      for (const id of open.keys()) {
        while (!done.has(id)) {
          if (signal?.aborted) throw new Error("not settled in time");
          if ((await until(id, 100)) !== undefined) break;
          const doc = await commits.get(id);
          if (!doc?.unpublished) break; // another replica has published it
        }
      }
    },
    async work({ signal }) {
      producer = await parts.openProducer();
      try {
        while (!signal.aborted) {
          await scan().then(scanned).catch((error) => log.warn({ err: error }, "the scan for unpublished commits failed"));
          await clock.sleep(scanEveryMs, signal);
        }
      } finally {
        const open = producer;
        producer = undefined;
        await open.close();
        await pump;
      }
    },
  };
};
