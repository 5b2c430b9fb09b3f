import { isMessage } from "@bufbuild/protobuf";
import { timestampMs } from "@bufbuild/protobuf/wkt";
import type { ExportBundleRequest } from "@curfew/contracts/gen/curfew/auditor/v1/auditor_pb.ts";
import { CaseOpenedSchema, SignalJoinedSchema } from "@curfew/contracts/gen/curfew/events/v1/breaches_pb.ts";
import type { Collection } from "@curfew/document-store/port.ts";
import { decodeLeaf } from "@curfew/ledger/leaf.ts";
import { RpcError } from "@curfew/rpc/errors.ts";
import { leastOf } from "@curfew/runtime/halving.ts";
import {
  type CheckpointRow,
  type Checkpoints,
  checkpointAt,
  type EntryRow,
  entryAt,
  entryId,
  eventKey,
  headerOf,
  messageOf,
  type ReadModels,
} from "../projections.ts";
import { noShard, type ProofParts, shardEnds } from "../proofs.ts";

/** Which leaves belong into an evidence bundle. */
export interface Wanted {
  /** Empty: not one token. */
  readonly tokenId: string;
  /** Empty: not one case. */
  readonly caseId: string;
  /** Leaves from `first`, before `end`. */
  readonly first: number;
  readonly end: number;
  /** Entries of the ledger: a case of one year may name what was sealed in another. */
  readonly ledgerSize: number;
}

const caseSource = "/breach-notifier";
const rowsPerRead = 500;

/** The token that a case is about; empty: it is about a producer. */
export const tokenOfCase = (caseId: string): string => {
  const [, about = ""] = caseId.split("/");
  return about.startsWith("tok_") ? about : "";
};

type Where = Readonly<Record<string, string>>;

async function* rowsWhere(
  entries: Collection<EntryRow>,
  where: Where,
  { first, end }: Wanted,
): AsyncGenerator<EntryRow> {
  for (let from = first; from < end; ) {
    const rows = await entries.find({ where, from: entryId(from), below: entryId(end), limit: rowsPerRead });
    yield* rows;
    if (rows.length < rowsPerRead) return;
    from = Number(rows.at(-1)?._id) + 1;
  }
}

const subjectOf = (row: EntryRow): string => headerOf(decodeLeaf(row.leaf), "ce_subject") ?? "";

/** Events that a case names. */
const signalsOf = (row: EntryRow): string[] => {
  const message = messageOf(decodeLeaf(row.leaf));
  if (!message || !(isMessage(message, CaseOpenedSchema) || isMessage(message, SignalJoinedSchema))) return [];
  return message.signal ? [message.signal.eventId] : [];
};

/** Leaves of a case: its own events, and its signals, in order. */
const leavesOfCase = async (models: ReadModels, wanted: Wanted): Promise<number[]> => {
  const { caseId, first, end, ledgerSize } = wanted;
  const tokenId = tokenOfCase(caseId);
  const found = new Set<number>();
  // From the first leaf to the last: the signals of a case may be older than what is asked for, and the other way round.
  const where = { source: caseSource, ...(tokenId && { tokenId }) };
  const rows = rowsWhere(models.entries, where, { ...wanted, first: 0, end: ledgerSize });
  for await (const row of rows) {
    if (subjectOf(row) !== caseId) continue;
    found.add(Number(row._id));
    for (const eventId of signalsOf(row)) {
      const key = await models.keys.get(eventKey(eventId));
      if (key) found.add(key.index);
    }
  }
  return [...found].filter((index) => index >= first && index < end).sort((a, b) => a - b);
};

