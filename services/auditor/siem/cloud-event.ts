import type { OutRecord } from "@curfew/event-log/bus.ts";
import { readEvent, UnreadableRecord } from "@curfew/event-log/envelope.ts";
import type { SealedRecord } from "@curfew/ledger/leaf.ts";
import { type OcsfClassName, ocsfObject, ocsfVersion, type Place, type Told } from "./ocsf.ts";
import { toldOf, unreadable } from "./told.ts";

/**
 * A record of curfew.siem.v1: one leaf of the ledger as a CloudEvent in structured mode (CloudEvents 1.0, Kafka binding), its data an OCSF
 * object. The same leaf gives the same bytes each time, so what is published twice is recognised by `ledgerindex` (or `id`, which is the
 * source event's: a record that a producer sent twice has the same on both of its leaves).
 */

/** CloudEvents `type`, one for each OCSF class. */
export const siemType = (of: OcsfClassName) => `curfew.siem.${of.replaceAll("_", "-")}.v1`;
export const siemDataSchema = (of: OcsfClassName) => `https://schema.ocsf.io/${ocsfVersion}/classes/${of}`;
const contentType = "application/cloudevents+json; charset=UTF-8";

const maxBytes = 500_000;
/** Our keys are subjects of events. */
const keyForm = /^[\x21-\x7e]{1,480}$/;

interface Read {
  readonly told: Told;
  readonly place: Place;
  readonly subject: string;
  readonly traceparent: string | undefined;
}

const whereOf = ({ topic, partition, offset }: SealedRecord) => `${topic}/${partition}@${offset}`;

/** That a record stands there, and no more. */
const unread = (index: number, record: SealedRecord): Read => {
  const { topic, sealedAtMs } = record;
  const where = whereOf(record);
  const place = { uid: where, type: undefined, source: "", topic, timeMs: sealedAtMs, sealedAtMs, index };
  return { told: unreadable(where), place, subject: where, traceparent: undefined };
};

const read = (index: number, record: SealedRecord): Read => {
  const { topic, sealedAtMs } = record;
  try {
    const event = readEvent(record);
    const { id: uid, type, source, timeMs, subject, traceparent } = event;
    const told = toldOf(type, event.message, uid);
    return { told, place: { uid, type, source, topic, timeMs, sealedAtMs, index }, subject, traceparent };
  } catch (error) {
    if (!(error instanceof UnreadableRecord)) throw error;
    return unread(index, record);
  }
};

const bytesOf = ({ told, place, subject, traceparent }: Read): Uint8Array => {
  const event = {
    specversion: "1.0",
    id: place.uid,
    source: "/auditor",
    type: siemType(told.class),
    subject,
    time: new Date(place.timeMs).toISOString(),
    datacontenttype: "application/json",
    dataschema: siemDataSchema(told.class),
    // A CloudEvents Integer has 32 bits.
    ledgerindex: String(place.index),
    traceparent,
    data: ocsfObject(told, place),
  };
  return Buffer.from(JSON.stringify(event));
};

export const siemRecord = (index: number, record: SealedRecord): OutRecord => {
  const whole = bytesOf(read(index, record));
  // Ours stay far below: a forged one must not stop what comes behind it.
  const value = whole.length <= maxBytes ? whole : bytesOf(unread(index, record));
  const key = keyForm.test(record.key) ? record.key : whereOf(record);
  return { partition: 0, key, headers: { "content-type": contentType }, value };
};

const indexForm = /^(0|[1-9]\d{0,14})$/;

/** Index of the leaf that a record of the topic tells; undefined for what is none of ours. */
export const ledgerIndexOf = (value: Uint8Array): number | undefined => {
  try {
    const event = JSON.parse(Buffer.from(value).toString()) as { ledgerindex?: unknown } | null;
    const ledgerindex = event?.ledgerindex;
    return typeof ledgerindex === "string" && indexForm.test(ledgerindex) ? Number(ledgerindex) : undefined;
  } catch (error) {
    if (error instanceof SyntaxError) return undefined;
    throw error;
  }
};
