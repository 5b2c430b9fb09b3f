import type { Cosigning } from "../export/shown-tree.ts";
import { type CosignedRow, cosignedAround, cosignedSeconds } from "./cosigned.ts";
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

/** Bounds on which all witnesses agree. Rejects with StoreUnavailable. */
export const outsideTimes = async ({ cosigning, stamped }: OutsideClocks, index: number): Promise<OutsideTimes> => {
  const around = cosigning && (await cosignedAround(cosigning.rows, index));
  const timesOf = (row: CosignedRow | undefined) =>
    row && cosigning ? cosignedSeconds(row, cosigning.policy).map((seconds) => seconds * 1_000) : [];
  const [before, after] = [timesOf(around?.before), timesOf(around?.after)];
  const stamp = stamped && (await timestampOf(stamped, index + 1));
  return {
    ...(before.length > 0 && { notBeforeMs: Math.min(...before) }),
    ...(after.length > 0 && { notAfterMs: Math.max(...after) }),
    ...(stamp && { stampedMs: stamp.timeMs }),
  };
};
