import { expect, it } from "vitest";
import { openLimiter } from "./limiter.ts";

const rig = () => {
  const at = { nowMs: 0 };
  const clock = { now: () => at.nowMs, monotonicMs: () => at.nowMs, sleep: async () => undefined };
  return { at, limiter: openLimiter({ clock, attempts: 3, windowMs: 1_000, maxCallers: 2 }) };
};

it("gives each caller his attempts, and new ones after the window", () => {
  const { at, limiter } = rig();
  const three = () => [1, 2, 3].map(() => limiter.reserve("a") !== undefined);
  expect(three()).toEqual([true, true, true]);
  expect(limiter.reserve("a")).toBeUndefined();
  expect(limiter.reserve("b")).toBeDefined();
  at.nowMs = 600;
  expect(limiter.retryAfterMs("a")).toBe(400);
  at.nowMs = 999;
  expect(limiter.reserve("a")).toBeUndefined();
  at.nowMs = 1_000;
  expect(three()).toEqual([true, true, true]);
});

it("does not count an attempt that is given back, once", () => {
  const { limiter } = rig();
  const [first] = [1, 2, 3].map(() => limiter.reserve("a"));
  first?.release();
  first?.release();
  expect(limiter.reserve("a")).toBeDefined();
  expect(limiter.reserve("a")).toBeUndefined();
});

it("refuses a caller it has no room to count", () => {
  const { at, limiter } = rig();
  expect([limiter.reserve("a"), limiter.reserve("b")].every(Boolean)).toBe(true);
  expect(limiter.reserve("c")).toBeUndefined();
  at.nowMs = 1_000;
  expect(limiter.reserve("c")).toBeDefined();
});
