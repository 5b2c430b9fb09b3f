import { describe, expect, it } from "vitest";
import { readClock } from "./article-clock.ts";

const at = (text: string) => Date.parse(text);
const iso = (ms: number) => new Date(ms).toISOString();

describe("the 72-hour clock", () => {
  it.each([
    ["2026-11-24T13:17:42Z", "2026-11-27T13:17:42.000Z", "2026-11-27T14:00:00.000Z"],
    ["2026-11-24T13:00:00Z", "2026-11-27T13:00:00.000Z", "2026-11-27T14:00:00.000Z"],
    ["2026-12-23T08:05:00Z", "2026-12-26T08:05:00.000Z", "2026-12-26T09:00:00.000Z"],
    ["2026-10-23T12:40:00Z", "2026-10-26T12:40:00.000Z", "2026-10-26T13:00:00.000Z"],
    ["2027-03-26T12:40:00Z", "2027-03-29T12:40:00.000Z", "2027-03-29T13:00:00.000Z"],
  ])("aware at %s: bound A %s, bound B %s", (aware, a, b) => {
    const reading = readClock(at(aware), undefined, at(aware));
    expect([iso(reading.conservativeMs), iso(reading.regulation1182Ms)]).toEqual([a, b]);
  });

  it("keeps B at most an hour after A and never before it, to the millisecond", () => {
    for (let ms = 0; ms < 7_200_000; ms += 997) {
      const { conservativeMs, regulation1182Ms } = readClock(at("2026-11-24T00:00:00Z") + ms, undefined, 0);
      expect(regulation1182Ms - conservativeMs).toBeGreaterThan(0);
      expect(regulation1182Ms - conservativeMs).toBeLessThanOrEqual(3_600_000);
    }
  });

  it("is provisional from the first signal while nobody has decided, and late only after bound A", () => {
    const signal = at("2026-11-24T13:17:42Z");
    expect(readClock(signal, undefined, signal)).toMatchObject({ provisional: true, awareAtMs: signal, late: false });
    expect(readClock(signal, signal + 1000, signal)).toMatchObject({ provisional: false, awareAtMs: signal + 1000 });
    const a = readClock(signal, undefined, 0).conservativeMs;
    expect(readClock(signal, undefined, a).late).toBe(false);
    expect(readClock(signal, undefined, a + 1).late).toBe(true);
  });
});
