import type { Collection, DocumentStore } from "@curfew/document-store/port.ts";
import { NoteError } from "@curfew/ledger/note-error.ts";
import { openByPolicy, type Policy } from "@curfew/ledger/policy.ts";
import type { Shard } from "../domain.ts";

/**
 * The checkpoints that were published with cosignatures of witnesses: all of them, insert-only, one for each size. The
 * one that stands in the ledger's directory is a copy of a row here, so that whoever writes it writes the same bytes.
 */
export type CosignedRow = {
  /** From `cosignedId`. */
  _id: string;
  shard: Shard;
  /** Of the ledger. */
  size: number;
  /** The signed note: text and log signature as they were staged, then a line for each witness. */
  checkpoint: string;
};

export type CosignedRows = Collection<CosignedRow>;

export const openCosigned = (store: DocumentStore): Promise<CosignedRows> => store.collection<CosignedRow>("cosigned");

/** Of the checkpoint of a ledger of `size` entries: ids sort as sizes do. */
export const cosignedId = (size: number): string => String(size).padStart(16, "0");

/**
 * When a checkpoint was cosigned, by each witness (POSIX seconds); none where they are not as many as `policy` demands, or it does not
 * know the log's key (it was rotated since) or a signature fails: what cannot be believed says nothing.
 */
export const cosignedSeconds = ({ checkpoint }: Pick<CosignedRow, "checkpoint">, policy: Policy): number[] => {
  try {
    const { quorum, witnesses } = openByPolicy(checkpoint, policy);
    return quorum ? witnesses.map(({ seconds }) => seconds) : [];
  } catch (error) {
    if (error instanceof NoteError) return [];
    throw error;
  }
};

type Rows = Pick<CosignedRows, "find">;

/** The newest cosigned checkpoint of at least `size` entries; undefined: none has come so far. */
export const newestCosigned = async (rows: Rows, size = 0): Promise<CosignedRow | undefined> => {
  const [row] = await rows.find({ from: cosignedId(size), order: -1, limit: 1 });
  return row;
};

/**
 * The cosigned checkpoints around the entry `index`: the last without it and the first with it. The entry came to the
 * ledger between the times of their cosignatures (`openByPolicy` tells them).
 */
export const cosignedAround = async (
  rows: Rows,
  index: number,
): Promise<{ readonly before?: CosignedRow; readonly after?: CosignedRow }> => {
  const [[before], [after]] = await Promise.all([
    rows.find({ below: cosignedId(index + 1), order: -1, limit: 1 }),
    rows.find({ from: cosignedId(index + 1), limit: 1 }),
  ]);
  return { ...(before && { before }), ...(after && { after }) };
};
