import { fromBinary, type Message, toBinary } from "@bufbuild/protobuf";
import { type Random, uuidV7 } from "@curfew/runtime/random.ts";
import type { InRecord } from "./bus.ts";
import { type EventType, eventTypeNamed, eventTypeOf } from "./event-types.ts";

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

/** Bytes of an event: with its key and headers it has to fit into one ledger entry of 65,535 (design: evidence, "What is sealed"). */
export const maxEventBytes = 60_000;
/** Characters of ce_subject, printable ASCII: it is a record key, a header and part of a document's id. */
export const maxSubjectChars = 480;
const subjectForm = /^[\x21-\x7e]+$/;

/** The exact bytes and headers of an event, made once and never again. Throws for what the bus would refuse: it would never get out. */
export const encodeEvent = (message: Message, context: EncodeContext): EncodedEvent => {
  const type = eventTypeOf(message);
  return encodedEvent(type, toBinary(type.desc, message), context);
};

/** The same where there is a faster way to the bytes. */
export const encodedEvent = ({ desc, type }: EventType, value: Uint8Array, context: EncodeContext): EncodedEvent => {
  if (value.length === 0) throw new TypeError(`${type} is all defaults: an empty value would be a tombstone`);
  if (value.length > maxEventBytes) throw new RangeError(`${type} takes ${value.length} bytes, over ${maxEventBytes}`);
  if (!subjectForm.test(context.subject) || context.subject.length > maxSubjectChars)
    throw new RangeError(`the subject of a ${type} is not 1 to ${maxSubjectChars} characters of printable ASCII`);
  return { value, headers: headersFor(type, desc.typeName, context) };
};

/** Written out twice: an object made of pieces takes three times as long, and every event has one. */
const headersFor = (type: string, schema: string, context: EncodeContext): EventHeaders => {
  const { source, subject, nowMs, traceparent, sequence } = context;
  const id = context.id ?? uuidV7(nowMs, context.random);
  const time = isoOf(nowMs);
  return sequence === undefined
    ? {
        "content-type": "application/protobuf",
        ce_specversion: "1.0",
        ce_id: id,
        ce_source: source,
        ce_type: type,
        ce_subject: subject,
        ce_time: time,
        ce_dataschema: schema,
        ce_partitionkey: subject,
        traceparent,
      }
    : {
        "content-type": "application/protobuf",
        ce_specversion: "1.0",
        ce_id: id,
        ce_source: source,
        ce_type: type,
        ce_subject: subject,
        ce_time: time,
        ce_dataschema: schema,
        ce_partitionkey: subject,
        ce_sequence: String(sequence),
        traceparent,
      };
};

/** The last time asked for: a batch has the same one over and over. */
let last = { ms: 0, text: new Date(0).toISOString() };
const isoOf = (ms: number): string => {
  if (ms !== last.ms) last = { ms, text: new Date(ms).toISOString() };
  return last.text;
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

const maxIdChars = 200;
const timeForm = /^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d{1,9})?Z$/;
const sequenceForm = /^[1-9]\d{0,14}$/;

/** Headers by name. A name that comes twice has no one value: our producers never write one. */
const headersOf = (record: InRecord, refuse: (why: string) => never): ReadonlyMap<string, string> => {
  const headers = new Map(record.headers);
  if (headers.size < record.headers.length) refuse("a header comes twice");
  return headers;
};

/** Decodes a record; throws UnreadableRecord, naming the place and never the content. */
export const readEvent = (record: InRecord): ReadEvent => {
  const refuse = (why: string): never => {
    throw new UnreadableRecord(`${record.topic}/${record.partition}@${record.offset}: ${why}`);
  };
  const headers = headersOf(record, refuse);
  const type = headers.get("ce_type") ?? "";
  const row = eventTypeNamed(type) ?? refuse(`unknown event type ${JSON.stringify(type.slice(0, 100))}`);
  if (row.topic !== record.topic) refuse(`${type} does not belong on this topic`);
  const time = headers.get("ce_time") ?? "";
  const timeMs = timeForm.test(time) ? Date.parse(time) : Number.NaN;
  if (Number.isNaN(timeMs)) refuse("ce_time is missing or malformed");
  const sequence = headers.get("ce_sequence");
  if (sequence !== undefined && !sequenceForm.test(sequence)) refuse("ce_sequence is malformed");
  const id = headers.get("ce_id") ?? "";
  if (id === "" || id.length > maxIdChars) refuse("ce_id is missing or too long");
  const subject = headers.get("ce_subject") ?? "";
  if (subject === "" || subject.length > maxSubjectChars) refuse("ce_subject is missing or too long");
  if (record.value.length === 0) refuse("the value is empty");
  return {
    record,
    id,
    type,
    source: headers.get("ce_source") ?? "",
    subject,
    timeMs,
    sequence: sequence === undefined ? undefined : Number(sequence),
    traceparent: headers.get("traceparent"),
    message: decoded(row, record) ?? refuse(`the value is not a ${row.desc.typeName}`),
  };
};

const decoded = ({ desc }: EventType, { value }: InRecord): Message | undefined => {
  try {
    return fromBinary(desc, value);
  } catch {
    return undefined;
  }
};
