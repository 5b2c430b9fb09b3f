import type { Collection } from "@curfew/document-store/port.ts";
import { CHECKPOINT_PATH } from "@curfew/ledger/directory.ts";
import { emptyRoot } from "@curfew/ledger/hash.ts";
import { NoteError } from "@curfew/ledger/note-error.ts";
import { shardYears, yearOf } from "@curfew/ledger/shard.ts";
import { verifiedNodes } from "@curfew/ledger/tile-nodes.ts";
import { emptyEdge, growTiles, type RightEdge, readEdge } from "@curfew/ledger/tile-writer.ts";
import { proveConsistency } from "@curfew/ledger/tree.ts";
import type { Clock } from "@curfew/runtime/clock.ts";
import type { Log } from "@curfew/runtime/log.ts";
import {
  type BatchDoc,
  batchId,
  emptyHead,
  headOf,
  LedgerBroken,
  type LedgerHead,
  replayBatch,
  type Seal,
  type Shard,
} from "../domain.ts";
import { batchReaching, shardsOf } from "../ledger.ts";
import { type CosignedRows, cosignedId, newestCosigned } from "./cosigned.ts";
import type { ShardFiles } from "./shard-files.ts";
import type { Witnesses } from "./witnesses.ts";

/**
 * Each shard of the ledger as a c2sp.org/tlog-tiles log, for any client of such logs. Tiles and bundles are derived from staged batches alone, and the
 * public checkpoint follows them: whoever writes writes the same bytes, and goes on after a kill wherever it was. Where witnesses are to
 * cosign, the checkpoint waits for them: the newest one is submitted, not each, and kept before it is published. Nothing of a shard is
 * written before the last checkpoint of the one before it is published.
 */

const pollMs = 100;
const firstBackoffMs = 100;
const maxBackoffMs = 5_000;
/** In batches, while there are more and more. */
const cosignedAtLeastEvery = 64;

export interface TileLogParts {
  readonly files: ShardFiles;
  readonly batches: Pick<Collection<BatchDoc>, "get" | "findLatest">;
  /** Number of the last batch whose rows are there; the store is asked for no later one. */
  readonly latest: () => number;
  readonly seal: Seal;
  /** Who must cosign, and where what they have cosigned is kept; absent: nobody. */
  readonly witnessed?: { readonly witnesses: Witnesses; readonly rows: Pick<CosignedRows, "get" | "find" | "insert"> };
  readonly clock: Clock;
  readonly log: Pick<Log, "warn">;
}

/** What the files have: the ledger up to a batch. */
interface Place {
  readonly head: LedgerHead;
  readonly edge: RightEdge;
  /** As it was staged: signed by the log alone. */
  readonly checkpoint: string;
}

/** What `read` answers of a year's files; where they are not as they were written, the ledger is broken. */
const asWritten = async <T>({ year }: Shard, read: () => T | Promise<T>): Promise<T> => {
  try {
    return await read();
  } catch (error) {
    if (!(error instanceof NoteError) && !(error instanceof RangeError)) throw error;
    throw new LedgerBroken(
      `the ledger's files of ${year} are not as they were written (they and later years', taken away, are made again): ${error.message}`,
      { cause: error },
    );
  }
};

const standingCheckpoint = async ({ files, seal }: Pick<TileLogParts, "files" | "seal">, shard: Shard) => {
  const bytes = await files(shard.year).read(CHECKPOINT_PATH);
  const note = bytes && Buffer.from(bytes).toString();
  return note === undefined ? undefined : asWritten(shard, () => ({ ...seal.open(shard, note), note }));
};

/**
 * Entries that are published of a ledger whose store has it up to `head`: more than `head.size` where the files go on, be it in a shard that
 * the store does not know. Rejects with LedgerBroken for a checkpoint that this ledger did not sign.
 */
export const publishedSize = async (
  parts: Pick<TileLogParts, "files" | "seal"> & { readonly clock: Pick<Clock, "now"> },
  head: LedgerHead,
): Promise<number> => {
  const { shard, size } = head;
  for (const year of shardYears(parts.clock.now(), shard.year).reverse()) {
    const standing = await standingCheckpoint(parts, year === shard.year ? shard : { year, first: size });
    if (standing) return standing.size;
  }
  return 0;
};

const checkpointFile = (checkpoint: string) => ({ path: CHECKPOINT_PATH, bytes: Buffer.from(checkpoint) });

/** What was kept of a size; it is what was staged, and lines after it. */
const keptOf = async (rows: Pick<CosignedRows, "get">, size: number, staged: string): Promise<string | undefined> => {
  const kept = await rows.get(cosignedId(size));
  if (kept && !kept.checkpoint.startsWith(staged))
    throw new LedgerBroken(`the cosigned checkpoint of size ${size} is another than was staged`);
  return kept?.checkpoint;
};

/** The newest shard that has a checkpoint, with it, or the first one. */
const standingShard = async (parts: TileLogParts) => {
  let shard: Shard | undefined;
  for await (const each of shardsOf(parts.batches)) {
    ({ shard } = each);
    const standing = await standingCheckpoint(parts, shard);
    if (standing) return { shard, standing };
  }
  shard ??= { year: yearOf(parts.clock.now()), first: 0 };
  return { shard, standing: await standingCheckpoint(parts, shard) };
};

/**
 * Where the files are, compared with what was staged: the checkpoint that stands there, and the partial tiles that must lead to its root.
 * Lines after the log's signature are the witnesses'; they stay as they were kept, or as they stand where none were.
 */
