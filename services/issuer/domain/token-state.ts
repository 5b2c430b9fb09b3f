import { create } from "@bufbuild/protobuf";
import { timestampMs } from "@bufbuild/protobuf/wkt";
import { Delivery, type Digest, type Grant, GrantSchema } from "@curfew/contracts/gen/curfew/events/v1/common_pb.ts";
import type {
  Generation,
  SecretCollected,
  SecretUncollected,
  TokenExpired,
  TokenIssued,
  TokenRotated,
} from "@curfew/contracts/gen/curfew/events/v1/tokens_pb.ts";
import { remember, type SeenRequest } from "./requests.ts";

/** What is known of a token from its events, and what happens to it next by the clock. */

export type TokenEvent = TokenIssued | TokenRotated | SecretCollected | SecretUncollected | TokenExpired;

/** The newest generation. */
export interface CurrentGeneration {
  readonly number: number;
  readonly digest: Digest | undefined;
  readonly notBeforeMs: number;
  readonly expiresMs: number;
  readonly delivery: Delivery;
  /** Where its secret is: shown in the reply; sealed and waiting; waiting still, and reported; with its holder. */
  readonly secret: "direct" | "waiting" | "uncollected" | "collected";
  /** Number of the commit that made it, beside whose event a sealed secret waits. */
  readonly version: number;
}

interface TokenFacts {
  readonly tokenId: string;
  /** SPIFFE ID. */
  readonly subject: string;
  readonly grant: Grant;
  readonly issuedMs: number;
  readonly lineageExpiresMs: number;
  readonly policy: string;
  readonly policyVersion: number;
  readonly generation: CurrentGeneration;
  readonly requests: readonly SeenRequest[];
  /** Commits in the stream: each holds one event. */
  readonly version: number;
}

export type IssuedToken = TokenFacts & { readonly status: "issued" };
export type ExpiredToken = TokenFacts & { readonly status: "expired" };
export type TokenState = { readonly status: "none" } | IssuedToken | ExpiredToken;

const msOf = (at: Generation["expiresAt"]): number => (at ? timestampMs(at) : 0);

const generationOf = (generation: Generation | undefined, version: number): CurrentGeneration => {
  if (!generation) throw new Error("a token event without its generation");
  return {
    number: generation.number,
    digest: generation.digest,
    notBeforeMs: msOf(generation.notBefore),
    expiresMs: msOf(generation.expiresAt),
    delivery: generation.delivery,
    secret: generation.delivery === Delivery.SEALED ? "waiting" : "direct",
    version,
  };
};

const issued = (event: TokenIssued): IssuedToken => {
  const generation = generationOf(event.generation, 1);
  return {
    status: "issued",
    tokenId: event.tokenId,
    subject: event.subject,
    grant: event.grant ?? create(GrantSchema),
    issuedMs: generation.notBeforeMs,
    lineageExpiresMs: msOf(event.lineageExpiresAt),
    policy: event.policy,
    policyVersion: event.policyVersion,
    generation,
    requests: remember([], event, 1),
    version: 1,
  };
};

export const evolve = (state: TokenState, event: TokenEvent): TokenState => {
  if (event.$typeName === "curfew.events.v1.TokenIssued") return issued(event);
  if (state.status === "none") throw new Error(`${event.$typeName} of a token that was not issued`);
  const version = state.version + 1;
  const { generation } = state;
  switch (event.$typeName) {
    case "curfew.events.v1.TokenRotated":
      return {
        ...state,
        version,
        policy: event.policy,
        policyVersion: event.policyVersion,
        generation: generationOf(event.generation, version),
        requests: remember(state.requests, event, version),
      };
    case "curfew.events.v1.SecretCollected":
      return { ...state, version, generation: { ...generation, secret: "collected" } };
    case "curfew.events.v1.SecretUncollected":
      return { ...state, version, generation: { ...generation, secret: "uncollected" } };
    case "curfew.events.v1.TokenExpired":
      return { ...state, version, status: "expired" };
  }
};

const partOfLife = ({ notBeforeMs, expiresMs }: CurrentGeneration, part: number): number =>
  notBeforeMs + Math.floor((expiresMs - notBeforeMs) * part);

/** When the issuer rotates it by itself, if it was sealed and collected: at two thirds of its life. */
export const rotatesAtMs = (generation: CurrentGeneration): number => partOfLife(generation, 2 / 3);

export const reportedAtMs = (generation: CurrentGeneration): number => partOfLife(generation, 0.9);

/** Only the collected ones: rotating what nobody fetches would keep an abandoned token alive. */
export const rotatesByItself = ({ generation, lineageExpiresMs }: IssuedToken): boolean =>
  generation.secret === "collected" && generation.expiresMs < lineageExpiresMs;

/** What happens to a token next if nobody does anything. */
export const nextByTime = (
  token: IssuedToken,
): { readonly what: "rotate" | "report" | "expire"; readonly atMs: number } => {
  const { generation } = token;
  if (rotatesByItself(token)) return { what: "rotate", atMs: rotatesAtMs(generation) };
  if (generation.secret === "waiting") return { what: "report", atMs: reportedAtMs(generation) };
  return { what: "expire", atMs: generation.expiresMs };
};
