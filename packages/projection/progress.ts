import { create } from "@bufbuild/protobuf";
import { type Position, PositionSchema } from "@curfew/contracts/gen/curfew/events/v1/common_pb.ts";
import type { Clock } from "@curfew/runtime/clock.ts";

/** Everything below `offset` of a partition: a position after the last record wanted. */
export interface AtLeast {
  readonly topic: string;
  readonly partition: number;
  readonly offset: bigint;
}

interface Waiter {
  readonly wanted: readonly AtLeast[];
  readonly resolve: (reached: boolean) => void;
}

/** Answers given by a mutation name its record; reading it means having applied one past it. */
export const past = (positions: readonly Position[]): AtLeast[] =>
  positions.map(({ topic, partition, offset }) => ({ topic, partition, offset: offset + 1n }));

const maxWaiters = 10_000;

/** How far a reader has come, and who waits for it to come further. */
export class Progress {
  readonly #next = new Map<string, number>();
  readonly #waiters = new Set<Waiter>();
  readonly #clock: Clock;
  #closed = false;

  constructor(clock: Clock) {
    this.#clock = clock;
  }

  static position(topic: string, partition: number, offset: number): Position {
    return create(PositionSchema, { topic, partition, offset: BigInt(offset) });
  }

  next(topic: string, partition: number): number {
    return this.#next.get(`${topic}/${partition}`) ?? 0;
  }

  /** Never back. */
  advance(topic: string, partition: number, next: number): void {
    if (next < this.next(topic, partition)) return;
    this.#next.set(`${topic}/${partition}`, next);
    for (const waiter of this.#waiters) if (this.has(waiter.wanted)) this.#settle(waiter, true);
  }

  has(wanted: readonly AtLeast[]): boolean {
    return wanted.every((p) => BigInt(this.next(p.topic, p.partition)) >= p.offset);
  }

  positions(): Position[] {
    return [...this.#next].map(([key, offset]) => {
      const slash = key.lastIndexOf("/");
      return Progress.position(key.slice(0, slash), Number(key.slice(slash + 1)), offset);
    });
  }

  /** Without a bound; never resolves once closed. */
  until(wanted: readonly AtLeast[]): Promise<void> {
    if (this.has(wanted)) return Promise.resolve();
    return new Promise((resolve) => this.#waiters.add({ wanted, resolve: (reached) => reached && resolve() }));
  }

  /** False when it takes longer than `waitMs`, or too many wait already. */
  reached(wanted: readonly AtLeast[], waitMs: number): Promise<boolean> {
    if (this.has(wanted)) return Promise.resolve(true);
    if (this.#closed || this.#waiters.size >= maxWaiters) return Promise.resolve(false);
    return new Promise((resolve) => {
      const over = new AbortController();
      const waiter: Waiter = {
        wanted,
        resolve: (reached) => {
          over.abort();
          resolve(reached);
        },
      };
      this.#waiters.add(waiter);
      void this.#clock.sleep(waitMs, over.signal).then(() => this.#settle(waiter, false));
    });
  }

  close(): void {
    this.#closed = true;
    for (const waiter of this.#waiters) this.#settle(waiter, false);
  }

  #settle(waiter: Waiter, reached: boolean) {
    if (this.#waiters.delete(waiter)) waiter.resolve(reached);
  }
}
