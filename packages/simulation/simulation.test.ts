import { documentStoreContract } from "@curfew/document-store/contract.ts";
import { busContract } from "@curfew/event-log/contract.ts";
import type { EpochRow } from "@curfew/event-log/epochs.ts";
import { systemClock } from "@curfew/runtime/clock.ts";
import { describe, expect, it } from "vitest";
import { failWrite, faultyStore } from "./faulty-store.ts";
import { memoryBus } from "./memory-bus.ts";
import { memoryStore } from "./memory-store.ts";
import { seededRandom } from "./seeded-random.ts";
import { virtualClock } from "./virtual-clock.ts";

documentStoreContract("simulation", async () => {
  const store = memoryStore();
  return { store, close: () => store.close() };
});

busContract("simulation", async (topics) => {
  const store = memoryStore();
  const epochs = await store.collection<EpochRow>("epochs");
  const bus = memoryBus({ epochs, clock: systemClock, topics });
  return { bus, epochs, close: () => bus.close().then(() => store.close()) };
});

describe("virtual clock", () => {
  it("wakes sleepers in the order of their times, each at its own time, and those they start in between", async () => {
    const clock = virtualClock(1_000);
    const woken: [string, number][] = [];
    const sleep = async (name: string, ms: number) => {
      await clock.sleep(ms);
      woken.push([name, clock.monotonicMs()]);
    };
    void sleep("late", 50);
    void sleep("early", 10).then(() => sleep("between", 20));
    void sleep("never", 101);
    await clock.advance(100);
    expect(woken).toEqual([
      ["early", 10],
      ["between", 30],
      ["late", 50],
    ]);
    expect([clock.now(), clock.monotonicMs()]).toEqual([1_100, 100]);
  });

  it("ends a sleep at once when its signal aborts", async () => {
    const clock = virtualClock();
    const over = new AbortController();
    const slept = clock.sleep(1_000, over.signal);
    over.abort();
    await slept;
    await clock.sleep(1_000, over.signal);
    expect(clock.monotonicMs()).toBe(0);
  });

  it("lets sleepers find out after a jump how late it is", async () => {
    const clock = virtualClock();
    let wokenAt: number | undefined;
    void clock.sleep(10).then(() => {
      wokenAt = clock.monotonicMs();
    });
    clock.jump(5_000);
    expect(wokenAt).toBeUndefined();
    await clock.advance(0);
    expect(wokenAt).toBe(5_000);
  });
});

describe("seeded randomness", () => {
  it("repeats itself for a seed and not for another", () => {
    const draw = (seed: number) => {
      const random = seededRandom(seed);
      return [...random.bytes(16), random.below(1_000), random.pick(["a", "b", "c"])];
    };
    expect(draw(7)).toEqual(draw(7));
    expect(draw(7)).not.toEqual(draw(8));
  });

  it("stays below its limit and meets its odds roughly", () => {
    const random = seededRandom(1);
    const draws = Array.from({ length: 10_000 }, () => random.below(6));
    expect(new Set(draws)).toEqual(new Set([0, 1, 2, 3, 4, 5]));
    const hits = draws.filter(() => random.chance(0.25)).length;
    expect(hits).toBeGreaterThan(2_300);
    expect(hits).toBeLessThan(2_700);
  });
});

describe("faulty store", () => {
  it.each([
    ["lost", undefined],
    ["unacknowledged", { _id: "b" }],
  ] as const)("fails the write it is told to, %s, and no other", async (fault, left) => {
    const store = faultyStore(memoryStore(), failWrite(2, fault));
    const rows = await store.collection("rows");
    expect(await rows.insert({ _id: "a" })).toBe("inserted");
    await rows.get("a");
    await expect(rows.insert({ _id: "b" })).rejects.toThrow("simulated");
    expect(await rows.get("b")).toEqual(left);
    expect(await rows.insert({ _id: "c" })).toBe("inserted");
  });
});
