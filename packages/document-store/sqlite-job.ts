/** What `sqlite-writer.ts` and its thread `sqlite-worker.ts` say to each other. */
export type SqlValue = null | number | string | Uint8Array;
export type Statement = readonly [sql: string, ...params: SqlValue[]];
/** Statements that happen together or not at all. */
export type Job = readonly Statement[];
export interface SqlResult {
  readonly changes: number;
  /** One array per row, in the order of the selected columns. */
  readonly rows: readonly (readonly SqlValue[])[];
}
export interface Failure {
  readonly code: number;
  readonly message: string;
}
export type Outcome = readonly SqlResult[] | Failure;
/** Jobs, packed by `sqlite-wire.ts`. */
export type ToWorker = Uint8Array | "close";
export interface FromWorker {
  /** Outcomes, packed by `sqlite-wire.ts`. */
  readonly outcomes: Uint8Array;
  /** Transactions with at least one write that were committed, hence synced, for these outcomes: 0 or 1. */
  readonly commits: number;
}

/** SQLite's primary result codes that speak about the machine and not about the statement. */
const outage = new Set([5, 6, 7, 8, 9, 10, 11, 13, 14, 15, 22, 23, 26]);
export const isOutage = (code: number): boolean => outage.has(code & 255);

/** Only reads: needs no transaction, and is answered even when the disk is full. */
export const isRead = (job: Job): boolean => job.every(([sql]) => /^\s*select\b/i.test(sql));
