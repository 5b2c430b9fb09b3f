import { hash } from "node:crypto";
import { type DescMessage, type Message, toJsonString } from "@bufbuild/protobuf";
import { type Timestamp, timestampFromMs, timestampMs } from "@bufbuild/protobuf/wkt";
import type { ListEventsRequest } from "@curfew/contracts/gen/curfew/auditor/v1/auditor_pb.ts";
import { eventTypeNamed } from "@curfew/event-log/event-types.ts";
import { decodeLeaf, type SealedRecord } from "@curfew/ledger/leaf.ts";
import { type EntryRow, entryId, headerOf, messageOf, type ReadModels, tokenOf } from "./projections.ts";

/** Sealed events as they are answered, and which of them pass a request's filters. */

/** What ListEvents and WatchEvents filter by. */
export type Filters = Pick<
  ListEventsRequest,
  "tokenId" | "type" | "source" | "from" | "to" | "subject" | "service" | "dataCategory"
>;

/** Empty for what decodes but has no JSON form (a time outside protobuf's range): it is in the ledger all the same, and in the leaf. */
const jsonOf = (desc: DescMessage, message: Message): string => {
  try {
    return toJsonString(desc, message);
  } catch {
    return "";
  }
};

const viewOf = (row: EntryRow, record: SealedRecord, message: Message | undefined) => {
  const header = (name: string) => (headerOf(record, name) ?? "").toWellFormed();
  const desc = message && eventTypeNamed(header("ce_type"))?.desc;
  const { topic, partition, offset } = record;
  return {
    eventId: header("ce_id"),
    index: BigInt(Number(row._id)),
    position: { topic, partition, offset: BigInt(offset) },
    type: header("ce_type"),
    source: header("ce_source"),
    subject: header("ce_subject"),
    ...(message && row.timeMs !== undefined && { time: timestampFromMs(row.timeMs) }),
    tokenId: tokenOf(record, message) ?? "",
    json: message && desc ? jsonOf(desc, message) : "",
  };
};
export type EventView = ReturnType<typeof viewOf>;

export const sealedEvent = (row: EntryRow): EventView => {
  const record = decodeLeaf(row.leaf);
  return viewOf(row, record, messageOf(record));
};

/** The fields of events that filters look at, wherever an event has them. */
type Named = {
  readonly subject?: string;
  readonly resourceService?: string;
  readonly people?: readonly string[];
  readonly ended?: { readonly people: readonly string[] };
  readonly details?: { readonly dataCategories?: readonly string[] };
  readonly grant?: { readonly dataCategories?: readonly string[] };
};

const passes = (filters: Filters, record: SealedRecord, message: Message | undefined): boolean => {
  const { subject, service, dataCategory } = filters;
  const named = (message ?? {}) as Named;
  const about = () => [
    headerOf(record, "ce_subject"),
    named.subject,
    ...(named.people ?? []),
    ...(named.ended?.people ?? []),
  ];
  const categories = () => [...(named.details?.dataCategories ?? []), ...(named.grant?.dataCategories ?? [])];
  return (
    (!subject || about().includes(subject)) &&
    (!service || named.resourceService === service) &&
    (!dataCategory || categories().includes(dataCategory))
  );
};

/** A page token says where to go on, and is good for the same filters only. */
export const filterHash = ({ from, to, ...request }: Filters): string => {
  const time = (t: Timestamp | undefined) => (t ? `${t.seconds}.${t.nanos}` : "");
  const { tokenId, type, source, subject, service, dataCategory } = request;
  const filters = [tokenId, type, source, subject, service, dataCategory, time(from), time(to)];
  return hash("sha256", JSON.stringify(filters), "base64url").slice(0, 16);
};

const rowsPerRead = 200;

export interface Limits {
  readonly events: number;
  /** Of JSON; a page is shorter rather than larger. */
  readonly bytes: number;
  /** Rows looked at: a filter that few rows pass gets short pages, or empty ones. */
  readonly rows: number;
}

/** Events that pass, of the leaves from `start` on and below `size`, each once; `next`: the leaf after the last one looked at. */
export const readEvents = async (
  entries: Pick<ReadModels["entries"], "find">,
  filters: Filters,
  { start, size }: { readonly start: number; readonly size: number },
  limits: Limits,
): Promise<{ events: EventView[]; next: number }> => {
  const { tokenId, type, source, from, to } = filters;
  const fromMs = from ? timestampMs(from) : Number.NEGATIVE_INFINITY;
  const toMs = to ? timestampMs(to) : Number.POSITIVE_INFINITY;
  const timed = from !== undefined || to !== undefined;
  const where = { ...(tokenId && { tokenId }), ...(type && { type }), ...(source && { source }) };
  const view = (row: EntryRow): EventView | undefined => {
    const { duplicate, timeMs = Number.NaN } = row;
    if (duplicate || (timed && !(timeMs >= fromMs && timeMs < toMs))) return undefined;
    const record = decodeLeaf(row.leaf);
    const message = messageOf(record);
    return passes(filters, record, message) ? viewOf(row, record, message) : undefined;
  };

  const events: EventView[] = [];
  let next = start;
  let bytes = 0;
  const isFull = () => events.length >= limits.events || bytes >= limits.bytes;
  for (let looked = 0; next < size && !isFull() && looked < limits.rows; ) {
    const rows = await entries.find({ where, from: entryId(next), below: entryId(size), limit: rowsPerRead });
    looked += rows.length;
    for (const row of rows) {
      if (isFull()) return { events, next };
      next = Number(row._id) + 1;
      const event = view(row);
      if (!event) continue;
      events.push(event);
      bytes += Buffer.byteLength(event.json) + 512;
    }
    if (rows.length < rowsPerRead) next = size;
  }
  return { events, next };
};
