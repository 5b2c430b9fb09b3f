import { create } from "@bufbuild/protobuf";
import { timestampFromMs } from "@bufbuild/protobuf/wkt";
import { CaseOpenedSchema } from "@curfew/contracts/gen/curfew/events/v1/breaches_pb.ts";
import { GrantSchema } from "@curfew/contracts/gen/curfew/events/v1/common_pb.ts";
import { parseOrganisation } from "@curfew/runtime/organisation.ts";
import { describe, expect, it } from "vitest";
import { type CaseEvidence, caseRadius, lateReportMs } from "./case-radius.ts";
import { breachCase, type OpenCase } from "./domain.ts";
import type { TokenFacts } from "./projections.ts";

const organisation = parseOrganisation(`
controllers: [{ id: acme, name: Acme, contact: c, dpo: d }]
resource_services: [{ name: crm, controllers: [acme] }]
`);
const sightMs = Date.UTC(2026, 10, 24, 13);
const tokenId = "tok_00000000-0000-8000-8000-000000000001";
const state = breachCase.evolve(
  breachCase.initial,
  create(CaseOpenedSchema, {
    caseId: `case/${tokenId}/1`,
    tokenId,
    signal: { eventId: "leak-1", at: timestampFromMs(sightMs) },
  }),
) as OpenCase;
const token: TokenFacts = {
  grant: create(GrantSchema, { audiences: ["crm"], dataCategories: ["contact"] }),
  issuedEventId: "issued-1",
  generations: [{ number: 1, issuedAtMs: sightMs - 60_000, endsAtMs: sightMs + 900_000 }],
  revoked: undefined,
  wholeTokenCompromised: true,
  effective: { eventId: "effective-1", atMs: sightMs + 100, clockOffsetMs: 40 },
  leaks: [],
};
const endMs = sightMs + 140;
const incomplete = (more: Partial<CaseEvidence> = {}): readonly string[] =>
  caseRadius(
    state,
    {
      token,
      read: { uses: [], orphans: 0, folded: [], truncated: false },
      caughtUp: true,
      largestClockOffsetMs: 0,
      reportingGaps: [],
      evidenceGaps: [],
      nowMs: endMs + lateReportMs,
      ...more,
    },
    organisation,
  ).incompleteBecause;

describe("a case says that it is complete", () => {
  it("only once no use from before the end of its window can still be reported", () => {
    expect(incomplete()).toEqual([]);
    const reason = [`Uses up to ${new Date(endMs).toISOString()} may still be reported.`];
    expect(incomplete({ nowMs: endMs + lateReportMs - 1 })).toEqual(reason);
    expect(incomplete({ nowMs: endMs - 10 })).toEqual(reason);
    // An SDK that lagged by almost 10 s and died: its gap is recorded after its lease, the grace and a look.
    expect(incomplete({ nowMs: endMs + 10_000 + 5_050 + 5_000 + 1_000 })).toEqual(reason);
  });

  it("never while the token can be used: what was just decided may still be reported", () => {
    const nowMs = sightMs + 500_000;
    const reasons = incomplete({ token: { ...token, effective: undefined }, nowMs });
    expect(reasons.join("\n")).toContain("The window is still open");
    expect(reasons).toContain(`Uses up to ${new Date(nowMs).toISOString()} may still be reported.`);
  });

  it("only where no gap touches its window, and what is on the log was read", () => {
    const gap = (fromMs: number, toMs: number, resourceService = "crm") =>
      incomplete({ reportingGaps: [{ resourceService, fromMs, toMs }] });
    expect(gap(endMs, endMs + 5_000)).toHaveLength(1);
    expect(gap(sightMs - 90_000, sightMs - 60_040)).toHaveLength(1);
    expect(gap(sightMs, Number.MAX_SAFE_INTEGER)).toHaveLength(1);
    expect(gap(sightMs, endMs, "")).toHaveLength(1);
    expect(gap(endMs + 1, endMs + 5_000)).toEqual([]);
    expect(gap(sightMs, endMs, "invoices")).toEqual([]);
    expect(incomplete({ caughtUp: false })).toEqual(["Not everything on the log has been read yet."]);
    expect(incomplete({ evidenceGaps: [{ topic: "curfew.uses.v1", cause: "hole" }] })).toHaveLength(1);
  });

  it("and names some of many gaps, telling that there are more", () => {
    const gaps = Array.from({ length: 11 }, (_, i) => ({
      resourceService: "crm",
      fromMs: sightMs + i,
      toMs: sightMs + i,
    }));
    expect(incomplete({ reportingGaps: gaps.slice(1) })).toHaveLength(10);
    expect(incomplete({ reportingGaps: gaps }).at(-1)).toBe("There are more gaps than are listed here.");
  });
});
