import { create, type MessageInitShape, toBinary } from "@bufbuild/protobuf";
import { UseCompletedSchema, UseDecidedSchema } from "@curfew/contracts/gen/curfew/events/v1/uses_pb.ts";
import fc from "fast-check";
import { describe, expect, it } from "vitest";
import { encodeUseCompleted, encodeUseDecided, type UseDecidedFields } from "./use-codec.ts";

const text = fc.oneof(
  fc.constantFrom("", "tok_0192aaaa-bbbb-8ccc-8ddd-eeeeeeeeeeee", "a".repeat(127), "a".repeat(128), "é".repeat(64)),
  fc.string({ unit: "binary", maxLength: 300 }),
);
const int32 = fc.oneof(fc.constantFrom(0, 1, 127, 128, -1), fc.integer());
const int64 = fc.oneof(
  fc.constantFrom(0n, 1n, 127n, 128n, 2n ** 53n - 1n, 2n ** 53n, 2n ** 63n - 1n, -1n, -(2n ** 63n)),
  fc.bigInt({ min: -(2n ** 63n), max: 2n ** 63n - 1n }),
);
const time = fc.record({ seconds: int64, nanos: int32 });
const absent = { requiredKeys: [] };
const bytes = fc.uint8Array({ maxLength: 300 });
const sealed = fc.record({ pseudonym: text, salt: bytes, commitment: bytes, ciphertext: bytes }, absent);

const decided = fc.record(
  {
    useId: text,
    decidedAt: time,
    tokenId: text,
    generation: int32,
    subject: text,
    resourceService: text,
    instance: text,
    reason: int32,
    details: fc.record(
      {
        scope: text,
        resource: text,
        purpose: text,
        dataCategories: fc.array(text, { maxLength: 40 }),
        controller: text,
        maxPeople: int64,
        maxRecords: int64,
        action: int32,
      },
      absent,
    ),
    source: fc.record({ addressPseudonym: text, presenterThumbprint: text, country: text, address: sealed }, absent),
    instanceSequence: int64,
    ended: fc.record(
      { outcome: int32, records: int64, people: fc.array(text, { maxLength: 20 }), unnamedPeople: int64 },
      absent,
    ),
  },
  absent,
);
const completed = fc.record(
  {
    useId: text,
    completedAt: time,
    tokenId: text,
    outcome: int32,
    records: int64,
    people: fc.array(text, { maxLength: 20 }),
    unnamedPeople: int64,
    part: int32,
    parts: int32,
    resourceService: text,
  },
  absent,
);

describe("the bytes of a use", () => {
  it("decided are those of protobuf-es", () => {
    fc.assert(
      fc.property(decided, (init) => {
        const use = create(UseDecidedSchema, init as MessageInitShape<typeof UseDecidedSchema>);
        expect(encodeUseDecided(use)).toEqual(toBinary(UseDecidedSchema, use));
      }),
    );
  });

  it("completed are those of protobuf-es", () => {
    fc.assert(
      fc.property(completed, (init) => {
        const use = create(UseCompletedSchema, init as MessageInitShape<typeof UseCompletedSchema>);
        expect(encodeUseCompleted(use)).toEqual(toBinary(UseCompletedSchema, use));
      }),
    );
  });

  it("of a thousand people, or a megabyte of text, are too", () => {
    for (const people of [Array.from({ length: 1_000 }, (_, i) => `p_${i}`), ["x".repeat(3_000_000)]]) {
      const use = create(UseCompletedSchema, { useId: "u", people });
      expect(Buffer.compare(encodeUseCompleted(use), toBinary(UseCompletedSchema, use))).toBe(0);
    }
  });

  it("hold nothing of what is no field of the event", () => {
    const use = create(UseDecidedSchema, { useId: "u", details: { scope: "a:b" } });
    const expected = toBinary(UseDecidedSchema, use);
    const details = { ...use.details, sourceAddress: "192.0.2.1", $unknown: [{ no: 9, wireType: 0 }] };
    expect(encodeUseDecided({ ...use, details } as UseDecidedFields)).toEqual(expected);
  });

  it("stay what they are while others are written", () => {
    const uses = Array.from({ length: 2_000 }, (_, i) =>
      create(UseDecidedSchema, { useId: `u${i}`, subject: "s".repeat(i) }),
    );
    const encoded = uses.map(encodeUseDecided);
    for (const [i, use] of uses.entries())
      expect(Buffer.compare(encoded[i] as Uint8Array, toBinary(UseDecidedSchema, use))).toBe(0);
  });
});
