import { create, toBinary } from "@bufbuild/protobuf";
import { LedgerEntrySchema } from "@curfew/contracts/gen/curfew/ledger/v1/entry_pb.ts";
import fc from "fast-check";
import { describe, expect, it } from "vitest";
import { MAX_ENTRY_BYTES } from "./hash.ts";
import { decodeAnyLeaf, decodeLeaf, decodeLeafLike, encodeLeaf, type LogRecord } from "./leaf.ts";
import { readPlainLeaf } from "./leaf-reader.ts";

const base: LogRecord = {
  topic: "curfew.uses.v1",
  partition: 3,
  offset: 2 ** 40 + 5,
  timestampMs: 1_750_000_000_123,
  key: "k",
  headers: [["ce_id", "1"]],
  value: new Uint8Array([1]),
};
const sealedAtMs = 1_750_000_001_456;

/** What the protobuf library makes of the same record. */
const reference = (record: LogRecord) =>
  toBinary(
    LedgerEntrySchema,
    create(LedgerEntrySchema, {
      format: 1,
      ...record,
      offset: BigInt(record.offset),
      timestampMs: BigInt(record.timestampMs),
      headers: record.headers.map(([name, value]) => ({ name, value })),
      sealedAt: { seconds: 1_750_000_001n, nanos: 456_000_000 },
    }),
  );

const records: Record<string, Partial<LogRecord>> = {
  "an ordinary one": {},
  "one at the beginning of a topic, without key, headers and value": {
    partition: 0,
    offset: 0,
    key: "",
    headers: [],
    value: new Uint8Array(),
  },
  "one whose parts need lengths of one, two and three bytes": {
    key: "k".repeat(127),
    headers: [
      ["a".repeat(128), "b".repeat(16_383)],
      ["", ""],
      ["c", "d".repeat(16_384)],
    ],
    value: new Uint8Array(20_000).fill(9),
  },
  "one of three bytes for each character": { headers: [["x", "鍵".repeat(20_000)]] },
  "one in several scripts": { key: "schlüssel/鍵/🔑", headers: [["ñ", "ž".repeat(100)]] },
  "one with half a surrogate pair": { key: "\ud800", headers: [["x", "a\udfffb"]] },
  "one without a time": { timestampMs: -1 },
  "one whose texts have the lengths at which they are written in another way": {
    headers: [0, 1, 11, 12, 13, 63, 64, 65, 119, 120, 121, 122, 123, 124, 125, 126, 127, 128, 129].flatMap((length) => {
      const ascii = "v".repeat(length);
      const texts = [ascii, `${ascii}é`, `é${ascii}`, `${ascii}\ud800`];
      return texts.flatMap((text): [string, string][] => [
        ["n", text],
        [text, "t"],
        ["k".repeat(60), text],
      ]);
    }),
  },
};

describe("a leaf", () => {
  for (const [what, change] of Object.entries(records))
    it(`has the bytes that any protobuf library would write: ${what}`, () => {
      const record = { ...base, ...change };
      const { leaf, sealed } = encodeLeaf(record, sealedAtMs);
      expect(Buffer.from(leaf).toString("hex")).toBe(Buffer.from(reference(record)).toString("hex"));
      expect(sealed).toEqual({ ...record, oversize: false, sealedAtMs });
    });

  it("is read as the record that it was made of", () => {
    const { value, ...read } = decodeLeaf(encodeLeaf(base, sealedAtMs).leaf);
    expect({ ...read, value: new Uint8Array(value) }).toEqual({ ...base, oversize: false, sealedAtMs });
  });

  it("holds a record up to its limit to the byte, and the hash of one that is a byte larger", () => {
    const room = MAX_ENTRY_BYTES - encodeLeaf({ ...base, value: new Uint8Array(60_000) }, sealedAtMs).leaf.length;
    const largest = { ...base, value: new Uint8Array(60_000 + room) };
    expect(encodeLeaf(largest, sealedAtMs).leaf.length).toBe(MAX_ENTRY_BYTES);
    const larger = { ...base, value: new Uint8Array(60_001 + room) };
    expect(encodeLeaf(larger, sealedAtMs).sealed.oversize).toBe(true);
    expect(decodeLeaf(encodeLeaf(larger, sealedAtMs).leaf)).toMatchObject({ oversize: true, offset: base.offset });
  });

  it("is not read where it is none", () => {
    expect(() => decodeLeaf(new Uint8Array([255]))).toThrow(/no ledger entry/);
    expect(() => decodeLeaf(new Uint8Array())).toThrow(/unknown format/);
  });
});

/** What `read` makes of a leaf: a record, the name of its error, or undefined. */
const outcome = (read: () => ReturnType<typeof decodeLeaf> | undefined) => {
  try {
    const record = read();
    return record && { ...record, value: Buffer.from(record.value).toString("hex") };
  } catch (error) {
    return (error as Error).name;
  }
};

describe("a plain leaf is read by our own reader", () => {
  it("to the same record, whatever was read before it", () => {
    const { leaf } = encodeLeaf(base, sealedAtMs);
    const { leaf: another } = encodeLeaf(
      { ...base, key: "j", headers: [["ce_idx", "12"]], topic: "other" },
      sealedAtMs,
    );
    expect(readPlainLeaf(leaf, undefined)).toMatchObject({ ...base, value: Buffer.of(1), oversize: false, sealedAtMs });
    const like = decodeLeaf(another);
    expect(decodeLeafLike(leaf, like)).toEqual(decodeLeaf(leaf));
    expect(decodeLeafLike(leaf, { ...like, key: "\u016b", headers: [["\u0163e_id", "1"]] })).toEqual(decodeLeaf(leaf));
    expect(decodeLeafLike(another, decodeLeaf(leaf))).toEqual(like);
  });

  it("which is what the protobuf library makes of it, or leaves it to that, however its bytes are changed", () => {
    const text = fc.oneof(
      { weight: 40, arbitrary: fc.string({ maxLength: 140 }) },
      { weight: 1, arbitrary: fc.string({ unit: "grapheme", maxLength: 5 }) },
    );
    const record = fc.record({
      topic: text,
      partition: fc.nat(),
      offset: fc.maxSafeNat(),
      timestampMs: fc.nat(),
      key: text,
      headers: fc.array(fc.tuple(text, text), { maxLength: 4 }),
      value: fc.uint8Array({ maxLength: 200 }),
    });
    const changes = fc.array(fc.tuple(fc.nat(), fc.nat(3), fc.nat(255)), { maxLength: 3 });
    let plain = 0;
    fc.assert(
      fc.property(record, changes, (of, changed) => {
        const bytes = [...encodeLeaf(of, sealedAtMs).leaf];
        for (const [at, how, byte] of changed)
          bytes.splice(at % (bytes.length + 1), how === 0 ? 0 : 1, ...(how === 1 ? [] : [byte]));
        const leaf = Uint8Array.from(bytes);
        const read = outcome(() => readPlainLeaf(leaf, undefined));
        if (read === undefined) return;
        plain += 1;
        expect(read).toEqual(outcome(() => decodeAnyLeaf(leaf)));
      }),
      { seed: 20_260, numRuns: 3_000 },
    );
    expect(plain).toBeGreaterThan(500);
  });
});
