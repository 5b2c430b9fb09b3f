import { hash } from "node:crypto";
import type { Message } from "@bufbuild/protobuf";
import type { Collection, DocumentStore } from "@curfew/document-store/port.ts";
import type { Finding } from "@curfew/event-log/chain-check.ts";
import type { ChainState } from "@curfew/event-log/chain-state.ts";
import { readEvent, UnreadableRecord } from "@curfew/event-log/envelope.ts";
import type { EpochRow } from "@curfew/event-log/epochs.ts";
import type { ProducerTrust } from "@curfew/event-log/producer-key.ts";
import { HASH_BYTES } from "@curfew/ledger/hash.ts";
import { decodeLeaf, type SealedRecord } from "@curfew/ledger/leaf.ts";
import type { NodeAddress } from "@curfew/ledger/tree.ts";
import { leastOf } from "@curfew/runtime/halving.ts";
import { type ChainPoint, type CheckedBatch, openCompleteness, streamPlace } from "./completeness.ts";
import {
  type Batch,
  LedgerBroken,
  type LedgerHead,
  maxBatchRecords,
  type NextOffset,
  nextOffset,
  type Shard,
} from "./domain.ts";

/**
 * The read models, derived from batches alone and insert-only: whoever derives a batch writes the same rows, so a second writer and a
 * repetition after a crash do no harm. A batch is derived after all before it; its checkpoint row is written last and publishes it.
 */

/** A leaf, by its index. */
export type EntryRow = {
  _id: string;
  batch: number;
  leaf: Uint8Array;
  /** Hashes of the subtrees of its shard that the leaf completes, its own first, joined: node (level, index) stands at the last leaf below it. */
  nodes: Uint8Array;
  type?: string;
  source?: string;
  tokenId?: string;
  /** ce_time. */
  timeMs?: number;
  /** Another leaf before it has the same ce_id. */
  duplicate?: true;
  /** On the last record of a chain in its batch: the chain, and its head there. */
  chain?: string;
  chainSequence?: number;
  chainHash?: string;
  /** Of a signed chain, and up to where signatures cover it; then the offset of the first record after that, if there is one. */
  chainKey?: string;
  chainSigned?: number;
  chainUnsignedFrom?: number;
};

/** Which leaf came first with an event id, with a number of a stream, or in a signed chain of a topic. */
export type KeyRow = { _id: string; index: number };

/** A finished batch; sizes are the ledger's, root and checkpoint the shard's. */
export type CheckpointRow = {
  _id: string;
  batch: number;
  shard: Shard;
  first: number;
  size: number;
  root: Uint8Array;
  checkpoint: string;
  positions: NextOffset[];
  sealedAtMs: number;
  /** The newest batch, up to this one, that was sealed earlier than the one before it: there a clock was set back. 0: none. */
  clockBack: number;
};

export interface ReadModels {
  readonly entries: Collection<EntryRow>;
  readonly keys: Collection<KeyRow>;
  readonly checkpoints: Collection<CheckpointRow>;
}

export const openReadModels = async (store: DocumentStore): Promise<ReadModels> => ({
  entries: await store.collection<EntryRow>("entries", { indexes: ["tokenId", "type", "source", "chain"] }),
  keys: await store.collection<KeyRow>("keys"),
  checkpoints: await store.collection<CheckpointRow>("checkpoints"),
});

const maxInsert = 1_000;
/** Longer and stranger texts than our own events have are kept by their hash; as filters they are left out. */
const maxKeyBytes = 900;
const maxFilterLength = 128;

export const entryId = (index: number) => String(index).padStart(16, "0");
export const checkpointId = (batch: number) => String(batch).padStart(10, "0");

/** Of a leaf that was derived: LedgerBroken where it is not there. */
export const entryAt = async (entries: Pick<Collection<EntryRow>, "get">, index: number): Promise<EntryRow> => {
  const row = await entries.get(entryId(index));
  if (!row) throw new LedgerBroken(`leaf ${index} has vanished from the read model`);
  return row;
};

export type Checkpoints = Pick<Collection<CheckpointRow>, "get">;

/** Of a batch that was published: LedgerBroken where it is not there. */
export const checkpointAt = async (checkpoints: Checkpoints, batch: number): Promise<CheckpointRow> => {
  const row = await checkpoints.get(checkpointId(batch));
  if (!row) throw new LedgerBroken(`checkpoint ${batch} has vanished`);
  return row;
};

