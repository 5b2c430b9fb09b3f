import { type Reason, ReasonSchema } from "@curfew/contracts/gen/curfew/events/v1/uses_pb.ts";

type VerifierReason = Exclude<keyof typeof Reason, "UNSPECIFIED" | "OK">;

/** Why an access was denied: the verifier's closed set, and what an SDK can run into by itself. */
export type DenialReason =
  | VerifierReason
  /** No verifier answered in time, and the cache may not be trusted. */
  | "VERIFIER_UNREACHABLE"
  /** The verifier refuses the question itself: see the message. */
  | "QUESTION_REFUSED"
  /** Too many uses wait to be reported: no evidence, no access. */
  | "EVIDENCE_BACKLOG"
  /** Too many questions to the verifier are under way. */
  | "OVERLOADED"
  /** The local verifier is closed. */
  | "CLOSED";

/** The access was not allowed and has not begun. */
export class Denied extends Error {
  override name = "Denied";
  readonly reason: DenialReason;
  /** Empty when no token was recognised. */
  readonly tokenId: string;
  constructor(reason: DenialReason, tokenId = "", why = "", options?: ErrorOptions) {
    super(why === "" ? `access denied: ${reason}` : `access denied: ${reason}: ${why}`, options);
    this.reason = reason;
    this.tokenId = tokenId;
  }
}

/** The name of a verifier's reason. One that this SDK is too old to know counts as one that cannot be relied on. */
export const denialReason = (reason: Reason): DenialReason => {
  const name = ReasonSchema.value[reason]?.localName;
  return name === undefined || name === "UNSPECIFIED" || name === "OK" ? "STALE_VERIFIER" : (name as DenialReason);
};
