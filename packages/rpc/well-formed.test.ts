import { create, type DescMessage, type MessageInitShape, toBinary } from "@bufbuild/protobuf";
import { DecideAwarenessRequestSchema } from "@curfew/contracts/gen/curfew/breach/v1/breach_pb.ts";
import { RotateTokenRequestSchema } from "@curfew/contracts/gen/curfew/issuer/v1/issuer_pb.ts";
import { VerifyTokenRequestSchema } from "@curfew/contracts/gen/curfew/verifier/v1/verifier_pb.ts";
import { ListServiceResponseSchema } from "@curfew/contracts/gen/grpc/reflection/v1/reflection_pb.ts";
import { systemRandom } from "@curfew/runtime/random.ts";
import { mintSecret } from "@curfew/token-format/secret.ts";
import { expect, test } from "vitest";
import type { RpcError } from "./errors.ts";
import { parseRequest } from "./request.ts";
import { malformedFields } from "./well-formed.ts";

const wrong = <D extends DescMessage>(desc: D, init: MessageInitShape<D>) =>
  malformedFields(desc, create(desc, init)).map(({ field, reason }) => `${field} ${reason}`);
const awareAt = (seconds: bigint, nanos = 0) => wrong(DecideAwarenessRequestSchema, { awareAt: { seconds, nanos } });
const overlap = (seconds: bigint, nanos = 0) => wrong(RotateTokenRequestSchema, { overlap: { seconds, nanos } });

test("times that protobuf defines pass, and no others", () => {
  expect([awareAt(-62_135_596_800n), awareAt(0n), awareAt(253_402_300_799n, 999_999_999)]).toEqual([[], [], []]);
  for (const [seconds, nanos] of [
    [-62_135_596_801n, 0],
    [253_402_300_800n, 0],
    [2n ** 63n - 1n, 0],
    [0n, -1],
    [0n, 1_000_000_000],
  ] as const)
    expect(awareAt(seconds, nanos), `${seconds} ${nanos}`).toEqual(["aware_at TIMESTAMP_INVALID"]);
});

test("durations that protobuf defines pass, and no others", () => {
  expect([overlap(-315_576_000_000n, -999_999_999), overlap(0n, -1), overlap(60n, 1)]).toEqual([[], [], []]);
  for (const [seconds, nanos] of [
    [315_576_000_001n, 0],
    [-(2n ** 63n), 0],
    [1n, -1],
    [-1n, 1],
    [0n, 1_000_000_000],
  ] as const)
    expect(overlap(seconds, nanos), `${seconds} ${nanos}`).toEqual(["overlap DURATION_INVALID"]);
});

test("text holds no control characters, in lists, oneofs and nested messages too, and the value is not repeated", () => {
  expect(
    wrong(DecideAwarenessRequestSchema, { reason: "two\r\n\tlines, ü \u{1f510} \u200f", evidenceEventIds: ["a"] }),
  ).toEqual([]);
  for (const text of ["\u0000", "a\u001b[31m", "\u007f", "\u0085"])
    expect(wrong(DecideAwarenessRequestSchema, { reason: text, evidenceEventIds: ["a", text] })).toEqual([
      "reason CONTROL_CHARACTER",
      "evidence_event_ids[1] CONTROL_CHARACTER",
    ]);
  const use = { scope: "s\u0007", dataCategories: ["d\u0007"] };
  expect(wrong(VerifyTokenRequestSchema, { credential: { case: "secret", value: "c\u0007" }, use })).toEqual([
    "secret CONTROL_CHARACTER",
    "use.scope CONTROL_CHARACTER",
    "use.data_categories[0] CONTROL_CHARACTER",
  ]);
});

test("a secret is refused in every field but those that are for it, and the value is not repeated", () => {
  for (const kind of ["s", "x", "c"] as const) {
    const secret = mintSecret(kind, systemRandom);
    const use = { resource: `invoices/${secret}`, dataCategories: ["a", secret], sourceAddress: secret };
    const request = { credential: { case: "secret" as const, value: secret }, use };
    expect(wrong(VerifyTokenRequestSchema, request)).toEqual([
      "use.resource SECRET_IN_FIELD",
      "use.data_categories[1] SECRET_IN_FIELD",
    ]);
    const bytes = toBinary(VerifyTokenRequestSchema, create(VerifyTokenRequestSchema, request));
    let failure: unknown;
    try {
      parseRequest(VerifyTokenRequestSchema, bytes);
    } catch (error) {
      failure = (error as RpcError).failure;
    }
    expect(failure).toMatchObject({ status: "INVALID_ARGUMENT", reason: "SECRET_IN_FIELD" });
    expect(JSON.stringify(failure)).not.toContain(secret.slice(5, 20));
  }
});

test("what only looks like a secret is none", () => {
  const nearly = `${mintSecret("s", systemRandom).slice(0, -1)}-`;
  expect(wrong(VerifyTokenRequestSchema, { use: { resource: `cfws_/${nearly}` } })).toEqual([]);
});

test("at most twenty fields are named", () => {
  const service = Array.from({ length: 1_000 }, () => ({ name: "\u0000" }));
  expect(wrong(ListServiceResponseSchema, { service })).toHaveLength(20);
});
