import { create } from "@bufbuild/protobuf";
import { timestampFromMs } from "@bufbuild/protobuf/wkt";
import { Delivery, type Digest, type Grant } from "@curfew/contracts/gen/curfew/events/v1/common_pb.ts";
import {
  type Generation,
  GenerationSchema,
  type SecretCollected,
  SecretCollectedSchema,
  type SecretUncollected,
  SecretUncollectedSchema,
  type TokenExpired,
  TokenExpiredSchema,
  type TokenIssued,
  TokenIssuedSchema,
  type TokenRotated,
  TokenRotatedSchema,
} from "@curfew/contracts/gen/curfew/events/v1/tokens_pb.ts";
import type { Decider } from "@curfew/decider/decider.ts";
import { earlier, type RequestRef, reject } from "./domain/requests.ts";
import {
  evolve,
  reportedAtMs,
  rotatesAtMs,
  rotatesByItself,
  type TokenEvent,
  type TokenState,
} from "./domain/token-state.ts";
import { type Allowed, evaluate, type GrantRequest, type Policy } from "./policy.ts";

/** The life of a token: issued, rotated from generation to generation, expired. Revocation is another service's to decide. */

export interface NewSecret {
  readonly digest: Digest;
  /** SHA-256 of the subject's registered key; undefined: it has none. */
  readonly keySha256: Uint8Array | undefined;
}

export interface IssueToken {
  readonly type: "IssueToken";
  readonly tokenId: string;
  /** SPIFFE ID of the caller, who is the subject. */
  readonly subject: string;
  readonly grant: Grant;
  readonly delivery: Delivery;
  readonly ownThumbprint: string;
  readonly policies: readonly Policy[];
  readonly secret: NewSecret;
  readonly request: RequestRef;
  readonly nowMs: number;
}

export interface RotateToken {
  readonly type: "RotateToken";
  /** How long the generation before stays good; undefined: as long as the rule allows. */
  readonly overlapMs: number | undefined;
  /** UNSPECIFIED: as before. */
  readonly delivery: Delivery;
  readonly policies: readonly Policy[];
  readonly secret: NewSecret;
  /** Whether a revocation has been read on the log. */
  readonly revoked: boolean;
  /** SPIFFE ID. */
  readonly actor: string;
  /** Undefined: by the clock, and only when it is time for it. */
  readonly request: RequestRef | undefined;
  readonly nowMs: number;
}

export interface ConfirmSecret {
  readonly type: "ConfirmSecret";
  readonly generation: number;
}

export interface ReportUncollected {
  readonly type: "ReportUncollected";
  readonly nowMs: number;
}

export interface ExpireToken {
  readonly type: "ExpireToken";
  readonly lastUsedMs: number | undefined;
  readonly nowMs: number;
}

export type TokenCommand = IssueToken | RotateToken | ConfirmSecret | ReportUncollected | ExpireToken;

export const tokenStream = (tokenId: string) => `tokens/${tokenId}`;

/** `workload/billing` of `spiffe://…/workload/billing`. */
const subjectPath = (spiffeId: string): string => spiffeId.split("/").slice(3).join("/");

const allow = (policies: readonly Policy[], request: GrantRequest): Allowed => {
  const verdict = evaluate(policies, request);
  if (verdict.allowed) return verdict;
  return refuse(verdict, verdict.why);
};

const refuse = (
  rule: { readonly policy: string; readonly version: number; readonly rule: string },
  why: readonly string[],
) => {
  const named = rule.rule === "" ? "" : `rule ${rule.rule} of policy ${rule.policy} (version ${rule.version}): `;
  const details = {
    policy: rule.policy,
    version: String(rule.version),
    rule: rule.rule,
    why: why.join("; ").slice(0, 1_000),
  };
  return reject("POLICY_REFUSED", `${named}${why.join("; ")}`, details);
};

const newGeneration = (
  number: number,
  { ttlMs, delivery }: Allowed,
  { digest, keySha256 }: NewSecret,
  nowMs: number,
  lineageExpiresMs: number,
): Generation => {
  const sealed = delivery === Delivery.SEALED;
  if (sealed && !keySha256) reject("NO_KEY_REGISTERED", "a sealed secret needs a key: call RegisterKey first");
  return create(GenerationSchema, {
    number,
    digest,
    notBefore: timestampFromMs(nowMs),
    expiresAt: timestampFromMs(Math.min(nowMs + ttlMs, lineageExpiresMs)),
    delivery,
    ...(sealed && keySha256 && { keySha256 }),
  });
};

