import { create, toBinary } from "@bufbuild/protobuf";
import { timestampFromMs } from "@bufbuild/protobuf/wkt";
import {
  Action,
  Outcome,
  Reason,
  UseCompletedSchema,
  UseDecidedSchema,
} from "@curfew/contracts/gen/curfew/events/v1/uses_pb.ts";
import fc from "fast-check";
import { describe, expect, it } from "vitest";
import {
  blastRadius,
  type Declared,
  type ExposureWindow,
  exposureWindow,
  judgeUses,
  type Reach,
  type UseFact,
  type WindowInput,
} from "./blast-radius.ts";
import { countedFact, TokenUses } from "./use-facts.ts";

const all: ReadonlySet<number> = new Set();
const use = (more: Partial<UseFact> = {}): UseFact => ({
  useId: "u1",
  decidedAtMs: 500,
  generation: 1,
  resourceService: "invoices",
  resource: "invoices/7",
  controller: "acme",
  dataCategories: ["contact"],
  action: "read",
  country: "DE",
  addressPseudonym: "home",
  presenterThumbprint: "own",
  maxPeople: 5,
  maxRecords: 9,
  parts: [{ people: ["ann"], records: 2, unnamedPeople: 0 }],
  complete: true,
  unanswered: false,
  eventIds: [],
  ...more,
});
const reach: readonly Reach[] = [{ controller: "acme", dataCategory: "contact" }];
const declared: Declared = (what) => (what === "people" ? 100 : 1_000);
const window: ExposureWindow & { readonly toMs: number } = { fromUpperMs: 0, fromBestMs: 400, toMs: 1_000 };
const radius = (uses: readonly UseFact[], leaked = all, of: ExposureWindow = window) =>
  blastRadius(judgeUses(of, leaked, uses), reach, declared);

describe("the window of exposure", () => {
  const input: WindowInput = {
    generations: [
      { number: 1, issuedAtMs: 100, endsAtMs: 600 },
      { number: 2, issuedAtMs: 500, endsAtMs: 2_000 },
    ],
    leaked: new Set([2]),
    signalsAtMs: [1_000, 900],
    claimedExposuresMs: [],
    effectiveRevocationMs: undefined,
    clockOffsetMs: 7,
    nowMs: 1_100,
  };

  it("begins at the issue of the leaked generation and, for best and lower, at our first sight, widened by the clocks", () => {
    expect(exposureWindow(input)).toEqual({ fromUpperMs: 493, fromBestMs: 893, toMs: undefined });
  });

  it("follows the earliest claim, but none later than our first sight and none before the issue", () => {
    expect(exposureWindow({ ...input, claimedExposuresMs: [700, 800] })?.fromBestMs).toBe(693);
    expect(exposureWindow({ ...input, claimedExposuresMs: [950] })?.fromBestMs).toBe(893);
    expect(exposureWindow({ ...input, claimedExposuresMs: [1] })?.fromBestMs).toBe(493);
  });

  it("ends at the effective revocation, widened by the clocks, or with the generation where that came first", () => {
    expect(exposureWindow({ ...input, effectiveRevocationMs: 1_200 })?.toMs).toBe(1_207);
    expect(exposureWindow({ ...input, effectiveRevocationMs: 3_000, nowMs: 3_000 })?.toMs).toBe(2_007);
    expect(exposureWindow({ ...input, leaked: new Set([1]) })?.toMs).toBe(607);
    expect(exposureWindow({ ...input, nowMs: 2_000 })?.toMs).toBe(2_007);
  });

  it("spans all generations where nobody said which one leaked, and is unknown for an unknown token", () => {
    expect(exposureWindow({ ...input, leaked: all })?.fromUpperMs).toBe(93);
    expect(exposureWindow({ ...input, generations: [] })).toBeUndefined();
    expect(exposureWindow({ ...input, leaked: new Set([9]) })).toBeUndefined();
  });
});

