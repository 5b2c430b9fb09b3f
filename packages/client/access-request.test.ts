import { create } from "@bufbuild/protobuf";
import { createValidator } from "@bufbuild/protovalidate";
import { PersonSchema, UseRequestSchema } from "@curfew/contracts/gen/curfew/verifier/v1/verifier_pb.ts";
import { systemRandom } from "@curfew/runtime/random.ts";
import { mintSecret } from "@curfew/token-format/secret.ts";
import { describe, expect, test } from "vitest";
import { type AccessRequest, InvalidRequest, parseAccessRequest, parsePerson } from "./access-request.ts";

const request: AccessRequest = {
  scope: "invoices:read",
  resource: "invoices/7",
  purpose: "billing",
  controller: "acme",
  maxPeople: 1,
  maxRecords: 10,
};
const long = "x".repeat(63);
const values: { readonly [K in keyof AccessRequest]: readonly unknown[] } = {
  scope: ["a:b", `${long}:${long}`, `${long}x:b`, "", "a", "a:", ":b", "A:b", "a:b:c", "-a:b", "a:b\n", "ä:b"],
  resource: [
    "a",
    "a/b",
    "a//b",
    "/a",
    "a/",
    "",
    "a b",
    "a/*",
    "x".repeat(256),
    "x".repeat(257),
    "a.b_c~d-e",
    "a\n",
    "ü",
  ],
  purpose: ["a", long, `${long}x`, "", "A", "a_b", "-a", "a-", "a\n"],
  dataCategories: [
    [],
    ["a"],
    ["a", "a"],
    ["a", ""],
    ["A"],
    [...Array(32).keys()].map(String),
    [...Array(33).keys()].map(String),
  ],
  controller: ["a", long, `${long}x`, "", "A", "a\n"],
  maxPeople: [0, 1_000_000_000, 1_000_000_001, -1],
  maxRecords: [0, 1_000_000_000_000, 1_000_000_000_001, -1],
  presenterThumbprint: [
    "",
    "x".repeat(42),
    "x".repeat(43),
    "x".repeat(44),
    "_-".repeat(21),
    "jane.doe@example.com",
    "_-09azAZ".repeat(6).slice(0, 43),
  ],
  sourceCountry: ["", "DE", "de", "DEU", "D", "DE\n"],
};

const isTaken = (parse: () => unknown): boolean => {
  try {
    parse();
    return true;
  } catch (error) {
    expect(error).toBeInstanceOf(InvalidRequest);
    return false;
  }
};

describe("the hand-written rules are the proto's", () => {
  const validator = createValidator();

  test.for(Object.entries(values))("%s", ([field, candidates]) => {
    const verdicts = candidates.map((value) => {
      const changed = { ...request, [field]: value } as AccessRequest;
      const { maxPeople, maxRecords, action: _, ...texts } = changed;
      const init = { ...texts, maxPeople: BigInt(maxPeople), maxRecords: BigInt(maxRecords) };
      const valid = validator.validate(UseRequestSchema, create(UseRequestSchema, init as never)).kind === "valid";
      expect([value, isTaken(() => parseAccessRequest(changed))]).toEqual([value, valid]);
      return valid;
    });
    expect(new Set(verdicts)).toEqual(new Set([true, false]));
  });

  test.for([
    ["identifierType", ["a", "customer-id", "", "A", "a b", `${long}x`]],
    ["value", ["x", "x".repeat(512), "x".repeat(513), "ü".repeat(256), "ü".repeat(257), ""]],
  ] as const)("person.%s", ([field, candidates]) => {
    for (const value of candidates) {
      const person = { identifierType: "email", value: "a@example.com", [field]: value };
      const message = create(PersonSchema, { ...person, controller: "acme" });
      const valid = validator.validate(PersonSchema, message).kind === "valid";
      expect([value, isTaken(() => parsePerson(person, "acme"))]).toEqual([value, valid]);
    }
  });
});

test("what the verifier checks besides is checked here too", () => {
  for (const sourceAddress of ["10.0.0.1", "::1", "::ffff:10.0.0.1"])
    expect(parseAccessRequest({ ...request, sourceAddress }).sourceAddress).toBe(sourceAddress);
  for (const sourceAddress of ["localhost", "fe80::1%eth0", "10.0.0.1:80", "10.0.0"])
    expect(() => parseAccessRequest({ ...request, sourceAddress })).toThrow(InvalidRequest);
  expect(() => parsePerson({ identifierType: "email", value: "a\u0000b" }, "acme")).toThrow(InvalidRequest);
});

test("what is no request at all is refused, and no message repeats a value", () => {
  const secret = "cfws_not-for-messages";
  for (const wrong of [
    { scope: secret },
    { maxPeople: "7" },
    { maxPeople: 1.5 },
    { action: secret },
    { dataCategories: secret },
    { scope: undefined },
  ]) {
    const parse = () => parseAccessRequest({ ...request, ...wrong } as never);
    expect(parse).toThrow(InvalidRequest);
    expect(parse).not.toThrow(secret);
  }
});

test("a secret in a field that is recorded is refused and not repeated; what only looks like one is taken", () => {
  const secret = mintSecret("s", systemRandom);
  for (const wrong of [{ resource: `invoices/${secret}/1` }, { presenterThumbprint: `${secret}xx` }]) {
    const parse = () => parseAccessRequest({ ...request, ...wrong });
    expect(parse).toThrow(InvalidRequest);
    expect(parse).not.toThrow(secret);
  }
  const resource = `invoices/${secret.slice(0, -1)}-`;
  expect(parseAccessRequest({ ...request, resource }).resource).toBe(resource);
});

test("the caller's array may change afterwards", () => {
  const dataCategories = ["contact"];
  const parsed = parseAccessRequest({ ...request, dataCategories });
  dataCategories.push("Not A Name");
  expect(parsed.dataCategories).toEqual(["contact"]);
});
