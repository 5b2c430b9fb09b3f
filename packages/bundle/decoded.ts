import { type JsonValue, toJson } from "@bufbuild/protobuf";
import { readEvent } from "@curfew/event-log/envelope.ts";
import { eventTypeNamed } from "@curfew/event-log/event-types.ts";
import type { SealedRecord } from "@curfew/ledger/leaf.ts";

export const headerOf = ({ headers }: SealedRecord, name: string): string =>
  headers.find(([each]) => each === name)?.[1] ?? "";

/** The event as JSON (protobuf JSON mapping; bytes, and so sealed fields, as base64). Null: no event of ours, or one with no JSON form. */
const eventOf = (record: SealedRecord): JsonValue => {
  const row = eventTypeNamed(headerOf(record, "ce_type"));
  try {
    return row ? toJson(row.desc, readEvent(record).message) : null;
  } catch {
    return null; // also what decodes and has no JSON form: a time outside protobuf's range
  }
};

const isoOf = (ms: number): string => (Math.abs(ms) <= 8.64e15 ? new Date(ms).toISOString() : "");

/** A leaf for people. */
export const decodedEntry = (index: number, record: SealedRecord) => {
  const { topic, partition, offset, timestampMs, sealedAtMs, headers, oversize } = record;
  return {
    index,
    record: { topic, partition, offset, brokerTime: isoOf(timestampMs) },
    sealedAt: isoOf(sealedAtMs),
    headers: headers.map(([name, value]) => ({ name, value })),
    ...(oversize && { oversize }),
    event: eventOf(record),
  };
};
export type DecodedEntry = ReturnType<typeof decodedEntry>;

export const decodedText = (entry: DecodedEntry): string => `${JSON.stringify(entry, null, 2)}\n`;