describe("the blast radius", () => {
  it("counts a person once however often they are touched", () => {
    const { people, records } = radius([use(), use({ useId: "u2" })]);
    expect([people.best, records.best]).toEqual([1, 4]);
    expect(people.upper).toBe(101);
  });

  it("shows a stranger by an address or a certificate that was not seen with this token before the exposure", () => {
    const before = use({ useId: "u0", decidedAtMs: 300, parts: [] });
    expect(radius([before, use()]).people.lower).toBe(0);
    expect(radius([before, use({ addressPseudonym: "elsewhere" })]).people.lower).toBe(1);
    expect(radius([before, use({ presenterThumbprint: "other" })]).people.lower).toBe(1);
    // Seen for the first time after the exposure does not make anyone familiar.
    expect(radius([use({ decidedAtMs: 410 }), use({ useId: "u2" })]).people.lower).toBe(1);
    // Where nothing is known of the source, nothing is shown.
    expect(radius([use({ addressPseudonym: "", presenterThumbprint: "" })]).people).toMatchObject({
      lower: 0,
      best: 1,
    });
  });

  it("knows a source also from uses of another generation", () => {
    const before = use({ useId: "u0", decidedAtMs: 300, generation: 1 });
    expect(radius([before, use({ useId: "u2", generation: 2 })], new Set([2])).people).toMatchObject({
      lower: 0,
      best: 1,
    });
  });

  it("leaves out other generations, times outside the window, and answers that were never given", () => {
    const out = [
      use({ generation: 2 }),
      use({ useId: "u2", decidedAtMs: 1_001 }),
      use({ useId: "u3", unanswered: true, parts: [] }),
    ];
    expect(radius(out, new Set([1]))).toMatchObject({ uses: 0, people: { lower: 0, best: 0, upper: 100 } });
  });

  it("loses no access of a stranger where the clock of who decided was wrong by as much as was reported", () => {
    const exposedMs = 1_000_000_000;
    const of = exposureWindow({
      generations: [{ number: 1, issuedAtMs: exposedMs - 3_600_000, endsAtMs: exposedMs + 3_600_000 }],
      leaked: new Set([1]),
      signalsAtMs: [exposedMs + 120_000],
      claimedExposuresMs: [exposedMs],
      effectiveRevocationMs: exposedMs + 121_000,
      clockOffsetMs: 60_000,
      nowMs: exposedMs + 200_000,
    });
    if (!of) throw new Error("no window");
    const own = use({ useId: "own", decidedAtMs: exposedMs - 600_000 });
    for (const offMs of [-60_000, 0, 60_000]) {
      const strangers = Array.from({ length: 10 }, (_, i) =>
        use({
          useId: `s${i}`,
          decidedAtMs: exposedMs + 10_000 * (i + 1) + offMs,
          addressPseudonym: "far",
          parts: [{ people: [`p${i}`], records: 1, unnamedPeople: 0 }],
        }),
      );
      const { people } = blastRadius(judgeUses(of, new Set([1]), [own, ...strangers]), [], declared);
      expect(people).toMatchObject({ lower: 10, best: 10 });
      // Whoever is known from before stays known.
      const holder = use({ useId: "again", decidedAtMs: exposedMs - 1_000 + offMs });
      expect(radius([own, holder], new Set([1]), of).people.lower).toBe(0);
    }
  });

  it("adds to the upper bound what was declared and not reported, and uses before the exposure", () => {
    expect(radius([use({ parts: [], complete: false })]).people).toEqual({ lower: 0, best: 0, upper: 105 });
    expect(radius([use({ complete: false })]).people).toEqual({ lower: 1, best: 1, upper: 105 });
    expect(radius([use({ decidedAtMs: 100 })]).people).toEqual({ lower: 0, best: 0, upper: 101 });
    expect(radius([use({ decidedAtMs: 100 })]).kinds).toEqual([]);
  });

  it("has no upper bound where a controller declared nothing", () => {
    expect(blastRadius(judgeUses(window, all, [use()]), reach, () => undefined).people.upper).toBeUndefined();
    expect(blastRadius(judgeUses(window, all, [use()]), [], () => undefined).people.upper).toBe(1);
  });

  it("tells controllers, categories, services, actions, resources and countries apart", () => {
    const uses = [
      use(),
      use({
        useId: "u2",
        controller: "other",
        action: "delete",
        country: "",
        dataCategories: ["contact", "financial"],
        parts: [{ people: ["bob", "cem"], records: 1, unnamedPeople: 3 }],
      }),
    ];
    const { slices, kinds } = radius(uses);
    const best = Object.fromEntries(slices.map((s) => [`${s.dimension} ${s.value}`, s.people.best]));
    expect(best).toMatchObject({
      "controller acme": 1,
      "controller other": 5,
      "data-category contact": 6,
      "data-category financial": 5,
      "action delete": 5,
      "country unknown": 5,
      "resource-service invoices": 6,
    });
    expect(kinds).toEqual(["confidentiality", "availability"]);
  });

  it("names what could be reached even where nothing is known to be touched", () => {
    expect(radius([]).slices.map((s) => [s.value, s.people.best, s.people.upper])).toEqual([
      ["acme", 0, 100],
      ["contact", 0, 100],
    ]);
  });
});

