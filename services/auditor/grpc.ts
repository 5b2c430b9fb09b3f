import { hash } from "node:crypto";
import { type DescMessage, type Message, toJsonString } from "@bufbuild/protobuf";
import { type Timestamp, timestampMs } from "@bufbuild/protobuf/wkt";
import {
  AuditorService,
  type GetEventRequest,
  type ListEventsRequest,
} from "@curfew/contracts/gen/curfew/auditor/v1/auditor_pb.ts";
import type { Position } from "@curfew/contracts/gen/curfew/events/v1/common_pb.ts";
import type { Collection } from "@curfew/document-store/port.ts";
import { eventTypeNamed, topicNames } from "@curfew/event-log/event-types.ts";
import { emptyRoot, leafHash } from "@curfew/ledger/hash.ts";
import { decodeLeaf, NoLeaf } from "@curfew/ledger/leaf.ts";
import { verifyInclusion } from "@curfew/ledger/proof.ts";
import { proveInclusion } from "@curfew/ledger/tree.ts";
import { past } from "@curfew/projection/progress.ts";
import { RpcError } from "@curfew/rpc/errors.ts";
import { type BoundService, bindService } from "@curfew/rpc/service-definition.ts";
import { type BatchDoc, batchId, LedgerBroken, nextOffset } from "./domain.ts";
import type { Follower } from "./follower.ts";
import type { Ledger } from "./ledger.ts";
import {
  type CheckpointRow,
  type EntryRow,
  entryId,
  eventKey,
  headerOf,
  messageOf,
  type ReadModels,
  readNodes,
  tokenOf,
} from "./projections.ts";
import { batchPast } from "./sealed-places.ts";

const defaultPageSize = 50;
const maxPageSize = 1_000;
/** Of JSON on a page; a page is shorter rather than larger. */
const maxPageBytes = 2 * 2 ** 20;
/** Rows looked at for one page: a filter that few rows pass gets short pages, or empty ones, with a token for the next. */
const maxScannedRows = 5_000;
const rowsPerRead = 200;
const atLeastMs = 2_000;
const retryMs = 500;

export interface AuditorParts {
  readonly batches: Collection<BatchDoc>;
  readonly models: ReadModels;
  readonly ledger: Pick<Ledger, "seal" | "verifierKey">;
  readonly follower: Follower;
  /** What is stored contradicts what was signed. */
  readonly broken: (error: LedgerBroken) => void;
}

const invalid = (reason: string, message: string, field: string) =>
  new RpcError({
    status: "INVALID_ARGUMENT",
    reason,
    message,
    fieldViolations: [{ field, description: message, reason }],
  });
const notFound = (message: string) => new RpcError({ status: "NOT_FOUND", reason: "EVENT_NOT_FOUND", message });

/** Empty for what decodes but has no JSON form (a time outside protobuf's range): it is in the ledger all the same, and in the leaf. */
const jsonOf = (desc: DescMessage, message: Message): string => {
  try {
    return toJsonString(desc, message);
  } catch {
    return "";
  }
};

const sealedEvent = (row: EntryRow) => {
  const record = decodeLeaf(row.leaf);
  const header = (name: string) => (headerOf(record, name) ?? "").toWellFormed();
  const message = messageOf(record);
  const desc = message && eventTypeNamed(header("ce_type"))?.desc;
  const { topic, partition, offset } = record;
  return {
    eventId: header("ce_id"),
    index: BigInt(Number(row._id)),
    position: { topic, partition, offset: BigInt(offset) },
    type: header("ce_type"),
    source: header("ce_source"),
    subject: header("ce_subject"),
    ...(message && row.timeMs !== undefined && { time: timestampOf(row.timeMs) }),
    tokenId: tokenOf(record, message) ?? "",
    json: message && desc ? jsonOf(desc, message) : "",
  };
};

const timestampOf = (ms: number) => ({
  seconds: BigInt(Math.floor(ms / 1_000)),
  nanos: (ms - Math.floor(ms / 1_000) * 1_000) * 1_000_000,
});

/** A page token says where to go on, and is good for the same filters only. */
const filterHash = (request: ListEventsRequest): string => {
  const time = (t: Timestamp | undefined) => (t ? `${t.seconds}.${t.nanos}` : "");
  const filters = [request.tokenId, request.type, request.source, time(request.from), time(request.to)];
  return hash("sha256", JSON.stringify(filters), "base64url").slice(0, 16);
};
const pageToken = (index: number, request: ListEventsRequest) =>
  Buffer.from(`${index} ${filterHash(request)}`).toString("base64url");
const parsePageToken = (request: ListEventsRequest): number => {
  if (request.pageToken === "") return 0;
  const text = Buffer.from(request.pageToken, "base64url").toString();
  const [, index, filters] = /^(\d{1,15}) ([\w-]{16})$/.exec(text) ?? [];
  if (index === undefined || filters !== filterHash(request))
    throw invalid("PAGE_TOKEN_INVALID", "the page token is not from a page with these filters", "page_token");
  return Number(index);
};

const awaitSealed = async (follower: Follower, positions: readonly Position[]): Promise<void> => {
  const topics: readonly string[] = Object.values(topicNames);
  if (positions.some(({ topic, offset }) => !topics.includes(topic) || offset < 0n))
    throw invalid("POSITION_INVALID", "not a position on a topic that is sealed", "at_least");
  if (await follower.reached(past(positions), atLeastMs)) return;
  throw new RpcError({
    status: "UNAVAILABLE",
    reason: "NOT_CAUGHT_UP",
    message: "not sealed up to there yet: try again",
    retryDelayMs: retryMs,
  });
};

