import { create } from "@bufbuild/protobuf";
import { Delivery, EvidenceMode, type Grant, GrantSchema } from "@curfew/contracts/gen/curfew/events/v1/common_pb.ts";
import { coversPattern, resourcePatternProblem } from "@curfew/token-format/grant.ts";
import {
  maxListItems,
  namePattern,
  type PolicyProblem,
  type PolicyRule,
  scopePattern,
  ttlCapMs,
} from "./policy-document.ts";

/** A policy in force. */
export interface Policy {
  readonly name: string;
  readonly version: number;
  readonly rules: readonly PolicyRule[];
}

/** Who asks for what. */
export interface GrantRequest {
  /** `workload/billing`: from the certificate. */
  readonly subject: string;
  /** Well-formed: `grantProblems` found nothing. An absent ttl asks for the rule's cap. */
  readonly grant: Grant;
  /** UNSPECIFIED asks for sealed. */
  readonly delivery: Delivery;
  /** Thumbprint of the certificate that the grant may be bound to: the caller's own. */
  readonly ownThumbprint: string;
}

export interface Allowed {
  readonly allowed: true;
  readonly policy: string;
  readonly version: number;
  readonly rule: string;
  /** What is granted, with everything filled in. */
  readonly grant: Grant;
  readonly ttlMs: number;
  readonly delivery: Delivery;
  readonly lineageMaxMs: number;
  readonly overlapMaxMs: number;
}

export interface Refused {
  readonly allowed: false;
  /** The rule that came closest; all three empty where no rule names the subject. */
  readonly policy: string;
  readonly version: number;
  readonly rule: string;
  /** Everything that this rule does not allow. */
  readonly why: readonly string[];
}

const thumbprintForm = /^[A-Za-z0-9_-]{43}$/;
const minTtlMs = 1_000;

export const msOfDuration = ({ seconds, nanos }: { readonly seconds: bigint; readonly nanos: number }): number =>
  Number(seconds) * 1_000 + Math.floor(nanos / 1_000_000);

export const durationOfMs = (ms: number) => ({
  seconds: BigInt(Math.floor(ms / 1_000)),
  nanos: (ms % 1_000) * 1_000_000,
});

/** What is wrong with the form of a grant that is asked for, before any rule is consulted. */
export const grantProblems = (grant: Grant): PolicyProblem[] => {
  const problems: PolicyProblem[] = [];
  const list = (
    field: string,
    items: readonly string[],
    least: number,
    problemOf: (item: string) => string | undefined,
  ) => {
    if (items.length < least || items.length > maxListItems)
      problems.push({ field: `grant.${field}`, description: `${least} to ${maxListItems} entries are needed` });
    else if (new Set(items).size < items.length)
      problems.push({ field: `grant.${field}`, description: "an entry stands twice" });
    for (const [i, item] of items.slice(0, maxListItems).entries()) {
      const problem = problemOf(item);
      if (problem) problems.push({ field: `grant.${field}[${i}]`, description: problem });
    }
  };
  const name = (item: string) =>
    namePattern.test(item) ? undefined : "must be lower-case letters, digits and hyphens";
  list("scopes", grant.scopes, 1, (item) => (scopePattern.test(item) ? undefined : "must be resource:verb"));
  list("resources", grant.resources, 1, resourcePatternProblem);
  list("audiences", grant.audiences, 1, name);
  list("purposes", grant.purposes, 1, name);
  list("data_categories", grant.dataCategories, 0, name);
  const { ttl, certificateThumbprint: thumbprint } = grant;
  if (ttl && !(msOfDuration(ttl) >= minTtlMs && msOfDuration(ttl) <= ttlCapMs && ttl.nanos >= 0 && ttl.nanos < 1e9))
    problems.push({ field: "grant.ttl", description: "must be from 1 second to 24 hours" });
  if (thumbprint !== "" && !thumbprintForm.test(thumbprint))
    problems.push({ field: "grant.certificate_thumbprint", description: "must be a SHA-256, base64url, or empty" });
  const modes: readonly number[] = Object.values(EvidenceMode);
  if (!modes.includes(grant.evidenceMode))
    problems.push({ field: "grant.evidence_mode", description: "must be a known mode" });
  return problems;
};