const anyPart = fc.record({
  people: fc.array(fc.constantFrom("ann", "bob", "cem", "dee", "eve"), { maxLength: 4 }),
  records: fc.nat(20),
  unnamedPeople: fc.nat(3),
});
const anyUse = fc.record({
  decidedAtMs: fc.nat(1_200),
  generation: fc.integer({ min: 1, max: 3 }),
  controller: fc.constantFrom("acme", "other"),
  dataCategories: fc.subarray(["contact", "financial"], { minLength: 1 }),
  action: fc.constantFrom("read" as const, "write" as const, "delete" as const),
  addressPseudonym: fc.constantFrom("", "home", "away", "far"),
  presenterThumbprint: fc.constantFrom("", "own", "other"),
  maxPeople: fc.nat(10),
  maxRecords: fc.nat(30),
  parts: fc.array(anyPart, { maxLength: 3 }),
  complete: fc.boolean(),
  unanswered: fc.boolean(),
});
const anyUses = fc
  .array(anyUse, { maxLength: 30 })
  .map((found) => found.map((some, i) => use({ ...some, useId: `u${i}` })));
/** Off by what a use's own clock was off, within what was reported. */
const anyClocked = fc.array(fc.tuple(anyUse, fc.integer({ min: -90, max: 90 })), { maxLength: 30 });
const anyLeaked = fc.subarray([1, 2, 3]).map((numbers) => new Set(numbers));
const anyWindow = fc
  .tuple(fc.nat(1_000), fc.nat(1_000), fc.option(fc.nat(1_200), { nil: undefined }))
  .map(([a, b, toMs]) => ({ fromUpperMs: Math.min(a, b), fromBestMs: Math.max(a, b), toMs }));

describe("for any uses", () => {
  it("lower <= best <= upper, in every slice", () => {
    fc.assert(
      fc.property(anyUses, anyLeaked, anyWindow, (uses, leaked, of) => {
        const whole = blastRadius(judgeUses(of, leaked, uses), reach, declared);
        for (const { people, records } of [whole, ...whole.slices])
          for (const { lower, best, upper = Number.NaN } of [people, records]) {
            expect(lower).toBeLessThanOrEqual(best);
            expect(best).toBeLessThanOrEqual(upper);
          }
      }),
    );
  });

  it("clocks that are off as far as was reported never make lower, best or upper smaller than they truly are", () => {
    const input: WindowInput = {
      generations: [{ number: 1, issuedAtMs: 200, endsAtMs: 5_000 }],
      leaked: all,
      signalsAtMs: [500],
      claimedExposuresMs: [],
      effectiveRevocationMs: 900,
      clockOffsetMs: 0,
      nowMs: 2_000,
    };
    const [exact, widened] = [exposureWindow(input), exposureWindow({ ...input, clockOffsetMs: 90 })];
    if (!exact || !widened) throw new Error("no window");
    fc.assert(
      fc.property(anyClocked, (found) => {
        const truly = found.map(([some], i) => use({ ...some, useId: `u${i}` }));
        const seen = truly.map((one, i) => ({ ...one, decidedAtMs: one.decidedAtMs + (found[i]?.[1] ?? 0) }));
        const [real, counted] = [radius(truly, all, exact), radius(seen, all, widened)];
        for (const what of ["people", "records"] as const)
          for (const bound of ["lower", "best", "upper"] as const)
            expect(counted[what][bound]).toBeGreaterThanOrEqual(Number(real[what][bound]));
      }),
    );
  });

  it("the order in which they were read changes nothing", () => {
    fc.assert(
      fc.property(
        anyUses.chain((uses) =>
          fc.tuple(fc.constant(uses), fc.shuffledSubarray(uses, { minLength: uses.length, maxLength: uses.length })),
        ),
        anyLeaked,
        ([uses, shuffled], leaked) => {
          expect(radius(shuffled, leaked)).toEqual(radius(uses, leaked));
        },
      ),
    );
  });

  it("an earlier exposure and a later end never make a number smaller, but for strangers", () => {
    fc.assert(
      fc.property(anyUses, fc.nat(400), fc.nat(500), (uses, earlierMs, laterMs) => {
        const wider = { ...window, fromBestMs: window.fromBestMs - earlierMs, toMs: window.toMs + laterMs };
        expect(radius(uses, all, wider).people.best).toBeGreaterThanOrEqual(radius(uses).people.best);
        expect(radius(uses, all, wider).people.upper).toBeGreaterThanOrEqual(Number(radius(uses).people.upper));
      }),
    );
  });
});

