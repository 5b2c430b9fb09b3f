import { create, toBinary } from "@bufbuild/protobuf";
import { LedgerEntrySchema } from "@curfew/contracts/gen/curfew/ledger/v1/entry_pb.ts";
import { describe, expect, it } from "vitest";
import { MAX_ENTRY_BYTES } from "./hash.ts";
import { decodeLeaf, encodeLeaf, type LogRecord } from "./leaf.ts";

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