/** The rows of all wanted leaves, ascending. */
export async function* wantedRows(models: ReadModels, wanted: Wanted): AsyncGenerator<EntryRow> {
  const { entries } = models;
  const { caseId } = wanted;
  const tokenId = wanted.tokenId || tokenOfCase(caseId);
  const own = caseId === "" ? [] : await leavesOfCase(models, wanted);
  const isOwn = new Set(own);
  let next = 0;
  const where: Where = tokenId === "" ? {} : { tokenId };
  if (caseId === "" || tokenId !== "")
    for await (const row of rowsWhere(entries, where, wanted)) {
      const index = Number(row._id);
      for (; (own[next] ?? index) < index; next += 1) yield await entryAt(entries, own[next] as number);
      if (own[next] === index) next += 1;
      // Other cases about the same token are not this one.
      else if (caseId !== "" && row.source === caseSource && !isOwn.has(index)) continue;
      yield row;
    }
  for (; next < own.length; next += 1) yield await entryAt(entries, own[next] as number);
}

/** The first of some batches, among which the clock goes forward, that was sealed at or after a time; else the one after them. */
const firstSealedAt = (checkpoints: Checkpoints, batches: { from: number; to: number }, atMs: number) =>
  leastOf(batches.from, batches.to + 1, async (batch) => (await checkpointAt(checkpoints, batch)).sealedAtMs >= atMs);

/**
 * The fewest leaves in a row that have all of those sealed at or after one time and before another. Where a clock was set
 * back, the same time came more than once: each stretch in which it went forward is searched.
 */
const sealedBetween = async ({ checkpoints }: ReadModels, latest: CheckpointRow, fromMs: number, toMs: number) => {
  let [first, end] = [latest.batch + 1, 0];
  for (let to = latest; ; to = await checkpointAt(checkpoints, to.clockBack - 1)) {
    const stretch = { from: Math.max(1, to.clockBack), to: to.batch };
    const from = await firstSealedAt(checkpoints, stretch, fromMs);
    const after = await firstSealedAt(checkpoints, stretch, toMs);
    if (from < after) [first, end] = [from, Math.max(end, after - 1)];
    if (to.clockBack === 0) break;
  }
  if (end === 0) return { first: latest.size, end: latest.size };
  return { first: (await checkpointAt(checkpoints, first)).first, end: (await checkpointAt(checkpoints, end)).size };
};

/** Which leaves are asked for, wherever they are: indexes of the ledger. */
export const wantedOf = async (
  models: ReadModels,
  request: ExportBundleRequest,
  latest: CheckpointRow,
): Promise<Wanted> => {
  const { tokenId, caseId, from, to } = request;
  const fromMs = from ? timestampMs(from) : Number.NEGATIVE_INFINITY;
  const toMs = to ? timestampMs(to) : Number.POSITIVE_INFINITY;
  const all = { first: 0, end: latest.size };
  return {
    tokenId,
    caseId,
    ledgerSize: latest.size,
    ...(from || to ? await sealedBetween(models, latest, fromMs, toMs) : all),
  };
};

export const within = ({ shard, size }: CheckpointRow, wanted: Wanted): Wanted => {
  const first = Math.min(Math.max(wanted.first, shard.first), size);
  return { ...wanted, first, end: Math.max(first, Math.min(wanted.end, size)) };
};

const isEmpty = async (models: ReadModels, wanted: Wanted): Promise<boolean> => {
  for await (const _ of wantedRows(models, wanted)) return false;
  return true;
};

/** The last batch of the shard that is asked for, or of the only one that has any of what is. Throws RpcError. */
export const shardToExport = async (
  parts: Pick<ProofParts, "models" | "ledger">,
  { shard: year }: ExportBundleRequest,
  wanted: Wanted,
  latest: CheckpointRow,
): Promise<CheckpointRow> => {
  const found: CheckpointRow[] = [];
  for await (const end of shardEnds(parts, latest)) {
    if (end.shard.year === year || (end === latest && end.shard.first === 0 && year === 0)) return end;
    if (year === 0 && !(await isEmpty(parts.models, within(end, wanted)))) found.push(end);
  }
  const [end, ...others] = found;
  if (year !== 0) throw noShard(year);
  if (others.length > 0) {
    const years = found.map((each) => each.shard.year).join(", ");
    const message = `that was sealed in several years, each of which has a tree of its own: ${years}; name one of them (shard)`;
    throw new RpcError({ status: "FAILED_PRECONDITION", reason: "SEVERAL_SHARDS", message });
  }
  return end ?? latest;
};
