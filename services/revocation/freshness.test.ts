import { describe, expect, it } from "vitest";
import { nextRoundMs } from "./freshness.ts";

const markEveryMs = 50;

describe("rounds of reads for marks", () => {
  it("begin every 50 ms while the store is fast", () => {
    expect(nextRoundMs(0, markEveryMs)).toBe(50);
    expect(nextRoundMs(12, markEveryMs)).toBe(50);
  });

  it("take a quarter of a slow store's time", () => {
    expect(nextRoundMs(20, markEveryMs)).toBe(80);
    expect(nextRoundMs(90, markEveryMs)).toBe(360);
  });

  it("rest the less the more a ping's 2 s are needed", () => {
    expect(nextRoundMs(150, markEveryMs)).toBe(400);
    expect(nextRoundMs(900, markEveryMs)).toBe(900);
  });
});
