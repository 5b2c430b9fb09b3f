import { NoteError } from "@curfew/ledger/note-error.ts";
import { openByPolicy } from "@curfew/ledger/policy.ts";
import { type CosignedRow, cosignedAround } from "./cosigned.ts";
import { LedgerBroken } from "./domain.ts";
import type { Cosigning } from "./shown-tree.ts";
import { type TimestampRows, timestampOf } from "./timestamps.ts";

/** Whose clocks may bound when an entry came to the ledger. */
export interface OutsideClocks {
  readonly cosigning: Cosigning | undefined;
  readonly stamped: Pick<TimestampRows, "find"> | undefined;
}

/** In ms since the Unix epoch; absent: nobody outside has said so yet. */
export interface OutsideTimes {
  /** No witness of the last checkpoint without the entry saw one with it before this. */
  readonly notBeforeMs?: number;
  /** By now every witness of the first checkpoint with it had seen that. */
  readonly notAfterMs?: number;
  /** A time-stamp authority had a checkpoint with it. */
  readonly stampedMs?: number;
}

/** When a checkpoint was cosigned, by each witness; none where they are not as many as the policy of today demands. */
const timesOf = ({ policy }: Cosigning, row: CosignedRow | undefined): number[] => {
  if (!row) return [];
  try {
    const { quorum, witnesses } = openByPolicy(row.checkpoint, policy);
    return quorum ? witnesses.map(({ seconds }) => seconds * 1_000) : [];
  } catch (error) {
    if (!(error instanceof NoteError)) throw error;
    throw new LedgerBroken(`the cosigned checkpoint of size ${row.size} is spoilt`, { cause: error });
  }
};

/** Bounds on which all witnesses agree. Rejects with StoreUnavailable, or LedgerBroken. */
export const outsideTimes = async ({ cosigning, stamped }: OutsideClocks, index: number): Promise<OutsideTimes> => {
  const around = cosigning && (await cosignedAround(cosigning.rows, index));
  const before = cosigning ? timesOf(cosigning, around?.before) : [];
  const after = cosigning ? timesOf(cosigning, around?.after) : [];
  const stamp = stamped && (await timestampOf(stamped, index + 1));
  return {
    ...(before.length > 0 && { notBeforeMs: Math.min(...before) }),
    ...(after.length > 0 && { notAfterMs: Math.max(...after) }),
    ...(stamp && { stampedMs: stamp.timeMs }),
  };
};
