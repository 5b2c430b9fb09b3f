import { create, type MessageInitShape, toBinary } from "@bufbuild/protobuf";
import { timestampFromMs } from "@bufbuild/protobuf/wkt";
import { ReportUsesRequestSchema } from "@curfew/contracts/gen/curfew/verifier/v1/verifier_pb.ts";
import fc from "fast-check";
import { expect, it } from "vitest";
import { encodeCachedUse, encodeCompletedUse, encodeReport } from "./report-codec.ts";

const text = fc.oneof(
  fc.constantFrom(
    "",
    "tok_0192aaaa-bbbb-8ccc-8ddd-eeeeeeeeeeee",
    "a".repeat(64),
    "a".repeat(65),
    "a".repeat(128),
    "é".repeat(64),
  ),
  fc.string({ unit: "binary", maxLength: 300 }),
);
const count = fc.oneof(
  fc.constantFrom(0, 1, 127, 128, 2 ** 31, 1_000_000_000_000),
  fc.integer({ min: 0, max: 1_000_000_000_000 }),
);
const use = fc.record({
  scope: text,
  resource: text,
  purpose: text,
  dataCategories: fc.array(text, { maxLength: 40 }),
  controller: text,
  maxPeople: count.map(BigInt),
  maxRecords: count.map(BigInt),
  action: fc.integer({ min: 0, max: 3 }),
  sourceAddress: text,
  presenterThumbprint: text,
  sourceCountry: text,
});
const person = fc.record({ controller: text, identifierType: text, value: text });
const touched = {
  outcome: fc.integer({ min: 0, max: 4 }),
  records: count,
  people: fc.array(person, { maxLength: 20 }),
  unnamedPeople: count,
};
const cached = fc.record({
  useId: text,
  decidedMs: fc.oneof(
    fc.constantFrom(0, 1, 999, 1000, 1_795_000_000_001),
    fc.integer({ min: 0, max: 253_402_300_799_999 }),
  ),
  tokenId: text,
  generation: fc.integer({ min: -(2 ** 31), max: 2 ** 31 - 1 }),
  reason: fc.integer({ min: 0, max: 20 }),
  use,
  ended: fc.option(fc.record(touched), { nil: undefined }),
});
const completed = fc.record({
  useId: text,
  tokenId: text,
  ...touched,
  part: fc.integer({ min: 0, max: 2 ** 31 - 1 }),
  parts: fc.integer({ min: 0, max: 2 ** 31 - 1 }),
});

const counted = <T extends { records: number; unnamedPeople: number }>(of: T) => ({
  ...of,
  records: BigInt(of.records),
  unnamedPeople: BigInt(of.unnamedPeople),
});

it("the bytes of a report are those of protobuf-es", () => {
  fc.assert(
    fc.property(
      text,
      fc.array(cached, { maxLength: 5 }),
      fc.array(completed, { maxLength: 5 }),
      (instance, some, more) => {
        const init = {
          instance,
          cachedUses: some.map(({ decidedMs, ended, ...rest }, i) => ({
            ...rest,
            ended: ended && counted(ended),
            decidedAt: timestampFromMs(decidedMs),
            instanceSequence: BigInt(i + 7),
          })),
          completedUses: more.map(counted),
        } as MessageInitShape<typeof ReportUsesRequestSchema>;
        const report = encodeReport(
          instance,
          some.map(({ ended, ...each }, i) => encodeCachedUse(each as never, i + 7, ended as never)),
          more.map((each) => encodeCompletedUse(each as never)),
        );
        expect(Buffer.compare(report, toBinary(ReportUsesRequestSchema, create(ReportUsesRequestSchema, init)))).toBe(
          0,
        );
      },
    ),
  );
});