const placeOf = async (parts: TileLogParts): Promise<Place> => {
  const { batches, seal, witnessed } = parts;
  const { shard, standing } = await standingShard(parts);
  const files = parts.files(shard.year);
  const empty = {
    head: { ...emptyHead, shard },
    edge: emptyEdge,
    checkpoint: seal.sign(shard, shard.first, emptyRoot()),
  };
  if (!standing && !witnessed) await files.write([checkpointFile(empty.checkpoint)]);
  if (!standing) return empty;
  const { size, root, note } = standing;
  const found = size === 0 ? undefined : await batchReaching(batches, size);
  if (size > 0 && found?.doc.shard.year !== shard.year)
    throw new LedgerBroken(
      `the ledger's files have ${size} entries and its store fewer: the store was put back, or is another ledger's`,
    );
  // Whichever key has signed the empty tree.
  const staged = size === 0 ? note : found?.doc.checkpoint;
  if (staged === undefined || !note.startsWith(staged))
    throw new LedgerBroken(`the ledger's files have another checkpoint of size ${size} than was staged`);
  const kept = witnessed && (await keptOf(witnessed.rows, size, staged));
  if (kept !== undefined && kept !== note) await files.write([checkpointFile(kept)]);
  if (!found) return empty;
  const edge = await asWritten(shard, () => readEdge(size - shard.first, root, files.read));
  return { head: headOf(found.doc, found.number, seal), edge, checkpoint: found.doc.checkpoint };
};

/**
 * The checkpoint to publish at `place`: its own with its cosignatures, the same ones for ever; where it has none, the newest that was kept,
 * which a kill, or another writer that was late, may have left unpublished; undefined: none now.
 */
const cosigned = async (
  { files, witnessed }: TileLogParts,
  { head, checkpoint }: Place,
  signal: AbortSignal,
): Promise<string | undefined> => {
  if (!witnessed) return checkpoint;
  const { witnesses, rows } = witnessed;
  const { size, shard, frontier } = head;
  const kept = await keptOf(rows, size, checkpoint);
  if (kept !== undefined || !witnesses.due()) return kept;
  const nodes = verifiedNodes(frontier.size, frontier.root(), files(shard.year).read);
  const prove = (old: number) => proveConsistency(old, frontier.size, nodes);
  const note = await asWritten(shard, () => witnesses.cosign({ size: frontier.size, checkpoint, prove }, signal));
  if (note !== undefined) {
    await rows.insert({ _id: cosignedId(size), shard, size, checkpoint: note });
    return await keptOf(rows, size, checkpoint);
  }
  const newest = await newestCosigned(rows);
  return newest && newest.shard.year === shard.year && newest.size <= size ? newest.checkpoint : undefined;
};

/**
 * Brings the files up to every staged batch, as they come, until `signal` aborts. What fails for now (store, disk) is tried again; throws
 * LedgerBroken where the files contradict what was staged.
 */
export const publishTiles = async (parts: TileLogParts, signal: AbortSignal): Promise<void> => {
  const { files, batches, latest, seal, clock, log } = parts;

  const patiently = async <T>(attempt: () => Promise<T>): Promise<T | undefined> => {
    for (let backoffMs = firstBackoffMs; !signal.aborted; backoffMs = Math.min(2 * backoffMs, maxBackoffMs)) {
      try {
        return await attempt();
      } catch (error) {
        if (error instanceof LedgerBroken) throw error;
        if (backoffMs === firstBackoffMs) log.warn({ err: error }, "the ledger's files cannot be written now");
        await clock.sleep(backoffMs, signal);
      }
    }
    return undefined;
  };

  /** Whether what `place` has is more than what stands there: a larger tree, or the cosignatures that the one of `place` has not. */
  const isNews = async ({ head, checkpoint }: Place, size = head.size) => {
    const standing = await standingCheckpoint(parts, head.shard);
    if (signal.aborted || !standing) return !signal.aborted;
    const isBare = parts.witnessed !== undefined && standing.note === checkpoint;
    return standing.size < size || (isBare && standing.size === size);
  };

  /**
   * Another writer of the same files may be ahead of this one, which was stopped for a while, say: then its checkpoint stays. Where this one
   * was stopped between look and write, the other puts it right again.
   */
  const publish = async (place: Place): Promise<void> => {
    const { shard } = place.head;
    if (!(await isNews(place))) return;
    const note = await cosigned(parts, place, signal);
    if (note === undefined) return;
    const { size } = await asWritten(shard, () => seal.open(shard, note));
    // Looked at again: while witnesses were asked another writer may have come further.
    if (await isNews(place, size)) await files(shard.year).write([checkpointFile(note)]);
  };

  /** Past the next batch; undefined: there is none yet, or the shard before it has to be finished first. */
  const grown = async (place: Place): Promise<Place | undefined> => {
    const { batch, shard } = place.head;
    const doc = latest() > batch ? await batches.get(batchId(batch + 1)) : undefined;
    const isTurn = doc !== undefined && batch > 0 && doc.shard.year !== shard.year;
    // Witnesses are asked for the newest; where it is never reached, for one now and then.
    const isDue = batch % cosignedAtLeastEvery === cosignedAtLeastEvery - 1;
    if (!doc || !parts.witnessed || isTurn || isDue) await publish(place);
    if (!doc || (isTurn && (await isNews(place)))) return undefined;
    const { head, nodes } = replayBatch(place.head, doc, seal);
    const before = isTurn ? emptyEdge : place.edge;
    const { files: written, edge } = await asWritten(shard, () => growTiles(before, doc.leaves, nodes));
    await files(head.shard.year).write(written);
    return { head, edge, checkpoint: doc.checkpoint };
  };

  let place = await patiently(() => placeOf(parts));
  while (place && !signal.aborted) {
    const at: Place = place;
    const next = await patiently(() => grown(at));
    if (next) place = next;
    else await clock.sleep(pollMs, signal);
  }
};
