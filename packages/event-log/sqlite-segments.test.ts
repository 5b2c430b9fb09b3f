import { DatabaseSync, type SQLInputValue } from "node:sqlite";
import fc from "fast-check";
import { expect, it } from "vitest";
import type { OutRecord } from "./bus.ts";
import { recordsOf, segmentOf, segmentsFrom, segmentTables } from "./sqlite-segments.ts";

const topic = "t";
const open = () => {
  const db = new DatabaseSync(":memory:");
  for (const [sql] of segmentTables) db.exec(sql);
  const run = ([sql, ...params]: ReturnType<typeof segmentOf>) => {
    const statement = db.prepare(sql);
    statement.setReturnArrays(true);
    return statement.all(...(params as SQLInputValue[])) as unknown as never[][];
  };
  return { db, run };
};

const text = fc.oneof(fc.constantFrom("", "a", 'say "\\n"', "x".repeat(300)), fc.string({ unit: "grapheme-ascii" }));
const headers = fc
  .array(fc.tuple(fc.constantFrom("ce_id", "ce_type", "a", "b", "curfew-prev"), text), { maxLength: 6 })
  .map((pairs) => Object.fromEntries(pairs));
const record = fc.record({
  partition: fc.constant(3),
  key: fc.string({ unit: "grapheme", minLength: 1, maxLength: 20 }),
  headers,
  value: fc.uint8Array({ minLength: 1, maxLength: 50 }),
});

it("records come back as they were, whatever headers they share, and the view shows them", () => {
  fc.assert(
    fc.property(fc.array(record, { minLength: 1, maxLength: 8 }), fc.nat(7), (records, from) => {
      const { db, run } = open();
      run(segmentOf(topic, 3, 40, 1_000, records as OutRecord[]));
      const rows = run(segmentsFrom(topic, 3, 40 + from, { records: 100, bytes: 1e6 }));
      const expected = records.map(({ key, headers: own, value }, i) => ({
        topic,
        partition: 3,
        offset: 40 + i,
        timestampMs: 1_000,
        key,
        headers: Object.entries(own),
        value,
      }));
      expect(recordsOf(topic, 3, 40 + from, rows)).toEqual(expected.slice(from));
      const seen = db.prepare("SELECT offset, key, headers, value FROM records ORDER BY offset").all();
      expect(seen.map((row) => ({ ...row, headers: Object.entries(JSON.parse(String(row.headers))) }))).toEqual(
        expected.map((each) => ({ offset: each.offset, key: each.key, headers: each.headers, value: each.value })),
      );
    }),
  );
});

it("of headers that all records have, a row holds one", () => {
  const type = "a.rather.long.type.that.is.the.same";
  const each = (i: number): OutRecord => ({
    partition: 0,
    key: "k",
    headers: { type, id: `id-${i}` },
    value: Uint8Array.of(1),
  });
  const row = segmentOf(
    topic,
    0,
    0,
    0,
    Array.from({ length: 100 }, (_, i) => each(i)),
  );
  const bytes = row.map((part) => (part instanceof Uint8Array ? Buffer.from(part).toString("latin1") : String(part)));
  expect(bytes.join("").split(type).length - 1).toBe(1);
});
