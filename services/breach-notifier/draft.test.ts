import { create } from "@bufbuild/protobuf";
import { timestampFromMs } from "@bufbuild/protobuf/wkt";
import { SignalSchema } from "@curfew/contracts/gen/curfew/events/v1/breaches_pb.ts";
import { GrantSchema } from "@curfew/contracts/gen/curfew/events/v1/common_pb.ts";
import { RevocationReason } from "@curfew/contracts/gen/curfew/events/v1/revocations_pb.ts";
import { parseOrganisation } from "@curfew/runtime/organisation.ts";
import { describe, expect, it } from "vitest";
import { hourMs, readClock } from "./article-clock.ts";
import type { UseFact } from "./blast-radius.ts";
import { caseRadius, controllersOf, radiusOfController } from "./case-radius.ts";
import { breachCase, caseIdOf, type OpenCase } from "./domain.ts";
import { type Draft, type DraftInput, draftNotification } from "./draft.ts";
import type { TokenFacts } from "./projections.ts";
import { edpbTemplate, isRequired, isVisible } from "./template.ts";

const organisation = parseOrganisation(`
controllers:
  - { id: acme, name: Acme GmbH, country: DE, contact: c, dpo: d, population: { contact: 100 }, records: { contact: 300 } }
  - { id: far, name: Far Inc, country: US, contact: c, dpo: d }
  - { id: vague, name: Vague, contact: c, dpo: d }
resource_services: [{ name: crm, controllers: [acme, far] }]
`);
const tokenId = "tok_00000000-0000-8000-8000-000000000001";
const startMs = Date.UTC(2026, 10, 24, 13, 17, 42);
const state = breachCase.evolve(
  breachCase.initial,
  breachCase.decide(breachCase.initial, {
    type: "RecordSignal",
    caseId: caseIdOf({ tokenId }, 0),
    tokenId,
    producer: "",
    noPersonalData: false,
    signal: create(SignalSchema, { eventId: "leak-1", at: timestampFromMs(startMs) }),
  })[0] as never,
) as OpenCase;

const token = (more: Partial<TokenFacts> = {}): TokenFacts => ({
  grant: create(GrantSchema, { audiences: ["crm"], dataCategories: ["contact", "shoe-size"] }),
  issuedEventId: "issued-1",
  generations: [{ number: 1, issuedAtMs: startMs - 9 * hourMs, endsAtMs: startMs + 900 * hourMs }],
  revoked: { eventId: "revoked-1", reason: RevocationReason.LEAKED, atMs: startMs },
  wholeTokenCompromised: false,
  effective: undefined,
  leaks: [
    {
      eventId: "leak-1",
      generation: 1,
      kind: "git",
      public: true,
      exposedSinceMs: startMs - 2 * hourMs,
      atMs: startMs,
      reportedBy: "spiffe://test.example/person/sam",
    },
  ],
  ...more,
});
const use = (useId: string, more: Partial<UseFact> = {}): UseFact => ({
  useId,
  decidedAtMs: startMs - hourMs,
  generation: 1,
  resourceService: "crm",
  resource: "people/1",
  controller: "acme",
  dataCategories: ["contact"],
  action: "read",
  country: "",
  addressPseudonym: "somewhere",
  presenterThumbprint: "",
  maxPeople: 1,
  maxRecords: 1,
  parts: [{ people: ["person-x"], records: 2, unnamedPeople: 0 }],
  complete: true,
  unanswered: false,
  eventIds: [`${useId}/decided`, `${useId}/completed/1`],
  ...more,
});

const inputOf = (uses: UseFact[], o: { token?: TokenFacts; controller?: string; nowMs?: number } = {}): DraftInput => {
  const nowMs = o.nowMs ?? startMs + 60_000;
  const evidence = {
    token: o.token ?? token(),
    read: { uses, orphans: 0, folded: [], truncated: false },
    caughtUp: true,
    largestClockOffsetMs: 0,
    reportingGaps: [],
    evidenceGaps: [],
    nowMs,
  };
  const whole = caseRadius(state, evidence, organisation);
  const controller = organisation.controllers.find(({ id }) => id === (o.controller ?? "acme"));
  if (!controller) throw new Error("no such controller");
  const radius = radiusOfController(whole, controller.id, organisation);
  return { state, clock: readClock(startMs, undefined, nowMs), radius, controller, decisionEventId: "", nowMs };
};
const dead = token({ effective: { eventId: "effective-1", atMs: startMs + 100, clockOffsetMs: 0 } });
const value = (draft: Draft, key: string) => draft.fields.find((field) => field.key === key)?.value;

const drafts: Record<string, DraftInput> = {
  "the window open": inputOf([use("u1")]),
  "the token dead": inputOf([use("u1"), use("u2", { action: "delete", parts: [] })], { token: dead }),
  "nothing touched": inputOf([], { token: dead }),
  late: inputOf([use("u1")], { nowMs: startMs + 80 * hourMs }),
  "a controller outside the EEA": inputOf([use("u1", { controller: "far" })], { controller: "far" }),
  "a controller of unknown country": inputOf([], { controller: "vague" }),
  "a case about a producer": { ...inputOf([]), radius: undefined },
};

