import { create, toBinary } from "@bufbuild/protobuf";
import { VerifyTokenResponseSchema } from "@curfew/contracts/gen/curfew/verifier/v1/verifier_pb.ts";
import fc from "fast-check";
import { expect, it } from "vitest";
import { encodeVerifyTokenResponse, type VerifyTokenAnswer } from "./response-codec.ts";

const text = fc.oneof(
  fc.constantFrom("", "a".repeat(127), "é".repeat(64)),
  fc.string({ unit: "binary", maxLength: 300 }),
);
const int32 = fc.oneof(fc.constantFrom(0, 1, 127, 128, -1), fc.integer());
const time = fc.record({ seconds: fc.bigInt({ min: -(2n ** 63n), max: 2n ** 63n - 1n }), nanos: int32 });
const cacheable = fc.record({ tokenId: text, ancestors: fc.array(text, { maxLength: 3 }) }, { requiredKeys: [] });
const answer = fc.record(
  { allowed: fc.boolean(), reason: int32, useId: text, tokenId: text, subject: text, expiresAt: time, cacheable },
  { requiredKeys: [] },
);

it("an answer is encoded as protobuf-es encodes it, whatever is in it", () => {
  fc.assert(
    fc.property(answer, (fields) => {
      const init = fields as VerifyTokenAnswer;
      const expected = toBinary(VerifyTokenResponseSchema, create(VerifyTokenResponseSchema, init));
      expect(Buffer.from(encodeVerifyTokenResponse(init))).toEqual(Buffer.from(expected));
    }),
    { numRuns: 1_000 },
  );
});