describe("facts of uses", () => {
  const decided = (useId: string, more: object = {}) =>
    create(UseDecidedSchema, {
      useId,
      decidedAt: timestampFromMs(500),
      tokenId: "tok",
      generation: 1,
      resourceService: "invoices",
      reason: Reason.OK,
      details: { controller: "acme", dataCategories: ["contact"], action: Action.WRITE, maxPeople: 4n, maxRecords: 4n },
      source: { addressPseudonym: "home", country: "DE" },
      ...more,
    });
  const completed = (useId: string, part: number, parts: number, more: object = {}) =>
    create(UseCompletedSchema, {
      useId,
      tokenId: "tok",
      outcome: Outcome.COMPLETED,
      records: 1n,
      people: [`p${part}`],
      part,
      parts,
      ...more,
    });
  const touched = { outcome: Outcome.COMPLETED, records: 2n, people: ["p1", "p7"], unnamedPeople: 3n };
  const facts = [
    ["decided", toBinary(UseDecidedSchema, decided("a")), "a/decided"],
    ["completed", toBinary(UseCompletedSchema, completed("a", 1, 0)), "a/1"],
    ["completed", toBinary(UseCompletedSchema, completed("a", 2, 2)), "a/2"],
    ["decided", toBinary(UseDecidedSchema, decided("b")), "b/decided"],
    ["completed", toBinary(UseCompletedSchema, completed("b", 1, 1, { outcome: Outcome.UNANSWERED })), "b/1"],
    ["completed", toBinary(UseCompletedSchema, completed("c", 1, 1)), "c/1"],
    [
      "decided",
      toBinary(UseDecidedSchema, decided("d", { ended: { ...touched, outcome: Outcome.FAILED } })),
      "d/decided",
    ],
    // What its service then says as well counts beside it.
    ["decided", toBinary(UseDecidedSchema, decided("e", { ended: touched })), "e/decided"],
    ["completed", toBinary(UseCompletedSchema, completed("e", 1, 2)), "e/1"],
  ] as const;

  it("are joined in any order and any number of times into the same uses", () => {
    const expected = new TokenUses();
    for (const [name, value, id] of facts) expected.add(name, value, id);
    const byId = (uses: readonly UseFact[]) => new Map(uses.map((one) => [one.useId, one]));
    fc.assert(
      fc.property(fc.shuffledSubarray([...facts, ...facts], { minLength: 18, maxLength: 18 }), (order) => {
        const uses = new TokenUses();
        for (const [name, value, id] of order) uses.add(name, value, id);
        expect(byId(uses.list())).toEqual(byId(expected.list()));
        expect(uses.size).toBe(facts.length);
      }),
    );
    const found = byId(expected.list());
    expect(found.get("a")).toMatchObject({
      complete: true,
      unanswered: false,
      action: "write",
      maxPeople: 4,
      eventIds: ["a/decided", "a/1", "a/2"],
    });
    expect(found.get("b")).toMatchObject({ unanswered: true, parts: [] });
    expect(found.get("d")).toMatchObject({
      complete: true,
      unanswered: false,
      parts: [{ records: 2, people: ["p1", "p7"], unnamedPeople: 3 }],
      eventIds: ["d/decided"],
    });
    expect(found.get("e")?.parts.map(({ people }) => people)).toEqual([["p1", "p7"], ["p1"]]);
    expect(found.get("e")?.complete).toBe(false);
    expect(found.get("e")?.eventIds).toEqual(["e/decided", "e/1"]);
    expect(expected.orphans).toBe(1);
  });

  it("are complete only once the last part and all before it are in", () => {
    const uses = new TokenUses();
    uses.add(...facts[0]);
    expect(uses.list()[0]?.complete).toBe(false);
    uses.add(...facts[2]);
    expect(uses.list()[0]).toMatchObject({ complete: false, parts: [{ people: ["p2"] }] });
    uses.add(...facts[1]);
    expect(uses.list()[0]?.complete).toBe(true);
  });

  it("count for a token and an allowed answer alone", () => {
    expect(countedFact(decided("a"))).toBe("decided");
    expect(countedFact(decided("a", { reason: Reason.REVOKED }))).toBeUndefined();
    expect(countedFact(decided("a", { tokenId: "" }))).toBeUndefined();
    expect(countedFact(completed("a", 1, 1))).toBe("completed");
    expect(countedFact(create(UseCompletedSchema, {}))).toBeUndefined();
  });
});
