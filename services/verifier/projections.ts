import assert from "node:assert/strict";
import { type Message, toBinary } from "@bufbuild/protobuf";
import { timestampMs } from "@bufbuild/protobuf/wkt";
import { type Grant, GrantSchema } from "@curfew/contracts/gen/curfew/events/v1/common_pb.ts";
import type { TokenRevoked } from "@curfew/contracts/gen/curfew/events/v1/revocations_pb.ts";
import type {
  Generation as GenerationFact,
  TokenExpired,
  TokenIssued,
  TokenRotated,
} from "@curfew/contracts/gen/curfew/events/v1/tokens_pb.ts";

/**
 * What a verifier knows, folded from the log by a join: the same events in any order, any number of times, end in the same verdicts.
 * Times are ms since the epoch and come from events or the caller.
 */
export interface Token {
  readonly id: string;
  /** SPIFFE ID of the holder; empty until it was read. */
  subject: Shared<string> | undefined;
  /** Absent until TokenIssued was read: such a token is not recognised. */
  grant: Shared<Grant> | undefined;
  /** Tokens whose revocation ends this one. */
  ancestors: readonly string[];
  /** No generation outlives this. */
  lineageExpiresAtMs: number;
  /** In falling order of their numbers. */
  newest: Generation | undefined;
  /** What rotations ended. */
  endings: readonly Ending[];
}

/** One secret of a token. */
export interface Generation {
  readonly token: Token;
  readonly number: number;
  readonly digest: string;
  /** Where rules disagree the later one binds. */
  notBeforeMs: number;
  /** Where rules disagree the earlier one binds. */
  expiresAtMs: number;
  older: Generation | undefined;
}

/** Generations up to `upTo` are superseded from `atMs` on. */
export interface Ending {
  readonly upTo: number;
  readonly atMs: number;
}

/** A value that many tokens have alike, kept once. */
export interface Shared<T> {
  readonly key: string;
  readonly value: T;
  users: number;
}

/** Generations by digest (32 bytes as latin1). A map of JavaScript objects now; a typed table can take its place. */
export interface GenerationTable {
  readonly size: number;
  get(digest: string): Generation | undefined;
  set(digest: string, generation: Generation): unknown;
  delete(digest: string): unknown;
}

const dayMs = 86_400_000;
/** The strict default of a policy's absolute lifetime. Where a token was issued for longer, that counts. */
const shortestTombstoneMs = 30 * dayMs;
/** A child may be issued from a parent that issuer does not know to be revoked yet. */
const tombstoneMarginMs = dayMs;
/** A dead secret that is presented is still named after this long… */
export const deadKeptMs = dayMs;
/** …if it is among the last dead ones of its token, so that frequent rotation fills no memory. */
const deadKept = 2;
const noAncestors: readonly string[] = [];
const noEndings: readonly Ending[] = [];

class Pool<T> {
  readonly #shared = new Map<string, Shared<T>>();

  take(key: string, value: T): Shared<T> {
    let shared = this.#shared.get(key);
    if (!shared) {
      shared = { key, value, users: 0 };
      this.#shared.set(key, shared);
    }
    shared.users += 1;
    return shared;
  }

  give(shared: Shared<T> | undefined): void {
    if (!shared) return;
    shared.users -= 1;
    if (shared.users === 0) this.#shared.delete(shared.key);
  }
}

const latin1 = (bytes: Uint8Array): string =>
  Buffer.from(bytes.buffer, bytes.byteOffset, bytes.byteLength).toString("latin1");

/** The key of a digest in the table. */
export const digestKey = latin1;

export class Fold {
  readonly #generations: GenerationTable;
  readonly #tokens = new Map<string, Token>();
  /** Tombstones: revoked ids, heard of before or not, and when at the latest they were revoked. */
  readonly #revoked = new Map<string, number>();
  readonly #grants = new Pool<Grant>();
  readonly #subjects = new Pool<string>();
  #longestLineageMs = shortestTombstoneMs;
  #tokenCursor: Iterator<Token> | undefined;
  #tombstoneCursor: Iterator<[string, number]> | undefined;

