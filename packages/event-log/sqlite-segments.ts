/**
 * How records lie in the file of `sqlite.ts`: what one append brings to one partition is one row, its records one after another in
 * `body`; a row per record cost more than all else that a use costs. Of its headers a record has those that differ from the first
 * one's, which are in `shared`: half of all bytes were the same over and over. The view `records` shows them one by one, whole.
 */
import type { SqlResult, SqlValue, Statement } from "@curfew/document-store/sqlite-job.ts";
import type { InRecord, OutRecord } from "./bus.ts";

const eachRecord = `(SELECT topic, partition, base + place.key AS offset, timestamp_ms, body,
  CASE place.value ->> 4 WHEN 1 THEN '{}' ELSE shared END AS shared,
  place.value ->> 0 AS at, place.value ->> 1 AS keys, place.value ->> 2 AS heads, place.value ->> 3 AS size
  FROM segments, json_each(places) AS place)`;

export const segmentTables: readonly Statement[] = [
  // Rows lie in the order of their writing, and only the small index is spread over the partitions. `base` is the offset of the first
  // record, `count` how many there are, `places` of each: where it begins in `body`, the bytes of key, headers and value, and 1 where
  // these headers are all.
  [
    `CREATE TABLE IF NOT EXISTS segments (topic TEXT NOT NULL, partition INTEGER NOT NULL, base INTEGER NOT NULL,
       count INTEGER NOT NULL, timestamp_ms INTEGER NOT NULL, shared TEXT NOT NULL, places TEXT NOT NULL, body BLOB NOT NULL) STRICT`,
  ],
  ["CREATE UNIQUE INDEX IF NOT EXISTS segment_places ON segments (topic, partition, base)"],
  ["DROP VIEW IF EXISTS records"],
  [
    `CREATE VIEW records AS SELECT topic, partition, offset, timestamp_ms,
       CAST(substr(body, at + 1, keys) AS TEXT) AS key, json_patch(shared, CAST(substr(body, at + keys + 1, heads) AS TEXT)) AS headers,
       substr(body, at + keys + heads + 1, size) AS value FROM ${eachRecord}`,
  ],
];

/** The column that files made before there were shared headers lack: their rows share none. */
export const sharedColumn = {
  absent: "SELECT 1 WHERE NOT EXISTS (SELECT 1 FROM pragma_table_info('segments') WHERE name = 'shared')",
  add: "ALTER TABLE segments ADD COLUMN shared TEXT NOT NULL DEFAULT '{}'",
} as const;

const insertion = `INSERT INTO segments (topic, partition, base, count, timestamp_ms, shared, places, body)
  VALUES (?, ?, ?, ?, ?, ?, ?, ?)`;
let scratch = Buffer.allocUnsafeSlow(64 * 1024);

/** The row of records of one partition, in their order; at least one. */
export const segmentOf = (
  topic: string,
  partition: number,
  base: number,
  timestampMs: number,
  records: readonly OutRecord[],
): Statement => {
  const places: number[][] = [];
  const shared = records[0]?.headers ?? {};
  const names = Object.keys(shared);
  let end = 0;
  for (const { key, headers, value } of records) {
    const own = differing(headers, shared, names);
    const text = JSON.stringify(own ?? headers);
    // A UTF-16 unit takes at most three bytes of UTF-8.
    const most = end + 3 * (key.length + text.length) + value.byteLength;
    if (most > scratch.length) {
      const larger = Buffer.allocUnsafeSlow(2 * most);
      scratch.copy(larger, 0, 0, end);
      scratch = larger;
    }
    const keys = scratch.write(key, end);
    const heads = scratch.write(text, end + keys);
    scratch.set(value, end + keys + heads);
    places.push(own ? [end, keys, heads, value.byteLength] : [end, keys, heads, value.byteLength, 1]);
    end += keys + heads + value.byteLength;
  }
  const body = new Uint8Array(end);
  body.set(scratch.subarray(0, end));
  return [
    insertion,
    topic,
    partition,
    base,
    records.length,
    timestampMs,
    JSON.stringify(shared),
    JSON.stringify(places),
    body,
  ];
};

/** The headers that are not the shared ones; undefined where the names, or their order, are others. */
const differing = (
  headers: OutRecord["headers"],
  shared: OutRecord["headers"],
  names: readonly string[],
): OutRecord["headers"] | undefined => {
  const own: Record<string, string> = {};
  let i = 0;
  for (const name in headers) {
    if (name !== names[i]) return undefined;
    i += 1;
    const text = headers[name] as string;
    if (text !== shared[name]) own[name] = text;
  }
  return i === names.length ? own : undefined;
};

/** Rows from the one with `position` on: as many as hold no more than so many records and bytes, at least one. */
export const segmentsFrom = (
  topic: string,
  partition: number,
  position: number,
  most: { readonly records: number; readonly bytes: number },
): Statement => [selection, topic, partition, position, most.records, most.bytes];

const selection = `WITH first AS (SELECT max(base) AS base FROM segments WHERE topic = ?1 AND partition = ?2 AND base <= ?3),
  next AS (SELECT s.base, s.rowid AS id, sum(count) OVER (ORDER BY s.base) AS records,
    sum(size) OVER (ORDER BY s.base) AS bytes
    FROM (SELECT rowid, base, count, length(body) AS size FROM segments WHERE topic = ?1 AND partition = ?2
      AND base >= (SELECT base FROM first) ORDER BY base LIMIT ?4) AS s)
  SELECT base, timestamp_ms, shared, places, body FROM segments WHERE rowid IN (SELECT id FROM next
    WHERE (records <= ?4 AND bytes <= ?5) OR base = (SELECT base FROM first)) ORDER BY base`;

/** The records of such rows from `position` on. */
export const recordsOf = (topic: string, partition: number, position: number, rows: SqlResult["rows"]): InRecord[] =>
  rows.flatMap((row) => recordsOfRow(topic, partition, row).filter(({ offset }) => offset >= position));

const recordsOfRow = (topic: string, partition: number, row: readonly SqlValue[]): InRecord[] => {
  const [base, timestampMs, shared, places, bytes] = row as [number, number, string, string, Uint8Array];
  const common = JSON.parse(shared) as Record<string, string>;
  const body = Buffer.from(bytes.buffer as ArrayBuffer, bytes.byteOffset, bytes.byteLength);
  return (JSON.parse(places) as [number, number, number, number, 1?][]).map(([at, keys, heads, size, all], i) => ({
    topic,
    partition,
    offset: base + i,
    timestampMs,
    key: body.toString("utf8", at, at + keys),
    // Names begin with a letter, so their order is kept.
    headers: Object.entries<string>({
      ...(all ? undefined : common),
      ...JSON.parse(body.toString("utf8", at + keys, at + keys + heads)),
    }),
    // Memory of its own: whoever keeps a value must not keep its neighbours.
    value: bytes.slice(at + keys + heads, at + keys + heads + size),
  }));
};
