import { type Clock, systemClock } from "@curfew/runtime/clock.ts";

/** Real time, which a test can push forward: sleepers whose time has come then wake at once. Real connections and deadlines go on. */
export interface ShiftedClock extends Clock {
  advance(ms: number): void;
}

interface Sleeper {
  readonly untilMs: number;
  readonly wake: () => void;
}

export const shiftedClock = (): ShiftedClock => {
  let shiftMs = 0;
  const sleepers = new Set<Sleeper>();
  const monotonicMs = () => systemClock.monotonicMs() + shiftMs;
  return {
    now: () => systemClock.now() + shiftMs,
    monotonicMs,
    async sleep(ms, signal) {
      const woken = new AbortController();
      const sleeper = { untilMs: monotonicMs() + ms, wake: () => woken.abort() };
      sleepers.add(sleeper);
      await systemClock.sleep(ms, signal ? AbortSignal.any([signal, woken.signal]) : woken.signal);
      sleepers.delete(sleeper);
    },
    advance(ms) {
      shiftMs += ms;
      for (const sleeper of sleepers) if (sleeper.untilMs <= monotonicMs()) sleeper.wake();
    },
  };
};
