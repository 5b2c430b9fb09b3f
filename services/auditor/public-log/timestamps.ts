import type { Collection, DocumentStore } from "@curfew/document-store/port.ts";
import { CHECKPOINT_PATH } from "@curfew/ledger/directory.ts";
import { NoteError } from "@curfew/ledger/note-error.ts";
import { NONCE_BYTES, openTimestamp, TimestampRefused, timestampQuery } from "@curfew/ledger/timestamp.ts";
import type { Clock } from "@curfew/runtime/clock.ts";
import type { Log } from "@curfew/runtime/log.ts";
import { type Outbound, OutboundFailed, OutboundRefused } from "@curfew/runtime/outbound.ts";
import type { Random } from "@curfew/runtime/random.ts";
import type { Seal, Shard } from "../domain.ts";
import { cosignedId } from "./cosigned.ts";
import type { ShardFiles } from "./shard-files.ts";
import type { Timestamping } from "./timestamp-settings.ts";

/**
 * Once a day a time-stamp authority (RFC 3161) is asked for a timestamp over the published checkpoint, if it has grown since the last: all
 * that it covers was there by then, whatever clock ours is.
 */

/** A published checkpoint with its timestamp; insert-only. */
export type TimestampRow = {
  /** From `cosignedId`: one for each size. */
  _id: string;
  shard: Shard;
  /** Of the ledger. */
  size: number;
  /** The bytes that were stamped: the whole signed note. */
  checkpoint: string;
  /** DER, as it was asked and answered. */
  query: Uint8Array;
  response: Uint8Array;
  /** By the authority's clock, in ms since the Unix epoch. */
  timeMs: number;
  /** By ours. */
  askedMs: number;
};

export type TimestampRows = Collection<TimestampRow>;

export const openTimestampRows = (store: DocumentStore): Promise<TimestampRows> =>
  store.collection<TimestampRow>("timestamps");

/** The first timestamp over a checkpoint of at least `size` entries; undefined: none so far. */
export const timestampOf = async (
  rows: Pick<TimestampRows, "find">,
  size: number,
): Promise<TimestampRow | undefined> => {
  const [row] = await rows.find({ from: cosignedId(size), limit: 1 });
  return row;
};

/** The newest timestamp over a checkpoint of at least `size` entries and fewer than `below`; undefined: none. */
export const timestampBelow = async (
  rows: Pick<TimestampRows, "find">,
  size: number,
  below: number,
): Promise<TimestampRow | undefined> => {
  const [row] = await rows.find({ from: cosignedId(size), below: cosignedId(below), order: -1, limit: 1 });
  return row;
};

export interface TimestampStatus {
  /** The newest: entries that it covers, and the authority's time (ms). */
  readonly newest?: { readonly size: number; readonly timeMs: number };
  /** Why none comes, since when (ms), as far as this replica knows; absent: nothing is wrong. */
  readonly failing?: { readonly said: string; readonly sinceMs: number };
}

const lookEveryMs = 10_000;
/** After a no; twice as long after each further one, up to the most. */
const firstBackoffMs = 60_000;
const maxBackoffMs = 3_600_000;
const deadlineMs = 10_000;
const maxSaidLength = 120;

const dayOf = (ms: number) => new Date(ms).toISOString().slice(0, 10);

const isNo = (error: unknown): error is Error =>
  error instanceof TimestampRefused ||
  error instanceof OutboundRefused ||
  error instanceof OutboundFailed ||
  (error as Error).name === "StoreUnavailable";

export const openTimestamps = (
  parts: Timestamping & {
    readonly files: ShardFiles;
    /** The newest; undefined: nothing was sealed yet. */
    readonly shard: () => Shard | undefined;
    readonly seal: Seal;
    readonly rows: Pick<TimestampRows, "find" | "insert">;
    readonly outbound: Outbound;
    readonly clock: Clock;
    readonly random: Random;
    readonly log: Pick<Log, "warn">;
  },
) => {
  const { url, authorities, files, seal, rows, outbound, clock, random, log } = parts;
  let failing: TimestampStatus["failing"];

  const newest = async () => {
    const [row] = await rows.find({ order: -1, limit: 1 });
    return row;
  };

  /** What is published and to be stamped now. A checkpoint that is not ours is for whoever writes it to notice. */
  const due = async () => {
    const last = await newest();
    const shard = parts.shard();
    if (!shard || (last && dayOf(last.askedMs) === dayOf(clock.now()))) return undefined;
    const found = await publishedPast(last?.shard ?? shard, last?.size ?? 0);
    // What came last in a year has its own tree's timestamp first: with a later tree's a bundle of that year could not show it.
    return found ?? (await publishedPast(shard, last?.size ?? 0));
  };

  const publishedPast = async (shard: Shard, least: number) => {
    const bytes = await files(shard.year).read(CHECKPOINT_PATH);
    try {
      const checkpoint = Buffer.from(bytes ?? "").toString();
      const { size } = seal.open(shard, checkpoint);
      return size > least ? { shard, size, checkpoint } : undefined;
    } catch (error) {
      if (error instanceof NoteError) return undefined;
      throw error;
    }
  };

  const stamp = async ({ shard, size, checkpoint }: Pick<TimestampRow, "shard" | "size" | "checkpoint">) => {
    const data = Buffer.from(checkpoint);
    const nonce = random(NONCE_BYTES);
    const query = timestampQuery(data, nonce);
    const headers = { "content-type": "application/timestamp-query", accept: "application/timestamp-reply" };
    const { status, body } = await outbound.post(url, { headers, body: query, timeoutMs: deadlineMs });
    if (status !== 200) throw new TimestampRefused(`the authority answers with HTTP status ${status}`);
    const { timeMs } = await openTimestamp(body, { data, nonce, authorities });
    const stamped = { query, response: body, timeMs, askedMs: clock.now() };
    await rows.insert({ _id: cosignedId(size), shard, size, checkpoint, ...stamped });
  };

  /** One look. Answers whether it went well; a no is said when it is the first. */
  const look = async (): Promise<boolean> => {
    try {
      const wanted = await due();
      if (wanted) await stamp(wanted);
      if (failing) log.warn({}, "the time-stamp authority answers again");
      failing = undefined;
      return true;
    } catch (error) {
      if (!isNo(error)) throw error;
      const said = error.message.slice(0, maxSaidLength);
      if (!failing) log.warn({ said }, "no timestamp for the ledger: trying again, less and less often");
      failing = { said, sinceMs: failing?.sinceMs ?? clock.now() };
      return false;
    }
  };

  return {
    /** Looks until `signal` aborts. */
    async run(signal: AbortSignal): Promise<void> {
      for (let backoffMs = firstBackoffMs; !signal.aborted; ) {
        const isWell = await look();
        await clock.sleep(isWell ? lookEveryMs : backoffMs, signal);
        backoffMs = isWell ? firstBackoffMs : Math.min(2 * backoffMs, maxBackoffMs);
      }
    },
    /** Rejects with StoreUnavailable. */
    async status(): Promise<TimestampStatus> {
      const row = await newest();
      return { ...(row && { newest: { size: row.size, timeMs: row.timeMs } }), ...(failing && { failing }) };
    },
  };
};
