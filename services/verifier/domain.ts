import { Reason } from "@curfew/contracts/gen/curfew/events/v1/uses_pb.ts";
import { checkGrant, type IntendedUse } from "@curfew/token-format/grant.ts";
import { expiryMs, type Fold, type Generation, supersededAtMs } from "./projections.ts";

/** The answer to one use. `generation` is the one presented, wherever it was recognised, allowed or not. */
export interface Decision {
  readonly reason: Reason;
  readonly generation: Generation | undefined;
}

/** Whether a generation is good at `nowMs`: REASON_OK, or why not. A revocation dominates whatever the clock says. */
export const lifeOf = (fold: Fold, generation: Generation, nowMs: number): Reason => {
  if (fold.isRevoked(generation.token)) return Reason.REVOKED;
  if (nowMs >= expiryMs(generation)) return Reason.EXPIRED;
  if (nowMs < generation.notBeforeMs) return Reason.NOT_YET_VALID;
  if (nowMs >= supersededAtMs(generation)) return Reason.SUPERSEDED;
  return Reason.OK;
};

/** Life first, then the grant, both in the order of the Reason enum. `generation`: what the secret was found to be. Pure. */
export const decide = (fold: Fold, generation: Generation | undefined, use: IntendedUse, nowMs: number): Decision => {
  const grant = generation?.token.grant?.value;
  if (!generation || !grant) return { reason: Reason.UNKNOWN, generation: undefined };
  const life = lifeOf(fold, generation, nowMs);
  return { reason: life === Reason.OK ? checkGrant(grant, use) : life, generation };
};

/** Whether reading more of the log could change the answer: only these need a fresh verifier, a denial of what is known is final. */
export const needsFreshness = (reason: Reason): boolean => reason === Reason.OK || reason === Reason.UNKNOWN;