const matchesSubject = (pattern: string, subject: string): boolean =>
  pattern === subject || (pattern.endsWith("/*") && subject.startsWith(pattern.slice(0, -1)));

const missing = (what: string, asked: readonly string[], covered: (item: string) => boolean): string[] =>
  asked.filter((item) => !covered(item)).map((item) => `${what} ${item} is not allowed`);

const seconds = (ms: number): string => `${ms / 1_000} s`;

/** Everything that a rule has against the request; none: it allows it. */
const objections = (rule: PolicyRule, { grant, delivery, ownThumbprint }: GrantRequest): string[] => {
  const found = [
    ...missing("scope", grant.scopes, (item) => rule.scopes.includes(item)),
    ...missing("resource", grant.resources, (item) => rule.resources.some((have) => coversPattern(have, item))),
    ...missing("audience", grant.audiences, (item) => rule.audiences.includes(item)),
    ...missing("purpose", grant.purposes, (item) => rule.purposes.includes(item)),
    ...missing("data category", grant.dataCategories, (item) => rule.dataCategories.includes(item)),
  ];
  const thumbprint = grant.certificateThumbprint;
  if (thumbprint !== "" && thumbprint !== ownThumbprint)
    found.push("a grant can only be bound to the caller's own certificate");
  if (rule.binding === "certificate" && ownThumbprint === "") found.push("the grant must be bound to a certificate");
  if (grant.ttl && msOfDuration(grant.ttl) > rule.ttlMaxMs) found.push(`ttl is over ${seconds(rule.ttlMaxMs)}`);
  if (!rule.delivery.includes(delivery === Delivery.UNSPECIFIED ? Delivery.SEALED : delivery))
    found.push(`delivery ${delivery === Delivery.DIRECT ? "direct" : "sealed"} is not allowed`);
  if (grant.evidenceMode === EvidenceMode.BATCHED && rule.evidence !== EvidenceMode.BATCHED)
    found.push("evidence batched is not allowed");
  return found;
};

const granted = (policy: Policy, rule: PolicyRule, request: GrantRequest): Allowed => {
  const { grant, delivery, ownThumbprint } = request;
  const ttlMs = grant.ttl ? msOfDuration(grant.ttl) : rule.ttlMaxMs;
  return {
    allowed: true,
    policy: policy.name,
    version: policy.version,
    rule: rule.name,
    grant: create(GrantSchema, {
      scopes: grant.scopes,
      resources: grant.resources,
      audiences: grant.audiences,
      purposes: grant.purposes,
      dataCategories: grant.dataCategories,
      certificateThumbprint: rule.binding === "certificate" ? ownThumbprint : grant.certificateThumbprint,
      ttl: durationOfMs(ttlMs),
      evidenceMode: grant.evidenceMode === EvidenceMode.UNSPECIFIED ? rule.evidence : grant.evidenceMode,
    }),
    ttlMs,
    delivery: delivery === Delivery.UNSPECIFIED ? Delivery.SEALED : delivery,
    lineageMaxMs: rule.lineageMaxMs,
    overlapMaxMs: rule.overlapMaxMs,
  };
};

/** The first rule that allows it (policies by name, rules in their order), or the rule that has the fewest objections. */
export const evaluate = (policies: readonly Policy[], request: GrantRequest): Allowed | Refused => {
  let closest: Refused | undefined;
  for (const policy of policies.toSorted((a, b) => (a.name < b.name ? -1 : 1))) {
    for (const rule of policy.rules) {
      if (!rule.subjects.some((pattern) => matchesSubject(pattern, request.subject))) continue;
      const why = objections(rule, request);
      if (why.length === 0) return granted(policy, rule, request);
      if (!closest || why.length < closest.why.length)
        closest = { allowed: false, policy: policy.name, version: policy.version, rule: rule.name, why };
    }
  }
  const nobody = policies.length === 0 ? "no policy is in force" : `no rule of any policy names ${request.subject}`;
  return closest ?? { allowed: false, policy: "", version: 0, rule: "", why: [nobody] };
};