  constructor(generations: GenerationTable = new Map<string, Generation>()) {
    this.#generations = generations;
  }

  /** Applies an event of the tokens or revocations topic; those that end or begin nothing change nothing. */
  apply(event: Message): void {
    switch (event.$typeName) {
      case "curfew.events.v1.TokenIssued":
        this.#issue(event as TokenIssued);
        break;
      case "curfew.events.v1.TokenRotated":
        this.#rotate(event as TokenRotated);
        break;
      case "curfew.events.v1.TokenExpired":
        this.#outlive(event as TokenExpired);
        break;
      case "curfew.events.v1.TokenRevoked":
        this.revoke((event as TokenRevoked).tokenId, ms((event as TokenRevoked).revokedAt));
        break;
    }
  }

  /** Ends a token, known or not, with all its generations and descendants, for good. `atMs` only says how long to remember it. */
  revoke(tokenId: string, atMs: number): void {
    const before = this.#revoked.get(tokenId);
    if (before === undefined || before < atMs) this.#revoked.set(this.#tokens.get(tokenId)?.id ?? tokenId, atMs);
  }

  /** Supersedes the generations up to `upTo` from `atMs` on. */
  supersede(tokenId: string, upTo: number, atMs: number): void {
    const token = this.#token(tokenId);
    const known = token.endings.find((ending) => ending.upTo >= upTo && ending.atMs <= atMs);
    if (known) return;
    // Those that this one covers say nothing any more.
    const others = token.endings.filter((ending) => !(ending.upTo <= upTo && ending.atMs >= atMs));
    token.endings = [...others, { upTo, atMs }];
  }

  /** The generation whose secret has this digest, dead or alive; undefined when no token of ours is known to have it. */
  find(digest: string): Generation | undefined {
    const generation = this.#generations.get(digest);
    return generation?.token.grant ? generation : undefined;
  }

  /** A token that was issued. */
  token(tokenId: string): Token | undefined {
    const token = this.#tokens.get(tokenId);
    return token?.grant && token;
  }

  isRevoked(token: Token): boolean {
    return this.#revoked.has(token.id) || token.ancestors.some((id) => this.#revoked.has(id));
  }

  /** Live generations, dead ones that are still named, and tombstones. */
  size(): { readonly generations: number; readonly tokens: number; readonly tombstones: number } {
    return { generations: this.#generations.size, tokens: this.#tokens.size, tombstones: this.#revoked.size };
  }

  /** Looks at the next `visits` tokens and tombstones, in turn, and forgets what can decide nothing any more. */
  prune(nowMs: number, visits: number): void {
    for (let i = 0; i < visits; i += 1) {
      this.#tokenCursor ??= this.#tokens.values();
      const next = this.#tokenCursor.next();
      if (next.done) this.#tokenCursor = undefined;
      else this.#pruneToken(next.value, nowMs);
      this.#tombstoneCursor ??= this.#revoked.entries();
      const stone = this.#tombstoneCursor.next();
      if (stone.done) this.#tombstoneCursor = undefined;
      else if (stone.value[1] + this.#longestLineageMs + tombstoneMarginMs < nowMs)
        this.#revoked.delete(stone.value[0]);
      if (next.done && stone.done) return;
    }
  }

  #issue(event: TokenIssued): void {
    const { grant, generation } = event;
    assert(grant && generation, "TokenIssued has a grant and a generation");
    const token = this.#token(event.tokenId);
    if (!token.grant) {
      token.grant = this.#grants.take(latin1(toBinary(GrantSchema, grant)), grant);
      token.subject ??= this.#subjects.take(event.subject, event.subject);
      if (event.ancestors.length > 0) token.ancestors = event.ancestors.map((id) => this.#tokens.get(id)?.id ?? id);
    }
    if (event.lineageExpiresAt) {
      const lineageExpiresAtMs = ms(event.lineageExpiresAt);
      token.lineageExpiresAtMs = Math.min(token.lineageExpiresAtMs, lineageExpiresAtMs);
      this.#longestLineageMs = Math.max(this.#longestLineageMs, lineageExpiresAtMs - ms(generation.notBefore));
    }
    this.#add(token, generation);
  }

  #rotate(event: TokenRotated): void {
    const { generation } = event;
    assert(generation, "TokenRotated has a generation");
    this.#add(this.#token(event.tokenId), generation);
    this.supersede(event.tokenId, generation.number - 1, ms(event.previousEndsAt));
  }

  /** The last generation has ended: none comes after, so the token need not be kept for its rotations. */
  #outlive(event: TokenExpired): void {
    const token = this.#token(event.tokenId);
    token.lineageExpiresAtMs = Math.min(token.lineageExpiresAtMs, ms(event.expiredAt));
  }