const keyId = (kind: "event" | "stream" | "signed", text: string): string =>
  text.isWellFormed() && !text.includes("\0") && Buffer.byteLength(text) <= maxKeyBytes
    ? `${kind} ${text}`
    : `${kind}-sha256 ${hash("sha256", text, "hex")}`;
export const eventKey = (eventId: string) => keyId("event", eventId);
const signedKey = (topic: string) => keyId("signed", topic);
const streamKey = (topic: string, stream: string, sequence: number) =>
  keyId("stream", `${topic} ${stream}@${sequence}`);

export const headerOf = (record: SealedRecord, name: string) => record.headers.find(([n]) => n === name)?.[1];

/** The record's message; undefined for what is no event of ours: it is sealed all the same. */
export const messageOf = (record: SealedRecord): Message | undefined => {
  try {
    return readEvent(record).message;
  } catch (error) {
    if (error instanceof UnreadableRecord) return undefined;
    throw error;
  }
};

const tokenPattern = /(?:^|\/)(tok_[0-9A-Za-z_-]{1,60})(?:\/|$)/;

/** The token that an event is about: named by the event, or by its stream. */
export const tokenOf = (record: SealedRecord, message: Message | undefined): string | undefined => {
  const named = message && "tokenId" in message ? message.tokenId : undefined;
  if (typeof named === "string" && named !== "") return named;
  return tokenPattern.exec(headerOf(record, "ce_subject") ?? "")?.[1];
};

const filterable = (text: string | undefined) =>
  text !== undefined && text !== "" && text.length <= maxFilterLength && text.isWellFormed() ? text : undefined;

const chainFields = ({ chain, sequence, hash, key, signed, unsignedFrom }: ChainPoint) => ({
  chain,
  chainSequence: sequence,
  chainHash: hash,
  ...(key !== "" && { chainKey: key, chainSigned: signed }),
  ...(unsignedFrom !== undefined && { chainUnsignedFrom: unsignedFrom }),
});

const chainStateOf = (row: EntryRow): ChainState => ({
  sequence: row.chainSequence as number,
  hash: row.chainHash as string,
  key: row.chainKey ?? "",
  signed: row.chainSigned ?? 0,
  unsignedFrom: row.chainUnsignedFrom,
});

const entryRow = (batch: Batch, at: number, record: SealedRecord, heads: CheckedBatch["heads"]): EntryRow => {
  const type = filterable(headerOf(record, "ce_type"));
  const source = filterable(headerOf(record, "ce_source"));
  const tokenId = filterable(tokenOf(record, messageOf(record)));
  const timeMs = Date.parse(headerOf(record, "ce_time") ?? "");
  const point = heads.get(at);
  return {
    _id: entryId(batch.doc.first + at),
    batch: batch.number,
    leaf: batch.doc.leaves[at] as Uint8Array,
    nodes: batch.nodes[at] as Uint8Array,
    ...(type && { type }),
    ...(source && { source }),
    ...(tokenId && { tokenId }),
    ...(!Number.isNaN(timeMs) && { timeMs }),
    ...(point && chainFields(point)),
  };
};

const keyRows = (batch: Batch): { events: (string | undefined)[]; rows: KeyRow[] } => {
  const rows = new Map<string, KeyRow>();
  const add = (_id: string, index: number) => {
    if (!rows.has(_id)) rows.set(_id, { _id, index });
    return _id;
  };
  const events = batch.records.map((record, at) => {
    const place = streamPlace(record);
    if (place) add(streamKey(record.topic, place.stream, place.sequence), batch.doc.first + at);
    const id = headerOf(record, "ce_id");
    return id ? add(eventKey(id), batch.doc.first + at) : undefined;
  });
  return { events, rows: [...rows.values()] };
};

const chunks = <T>(rows: readonly T[]): T[][] =>
  Array.from({ length: Math.ceil(rows.length / maxInsert) }, (_, i) => rows.slice(i * maxInsert, (i + 1) * maxInsert));

/** `last`: of the batch before it; undefined of the first. */
const checkpointRow = ({ doc, number, head, records }: Batch, last: CheckpointRow | undefined): CheckpointRow => {
  const { shard, first, size, root, checkpoint } = doc;
  const { sealedAtMs } = records[0] as SealedRecord;
  return {
    _id: checkpointId(number),
    batch: number,
    shard,
    first,
    size,
    root,
    checkpoint,
    positions: [...head.positions],
    sealedAtMs,
    clockBack: last && sealedAtMs < last.sealedAtMs ? number : (last?.clockBack ?? 0),
  };
};

