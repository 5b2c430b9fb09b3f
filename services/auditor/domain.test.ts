import { fromBinary } from "@bufbuild/protobuf";
import { LedgerEntrySchema } from "@curfew/contracts/gen/curfew/ledger/v1/entry_pb.ts";
import { recordHash } from "@curfew/event-log/chain.ts";
import { MAX_ENTRY_BYTES } from "@curfew/ledger/hash.ts";
import type { LogRecord } from "@curfew/ledger/leaf.ts";
import { describe, expect, it } from "vitest";
import { emptyHead, headOf, LedgerBroken, makeBatch, maxBatchRecords, replayBatch } from "./domain.ts";
import { seal } from "./testing/rig.ts";

const record = (offset: number, more: Partial<LogRecord> = {}): LogRecord => ({
  topic: "curfew.tokens.v1",
  partition: 0,
  offset,
  timestampMs: 1_750_000_000_123,
  key: "tokens/tok_é",
  headers: [
    ["ce_id", `e${offset}`],
    ["ce_id", "twice"],
  ],
  value: new Uint8Array([1, 2, 3]),
  ...more,
});
const sealedAtMs = 1_750_000_001_456;

describe("a batch", () => {
  it("leads from head to head, and is the same when it is made again from what is stored", () => {
    const first = makeBatch(emptyHead, [record(0), record(1)], sealedAtMs, seal);
    const second = makeBatch(first.head, [record(2), record(0, { partition: 3 })], sealedAtMs, seal);
    expect(second.doc).toMatchObject({ _id: "seal/0000000002", first: 2, size: 4 });
    expect(second.head.positions).toEqual([
      { topic: "curfew.tokens.v1", partition: 0, next: 3 },
      { topic: "curfew.tokens.v1", partition: 3, next: 1 },
    ]);
    expect(replayBatch(headOf(first.doc, 1, seal), second.doc, seal).head.frontier.root()).toEqual(second.doc.root);
    expect(first.head.frontier.size).toBe(2);
  });

  it("refuses a record that is sealed already, in itself and in what is stored", () => {
    const first = makeBatch(emptyHead, [record(0), record(1)], sealedAtMs, seal);
    expect(() => makeBatch(first.head, [record(1)], sealedAtMs, seal)).toThrow(/sealed twice/);
    expect(() => makeBatch(first.head, [record(2), record(2)], sealedAtMs, seal)).toThrow(/sealed twice/);
    expect(() => replayBatch(first.head, { ...first.doc, _id: "seal/0000000002", first: 2 }, seal)).toThrow(
      LedgerBroken,
    );
  });

  it("is not empty and not larger than its bound", () => {
    expect(() => makeBatch(emptyHead, [], sealedAtMs, seal)).toThrow(RangeError);
    const many = Array.from({ length: maxBatchRecords + 1 }, (_, i) => record(i));
    expect(() => makeBatch(emptyHead, many, sealedAtMs, seal)).toThrow(RangeError);
  });

  it("has for a record that is too large a leaf with its hash, the one its chain would have", () => {
    const large = record(0, { value: new Uint8Array(MAX_ENTRY_BYTES) });
    const { doc, records } = makeBatch(emptyHead, [large], sealedAtMs, seal);
    const leaf = doc.leaves[0] as Uint8Array;
    expect(leaf.length).toBeLessThan(200);
    const { recordSha256 } = fromBinary(LedgerEntrySchema, leaf);
    expect(Buffer.from(recordSha256).toString("hex")).toBe(recordHash(large.topic, large));
    expect(records[0]).toMatchObject({ oversize: true, offset: 0, key: "" });
  });

  it("that another key has signed is refused", () => {
    const { doc } = makeBatch(emptyHead, [record(0)], sealedAtMs, seal);
    const checkpoint = doc.checkpoint.replace("test.example", "other.example");
    expect(() => replayBatch(emptyHead, { ...doc, checkpoint }, seal)).toThrow(/not signed by this ledger's key/);
    expect(() => headOf({ ...doc, checkpoint }, 1, seal)).toThrow(/not signed by this ledger's key/);
  });
});
