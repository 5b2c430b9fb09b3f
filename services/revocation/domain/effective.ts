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
};

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

/** When the lease has surely ended on the instance's own clock. */
export const surelyEndedMs = (lease: Pick<Lease, "untilMs" | "goodbye">, leaseMs: number): number =>
  lease.goodbye ? lease.untilMs : lease.untilMs + leaseMs * clockRateError;

/** What this instance owes a revocation committed at `committedMs`; undefined: nothing, it held no lease then. */
const factOf = (
  lease: Lease,
  committedMs: number,
  acknowledgement: Acknowledgement | undefined,
  nowMs: number,
  leaseMs: number,
): InstanceFact | undefined => {
  const { instance, name } = lease;
  const endMs = surelyEndedMs(lease, leaseMs);
  const began = lease.sinceMs > committedMs + uncertainCommitMs ? "after" : "before";
  const heldUntilMs = began === "after" ? lease.previousEndMs : endMs;
  if (heldUntilMs <= committedMs) return undefined;
  const base = { instance, name, clockOffsetMs: acknowledgement?.clockOffsetMs ?? lease.clockOffsetMs };
  if (acknowledgement) return { ...base, acknowledgedAtMs: acknowledgement.receivedAtMs };
  return heldUntilMs <= nowMs ? { ...base, leaseEndedAtMs: heldUntilMs } : base;
};

/**
 * The proof as far as it goes at `nowMs`. `leases` must have been read, linearizably, after the commit: a lease inserted later
 * answers nothing before it has applied a mark that covers the revocation (rule 5 of the watch protocol).
 */
export const proofOf = (
  leases: Iterable<Lease>,
  revocation: { readonly committedMs: number; readonly acknowledgements: ReadonlyMap<string, Acknowledgement> },
  nowMs: number,
  leaseMs: number,
): Proof => {
  const { committedMs, acknowledgements } = revocation;
  const instances: InstanceFact[] = [];
  let effectiveAtMs: number | undefined = committedMs;
  for (const lease of leases) {
    const fact = factOf(lease, committedMs, acknowledgements.get(lease.instance), nowMs, leaseMs);
    if (!fact) continue;
    instances.push(fact);
    const boundMs = fact.acknowledgedAtMs ?? fact.leaseEndedAtMs;
    effectiveAtMs = boundMs === undefined || effectiveAtMs === undefined ? undefined : Math.max(effectiveAtMs, boundMs);
  }
  return { instances, effectiveAtMs };
};