  #token(id: string): Token {
    let token = this.#tokens.get(id);
    if (!token) {
      token = {
        id,
        subject: undefined,
        grant: undefined,
        ancestors: noAncestors,
        lineageExpiresAtMs: Number.POSITIVE_INFINITY,
        newest: undefined,
        endings: noEndings,
      };
      this.#tokens.set(id, token);
    }
    return token;
  }

  #add(token: Token, fact: GenerationFact): void {
    const { number } = fact;
    assert(fact.digest && number > 0, "a generation has a digest and a number");
    const notBeforeMs = ms(fact.notBefore);
    const expiresAtMs = ms(fact.expiresAt);
    let newer: Generation | undefined;
    let at = token.newest;
    while (at && at.number > number) {
      newer = at;
      at = at.older;
    }
    if (at?.number === number) {
      at.notBeforeMs = Math.max(at.notBeforeMs, notBeforeMs);
      at.expiresAtMs = Math.min(at.expiresAtMs, expiresAtMs);
      return;
    }
    const added = { token, number, digest: latin1(fact.digest.value), notBeforeMs, expiresAtMs, older: at };
    if (newer) newer.older = added;
    else token.newest = added;
    this.#generations.set(added.digest, added);
  }

  #pruneToken(token: Token, nowMs: number): void {
    const longAgoMs = nowMs - deadKeptMs;
    const keepAll = this.#revoked.has(token.id);
    let dead = 0;
    let newer: Generation | undefined;
    for (let at = token.newest; at; at = at.older) {
      const endMs = endOf(at);
      if (endMs <= nowMs) dead += 1;
      if (endMs <= nowMs && !keepAll && (endMs < longAgoMs || dead > deadKept)) {
        if (newer) newer.older = at.older;
        else token.newest = at.older;
        this.#generations.delete(at.digest);
      } else newer = at;
    }
    token.endings = withoutPast(token.endings, longAgoMs);
    const over = token.grant
      ? token.lineageExpiresAtMs < longAgoMs
      : token.endings.every(({ atMs }) => atMs + this.#longestLineageMs < longAgoMs);
    if (token.newest || !over || keepAll) return;
    this.#tokens.delete(token.id);
    this.#grants.give(token.grant);
    this.#subjects.give(token.subject);
  }
}

/** Endings that are long over become the one that covers them all, so that a lineage of many rotations stays small. */
const withoutPast = (endings: readonly Ending[], longAgoMs: number): readonly Ending[] => {
  const past = endings.filter(({ atMs }) => atMs < longAgoMs);
  if (past.length < 2) return endings;
  const upTo = Math.max(...past.map((ending) => ending.upTo));
  const atMs = Math.max(...past.map((ending) => ending.atMs));
  return [...endings.filter((ending) => ending.atMs >= longAgoMs), { upTo, atMs }];
};

/** From when on it is superseded; Infinity: not by any rotation read. */
export const supersededAtMs = ({ token, number }: Generation): number =>
  token.endings.reduce((ms, { upTo, atMs }) => (upTo >= number && atMs < ms ? atMs : ms), Number.POSITIVE_INFINITY);

/** From when on it is expired. */
export const expiryMs = ({ token, expiresAtMs }: Generation): number => Math.min(expiresAtMs, token.lineageExpiresAtMs);

/** When it stops being good if nothing is revoked. */
export const endOf = (generation: Generation): number => Math.min(expiryMs(generation), supersededAtMs(generation));

const ms = (timestamp: Parameters<typeof timestampMs>[0] | undefined): number => {
  assert(timestamp, "the event has its time");
  return timestampMs(timestamp);
};
