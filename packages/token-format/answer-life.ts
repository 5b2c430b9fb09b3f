/**
 * How long an allowed answer of a verifier may be used by somebody who does not watch revocations himself at that moment, from before
 * he asked. What the whole suite relies on: an access under such an answer begins before this has passed since the verifier gave it,
 * so a verifier acknowledges a revocation only when its last answer for that token is as old as `unwatchedHoldMs`, and one that
 * vanished may have somebody act on its answers for as long after its lease. Who watches needs no bound: revocation waits for him.
 */
export const unwatchedAnswerMs = 250;
/** The same on somebody else's clock, which may run slower by 1 %, with the coarseness of timers. */
export const unwatchedHoldMs = Math.ceil(unwatchedAnswerMs * 1.01) + 2;