describe.each(Object.entries(drafts))("a draft with %s", (_name, input) => {
  const draft = draftNotification(input);
  const field = (n: number) => edpbTemplate.fields.find((f) => f.n === n);

  it("fills only fields that apply, with values that the template allows", () => {
    for (const { number, value: text } of draft.fields) {
      const { options, only_incomplete = [] } = field(number) ?? {};
      if (text === "" || !options) continue;
      for (const letter of text.split(",")) {
        expect(Object.keys(options), `field ${number}`).toContain(letter);
        if (only_incomplete.includes(letter)) expect(value(draft, "notification_subtype")).toBe("b");
      }
    }
  });

  it("names every required field that is empty, and counts the share of the others", () => {
    const required = draft.fields.filter((f) => f.required);
    expect(draft.missing).toEqual(required.filter((f) => f.value === "").map((f) => f.key));
    expect(draft.readyPercent).toBe(Math.floor((100 * (required.length - draft.missing.length)) / required.length));
    expect(draft.missing).toContain("cause");
  });

  it("says by which events it knows, names nobody, and is the same when made again", () => {
    for (const { value: text, source, eventIds, number } of draft.fields)
      if (text !== "" && source === "automatic" && number > 7)
        expect(eventIds.length, `field ${number}`).toBeGreaterThan(0);
    expect(draft.json).not.toContain("person-x");
    expect(draftNotification(input).json).toBe(draft.json);
    expect(JSON.parse(draft.json).fields).toHaveLength(draft.fields.length);
  });
});

describe("the fields that evidence decides", () => {
  const of = (name: keyof typeof drafts) => draftNotification(drafts[name] as DraftInput);

  it("the time: open, between two moments, and who is late has to say why", () => {
    expect(value(of("the window open"), "occurrence")).toBe("c");
    expect(value(of("the window open"), "breach_ended_at")).toBeUndefined();
    expect(value(of("the token dead"), "occurrence")).toBe("a");
    expect(value(of("the token dead"), "breach_started_at")).toBe(new Date(startMs - 2 * hourMs).toISOString());
    expect(of("the token dead").fields.find((f) => f.key === "breach_ended_at")?.eventIds).toEqual(["effective-1"]);
    expect(of("the token dead").missing).not.toContain("late_reason");
    expect(of("late").missing).toContain("late_reason");
  });

  it("whether data got out: shown, open while the log may be incomplete, and not where it is complete", () => {
    expect(value(of("the window open"), "confidentiality_extent")).toBe("a");
    expect(value(draftNotification(inputOf([use("u1", { addressPseudonym: "" })])), "confidentiality_extent")).toBe(
      "b",
    );
    expect(value(draftNotification(inputOf([])), "confidentiality_extent")).toBe("e");
    expect(value(of("nothing touched"), "confidentiality_extent")).toBe("c");
  });

  it("kinds, types of data, numbers and systems", () => {
    const draft = of("the token dead");
    expect(value(draft, "breach_kinds")).toBe("a,c");
    expect(value(draft, "data_types")).toBe("b,s,u");
    expect(value(draft, "data_types_details")).toContain("shoe-size: people 0 (at least 0, at most unknown)");
    expect(value(draft, "data_subject_count")).toBe("1");
    expect(value(draft, "record_count")).toBe("2");
    expect(value(draft, "affected_systems")).toBe("crm");
    expect(draft.fields.find((f) => f.key === "response_measures")?.eventIds).toEqual(["revoked-1", "effective-1"]);
  });

  it("an unknown country suppresses neither question, a known one the other", () => {
    const keys = (name: keyof typeof drafts) => of(name).fields.map((f) => f.key);
    expect(keys("a controller of unknown country")).toEqual(
      expect.arrayContaining(["cross_border", "non_eea_controller"]),
    );
    expect(keys("the window open")).not.toContain("non_eea_controller");
    expect(keys("a controller outside the EEA")).not.toContain("cross_border");
  });

  it("the controllers: those touched after the exposure, else those in reach", () => {
    const whole = (uses: UseFact[]) =>
      controllersOf(
        caseRadius(
          state,
          {
            token: token(),
            read: { uses, orphans: 0, folded: [], truncated: false },
            caughtUp: true,
            largestClockOffsetMs: 0,
            reportingGaps: [],
            evidenceGaps: [],
            nowMs: startMs,
          },
          organisation,
        ),
      );
    expect(whole([use("u1", { controller: "far" })])).toEqual(["far"]);
    expect(whole([use("u1", { controller: "far", decidedAtMs: startMs - 5 * hourMs })])).toEqual(["acme", "far"]);
  });
});

describe("the template", () => {
  const form = (values: Record<number, string>, nowMs = startMs) => ({
    value: (n: number) => values[n] ?? "",
    profile: () => undefined,
    nowMs,
  });
  const visible = (n: number, values: Record<number, string>) => {
    const field = edpbTemplate.fields.find((f) => f.n === n);
    if (!field) throw new Error(`no field ${n}`);
    return { visible: isVisible(field, form(values)), required: isRequired(field, form(values)) };
  };

  it("shows and requires fields by their conditions", () => {
    expect(visible(5, { 3: "b", 4: "c" }).visible).toBe(true);
    expect(visible(5, { 3: "b", 4: "b" }).visible).toBe(false);
    expect(visible(11, { 10: "b" }).visible).toBe(true);
    expect(visible(11, {}).visible).toBe(false);
    expect(visible(29, { 23: "a" }).visible).toBe(false);
    expect(visible(30, { 23: "c", 29: "true" }).visible).toBe(true);
    expect(visible(58, { 55: "a,b" }).visible).toBe(true);
    expect(visible(111, { 110: "a" }).visible).toBe(true);
    expect(visible(10, {})).toEqual({ visible: true, required: false });
    expect(visible(53, { 45: "true" }).required).toBe(true);
    expect(visible(53, {}).required).toBe(false);
  });
});
