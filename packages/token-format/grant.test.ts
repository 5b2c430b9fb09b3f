import { create } from "@bufbuild/protobuf";
import { GrantSchema } from "@curfew/contracts/gen/curfew/events/v1/common_pb.ts";
import { Reason } from "@curfew/contracts/gen/curfew/events/v1/uses_pb.ts";
import fc from "fast-check";
import { describe, expect, test } from "vitest";
import { checkGrant, coversPattern, type IntendedUse, matchesResource, resourcePatternProblem } from "./grant.ts";

describe("a resource pattern", () => {
  test.each([
    ["invoices/1", "invoices/1", true],
    ["invoices/1", "invoices/2", false],
    ["invoices/*", "invoices/1", true],
    ["invoices/*", "invoices", false],
    ["invoices/*", "invoices/1/lines", false],
    ["invoices/*/lines", "invoices/7/lines", true],
    ["invoices/*/lines", "invoices/7/other", false],
    ["invoices/**", "invoices/1/lines/2", true],
    ["invoices/**", "invoices", false],
    ["**", "anything/at/all", true],
    ["invoices/*", "invoices/..", false],
    ["invoices/**", "invoices/1/../../people", false],
    ["invoices/*", "invoices/", false],
    ["invoices/**", "invoices//1", false],
    ["in*", "invoices", false],
  ])("%s on %s: %s", (pattern, resource, expected) => {
    expect(matchesResource(pattern, resource)).toBe(expected);
  });

  test.each(["invoices", "invoices/*", "*/x", "a/**", "**", "a.b/c~d/e-f_g"])("%s is well-formed", (pattern) => {
    expect(resourcePatternProblem(pattern)).toBeUndefined();
  });

  test.each(["", "/a", "a/", "a//b", "**/a", "a/**/b", "a*", "a/***", "a/..", ".", "a b", "é", "a".repeat(257)])(
    "%j is refused",
    (pattern) => {
      expect(resourcePatternProblem(pattern)).toBeTypeOf("string");
    },
  );

  test("that covers another matches whatever the other matches, and the other way round for short resources", () => {
    const segment = fc.constantFrom("a", "b", "*");
    const pattern = fc
      .tuple(fc.array(segment, { minLength: 1, maxLength: 3 }), fc.boolean())
      .map(([segments, rest]) => [...segments, ...(rest ? ["**"] : [])].join("/"));
    // Every resource of up to five segments over an alphabet with one name that no pattern has.
    const resources: string[] = [];
    const grow = (prefix: string[]) => {
      if (prefix.length > 0) resources.push(prefix.join("/"));
      if (prefix.length < 5) for (const s of ["a", "b", "z"]) grow([...prefix, s]);
    };
    grow([]);
    fc.assert(
      fc.property(pattern, pattern, (allowed, asked) => {
        const implied = resources.every((r) => !matchesResource(asked, r) || matchesResource(allowed, r));
        expect(coversPattern(allowed, asked)).toBe(implied);
      }),
      { numRuns: 300 },
    );
  });
});

describe("a use under a grant", () => {
  const grant = create(GrantSchema, {
    scopes: ["invoices:read"],
    resources: ["invoices/*"],
    audiences: ["invoices"],
    purposes: ["billing"],
    dataCategories: ["contact"],
    certificateThumbprint: "own",
  });
  const use: IntendedUse = {
    scope: "invoices:read",
    resource: "invoices/1",
    purpose: "billing",
    dataCategories: ["contact"],
    audience: "invoices",
    presenterThumbprint: "own",
  };
  /** Each is wrong in its own way and in every later way: the first reason wins. */
  const steps: [Reason, Partial<IntendedUse>][] = [
    [Reason.BINDING_MISMATCH, { presenterThumbprint: "other" }],
    [Reason.DATA_CATEGORY_NOT_GRANTED, { dataCategories: ["contact", "health"] }],
    [Reason.PURPOSE_NOT_GRANTED, { purpose: "marketing" }],
    [Reason.RESOURCE_NOT_GRANTED, { resource: "people/1" }],
    [Reason.SCOPE_MISSING, { scope: "invoices:write" }],
    [Reason.WRONG_AUDIENCE, { audience: "people" }],
  ];

  test("that asks for no more is allowed, also without data categories or through an unbound grant", () => {
    expect(checkGrant(grant, use)).toBe(Reason.OK);
    expect(checkGrant(grant, { ...use, dataCategories: [] })).toBe(Reason.OK);
    expect(checkGrant({ ...grant, certificateThumbprint: "" }, { ...use, presenterThumbprint: "" })).toBe(Reason.OK);
  });

  test("that asks for more is refused for the first reason in the order of the enum", () => {
    let wrong = use;
    for (const [reason, change] of steps) {
      expect(checkGrant(grant, { ...use, ...change })).toBe(reason);
      wrong = { ...wrong, ...change };
      expect(checkGrant(grant, wrong)).toBe(reason);
    }
    const nobody = create(GrantSchema);
    expect(checkGrant(nobody, use)).toBe(Reason.WRONG_AUDIENCE);
  });
});
