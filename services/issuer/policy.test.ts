import { create, type MessageInitShape } from "@bufbuild/protobuf";
import { Delivery, EvidenceMode, GrantSchema } from "@curfew/contracts/gen/curfew/events/v1/common_pb.ts";
import { describe, expect, test } from "vitest";
import { type Allowed, evaluate, type GrantRequest, grantProblems, type Policy } from "./policy.ts";
import { parsePolicy } from "./policy-document.ts";

const rule = (fields = "", name = "read") => `
  - name: ${name}
    subjects: [workload/billing]
    scopes: [invoices:read, invoices:list]
    resources: [invoices/*, "reports/**"]
    audiences: [invoices]
    purposes: [billing]
    data_categories: [contact]
    ${fields}`;
const policy = (rules: string, name = "tokens"): Policy => {
  const parsed = parsePolicy(`rules:${rules}`);
  if (!parsed.ok) throw new Error(JSON.stringify(parsed.problems));
  return { name, version: 3, rules: parsed.rules };
};
const own = "o".repeat(43);
const ask = (
  grant: MessageInitShape<typeof GrantSchema> = {},
  more: Partial<Omit<GrantRequest, "grant">> = {},
): GrantRequest => ({
  subject: "workload/billing",
  grant: create(GrantSchema, {
    scopes: ["invoices:read"],
    resources: ["invoices/1"],
    audiences: ["invoices"],
    purposes: ["billing"],
    ...grant,
  }),
  delivery: Delivery.UNSPECIFIED,
  ownThumbprint: own,
  ...more,
});
const allowed = (fields: string, request: GrantRequest): Allowed => {
  const verdict = evaluate([policy(rule(fields))], request);
  if (!verdict.allowed) throw new Error(verdict.why.join());
  return verdict;
};
const why = (fields: string, request: GrantRequest) => {
  const verdict = evaluate([policy(rule(fields))], request);
  return verdict.allowed ? [] : verdict.why;
};
const seconds = (n: number) => ({ seconds: BigInt(n), nanos: 0 });

describe("what a rule leaves out is strict", () => {
  test("one hour, thirty days, ten minutes of overlap, sealed, bound, every use before it happens", () => {
    expect(allowed("", ask())).toMatchObject({
      policy: "tokens",
      version: 3,
      rule: "read",
      ttlMs: 3_600_000,
      lineageMaxMs: 30 * 24 * 3_600_000,
      overlapMaxMs: 600_000,
      delivery: Delivery.SEALED,
      grant: { certificateThumbprint: own, evidenceMode: EvidenceMode.BEFORE_USE, ttl: { seconds: 3_600n } },
    });
  });
});

describe("a request", () => {
  test.each<[string, string, GrantRequest, Partial<Allowed> | { grant: object }]>([
    ["a shorter life", "", ask({ ttl: seconds(60) }), { ttlMs: 60_000 }],
    ["a longer one where the rule says so", "ttl_max: 24h", ask({ ttl: seconds(86_400) }), { ttlMs: 86_400_000 }],
    ["a covered pattern", "", ask({ resources: ["invoices/*", "reports/2026/**"] }), {}],
    ["its own binding", "", ask({ certificateThumbprint: own }), { grant: { certificateThumbprint: own } }],
    ["no binding", "binding: none", ask(), { grant: { certificateThumbprint: "" } }],
    [
      "a binding all the same",
      "binding: none",
      ask({ certificateThumbprint: own }),
      { grant: { certificateThumbprint: own } },
    ],
    [
      "direct delivery",
      "delivery: [sealed, direct]",
      ask({}, { delivery: Delivery.DIRECT }),
      { delivery: Delivery.DIRECT },
    ],
    ["what batched allows", "evidence: batched", ask(), { grant: { evidenceMode: EvidenceMode.BATCHED } }],
    [
      "stricter evidence",
      "evidence: batched",
      ask({ evidenceMode: EvidenceMode.BEFORE_USE }),
      { grant: { evidenceMode: EvidenceMode.BEFORE_USE } },
    ],
    ["some data", "", ask({ dataCategories: ["contact"] }), { grant: { dataCategories: ["contact"] } }],
  ])("may have %s", (_, fields, request, expected) => {
    expect(allowed(fields, request)).toMatchObject(expected);
  });

  test.each<[string, string, GrantRequest, string]>([
    ["another scope", "", ask({ scopes: ["invoices:read", "invoices:write"] }), "scope invoices:write is not allowed"],
    ["a wider pattern", "", ask({ resources: ["invoices/**"] }), "resource invoices/** is not allowed"],
    ["another audience", "", ask({ audiences: ["people"] }), "audience people is not allowed"],
    ["another purpose", "", ask({ purposes: ["marketing"] }), "purpose marketing is not allowed"],
    ["other data", "", ask({ dataCategories: ["health"] }), "data category health is not allowed"],
    ["a longer life", "", ask({ ttl: seconds(3_601) }), "ttl is over 3600 s"],
    ["another's certificate", "", ask({ certificateThumbprint: "x".repeat(43) }), "own certificate"],
    [
      "another's certificate, unbound",
      "binding: none",
      ask({ certificateThumbprint: "x".repeat(43) }),
      "own certificate",
    ],
    ["no certificate at all", "", ask({}, { ownThumbprint: "" }), "must be bound"],
    ["direct delivery", "", ask({}, { delivery: Delivery.DIRECT }), "delivery direct is not allowed"],
    ["sealed where only direct", "delivery: [direct]", ask(), "delivery sealed is not allowed"],
    ["laxer evidence", "", ask({ evidenceMode: EvidenceMode.BATCHED }), "evidence batched is not allowed"],
  ])("is refused %s", (_, fields, request, objection) => {
    const found = why(fields, request);
    expect(found).toHaveLength(1);
    expect(found[0]).toContain(objection);
  });

  test("is refused with everything that the closest rule has against it", () => {
    const two = policy(`${rule("", "far").replace("[billing]", "[other]")}${rule("", "near")}`);
    const verdict = evaluate([two], ask({ scopes: ["a:b"], ttl: seconds(7_200) }));
    expect(verdict).toEqual({
      allowed: false,
      policy: "tokens",
      version: 3,
      rule: "near",
      why: ["scope a:b is not allowed", "ttl is over 3600 s"],
    });
  });

  test("is allowed by the first rule that does, policies by name", () => {
    const policies = [policy(rule(), "b"), policy(rule(), "c"), policy(rule("ttl_max: 10s"), "a")];
    expect(evaluate(policies, ask({ ttl: seconds(60) }))).toMatchObject({ allowed: true, policy: "b" });
    expect(evaluate(policies, ask())).toMatchObject({ allowed: true, policy: "a", ttlMs: 10_000 });
  });

  test("by somebody whom no rule names is refused without a rule", () => {
    const verdict = evaluate([policy(rule())], ask({}, { subject: "workload/billing2" }));
    expect(verdict).toMatchObject({ allowed: false, rule: "", why: ["no rule of any policy names workload/billing2"] });
    expect(evaluate([], ask())).toMatchObject({ allowed: false, why: ["no policy is in force"] });
    const everybody = policy(rule("allow_wildcard_subjects: true").replace("workload/billing", "workload/*"));
    expect(evaluate([everybody], ask({}, { subject: "workload/anyone" })).allowed).toBe(true);
    expect(evaluate([everybody], ask({}, { subject: "person/anyone" })).allowed).toBe(false);
  });
});

