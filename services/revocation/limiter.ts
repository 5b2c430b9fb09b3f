import type { Clock } from "@curfew/runtime/clock.ts";

/** A limit on attempts per caller and window. Fails closed: when no more callers can be counted, a new one gets nothing. */
export interface Limiter {
  /** Counts an attempt before it is made; undefined when there is none left. */
  reserve(caller: string): Reservation | undefined;
  /** Until a caller who has used up his attempts gets new ones, ms. */
  retryAfterMs(caller: string): number;
}

export interface Reservation {
  /** The attempt does not count after all. */
  release(): void;
}

interface Window {
  readonly startMs: number;
  count: number;
}

/** Counted by this process alone, from the monotonic clock. */
export const openLimiter = (parts: {
  readonly clock: Clock;
  readonly attempts: number;
  readonly windowMs: number;
  readonly maxCallers: number;
}): Limiter => {
  const { clock, attempts, windowMs, maxCallers } = parts;
  // In order of their starts, so the first ones end first.
  const windows = new Map<string, Window>();
  const dropEnded = () => {
    for (const [caller, { startMs }] of windows) {
      if (clock.monotonicMs() - startMs < windowMs) return;
      windows.delete(caller);
    }
  };
  return {
    reserve(caller) {
      dropEnded();
      let window = windows.get(caller);
      if (!window) {
        if (windows.size >= maxCallers) return undefined;
        window = { startMs: clock.monotonicMs(), count: 0 };
        windows.set(caller, window);
      }
      if (window.count >= attempts) return undefined;
      window.count += 1;
      let released = false;
      return {
        release: () => {
          if (!released) window.count -= 1;
          released = true;
        },
      };
    },
    retryAfterMs(caller) {
      const startMs = windows.get(caller)?.startMs ?? clock.monotonicMs();
      return Math.max(1, startMs + windowMs - clock.monotonicMs());
    },
  };
};
