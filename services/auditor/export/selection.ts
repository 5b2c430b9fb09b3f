import { isMessage } from "@bufbuild/protobuf";
import { CaseOpenedSchema, SignalJoinedSchema } from "@curfew/contracts/gen/curfew/events/v1/breaches_pb.ts";
import type { Collection } from "@curfew/document-store/port.ts";
import { decodeLeaf } from "@curfew/ledger/leaf.ts";
import { LedgerBroken } from "../domain.ts";
import {
  type CheckpointRow,
  checkpointId,
  type EntryRow,
  entryId,
  eventKey,
  headerOf,
  messageOf,
  type ReadModels,
} from "../projections.ts";

/** Which leaves belong into an evidence bundle. */
export interface Wanted {
  /** Empty: not one token. */
  readonly tokenId: string;
  /** Empty: not one case. */
  readonly caseId: string;
  /** Leaves from `first`, before `end`. */
  readonly first: number;
  readonly end: number;
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
  const { caseId, first, end } = wanted;
  const tokenId = tokenOfCase(caseId);
  const found = new Set<number>();
  // From the first leaf on: the signals of a case may be older than what is asked for, and the other way round.
  const rows = rowsWhere(models.entries, { source: caseSource, ...(tokenId && { tokenId }) }, { ...wanted, first: 0 });
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

const rowAt = async (entries: Collection<EntryRow>, index: number): Promise<EntryRow> => {
  const row = await entries.get(entryId(index));
  if (!row) throw new LedgerBroken(`leaf ${index} has vanished from the read model`);
  return row;
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
      for (; (own[next] ?? index) < index; next += 1) yield await rowAt(entries, own[next] as number);
      if (own[next] === index) next += 1;
      // Other cases about the same token are not this one.
      else if (caseId !== "" && row.source === caseSource && !isOwn.has(index)) continue;
      yield row;
    }
  for (; next < own.length; next += 1) yield await rowAt(entries, own[next] as number);
}

/** The first leaf of the first batch that was sealed at or after a time; the size where there is none. By halving: the clock goes forward. */
export const firstSealedAt = async (models: ReadModels, latest: CheckpointRow, atMs: number): Promise<number> => {
  let low = 1;
  let high = latest.batch + 1;
  let first = latest.size;
  while (low < high) {
    const middle = Math.floor((low + high) / 2);
    const row = await models.checkpoints.get(checkpointId(middle));
    if (!row) throw new LedgerBroken(`checkpoint ${middle} has vanished`);
    const { sealedAtMs } = decodeLeaf((await rowAt(models.entries, row.first)).leaf);
    if (sealedAtMs >= atMs) {
      high = middle;
      first = row.first;
    } else low = middle + 1;
  }
  return first;
};
