import { createSecretKey } from "node:crypto";
import { create } from "@bufbuild/protobuf";
import { timestampFromMs } from "@bufbuild/protobuf/wkt";
import { TokenIssuedSchema, TokenRotatedSchema } from "@curfew/contracts/gen/curfew/events/v1/tokens_pb.ts";
import { digest } from "@curfew/token-format/digest.ts";
import { expect, it } from "vitest";
import { keptAfterLineageMs, maxGenerationsPerToken, SecretIndex } from "./secret-index.ts";

const pepper = (n: number) => ({ id: `p${n}`, key: createSecretKey(Buffer.alloc(32, n)) });
const peppers = { current: pepper(4), all: [4, 3, 2, 1].map(pepper) };
const sha256 = (n: number) => Uint8Array.from({ length: 32 }, (_, i) => (n >> (8 * (i % 4))) & 0xff);
const generation = (number: number, pepperNumber = 4, secret = number) => ({
  number,
  digest: { pepperId: `p${pepperNumber}`, value: digest(pepper(pepperNumber).key, sha256(secret)) },
  expiresAt: timestampFromMs(10_000 * number),
});
const tokenId = "tok_1";
const issued = (pepperNumber?: number) =>
  create(TokenIssuedSchema, {
    tokenId,
    subject: "spiffe://t/workload/billing",
    generation: generation(1, pepperNumber),
    lineageExpiresAt: timestampFromMs(1_000_000),
  });
const rotated = (number: number, previousEndsAtMs = 5_000) =>
  create(TokenRotatedSchema, {
    tokenId,
    generation: generation(number),
    previousEndsAt: timestampFromMs(previousEndsAtMs),
  });
const indexOf = (...events: Parameters<SecretIndex["apply"]>[0][]) => {
  const index = new SecretIndex();
  for (const event of events) index.apply(event);
  return index;
};

it("finds a secret by its hash under every pepper that is live", () => {
  for (const { id } of peppers.all)
    expect(indexOf(issued(Number(id.slice(1)))).find(sha256(1), peppers)).toEqual({
      tokenId,
      generation: 1,
      subject: "spiffe://t/workload/billing",
      endsAtMs: 10_000,
    });
  expect(indexOf(issued()).find(sha256(2), peppers)).toBeUndefined();
  expect(indexOf(issued(9)).find(sha256(1), peppers)).toBeUndefined();
});

it("knows superseded generations, and that they end with their overlap or their own end, whichever is first", () => {
  const index = indexOf(issued(), rotated(2, 20_000), rotated(3, 15_000));
  expect(index.find(sha256(1), peppers)).toMatchObject({ generation: 1, endsAtMs: 10_000 });
  expect(index.find(sha256(2), peppers)).toMatchObject({ generation: 2, endsAtMs: 15_000 });
  expect(index.find(sha256(3), peppers)).toMatchObject({ generation: 3, endsAtMs: 30_000 });
});

it("is bounded per token, forgetting the oldest generations first", () => {
  const index = indexOf(issued());
  for (let number = 2; number <= maxGenerationsPerToken + 1; number += 1) index.apply(rotated(number));
  expect(index.find(sha256(1), peppers)).toBeUndefined();
  expect(index.find(sha256(2), peppers)).toBeDefined();
  expect(index.find(sha256(maxGenerationsPerToken + 1), peppers)).toBeDefined();
});

it("forgets a token long after its lineage has ended, not before", () => {
  const index = indexOf(issued(), rotated(2));
  index.sweep(1_000_000 + keptAfterLineageMs - 1);
  expect(index.find(sha256(2), peppers)).toBeDefined();
  index.sweep(1_000_000 + keptAfterLineageMs);
  expect([index.find(sha256(1), peppers), index.find(sha256(2), peppers)]).toEqual([undefined, undefined]);
});

it("is the same when events come twice", () => {
  const index = indexOf(issued(), rotated(2), issued(), rotated(2));
  expect(index.find(sha256(1), peppers)).toMatchObject({ endsAtMs: 5_000 });
  expect(index.find(sha256(2), peppers)).toMatchObject({ endsAtMs: 20_000 });
});
