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

/** As whoever gets the bundle will: by then it is too late. By which authority the timestamp is, they can tell. */
const check = async (row: TimestampRow, proof: readonly Uint8Array[], { size, root }: ShownTree): Promise<void> => {
  const broken = (why: string, cause?: unknown) =>
    new LedgerBroken(`the timestamp over size ${row.size} does not hold: ${why}`, { cause });
  try {
    const stamped = parseCheckpoint(parseNote(row.checkpoint).text);
    if (!verifyConsistency(row.size, size, proof, stamped.root, root)) throw broken("it is of another tree");
    await claimedTimestamp(row.response, Buffer.from(row.checkpoint));
  } catch (error) {
    if (!(error instanceof TimestampRefused) && !(error instanceof NoteError)) throw error;
    throw broken(error.message, error);
  }
};

/**
 * The first timestamp that bounds all leaves from `first` to `last`; while there is none (it is asked for once a day), the newest that
 * bounds those before. Rejects with LedgerBroken for one that does not hold.
 */
export const stampOver = async (
  parts: { readonly rows: Pick<TimestampRows, "find">; readonly tree: ShownTree; readonly readNodes: ReadNodes },
  first: number,
  last: number,
): Promise<BundleStamp | undefined> => {
  const { rows, tree, readNodes } = parts;
  const whole = await timestampOf(rows, last + 1);
  // Another replica may have published, and had stamped, what this one has not seen yet.
  const row = whole && whole.size <= tree.size ? whole : await timestampBelow(rows, first + 1, last + 1);
  if (!row) return undefined;
  const proof = await proveConsistency(row.size, tree.size, readNodes);
  await check(row, proof, tree);
  return { checkpoint: row.checkpoint, size: row.size, proof, response: row.response };
};
