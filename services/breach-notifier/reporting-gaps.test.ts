import fc from "fast-check";
import { describe, expect, it } from "vitest";
import { type ReportingGap, ReportingGaps } from "./reporting-gaps.ts";

const gap = (fromMs: number, toMs: number, resourceService = "invoices"): ReportingGap => ({
  resourceService,
  fromMs,
  toMs,
});
const listed = (...gaps: readonly ReportingGap[]) => {
  const found = new ReportingGaps();
  for (const one of gaps) found.add(one);
  return found.list();
};
const covers = (gaps: readonly ReportingGap[], service: string, ms: number) =>
  gaps.some(
    ({ resourceService, fromMs, toMs }) =>
      (resourceService === service || resourceService === "") && fromMs <= ms && ms <= toMs,
  );

describe("reporting gaps", () => {
  it("that touch become one, of one resource service, whatever their order", () => {
    expect(listed(gap(1, 3), gap(9, 10), gap(3, 5))).toEqual([gap(1, 5), gap(9, 10)]);
    expect(listed(gap(9, 10), gap(1, 3), gap(2, 9))).toEqual([gap(1, 10)]);
    expect(listed(gap(1, 3), gap(2, 4, "crm"))).toEqual([gap(1, 3), gap(2, 4, "crm")]);
    expect(listed(gap(1, 3), gap(1, 3))).toEqual([gap(1, 3)]);
  });

  it("cover exactly what was covered by each", () => {
    const anyGap = fc.tuple(fc.nat(60), fc.nat(9)).map(([fromMs, ms]) => gap(fromMs, fromMs + ms));
    fc.assert(
      fc.property(fc.array(anyGap, { maxLength: 20 }), (gaps) => {
        const merged = listed(...gaps);
        for (let ms = 0; ms < 75; ms += 1) expect(covers(merged, "invoices", ms)).toBe(covers(gaps, "invoices", ms));
      }),
    );
  });

  it("are all remembered, in bounded memory, however many there are", () => {
    const many = Array.from({ length: 12_000 }, (_, i) => gap(10 * i, 10 * i + (i % 2 ? 1 : 5)));
    const found = listed(...many, gap(9_000_000, 9_000_001));
    expect(found.length).toBeLessThanOrEqual(1_000);
    for (const { fromMs, toMs } of many.filter((_, i) => i % 97 === 0))
      expect([covers(found, "invoices", fromMs), covers(found, "invoices", toMs)]).toEqual([true, true]);
    // What lies far from the others stays by itself.
    expect(found).toContainEqual(gap(9_000_000, 9_000_001));
    expect(covers(found, "invoices", 5_000_000)).toBe(false);
  });

  it("of more services than are told apart count for each of them", () => {
    const found = listed(...Array.from({ length: 1_500 }, (_, i) => gap(i, i, `service-${i}`)));
    expect(new Set(found.map(({ resourceService }) => resourceService)).size).toBeLessThanOrEqual(1_001);
    for (const i of [0, 999, 1_499]) expect(covers(found, `service-${i}`, i)).toBe(true);
  });
});
