import { timestampMs } from "@bufbuild/protobuf/wkt";
import { EvidenceMode } from "@curfew/contracts/gen/curfew/events/v1/common_pb.ts";
import { Reason, ReasonSchema } from "@curfew/contracts/gen/curfew/events/v1/uses_pb.ts";
import type { CachedUse, CompletedUse } from "@curfew/contracts/gen/curfew/verifier/v1/verifier_pb.ts";
import type { FieldViolation } from "@curfew/rpc/errors.ts";
import { checkGrant } from "@curfew/token-format/grant.ts";
import { deadKeptMs, expiryMs, type Fold, type Generation, type Token } from "./projections.ts";

/**
 * What no honest SDK reports: it answers from its cache only for tokens that a verifier has let through for it and whose grant lets it
 * keep them, by the check we share, while they are valid by its own clock. Only that is refused. That a token was revoked or superseded
 * since says nothing against a use: it happened, maybe just before the SDK heard. Pure.
 */

/** How far an SDK's clock may be from ours; an SDK that finds its own further off answers nothing by itself. */
export const clockToleranceMs = 300_000;
/** Reported later, a use can no longer be held against its token, which may be forgotten. The gap is in the log: see UseReportingGap. */
export const oldestUseMs = deadKeptMs;

const generationOf = (token: Token, number: number): Generation | undefined => {
  let at = token.newest;
  while (at && at.number > number) at = at.older;
  return at?.number === number ? at : undefined;
};

/** Whether the fold knows the token and, unless it is only named, has heard of the generation: forgotten ones are below the newest. */
const isKnown = (fold: Fold, tokenId: string, generation = 0): boolean => {
  const token = fold.token(tokenId);
  return token !== undefined && generation <= (token.newest?.number ?? generation);
};

export const isCachedUseKnown = (fold: Fold, { reason, tokenId, generation }: CachedUse): boolean =>
  reason !== Reason.OK || isKnown(fold, tokenId, generation);

/** When a use id (UUIDv7) was made. */
const madeAtMs = (useId: string): number => Number.parseInt(useId.slice(0, 8) + useId.slice(9, 13), 16);

/** An access may go on after its token was forgotten: then nobody can say that it was not one of its uses. */
export const isCompletedUseKnown = (fold: Fold, { tokenId, useId }: CompletedUse, nowMs: number): boolean =>
  isKnown(fold, tokenId) || madeAtMs(useId) < nowMs - oldestUseMs;

type Problem = FieldViolation;
const problem = (field: string, reason: string, description: string): Problem => ({ field, reason, description });
export const unknownToken = problem("token_id", "TOKEN_UNKNOWN", "must be a token that was issued");

/** What is impossible about a use that was reported by `audience`; its field is relative to the use. Undefined: nothing. */
export const impossibility = (fold: Fold, use: CachedUse, audience: string, nowMs: number): Problem | undefined => {
  const atMs = use.decidedAt ? timestampMs(use.decidedAt) : Number.NaN;
  if (!(atMs <= nowMs + clockToleranceMs && atMs >= nowMs - oldestUseMs))
    return problem("decided_at", "TIME_OUT_OF_RANGE", "must be within the last 24 hours and not in the future");
  if (use.reason !== Reason.OK)
    return use.ended && problem("ended", "NOT_ALLOWED", "must be absent: what was denied was no access");
  const token = fold.token(use.tokenId);
  const grant = token?.grant?.value;
  if (!token || !grant) return unknownToken;
  if (grant.evidenceMode !== EvidenceMode.BATCHED)
    return problem("token_id", "EVIDENCE_BEFORE_USE", "must be a token whose grant lets SDKs decide");
  if (!isKnown(fold, use.tokenId, use.generation))
    return problem("generation", "GENERATION_UNKNOWN", "must be a generation of the token");
  const generation = generationOf(token, use.generation);
  if (generation && atMs < generation.notBeforeMs - clockToleranceMs)
    return problem("decided_at", "NOT_VALID_THEN", "must not be before the generation began");
  if (generation && atMs >= expiryMs(generation) + clockToleranceMs)
    return problem("decided_at", "NOT_VALID_THEN", "must not be after the generation expired");
  const verdict = use.use ? checkGrant(grant, { ...use.use, audience }) : Reason.OK;
  return verdict === Reason.OK
    ? undefined
    : problem(
        "use",
        ReasonSchema.value[verdict]?.localName ?? "NOT_GRANTED",
        "must be what the token's grant allows the caller",
      );
};
