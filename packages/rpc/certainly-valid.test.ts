import { create, type DescField, type DescMessage, type Message, ScalarType } from "@bufbuild/protobuf";
import { type ReflectMessage, reflect, scalarZeroValue } from "@bufbuild/protobuf/reflect";
import { createValidator } from "@bufbuild/protovalidate";
import * as breach from "@curfew/contracts/gen/curfew/breach/v1/breach_pb.ts";
import { Action, Outcome, Reason } from "@curfew/contracts/gen/curfew/events/v1/uses_pb.ts";
import * as issuer from "@curfew/contracts/gen/curfew/issuer/v1/issuer_pb.ts";
import * as revocation from "@curfew/contracts/gen/curfew/revocation/v1/revocation_pb.ts";
import * as verifier from "@curfew/contracts/gen/curfew/verifier/v1/verifier_pb.ts";
import fc from "fast-check";
import { describe, expect, it } from "vitest";
import { openCertainlyValid } from "./certainly-valid.ts";

const regexMatch = (pattern: string, against: string) => new RegExp(pattern, "u").test(against);
const certainlyValid = openCertainlyValid(regexMatch);
const validator = createValidator({ regexMatch });
const requests = [breach, issuer, revocation, verifier]
  .flatMap((file) => Object.values(file))
  .filter((desc): desc is DescMessage => (desc as DescMessage).kind === "message")
  .filter(({ name }) => name.endsWith("Request"));

const id = "0192aaaa-bbbb-7ccc-8ddd-eeeeeeeeeeee";
const pattern = "^[a-z]{1,63}$";
const texts = [
  "",
  "a",
  "crm",
  "invoices:read",
  "invoices/7",
  id,
  `tok_${id}`,
  "tok_0192aaaa-bbbb-8ccc-8ddd-eeeeeeeeeeee",
];
const text = fc.oneof(
  fc.constantFrom(...texts, "DE", "de", "é".repeat(300), "😀".repeat(40), "a".repeat(64), "a".repeat(65), pattern),
  fc.string({ unit: "binary", maxLength: 5 }),
);
const size = fc.constantFrom(0, 1, 31, 32, 33, 256, 257);
const integer = fc.constantFrom(-1, 0, 1, 2, 100, 1_000_000_000, 1_000_000_001, 2_147_483_647);

/** Values about the bounds of our rules, for each kind of field. */
const fieldValue = (field: DescField, depth: number): fc.Arbitrary<unknown> => {
  if (field.message) return depth > 3 ? fc.constant(create(field.message)) : messageOf(field.message, depth + 1);
  if (field.enum) return fc.constantFrom(...field.enum.values.map(({ number }) => number), -1, 99);
  const scalar = (field as { scalar?: ScalarType }).scalar;
  if (scalar === ScalarType.STRING) return text;
  if (scalar === ScalarType.BOOL) return fc.boolean();
  if (scalar === ScalarType.BYTES) return size.map((n) => new Uint8Array(n));
  if (typeof scalarZeroValue(scalar as ScalarType, false) === "bigint")
    return fc.oneof(integer.map(BigInt), fc.constantFrom(1_000_000_000_000n, 1_000_000_000_001n));
  return integer;
};

function messageOf(desc: DescMessage, depth: number): fc.Arbitrary<Message> {
  const parts = desc.fields
    .filter(({ fieldKind }) => fieldKind !== "map")
    .map((field) => {
      const value = fieldValue(field, depth);
      const some = field.fieldKind === "list" ? fc.array(value, { maxLength: 3 }) : value;
      return fc.option(some, { nil: undefined }).map((found) => [field, found] as const);
    });
  return fc.tuple(...parts).map((chosen) => {
    const into: ReflectMessage = reflect(desc);
    for (const [field, value] of chosen) {
      if (value === undefined) continue;
      if (field.fieldKind === "list") {
        const list = into.get(field);
        for (const item of value as unknown[])
          list.add((field.message ? reflect(field.message, item as Message, false) : item) as never);
      } else into.set(field, (field.message ? reflect(field.message, value as Message, false) : value) as never);
    }
    return into.message;
  });
}

const isValid = (desc: DescMessage, message: Message) => validator.validate(desc, message).kind === "valid";

describe("what is called certainly valid", () => {
  it.each(requests.map((desc) => [desc.name, desc] as const))("is valid to protovalidate: %s", (_, desc) => {
    fc.assert(
      fc.property(messageOf(desc, 0), (message) => {
        if (certainlyValid(desc, message)) expect(isValid(desc, message)).toBe(true);
      }),
      { numRuns: 200 },
    );
  });

  const use = {
    scope: "invoices:read",
    resource: "invoices/7",
    purpose: "billing",
    dataCategories: ["contact", "financial"],
    controller: "acme",
    maxPeople: 1n,
    maxRecords: 1n,
    action: Action.READ,
  };
  const cached = {
    useId: id,
    instanceSequence: 1n,
    decidedAt: { seconds: 1n, nanos: 0 },
    tokenId: `tok_${id}`,
    generation: 1,
    reason: Reason.OK,
    use,
  };
  const completed = { useId: id, tokenId: `tok_${id}`, outcome: Outcome.COMPLETED, records: 1n, part: 1, parts: 1 };

  it("includes the requests of the hot path, and each broken rule is seen", () => {
    const desc = verifier.ReportUsesRequestSchema;
    const report = (more: object, completion: object = {}) =>
      create(desc, {
        instance: "sdk-1",
        cachedUses: [{ ...cached, ...more }],
        completedUses: [{ ...completed, ...completion }],
      });
    const ended = {
      outcome: Outcome.FAILED,
      records: 1n,
      people: [{ controller: "acme", identifierType: "email", value: "a" }],
    };
    expect(certainlyValid(desc, report({}))).toBe(true);
    expect(certainlyValid(desc, report({ ended }))).toBe(true);
    const broken = [
      report({ useId: "x" }),
      report({ use: undefined }),
      report({ decidedAt: undefined }),
      report({ reason: 0 }),
      report({ reason: 99 }),
      report({ tokenId: "" }),
      report({ tokenId: "a".repeat(65) }),
      report({ instanceSequence: 0n }),
      report({ use: { ...use, dataCategories: ["a", "a"] } }),
      report({ use: { ...use, dataCategories: ["Ä"] } }),
      report({ use: { ...use, dataCategories: Array.from({ length: 33 }, (_, i) => `c${i}`) } }),
      report({ use: { ...use, maxPeople: 1_000_000_001n } }),
      report({ ended: { ...ended, outcome: Outcome.UNANSWERED } }),
      report({ ended: { ...ended, records: -1n } }),
      report({ ended: { ...ended, people: [{ controller: "acme", identifierType: "E mail", value: "a" }] } }),
      report({ ended: { ...ended, people: Array.from({ length: 1_001 }, () => ended.people[0]) } }),
      report({}, { records: -1n }),
      report({}, { people: [{ controller: "acme", identifierType: "email", value: "" }] }),
    ];
    for (const message of broken) {
      expect(isValid(desc, message)).toBe(false);
      expect(certainlyValid(desc, message)).toBe(false);
    }
    const verify = verifier.VerifyTokenRequestSchema;
    const secret = { case: "secret" as const, value: "cf_s_x" };
    expect(certainlyValid(verify, create(verify, { credential: secret, use }))).toBe(true);
    expect(certainlyValid(verify, create(verify, { use }))).toBe(false);
    expect(certainlyValid(verify, create(verify, { credential: secret }))).toBe(false);
  });
});