describe("a policy document", () => {
  const problems = (document: string) => {
    const parsed = parsePolicy(document);
    return parsed.ok ? [] : parsed.problems.map((p) => p.field);
  };

  test("with mistakes names all of them, each with its place", () => {
    expect(
      problems(`
tokens: []
rules:
  - name: Read
    subjects: [billing, "workload/*", person/dana]
    scopes: [read, "a:b", "a:b"]
    resources: ["a**"]
    audiences: []
    purposes: billing
    data_categories: [Health]
    binding: cert
    ttl_max: 25h
    lineage_max: 31d
    overlap_max: ten
    delivery: [mail]
    evidence: none
    allow_wildcards: true
  - rule
  - { name: x, subjects: [workload/a], scopes: ["a:b"], resources: [a], audiences: [a], purposes: [a] }
  - { name: x, subjects: [workload/a], scopes: ["a:b"], resources: [a], audiences: [a], purposes: [a] }
`),
    ).toEqual([
      "tokens",
      "rules[0].name",
      "rules[0].subjects[0]",
      "rules[0].subjects[1]",
      "rules[0].subjects[2]",
      "rules[0].scopes",
      "rules[0].scopes[0]",
      "rules[0].resources[0]",
      "rules[0].audiences",
      "rules[0].purposes",
      "rules[0].data_categories[0]",
      "rules[0].binding",
      "rules[0].ttl_max",
      "rules[0].lineage_max",
      "rules[0].overlap_max",
      "rules[0].delivery[0]",
      "rules[0].evidence",
      "rules[0].allow_wildcards",
      "rules[1]",
      "rules[3].name",
    ]);
  });

  test.each(["", "[]", "rules", "rules: {}", "rules: [", "a: &a [*a]\nrules: *b", "rules: []\nrules: []", "\0"])(
    "that is none is refused: %j",
    (document) => {
      expect(problems(document)).not.toEqual([]);
    },
  );

  test("that unfolds without end is refused", () => {
    const bomb = ["a0: &a0 [x, x]", ...Array.from({ length: 30 }, (_, i) => `a${i + 1}: &a${i + 1} [*a${i}, *a${i}]`)];
    expect(problems(`${bomb.join("\n")}\nrules: *a30`)).toEqual(["document"]);
  });
});

describe("the form of a grant", () => {
  test.each<[string, MessageInitShape<typeof GrantSchema>]>([
    ["grant.scopes[0]", { scopes: ["read"] }],
    ["grant.scopes", { scopes: Array.from({ length: 65 }, (_, i) => `a:b${i}`) }],
    ["grant.resources", { resources: [] }],
    ["grant.audiences", { audiences: ["a", "a"] }],
    ["grant.purposes[0]", { purposes: ["Billing"] }],
    ["grant.data_categories[0]", { dataCategories: ["cfws_x"] }],
    ["grant.certificate_thumbprint", { certificateThumbprint: "short" }],
    ["grant.ttl", { ttl: seconds(0) }],
    ["grant.ttl", { ttl: seconds(86_401) }],
    ["grant.ttl", { ttl: { seconds: 1n, nanos: -1 } }],
    ["grant.ttl", { ttl: { seconds: 9_223_372_036_854_775_807n, nanos: 0 } }],
    ["grant.evidence_mode", { evidenceMode: 7 as EvidenceMode }],
  ])("is checked: %s", (field, grant) => {
    expect(grantProblems(ask(grant).grant).map((p) => p.field)).toEqual([field]);
  });

  test("of a good one has nothing wrong", () => {
    expect(grantProblems(ask({ ttl: seconds(1), certificateThumbprint: own }).grant)).toEqual([]);
  });
});
