import type { Clock } from "@curfew/runtime/clock.ts";

/** Where accesses wait for room in the buffer of uses: in turn, each for a time of its own, by one timer for all. */

interface Waiter {
  readonly untilMs: number;
  settled: boolean;
  settle(admitted: boolean): void;
}

/** Node's timers hold 24 days. */
const longestSleepMs = 600_000;

export class WaitingRoom {
  readonly #clock: Clock;
  readonly #max: number;
  #waiting: Waiter[] = [];
  /** Until the first gives up. */
  #patience: { readonly untilMs: number; readonly over: AbortController } | undefined;

  /** At most `max` wait. */
  constructor(max: number, clock: Clock) {
    this.#max = max;
    this.#clock = clock;
  }

  get isEmpty(): boolean {
    return this.#waiting.length === 0;
  }

  /** True when admitted; false after `waitMs`, at the signal, or at once when too many wait already. */
  wait(waitMs: number, signal: AbortSignal | undefined): Promise<boolean> {
    if (this.#waiting.length >= this.#max) this.#forgetSettled();
    if (this.#waiting.length >= this.#max || signal?.aborted) return Promise.resolve(false);
    const untilMs = this.#clock.monotonicMs() + waitMs;
    return new Promise((resolve) => {
      const gaveUp = () => waiter.settle(false);
      const waiter: Waiter = {
        untilMs,
        settled: false,
        settle(admitted) {
          if (waiter.settled) return;
          waiter.settled = true;
          signal?.removeEventListener("abort", gaveUp);
          resolve(admitted);
        },
      };
      signal?.addEventListener("abort", gaveUp);
      this.#waiting.push(waiter);
      this.#expectUntil(untilMs);
    });
  }

  /** Admits the first so many of those who still wait. */
  admit(most: number): void {
    let looked = 0;
    for (let room = most; room > 0 && looked < this.#waiting.length; looked += 1) {
      const waiter = this.#waiting[looked] as Waiter;
      if (!waiter.settled) room -= 1;
      waiter.settle(true);
    }
    this.#waiting.splice(0, looked);
  }

  admitAll(): void {
    this.admit(Number.POSITIVE_INFINITY);
    this.#patience?.over.abort();
  }

  #forgetSettled(): void {
    this.#waiting = this.#waiting.filter(({ settled }) => !settled);
  }

  #expectUntil(untilMs: number): void {
    if (this.#patience && this.#patience.untilMs <= untilMs) return;
    this.#patience?.over.abort();
    const patience = { untilMs, over: new AbortController() };
    this.#patience = patience;
    const sleepMs = Math.min(Math.max(0, untilMs - this.#clock.monotonicMs()), longestSleepMs);
    void this.#clock.sleep(sleepMs, patience.over.signal).then(() => {
      if (patience.over.signal.aborted) return;
      this.#patience = undefined;
      const nowMs = this.#clock.monotonicMs();
      for (const waiter of this.#waiting) if (waiter.untilMs <= nowMs) waiter.settle(false);
      this.#forgetSettled();
      if (!this.isEmpty) this.#expectUntil(this.#waiting.reduce((first, w) => Math.min(first, w.untilMs), Infinity));
    });
  }
}