const listEvents = async ({ models, follower }: AuditorParts, request: ListEventsRequest) => {
  let index = parsePageToken(request);
  await awaitSealed(follower, request.atLeast);
  const size = follower.latest()?.size ?? 0;
  const pageSize = Math.min(request.pageSize || defaultPageSize, maxPageSize);
  const fromMs = request.from ? timestampMs(request.from) : Number.NEGATIVE_INFINITY;
  const toMs = request.to ? timestampMs(request.to) : Number.POSITIVE_INFINITY;
  const timed = request.from !== undefined || request.to !== undefined;
  const { tokenId, type, source } = request;
  const where = { ...(tokenId && { tokenId }), ...(type && { type }), ...(source && { source }) };
  const matches = ({ duplicate, timeMs = Number.NaN }: EntryRow) =>
    !duplicate && (!timed || (timeMs >= fromMs && timeMs < toMs));

  const events: ReturnType<typeof sealedEvent>[] = [];
  let bytes = 0;
  let scanned = 0;
  const isFull = () => events.length >= pageSize || bytes >= maxPageBytes;
  while (index < size && !isFull() && scanned < maxScannedRows) {
    const rows = await models.entries.find({ where, from: entryId(index), below: entryId(size), limit: rowsPerRead });
    scanned += rows.length;
    if (rows.length < rowsPerRead) index = size;
    for (const row of rows) {
      if (isFull()) {
        index = Number(row._id);
        break;
      }
      if (rows.length === rowsPerRead) index = Number(row._id) + 1;
      if (!matches(row)) continue;
      const event = sealedEvent(row);
      events.push(event);
      bytes += Buffer.byteLength(event.json) + 512;
    }
  }
  return {
    events,
    nextPageToken: index < size ? pageToken(index, request) : "",
    ledgerSize: BigInt(size),
  };
};

/** The leaf of a record: the batch is found by the positions of finished batches, the leaf by looking through it. */
const indexOfPosition = async (parts: AuditorParts, latest: CheckpointRow, position: Position): Promise<number> => {
  const { topic, partition } = position;
  const offset = Number(position.offset);
  if (nextOffset(latest.positions, topic, partition) <= offset) throw notFound("no such record has been sealed");
  const low = await batchPast(parts.models.checkpoints, position, offset, { low: 1, latest: latest.batch });
  const doc = await parts.batches.get(batchId(low));
  if (!doc) throw new LedgerBroken(`${batchId(low)} has vanished`);
  const at = doc.leaves.map(decodeLeaf).findIndex((r) => {
    return r.topic === topic && r.partition === partition && r.offset === offset;
  });
  if (at < 0) throw notFound("no such record has been sealed");
  return doc.first + at;
};

const indexOf = async (parts: AuditorParts, latest: CheckpointRow, { which }: GetEventRequest): Promise<number> => {
  if (which.case === "position") return await indexOfPosition(parts, latest, which.value);
  if (which.case === "index") return Number(which.value);
  const row = await parts.models.keys.get(eventKey(which.value ?? ""));
  return row?.index ?? latest.size;
};

const getEvent = async (parts: AuditorParts, request: GetEventRequest) => {
  const latest = parts.follower.latest();
  if (!latest) throw notFound("nothing has been sealed yet");
  const index = await indexOf(parts, latest, request);
  if (index >= latest.size) throw notFound("no such event has been sealed");
  const { entries } = parts.models;
  const row = await entries.get(entryId(index));
  if (!row) throw new LedgerBroken(`leaf ${index} has vanished from the read model`);
  const { size, root, checkpoint } = latest;
  const inclusionProof = await proveInclusion(index, size, readNodes(entries)).catch((error: unknown) => {
    if ((error as Error).name === "StoreUnavailable") throw error;
    throw new LedgerBroken(`leaf ${index} cannot be proven`, { cause: error });
  });
  // What leaves here was checked here: a proof that does not hold says that the store was changed.
  if (!verifyInclusion(index, size, leafHash(row.leaf), inclusionProof, root))
    throw new LedgerBroken(`leaf ${index} is not the one that was sealed`);
  return { event: sealedEvent(row), leaf: row.leaf, inclusionProof, checkpoint };
};

export const auditorService = (parts: AuditorParts): BoundService => {
  const { ledger, follower } = parts;
  const telling = async <T>(answer: Promise<T>): Promise<T> => {
    try {
      return await answer;
    } catch (error) {
      if (error instanceof LedgerBroken) parts.broken(error);
      if (error instanceof NoLeaf) parts.broken(new LedgerBroken(error.message, { cause: error }));
      throw error;
    }
  };
  return bindService(AuditorService, {
    listEvents: (request) => telling(listEvents(parts, request)),
    getEvent: (request) => telling(getEvent(parts, request)),
    getCheckpoint: () => {
      const latest = follower.latest();
      const { verifierKey } = ledger;
      const sealed = follower.positions();
      if (latest) {
        const { checkpoint, root, size } = latest;
        return { checkpoint, size: BigInt(size), root, verifierKey, sealed };
      }
      const root = emptyRoot();
      return { checkpoint: ledger.seal.sign(0, root), size: 0n, root, verifierKey, sealed };
    },
  });
};
