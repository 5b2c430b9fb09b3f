import { unwatchedHoldMs } from "@curfew/token-format/answer-life.ts";

/**
 * When a revocation took effect (design "Proof of revocation"), from facts alone: the leases that stood when it was committed, the
 * receipts of acknowledgements, and the ends of leases. Everything is read on revocation's clock; nothing is estimated. Pure.
 */

/** The newest lease of an instance. Rows are inserted before the lease is granted and never changed. */
export type Lease = {
  readonly instance: string;
  /** Caller name, e.g. service/verifier. */
  readonly name: string;
  /** Begin of the unbroken row of leases that this one continues. */
  readonly sinceMs: number;
  /** When the unbroken row before that had surely ended; 0: there was none. */
  readonly previousEndMs: number;
  readonly untilMs: number;
  /** The instance said that it answers nothing any more, at `untilMs`. */
  readonly goodbye: boolean;
  readonly clockOffsetMs: number;
  /** An SDK, on whose decisions nobody acts but itself. A verifier's answers may be on their way when its lease ends. */
  readonly reportsUses: boolean;
};

/** A lease as somebody who reads the rows knows it. */
export type SeenLease = Lease & {
  /**
   * On the reader's monotonic clock: a read begun from then on that still finds this row the newest proves that the lease has ended,
   * whatever any wall clock says. A whole lease after the row was first seen; -Infinity for one that was old already.
   */
  readonly provenEndMs: number;
};

/** When leases were read. */
export interface Reading {
  readonly wallMs: number;
  /** Before the read began. */
  readonly monotonicMs: number;
}

export interface Acknowledgement {
  readonly receivedAtMs: number;
  readonly clockOffsetMs: number;
}

/** What one instance that held a lease at commit did. */
export interface InstanceFact {
  readonly instance: string;
  readonly name: string;
  readonly clockOffsetMs: number;
  readonly acknowledgedAtMs?: number;
  readonly leaseEndedAtMs?: number;
}

export interface Proof {
  readonly instances: readonly InstanceFact[];
  /** Absent while an instance can still answer. */
  readonly effectiveAtMs: number | undefined;
}

/** The instance's clock may run slow by 1 %, so that its lease of 5 s ends after 5.05 s of ours. */
export const clockRateError = 0.01;
/**
 * A commit is dated before its insert is sent. One that took longer than this would have been given up; a lease that began within
 * this time of it may therefore have stood already and counts.
 */
export const uncertainCommitMs = 60_000;

/** Wall clocks of replicas, and one before and after a restart, are not further apart than this. */
export const maxClockErrorMs = 60_000;

/**
 * `provenEndMs` of a row first seen at `seen`. Only one that ended long before that needs no proof: what remains is a clock more than
 * a minute wrong at a start.
 */
export const provenEndMs = (lease: Pick<Lease, "untilMs" | "goodbye">, seen: Reading, leaseMs: number): number => {
  if (surelyEndedMs(lease, leaseMs) + maxClockErrorMs < seen.wallMs) return Number.NEGATIVE_INFINITY;
  return lease.goodbye ? seen.monotonicMs : seen.monotonicMs + leaseMs * (1 + clockRateError);
};

/** When the lease has surely ended on the instance's own clock. */
export const surelyEndedMs = (lease: Pick<Lease, "untilMs" | "goodbye">, leaseMs: number): number =>
  lease.goodbye ? lease.untilMs : lease.untilMs + leaseMs * clockRateError;

interface Committed {
  readonly committedMs: number;
  /** When the reader heard of it, on its monotonic clock: after the commit. */
  readonly sinceMs: number;
  readonly acknowledgements: ReadonlyMap<string, Acknowledgement>;
}

/**
 * What this instance owes a revocation; undefined: nothing, it held no lease at commit. Commit and lease may be dated by different
 * clocks, or by one that was set between: a lease counts as ended before the commit, or at all, only when that is proven too. One
 * that was proven only after the commit was heard of ended as long after the commit's own date, at least.
 */
const factOf = (lease: SeenLease, revocation: Committed, read: Reading, leaseMs: number): InstanceFact | undefined => {
  const { instance, name } = lease;
  const { committedMs, sinceMs } = revocation;
  const beganAfter = lease.sinceMs > committedMs + uncertainCommitMs;
  // An acknowledgement needs nothing added: a verifier sends it when nobody may act on its answers any more.
  const holdMs = lease.reportsUses ? 0 : unwatchedHoldMs;
  const heldUntilMs = (beganAfter ? lease.previousEndMs : surelyEndedMs(lease, leaseMs)) + holdMs;
  const provenMs = beganAfter ? Number.NEGATIVE_INFINITY : lease.provenEndMs + holdMs;
  const isProven = provenMs <= read.monotonicMs;
  if (isProven && provenMs <= sinceMs && heldUntilMs <= committedMs) return undefined;
  const acknowledgement = revocation.acknowledgements.get(instance);
  const base = { instance, name, clockOffsetMs: acknowledgement?.clockOffsetMs ?? lease.clockOffsetMs };
  if (acknowledgement) return { ...base, acknowledgedAtMs: acknowledgement.receivedAtMs };
  const endMs = Math.ceil(Math.max(heldUntilMs, provenMs > sinceMs ? committedMs + provenMs - sinceMs : 0));
  return isProven && heldUntilMs <= read.wallMs ? { ...base, leaseEndedAtMs: endMs } : base;
};

/**
 * The proof as far as it goes at `read`. `leases` must have been read, linearizably, after the commit: a lease inserted later
 * answers nothing before it has applied a mark that covers the revocation (rule 5 of the watch protocol).
 */
export const proofOf = (leases: Iterable<SeenLease>, revocation: Committed, read: Reading, leaseMs: number): Proof => {
  const instances: InstanceFact[] = [];
  let effectiveAtMs: number | undefined = revocation.committedMs;
  for (const lease of leases) {
    const fact = factOf(lease, revocation, read, leaseMs);
    if (!fact) continue;
    instances.push(fact);
    const boundMs = fact.acknowledgedAtMs ?? fact.leaseEndedAtMs;
    effectiveAtMs = boundMs === undefined || effectiveAtMs === undefined ? undefined : Math.max(effectiveAtMs, boundMs);
  }
  return { instances, effectiveAtMs };
};
