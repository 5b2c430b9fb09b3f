import type { BundleStamp } from "@curfew/bundle/write-bundle.ts";
import { parseCheckpoint } from "@curfew/ledger/checkpoint.ts";
import { parseNote } from "@curfew/ledger/note.ts";
import { NoteError } from "@curfew/ledger/note-error.ts";
import { verifyConsistency } from "@curfew/ledger/proof.ts";
import { claimedTimestamp, TimestampRefused } from "@curfew/ledger/timestamp.ts";
import { proveConsistency, type ReadNodes } from "@curfew/ledger/tree.ts";
import { LedgerBroken } from "../domain.ts";
import { type TimestampRow, type TimestampRows, timestampBelow, timestampOf } from "../public-log/timestamps.ts";
import type { ShownTree } from "./shown-tree.ts";

/** When it was stamped; checked as whoever gets the bundle will: by then it is too late. By which authority it is, they can tell. */
const timeOf = async (row: TimestampRow, proof: readonly Uint8Array[], tree: ShownTree): Promise<number> => {
  const broken = (why: string, cause?: unknown) =>
    new LedgerBroken(`the timestamp over size ${row.size} does not hold: ${why}`, { cause });
  const { shard, size, root } = tree;
  const [older, newer] = [row.size - shard.first, size - shard.first];
  try {
    const stamped = parseCheckpoint(parseNote(row.checkpoint).text);
    if (!verifyConsistency(older, newer, proof, stamped.root, root)) throw broken("it is of another tree");
    return (await claimedTimestamp(row.response, Buffer.from(row.checkpoint))).timeMs;
  } catch (error) {
    if (!(error instanceof TimestampRefused) && !(error instanceof NoteError)) throw error;
    throw broken(error.message, error);
  }
};

/**
 * The first timestamp over the tree that bounds all entries of the ledger from `first` to `last`; while there is none (it is asked for once a day), the newest that
 * bounds those before. Rejects with LedgerBroken for one that does not hold.
 */
export const stampOver = async (
  parts: { readonly rows: Pick<TimestampRows, "find">; readonly tree: ShownTree; readonly readNodes: ReadNodes },
  first: number,
  last: number,
): Promise<BundleStamp | undefined> => {
  const { rows, tree, readNodes } = parts;
  const whole = await timestampOf(rows, last + 1);
  // Another replica may have published, and had stamped, what this one has not seen yet; or the next shard has begun before this one was.
  const row = whole && whole.size <= tree.size ? whole : await timestampBelow(rows, first + 1, last + 1);
  if (!row) return undefined;
  const size = row.size - tree.shard.first;
  const proof = await proveConsistency(size, tree.size - tree.shard.first, readNodes);
  const timeMs = await timeOf(row, proof, tree);
  return { checkpoint: row.checkpoint, size, proof, response: row.response, timeMs };
};
