import { Reason } from "@curfew/contracts/gen/curfew/events/v1/uses_pb.ts";

/**
 * What a grant lets through: the one check that the verifier and the SDK share, and the resource patterns that policy shares with
 * them. A pattern is segments joined by "/": a name stands for itself, "*" for exactly one segment, a last "**" for one or more.
 */

/** The fields of `curfew.events.v1.Grant` that are checked at a use. */
export interface GrantFields {
  readonly scopes: readonly string[];
  readonly resources: readonly string[];
  readonly audiences: readonly string[];
  readonly purposes: readonly string[];
  readonly dataCategories: readonly string[];
  /** Empty: not bound. */
  readonly certificateThumbprint: string;
}

/** One intended use: the fields of `curfew.verifier.v1.UseRequest`, with the audience that asks. */
export interface IntendedUse {
  readonly scope: string;
  readonly resource: string;
  readonly purpose: string;
  readonly dataCategories: readonly string[];
  /** Name of the resource service, from its certificate. */
  readonly audience: string;
  /** SHA-256 of the presenter's certificate, base64url; empty: none. */
  readonly presenterThumbprint: string;
}

const segmentForm = /^[A-Za-z0-9._~-]+$/;
const maxPatternLength = 256;

/** A server that normalises paths would read these as other resources. */
const isDots = (segment: string): boolean => segment === "." || segment === "..";

/** What is wrong with a resource pattern; undefined: nothing. */
export const resourcePatternProblem = (pattern: string): string | undefined => {
  if (pattern.length > maxPatternLength) return `is longer than ${maxPatternLength} characters`;
  const segments = pattern.split("/");
  for (const [i, segment] of segments.entries()) {
    if (segment === "*") continue;
    if (segment === "**") {
      if (i !== segments.length - 1) return 'has "**" before its last segment';
    } else if (segment.includes("*")) return 'has "*" in a segment of other characters';
    else if (isDots(segment) || !segmentForm.test(segment))
      return 'has a segment that is not "*", "**" or letters, digits, ".", "_", "~", "-"';
  }
  return undefined;
};

/** Whether a resource, which has no wildcards, is one that the pattern stands for. */
export const matchesResource = (pattern: string, resource: string): boolean => {
  if (pattern === resource) return true;
  if (!pattern.includes("*")) return false;
  const wanted = pattern.split("/");
  const segments = resource.split("/");
  for (const [i, want] of wanted.entries()) {
    if (want === "**") return segments.length > i && segments.slice(i).every((s) => s !== "" && !isDots(s));
    const segment = segments[i];
    if (segment === undefined || (want === "*" ? segment === "" || isDots(segment) : want !== segment)) return false;
  }
  return segments.length === wanted.length;
};

/** Whether everything that `asked` stands for is also what `allowed` stands for; both are patterns. */
export const coversPattern = (allowed: string, asked: string): boolean => {
  const have = allowed.split("/");
  const want = asked.split("/");
  for (const [i, segment] of have.entries()) {
    if (segment === "**") return want.length > i;
    const other = want[i];
    if (other === undefined || other === "**" || (segment !== "*" && segment !== other)) return false;
  }
  return want.length === have.length;
};

/**
 * REASON_OK, or the first thing that the grant does not allow, in the order of the Reason enum. Pure; what concerns the token's life
 * (times, revocation) is the caller's to check before.
 */
export const checkGrant = (grant: GrantFields, use: IntendedUse): Reason => {
  if (!grant.audiences.includes(use.audience)) return Reason.WRONG_AUDIENCE;
  if (!grant.scopes.includes(use.scope)) return Reason.SCOPE_MISSING;
  if (!grant.resources.some((pattern) => matchesResource(pattern, use.resource))) return Reason.RESOURCE_NOT_GRANTED;
  if (!grant.purposes.includes(use.purpose)) return Reason.PURPOSE_NOT_GRANTED;
  if (!use.dataCategories.every((category) => grant.dataCategories.includes(category)))
    return Reason.DATA_CATEGORY_NOT_GRANTED;
  if (grant.certificateThumbprint !== "" && grant.certificateThumbprint !== use.presenterThumbprint)
    return Reason.BINDING_MISMATCH;
  return Reason.OK;
};
