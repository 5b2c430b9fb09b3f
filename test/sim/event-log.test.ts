import { createHash } from "node:crypto";
import { describe, expect, it } from "vitest";
import { World } from "./event-log-world.ts";

/** `SEED=7 npx vitest run test/sim/event-log` runs one seed; `RUNS=500` that many. */
const only = process.env.SEED === undefined ? undefined : Number(process.env.SEED);
const runs = Number(process.env.RUNS ?? 24);
const seeds = only === undefined ? Array.from({ length: runs }, (_, i) => i + 1) : [only];
const stepsPerRun = 150;

const simulate = async (seed: number): Promise<World> => {
  const world = await World.open(seed);
  try {
    for (let step = 0; step < stepsPerRun; step += 1) {
      await world.step();
      await world.check();
    }
    await world.heal();
    await world.checkEnd();
  } catch (error) {
    throw new Error(`seed ${seed}: ${(error as Error).message}`, { cause: error });
  }
  return world;
};

describe("the event log, simulated", () => {
  const totals: Record<string, number> = {};

  it.each(seeds)("loses, doubles, reorders and forks nothing: seed %i", async (seed) => {
    const world = await simulate(seed);
    expect(world.acknowledged.size).toBeGreaterThan(0);
    for (const [what, n] of Object.entries(world.counts)) totals[what] = (totals[what] ?? 0) + n;
  });

  it.runIf(only === undefined)("met everything that can go wrong", () => {
    for (const what of [
      "acknowledged",
      "refused",
      "write lost",
      "write unacknowledged",
      "send lost",
      "send unacknowledged",
      "deliver lost",
      "killed",
      "killed at an operation",
      "records twice",
    ])
      expect(totals[what], what).toBeGreaterThan(0);
  });

  it("does the same for the same seed", async () => {
    const digest = async (seed: number) => {
      const hash = createHash("sha256");
      for (const record of (await simulate(seed)).records()) hash.update(JSON.stringify(record.headers));
      return hash.digest("hex");
    };
    expect(await digest(1)).toBe(await digest(1));
    expect(await digest(1)).not.toBe(await digest(2));
  });
});
