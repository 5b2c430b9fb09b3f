import type { Random } from "@curfew/runtime/random.ts";

export interface SeededRandom {
  /** As the product takes it. */
  readonly bytes: Random;
  /** A whole number from 0, below `limit`. */
  below(limit: number): number;
  /** True with probability `p`. */
  chance(p: number): boolean;
  pick<T>(from: readonly T[]): T;
}

/** Randomness that repeats itself: the same seed (any whole number) gives the same draws. Mulberry32: for tests, never for secrets. */
export const seededRandom = (seed: number): SeededRandom => {
  let state = seed >>> 0;
  const next = (): number => {
    state = (state + 0x6d2b79f5) >>> 0;
    let t = Math.imul(state ^ (state >>> 15), state | 1);
    t ^= t + Math.imul(t ^ (t >>> 7), t | 61);
    return (t ^ (t >>> 14)) >>> 0;
  };
  const below = (limit: number) => Math.floor((next() / 2 ** 32) * limit);
  return {
    bytes: (n) => Uint8Array.from({ length: n }, () => next() & 0xff),
    below,
    chance: (p) => next() / 2 ** 32 < p,
    pick: (from) => {
      if (from.length === 0) throw new RangeError("nothing to pick from");
      return from[below(from.length)] as (typeof from)[number];
    },
  };
};
