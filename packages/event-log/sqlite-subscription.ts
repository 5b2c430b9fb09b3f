import { StoreUnavailable } from "@curfew/document-store/port.ts";
import type { SqlResult, Statement } from "@curfew/document-store/sqlite-job.ts";
import type { Clock } from "@curfew/runtime/clock.ts";
import { type InRecord, OffsetGone, type SubscribeOptions, type Subscription } from "./bus.ts";
import { recordsOf, segmentsFrom } from "./sqlite-segments.ts";

const most = { records: 1000, bytes: 4 * 2 ** 20 };
/** The file has not been readable for this long: the subscription has failed. */
const maxStallMs = 30_000;
const firstBackoffMs = 100;
const maxBackoffMs = 1000;

/** What a subscription needs of its bus. */
export interface Feed {
  readonly clock: Clock;
  /** Offset after the last committed record. */
  end(topic: string, partition: number): number;
  /** Rejects with StoreUnavailable during an outage. */
  query(...statement: Statement): Promise<SqlResult>;
}

interface Lane {
  readonly topic: string;
  readonly partition: number;
  position: number;
}

/** Reads each partition from its position to the committed end, in turn, one call of `onRecords` at a time; then waits for `wake`. */
export class SqliteSubscription implements Subscription {
  readonly failed: Promise<never>;
  readonly #feed: Feed;
  readonly #options: SubscribeOptions;
  readonly #lanes: readonly Lane[];
  readonly #closing = new AbortController();
  readonly #running: Promise<void>;
  #woken = Promise.withResolvers<void>();

  constructor(feed: Feed, options: SubscribeOptions, lanes: readonly Lane[], ended: () => void) {
    this.#feed = feed;
    this.#options = options;
    this.#lanes = lanes;
    const failed = Promise.withResolvers<never>();
    this.failed = failed.promise;
    // Whoever looks at it sees it; whoever does not is not ended by it.
    this.failed.catch(() => {});
    this.#running = this.#run().catch(failed.reject).finally(ended);
  }

  /** Something was committed. */
  wake(): void {
    this.#woken.resolve();
  }

  async close(): Promise<void> {
    this.#closing.abort();
    this.wake();
    await this.#running;
  }

  async #run(): Promise<void> {
    // Not within `subscribe`: its caller has the subscription first.
    await Promise.resolve();
    for (const { topic, partition, position } of this.#lanes) {
      const end = this.#feed.end(topic, partition);
      if (Number.isSafeInteger(position) && position >= 0 && position <= end) continue;
      throw new OffsetGone({ topic, partition, offset: position }, `: it ends at ${end}`);
    }
    while (!this.#closing.signal.aborted) {
      // Renewed before looking: a commit that comes while we look is not missed.
      this.#woken = Promise.withResolvers<void>();
      if (!(await this.#round())) await this.#woken.promise;
    }
  }

  /** One read of each partition that has more; false when none had. */
  async #round(): Promise<boolean> {
    let progress = false;
    for (const lane of this.#lanes) {
      if (lane.position >= this.#feed.end(lane.topic, lane.partition)) continue;
      const records = await this.#read(lane);
      if (this.#closing.signal.aborted) return true;
      await this.#options.onRecords(records);
      lane.position += records.length;
      progress = true;
    }
    return progress;
  }

  async #read(lane: Lane): Promise<InRecord[]> {
    const { topic, partition, position } = lane;
    const { clock } = this.#feed;
    const sinceMs = clock.monotonicMs();
    for (let backoffMs = firstBackoffMs; ; backoffMs = Math.min(2 * backoffMs, maxBackoffMs)) {
      try {
        const { rows } = await this.#feed.query(...segmentsFrom(topic, partition, position, most));
        const records = recordsOf(topic, partition, position, rows);
        const gap = records.findIndex((record, i) => record.offset !== position + i);
        if (records.length === 0 || gap === 0) throw new OffsetGone({ topic, partition, offset: position });
        return gap < 0 ? records : records.slice(0, gap);
      } catch (error) {
        if (!(error instanceof StoreUnavailable)) throw error;
        if (this.#closing.signal.aborted) return [];
        if (clock.monotonicMs() - sinceMs > maxStallMs) throw error;
        await clock.sleep(backoffMs, this.#closing.signal);
      }
    }
  }
}
