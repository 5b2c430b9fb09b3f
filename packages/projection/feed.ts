import type { Position } from "@curfew/contracts/gen/curfew/events/v1/common_pb.ts";
import { type Bus, BusUnavailable, type InRecord, type Subscription } from "@curfew/event-log/bus.ts";
import { type ReadEvent, readEvent } from "@curfew/event-log/envelope.ts";
import type { Clock } from "@curfew/runtime/clock.ts";
import type { Log } from "@curfew/runtime/log.ts";
import { type AtLeast, Progress } from "./progress.ts";

/**
 * A feed folds every record of some topics, from the position kept with its output, into whatever `apply` keeps: in memory (from 0 at
 * every start) or in rows (from the stored positions). Duplicates, which the bus may deliver, are dropped per stream by ce_sequence.
 */
export interface Feed {
  /** Resolves once everything that was on the topics when the feed opened has been applied. Rejects as `failed` does. */
  readonly caughtUp: Promise<void>;
  /** Rejects when the feed cannot go on: an unreadable record, a failing `apply`, an offset that is gone. The process should end or say it is unhealthy. */
  readonly failed: Promise<never>;
  /** Positions after the last record applied, one per partition seen. */
  positions(): Position[];
  /** Waits at most `waitMs` until everything below the positions of the feed's topics has been applied; positions of other topics are ignored. */
  reached(positions: readonly AtLeast[], waitMs: number): Promise<boolean>;
  /** Offset of the next record to be applied. */
  next(topic: string, partition: number): number;
  close(): Promise<void>;
}

/** What `stream` looked like to a feed that met something other than the next event of it. */
export interface StreamAlarm {
  readonly kind: "gap" | "fork";
  readonly event: ReadEvent;
  readonly expected: number;
}

export interface FeedOptions {
  readonly bus: Bus;
  readonly name: string;
  readonly topics: readonly string[];
  readonly clock: Clock;
  readonly log: Log;
  /**
   * Applied one after another; may be asynchronous. Must be idempotent: after a crash the last batch comes again, and a feed that was
   * resumed can meet an older event of a stream once more, which only its output can tell.
   */
  readonly apply: (event: ReadEvent) => void | Promise<void>;
  /** After the events of a batch: where rows are written and the positions with them. */
  readonly commit?: (positions: readonly Position[], records: readonly InRecord[]) => Promise<void>;
  /** Positions stored with the output; absent: from 0. */
  readonly from?: readonly Position[];
  /** False where the fold is idempotent and commutative anyway: saves the memory of one entry a stream. Default true. */
  readonly dedupe?: boolean;
  readonly onAlarm?: (alarm: StreamAlarm) => void;
}

interface Last {
  sequence: number;
  id: string;
}

/** Which events of each stream were applied. A resumed feed knows none, so the first event of a stream that it meets is taken as it is. */
const openDeduplicator = (resumed: boolean, onAlarm: (alarm: StreamAlarm) => void) => {
  const last = new Map<string, Last>();
  return (event: ReadEvent): boolean => {
    if (event.sequence === undefined) return true;
    const stream = `${event.record.topic} ${event.subject}`;
    const seen = last.get(stream);
    const expected = (seen?.sequence ?? 0) + 1;
    if (seen && event.sequence <= seen.sequence) {
      if (event.sequence === seen.sequence && event.id !== seen.id) onAlarm({ kind: "fork", event, expected });
      return false;
    }
    if (event.sequence !== expected && !(resumed && !seen)) onAlarm({ kind: "gap", event, expected });
    last.set(stream, { sequence: event.sequence, id: event.id });
    return true;
  };
};

const retryMs = 500;

/** An unavailable bus at start is waited out: nothing is served before `caughtUp`. */
const patiently = async <T>({ clock, log, name }: FeedOptions, ask: () => Promise<T>): Promise<T> => {
  for (let tries = 0; ; tries += 1) {
    try {
      return await ask();
    } catch (error) {
      if (!(error instanceof BusUnavailable)) throw error;
      if (tries === 0) log.warn({ feed: name }, "waiting for the bus");
      await clock.sleep(retryMs);
    }
  }
};

const openApplier = (options: FeedOptions, progress: Progress) => {
  const { apply, commit, log } = options;
  const alarm = (found: StreamAlarm) => {
    log.error({ alarm: found.kind, stream: found.event.subject, expected: found.expected }, "a stream is not whole");
    options.onAlarm?.(found);
  };
  const resumed = (options.from ?? []).length > 0;
  const fresh = options.dedupe === false ? () => true : openDeduplicator(resumed, alarm);

  return async (records: readonly InRecord[]): Promise<void> => {
    const [first] = records;
    if (!first) return;
    const { topic, partition } = first;
    let next = progress.next(topic, partition);
    const applied: InRecord[] = [];
    for (const record of records) {
      if (record.offset < next) continue;
      const event = readEvent(record);
      if (fresh(event)) await apply(event);
      applied.push(record);
      next = record.offset + 1;
      if (!commit) progress.advance(topic, partition, next);
    }
    if (!commit || applied.length === 0) return;
    const others = progress.positions().filter((p) => p.topic !== topic || p.partition !== partition);
    await commit([...others, Progress.position(topic, partition, next)], applied);
    progress.advance(topic, partition, next);
  };
};

export const openFeed = async (options: FeedOptions): Promise<Feed> => {
  const { bus, clock, log, name, topics } = options;
  const progress = new Progress(clock);
  for (const { topic, partition, offset } of options.from ?? []) progress.advance(topic, partition, Number(offset));
  const ends: AtLeast[] = [];
  for (const topic of topics) {
    const offsets = await patiently(options, () => bus.ends(topic));
    offsets.forEach((offset, partition) => void ends.push({ topic, partition, offset: BigInt(offset) }));
  }
  const subscription: Subscription = await patiently(options, () =>
    bus.subscribe({
      name,
      topics,
      start: (topic, partition) => progress.next(topic, partition),
      onRecords: openApplier(options, progress),
    }),
  );
  const caughtUp = Promise.race([progress.until(ends), subscription.failed]);
  caughtUp.catch(() => undefined); // whoever waits sees it; nobody has to
  subscription.failed.catch((error) => log.error({ err: error, feed: name }, "the feed cannot go on"));
  return {
    caughtUp,
    failed: subscription.failed,
    positions: () => progress.positions(),
    next: (topic, partition) => progress.next(topic, partition),
    reached: (wanted, waitMs) =>
      progress.reached(
        wanted.filter((p) => topics.includes(p.topic)),
        waitMs,
      ),
    async close() {
      await subscription.close();
      progress.close();
    },
  };
};