export interface Projection {
  /** Writes the rows of a batch that follows `before`; every batch before it has been derived. May be repeated. */
  derive(before: LedgerHead, batch: Batch): Promise<CheckpointRow>;
}

export const openProjection = (parts: {
  models: ReadModels;
  epochs: Collection<EpochRow>;
  trust: ProducerTrust;
  /** Records what was found, once for each producer and cause however often it is told. */
  report: (findings: readonly Finding[]) => Promise<void>;
}): Projection => {
  const { entries, keys, checkpoints } = parts.models;
  const completeness = openCompleteness({
    async chainBelow(chain, below) {
      const [row] = await entries.find({ where: { chain }, below: entryId(below), order: -1, limit: 1 });
      return row && chainStateOf(row);
    },
    async lastOf(topic, partition, before) {
      const next = nextOffset(before.positions, topic, partition);
      if (next === 0) return undefined;
      const batch = await leastOf(1, before.batch, async (number) => {
        const { positions } = await checkpointAt(checkpoints, number);
        return nextOffset(positions, topic, partition) >= next;
      });
      const { first, size } = await checkpointAt(checkpoints, batch);
      const rows = await entries.find({ from: entryId(first), below: entryId(size), limit: maxBatchRecords });
      const records = rows.map(({ leaf }) => decodeLeaf(leaf));
      return records.findLast((record) => record.topic === topic && record.partition === partition);
    },
    async signedSince(topic, below) {
      const first = await keys.get(signedKey(topic));
      const row = first && first.index < below ? await entries.get(entryId(first.index)) : undefined;
      return row && decodeLeaf(row.leaf).sealedAtMs;
    },
    hasEvent: async (topic, stream, sequence) => (await keys.get(streamKey(topic, stream, sequence))) !== undefined,
    rowOf: (producer) => parts.epochs.get(producer),
    trust: parts.trust,
  });

  /** Index of the first leaf with each key. */
  const insertKeys = async (rows: readonly KeyRow[]): Promise<Map<string, number>> => {
    const first = new Map<string, number>();
    for (const chunk of chunks(rows)) {
      const verdicts = await keys.insertMany(chunk);
      for (const [i, row] of chunk.entries()) {
        const there = verdicts[i] === "inserted" ? row : await keys.get(row._id);
        if (!there) throw new LedgerBroken("a row of the read model has vanished");
        first.set(row._id, there.index);
      }
    }
    return first;
  };

  const insertEntries = async (rows: readonly EntryRow[]): Promise<void> => {
    const verdicts = await entries.insertMany(rows);
    for (const [i, row] of rows.entries()) {
      if (verdicts[i] === "inserted") continue;
      const there = await entries.get(row._id);
      if (!there || Buffer.compare(there.leaf, row.leaf) !== 0)
        throw new LedgerBroken(`leaf ${row._id} in the read model is not the one that was sealed`);
    }
  };

  return {
    async derive(before, batch) {
      const { doc, number } = batch;
      const checked = await completeness.check(before, batch);
      const { findings, heads } = checked;
      const { events, rows } = keyRows(batch);
      for (const [topic, at] of checked.signedTopics) rows.push({ _id: signedKey(topic), index: doc.first + at });
      const first = await insertKeys(rows);
      await insertEntries(
        batch.records.map((record, at) => {
          const row = entryRow(batch, at, record, heads);
          const key = events[at];
          return key === undefined || first.get(key) === doc.first + at ? row : { ...row, duplicate: true };
        }),
      );
      await parts.report(findings);
      const row = checkpointRow(batch, await checkpoints.get(checkpointId(before.batch)));
      const isThere = (await checkpoints.insert(row)) === "exists";
      if (isThere && (await checkpoints.get(row._id))?.checkpoint !== row.checkpoint)
        throw new LedgerBroken(`another checkpoint of batch ${number} has been published`);
      checked.commit();
      return row;
    },
  };
};

/** The row that has a node of a shard's tree. */
export const nodeEntryId = ({ first }: Shard, { level, index }: NodeAddress): string =>
  entryId(first + (index + 1) * 2 ** level - 1);

/** Reads subtree hashes for proofs in a shard: one row each, by exact id. */
export const readNodes =
  (entries: Pick<Collection<EntryRow>, "get">, shard: Shard) => (wanted: readonly NodeAddress[]) =>
    Promise.all(
      wanted.map(async (node) => {
        const row = await entries.get(nodeEntryId(shard, node));
        return row?.nodes.subarray(node.level * HASH_BYTES, (node.level + 1) * HASH_BYTES) ?? new Uint8Array();
      }),
    );
