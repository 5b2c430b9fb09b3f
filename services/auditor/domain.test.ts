import { fromBinary } from "@bufbuild/protobuf";
import { LedgerEntrySchema } from "@curfew/contracts/gen/curfew/ledger/v1/entry_pb.ts";
import { recordHash } from "@curfew/event-log/chain.ts";
import { MAX_ENTRY_BYTES } from "@curfew/ledger/hash.ts";
import type { LogRecord } from "@curfew/ledger/leaf.ts";
import { describe, expect, it } from "vitest";
import { emptyHead, headOf, LedgerBroken, makeBatch, maxBatchRecords, replayBatch, sealedBatch } from "./domain.ts";
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

  it("of a new year begins a tree of its own, whose first leaf names the checkpoint with which the one before ended", () => {
    const nextYearMs = Date.UTC(2026, 0, 1);
    const first = makeBatch(emptyHead, [record(0), record(1)], nextYearMs - 1, seal);
    const second = makeBatch(first.head, [record(2), record(3)], nextYearMs, seal);
    const third = makeBatch(second.head, [record(4)], nextYearMs - 1, seal); // a clock that was set back
    expect([first, second, third].map(({ doc: { shard, first: at, size } }) => [shard, at, size])).toEqual([
      [{ year: 2025, first: 0 }, 0, 2],
      [{ year: 2026, first: 2 }, 2, 4],
      [{ year: 2026, first: 2 }, 4, 5],
    ]);
    expect(third.doc.checkpoint).toMatch(/^test\.example\/ledger\/2026\n3\n/);
    expect(second.records[0]).toMatchObject({
      offset: 2,
      opening: { previousCheckpoint: first.doc.checkpoint, first: 2 },
    });
    expect([...first.records, ...second.records.slice(1)].map(({ opening }) => opening)).toEqual([
      undefined,
      undefined,
      undefined,
    ]);
    for (const head of [second.head, replayBatch(headOf(first.doc, 1, seal), second.doc, seal).head])
      expect(replayBatch(head, third.doc, seal).head.frontier.root()).toEqual(third.doc.root);
    expect(headOf(third.doc, 3, seal).frontier.size).toBe(3);
    // Whoever seals on, whatever its clock says, stands under the next number: one of the two is stored.
    expect(makeBatch(first.head, [record(2)], nextYearMs - 1, seal).doc._id).toBe(second.doc._id);
  });

  it("is not made by a clock that is wrong by decades", () => {
    const first = makeBatch(emptyHead, [record(0)], Date.UTC(2026, 5, 1), seal);
    expect(makeBatch(first.head, [record(1)], Date.UTC(2036, 5, 1), seal).doc.shard).toEqual({ year: 2036, first: 1 });
    const wrong = () => makeBatch(first.head, [record(1)], Date.UTC(2037, 0, 1), seal);
    expect(wrong).toThrow(new LedgerBroken("the clock says 2037, and the last entry was sealed in 2026"));
    for (const [ms, year] of [
      [0, 1970],
      [Date.UTC(2100, 0, 1), 2100],
    ] as const)
      expect(() => makeBatch(emptyHead, [record(0)], ms, seal)).toThrow(
        new LedgerBroken(`the clock says ${year}: set it`),
      );
  });

  it("that does not follow the shard before it is refused", () => {
    const [ending, beginning] = [Date.UTC(2026, 11, 31), Date.UTC(2027, 0, 1)];
    const first = makeBatch(emptyHead, [record(0)], ending, seal);
    const other = makeBatch(emptyHead, [record(0), record(1)], ending, seal);
    const alone = makeBatch(emptyHead, [record(2)], beginning, seal);
    const after = makeBatch(other.head, [record(2)], beginning, seal);
    const second = makeBatch(first.head, [record(2)], beginning, seal);
    const refused = (doc: object) => () => replayBatch(first.head, { ...second.doc, ...doc }, seal);
    expect(refused({})).not.toThrow();
    expect(refused({ shard: { year: 2027, first: 0 } })).toThrow(/shard does not follow/);
    expect(refused({ shard: { year: 2025, first: 0 } })).toThrow(/shard does not follow/);
    expect(refused({ shard: first.doc.shard })).toThrow(/does not state the shard before/);
    expect(refused({ leaves: alone.doc.leaves })).toThrow(/does not state the shard before/);
    expect(refused({ leaves: after.doc.leaves })).toThrow(/does not state the shard before/);
    // Nor does a leaf within a shard say that it opens one.
    const within = sealedBatch(first.head, 2026, second.doc.leaves, seal).doc;
    expect(() => replayBatch(first.head, within, seal)).toThrow(/does not state the shard before/);
    const later = sealedBatch(
      first.head,
      2026,
      [...makeBatch(first.head, [record(1)], ending, seal).doc.leaves, ...second.doc.leaves],
      seal,
    );
    expect(() => replayBatch(first.head, later.doc, seal)).toThrow(/a leaf within it opens a shard/);
  });

  it("that another key has signed is refused", () => {
    const { doc } = makeBatch(emptyHead, [record(0)], sealedAtMs, seal);
    const checkpoint = doc.checkpoint.replace("test.example", "other.example");
    expect(() => replayBatch(emptyHead, { ...doc, checkpoint }, seal)).toThrow(/not signed by this ledger's key/);
    expect(() => headOf({ ...doc, checkpoint }, 1, seal)).toThrow(/not signed by this ledger's key/);
  });
});
