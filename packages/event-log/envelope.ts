import { fromBinary, type Message, toBinary } from "@bufbuild/protobuf";
import { type Random, uuidV7 } from "@curfew/runtime/random.ts";
import type { InRecord } from "./bus.ts";
import { eventTypeNamed, eventTypeOf } from "./event-types.ts";

/** CloudEvents 1.0 headers, binary content mode; printable, in this order (design: interop, Kafka). */
export type EventHeaders = Readonly<Record<string, string>>;

export interface EncodedEvent {
  readonly headers: EventHeaders;
  readonly value: Uint8Array;
}

export interface EncodeContext {
  /** ce_source, e.g. /issuer. */
  readonly source: string;
  /** ce_subject, which is the record key too: the stream's id, or for a use what it is about. */
  readonly subject: string;
  readonly nowMs: number;
  readonly random: Random;
  readonly traceparent: string;
  /** ce_sequence: number of the event in its stream, from 1; absent on uses. */
  readonly sequence?: number;
  /** ce_id where the event has one of its own; otherwise a new UUIDv7. */
  readonly id?: string;
}

/** The exact bytes and headers of an event, made once and never again. */
export const encodeEvent = (message: Message, context: EncodeContext): EncodedEvent => {
  const { desc, type } = eventTypeOf(message);
  const value = toBinary(desc, message);
  if (value.length === 0) throw new TypeError(`${type} is all defaults: an empty value would be a tombstone`);
  return {
    value,
    headers: {
      "content-type": "application/protobuf",
      ce_specversion: "1.0",
      ce_id: context.id ?? uuidV7(context.nowMs, context.random),
      ce_source: context.source,
      ce_type: type,
      ce_subject: context.subject,
      ce_time: new Date(context.nowMs).toISOString(),
      ce_dataschema: desc.typeName,
      ce_partitionkey: context.subject,
      ...(context.sequence === undefined ? {} : { ce_sequence: String(context.sequence) }),
      traceparent: context.traceparent,
    },
  };
};

/** A record read as an event. */
export interface ReadEvent {
  readonly record: InRecord;
  readonly id: string;
  readonly type: string;
  readonly source: string;
  /** ce_subject: the stream's id. */
  readonly subject: string;
  readonly timeMs: number;
  /** Absent on uses. */
  readonly sequence: number | undefined;
  readonly traceparent: string | undefined;
  readonly message: Message;
}

/** A record that is not one of our events, or that we are too old to understand. */
export class UnreadableRecord extends Error {
  override name = "UnreadableRecord";
}

/** Decodes a record; throws UnreadableRecord, naming the place and never the content. */
export const readEvent = (record: InRecord): ReadEvent => {
  const header = (name: string) => record.headers.find(([n]) => n === name)?.[1];
  const place = `${record.topic}/${record.partition}@${record.offset}`;
  const type = header("ce_type");
  const row = type === undefined ? undefined : eventTypeNamed(type);
  if (!type || !row) throw new UnreadableRecord(`${place}: unknown event type ${JSON.stringify(type?.slice(0, 100))}`);
  if (row.topic !== record.topic) throw new UnreadableRecord(`${place}: ${type} does not belong on this topic`);
  const timeMs = Date.parse(header("ce_time") ?? "");
  const sequence = header("ce_sequence");
  const id = header("ce_id");
  if (!id || Number.isNaN(timeMs)) throw new UnreadableRecord(`${place}: ce_id or ce_time is missing or malformed`);
  if (sequence !== undefined && !/^[1-9]\d{0,14}$/.test(sequence))
    throw new UnreadableRecord(`${place}: ce_sequence is malformed`);
  let message: Message;
  try {
    message = fromBinary(row.desc, record.value);
  } catch {
    throw new UnreadableRecord(`${place}: the value is not a ${row.desc.typeName}`);
  }
  return {
    record,
    id,
    type,
    source: header("ce_source") ?? "",
    subject: header("ce_subject") ?? "",
    timeMs,
    sequence: sequence === undefined ? undefined : Number(sequence),
    traceparent: header("traceparent"),
    message,
  };
};
