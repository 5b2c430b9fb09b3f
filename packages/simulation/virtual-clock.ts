import type { Clock } from "@curfew/runtime/clock.ts";

export interface VirtualClock extends Clock {
  /** Lets `ms` pass: wakes every sleeper when its time comes, in order, and lets what that starts settle before the next one. */
  advance(ms: number): Promise<void>;
  /** Lets `ms` pass at one stroke, as for a process that was paused: the sleepers find out afterwards, at the next `advance`. */
  jump(ms: number): void;
}

interface Sleeper {
  readonly atMs: number;
  readonly wake: () => void;
}

/** Turns of the event loop after which in-memory work has come to rest. */
const settleTurns = 3;

/** Lets everything that can go on without time go on: microtasks, and a few turns of the event loop. */
export const settle = async (): Promise<void> => {
  for (let turn = 0; turn < settleTurns; turn += 1) await new Promise((resolve) => setImmediate(resolve));
};

/** A clock that stands still until told. Wall clock and monotonic clock start at different values, so that mixing them up shows. */
export const virtualClock = (startMs = Date.UTC(2026, 0, 1)): VirtualClock => {
  let elapsedMs = 0;
  const sleepers = new Set<Sleeper>();

  const next = (untilMs: number): Sleeper | undefined => {
    let first: Sleeper | undefined;
    for (const sleeper of sleepers)
      if (sleeper.atMs <= untilMs && (!first || sleeper.atMs < first.atMs)) first = sleeper;
    return first;
  };

  return {
    now: () => startMs + elapsedMs,
    monotonicMs: () => elapsedMs,
    sleep: (ms, signal) =>
      new Promise((resolve) => {
        if (signal?.aborted) return resolve();
        const sleeper: Sleeper = {
          atMs: elapsedMs + Math.max(0, ms),
          wake: () => {
            sleepers.delete(sleeper);
            signal?.removeEventListener("abort", sleeper.wake);
            resolve();
          },
        };
        signal?.addEventListener("abort", sleeper.wake);
        sleepers.add(sleeper);
      }),
    async advance(ms) {
      const untilMs = elapsedMs + ms;
      await settle();
      for (let sleeper = next(untilMs); sleeper; sleeper = next(untilMs)) {
        elapsedMs = Math.max(elapsedMs, sleeper.atMs);
        sleeper.wake();
        await settle();
      }
      elapsedMs = untilMs;
    },
    jump(ms) {
      elapsedMs += ms;
    },
  };
};