const issue = (state: TokenState, command: IssueToken): TokenIssued[] => {
  if (state.status !== "none") {
    // The id is derived from the request's key, so this is the same request again, or another under the same id.
    if (!earlier(state.requests, command.request)) reject("REQUEST_ID_REUSED", "this token exists already");
    return [];
  }
  const { tokenId, subject, grant, delivery, ownThumbprint, nowMs, request } = command;
  const verdict = allow(command.policies, { subject: subjectPath(subject), grant, delivery, ownThumbprint });
  const lineageExpiresMs = nowMs + verdict.lineageMaxMs;
  return [
    create(TokenIssuedSchema, {
      tokenId,
      subject,
      grant: verdict.grant,
      policy: verdict.policy,
      policyVersion: verdict.version,
      policyRule: verdict.rule,
      generation: newGeneration(1, verdict, command.secret, nowMs, lineageExpiresMs),
      lineageExpiresAt: timestampFromMs(lineageExpiresMs),
      issuedBy: { spiffeId: subject },
      requestKey: request.keyHex,
      requestHash: request.hash,
    }),
  ];
};

const rotate = (state: TokenState, command: RotateToken): TokenRotated[] => {
  if (state.status === "none") return reject("TOKEN_NOT_FOUND", "there is no such token");
  const { request, nowMs, policies, overlapMs } = command;
  if (request && earlier(state.requests, request)) return [];
  const { generation, subject, grant } = state;
  if (!request && (state.status === "expired" || !rotatesByItself(state) || nowMs < rotatesAtMs(generation))) return [];
  if (command.revoked) reject("TOKEN_REVOKED", "the token was revoked: it is not rotated, create another");
  if (state.status === "expired" || nowMs >= generation.expiresMs)
    reject("TOKEN_EXPIRED", "the token has expired: it is not rotated, create another");
  // The grounds of the first time, judged by the policy of today.
  const verdict = allow(policies, {
    subject: subjectPath(subject),
    grant,
    delivery: command.delivery === Delivery.UNSPECIFIED ? generation.delivery : command.delivery,
    ownThumbprint: grant.certificateThumbprint,
  });
  const lineageExpiresMs = Math.min(state.lineageExpiresMs, state.issuedMs + verdict.lineageMaxMs);
  if (nowMs >= lineageExpiresMs)
    reject(
      "LINEAGE_ENDED",
      `rule ${verdict.rule} of policy ${verdict.policy} allows this token no longer life: create another`,
    );
  if (overlapMs !== undefined && overlapMs > verdict.overlapMaxMs)
    refuse(verdict, [`overlap is over ${verdict.overlapMaxMs / 1_000} s`]);
  return [
    create(TokenRotatedSchema, {
      tokenId: state.tokenId,
      subject,
      generation: newGeneration(generation.number + 1, verdict, command.secret, nowMs, lineageExpiresMs),
      previousEndsAt: timestampFromMs(Math.min(nowMs + (overlapMs ?? verdict.overlapMaxMs), generation.expiresMs)),
      policy: verdict.policy,
      policyVersion: verdict.version,
      policyRule: verdict.rule,
      rotatedBy: { spiffeId: command.actor },
      ...(request && { requestKey: request.keyHex, requestHash: request.hash }),
    }),
  ];
};

const confirm = (state: TokenState, { generation: number }: ConfirmSecret): SecretCollected[] => {
  if (state.status === "none") return reject("TOKEN_NOT_FOUND", "there is no such token");
  const { generation, tokenId } = state;
  if (number > generation.number) reject("NO_SUCH_GENERATION", `generation ${number} does not exist`);
  const waits = state.status === "issued" && (generation.secret === "waiting" || generation.secret === "uncollected");
  // A generation before the newest need not be known as collected: it only has its overlap left.
  if (number < generation.number || !waits) return [];
  return [create(SecretCollectedSchema, { tokenId, generation: number })];
};

const reportUncollected = (state: TokenState, { nowMs }: ReportUncollected): SecretUncollected[] => {
  if (state.status !== "issued") return [];
  const { generation, tokenId } = state;
  if (generation.secret !== "waiting" || nowMs < reportedAtMs(generation)) return [];
  const expiresAt = timestampFromMs(generation.expiresMs);
  return [create(SecretUncollectedSchema, { tokenId, generation: generation.number, expiresAt })];
};

const expire = (state: TokenState, { nowMs, lastUsedMs }: ExpireToken): TokenExpired[] => {
  if (state.status !== "issued" || nowMs < state.generation.expiresMs) return [];
  return [
    create(TokenExpiredSchema, {
      tokenId: state.tokenId,
      expiredAt: timestampFromMs(state.generation.expiresMs),
      ...(lastUsedMs !== undefined && { lastUsedAt: timestampFromMs(lastUsedMs) }),
    }),
  ];
};

export const tokenDecider: Decider<TokenState, TokenCommand, TokenEvent> = {
  initial: { status: "none" },
  decide(state, command) {
    switch (command.type) {
      case "IssueToken":
        return issue(state, command);
      case "RotateToken":
        return rotate(state, command);
      case "ConfirmSecret":
        return confirm(state, command);
      case "ReportUncollected":
        return reportUncollected(state, command);
      case "ExpireToken":
        return expire(state, command);
    }
  },
  evolve,
};
