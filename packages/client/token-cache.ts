import type { EndedToken } from "@curfew/contracts/gen/curfew/revocation/v1/revocation_pb.ts";
import type { CacheableToken } from "@curfew/contracts/gen/curfew/verifier/v1/verifier_pb.ts";
import type { GrantFields } from "@curfew/token-format/grant.ts";
import type { Instant, TopicPosition } from "./freshness.ts";

/**
 * What an SDK remembers of tokens that the verifier has let through, and of tokens that ended. An entry is trusted only where the
 * verifier's reading (as_of) and what the stream of ends has brought overlap: everything on the topics before as_of was known to the
 * verifier, everything since the stream's first mark was pushed. A pushed end has no position, so it is kept until no verifier that
 * may answer can still be without it. Pure: time comes in.
 */

export interface CachedToken {
  readonly tokenId: string;
  readonly generation: number;
  readonly grant: GrantFields;
  /** Its revocation was pushed: it can be refused without a question, for ever. */
  readonly revoked: boolean;
}

interface Entry extends CachedToken {
  readonly key: string;
  readonly ancestors: readonly string[];
  readonly asOf: readonly TopicPosition[];
  readonly notBeforeMs: number;
  /** On the wall clock; a rotation moves it nearer. */
  endsAtMs: number;
  /** On the monotonic clock, so that a wall clock set back lengthens nothing. */
  readonly endsAtMonotonicMs: number;
  /** Which baseline it was found to lie beyond. */
  era: number;
}

/** Ends that were pushed for one token. */
interface Ends {
  revoked: boolean;
  rotations: { readonly upToGeneration: number; readonly endsAtMs: number }[];
  atMonotonicMs: number;
}

/**
 * A verifier answers only within 2 s of a mark, and its answer is used only within 2 s: one that is used so long after an end was
 * pushed knows it. Five times that.
 */
export const rememberEndsMs = 20_000;
const maxEnds = 100_000;
/** Of revoked tokens, so that they are refused at once while everybody asks for them; the verifier knows the others. */
const maxRevoked = 10_000;
/** A new stream begins with what ended in the last 60 s: after a gap of half of that nothing is missing. */
const gaplessMs = 30_000;

const msOf = (t: { readonly seconds: bigint; readonly nanos: number } | undefined, absent: number): number =>
  t ? Number(t.seconds) * 1000 + Math.floor(t.nanos / 1_000_000) : absent;

const isAtLeast = (have: readonly TopicPosition[], want: readonly TopicPosition[]): boolean =>
  want.every(
    // A topic of which nothing was read is not named.
    (w) =>
      w.offset === 0n || have.some((h) => h.topic === w.topic && h.partition === w.partition && h.offset >= w.offset),
  );

export class TokenCache {
  readonly #entries = new Map<string, Entry>();
  /** Entries by the ids that end them: the token's own and its ancestors'. */
  readonly #byId = new Map<string, Set<Entry>>();
  readonly #ends = new Map<string, Ends>();
  readonly #revoked = new Map<string, CachedToken>();
  readonly #maxEntries: number;
  #baseline: readonly TopicPosition[] | undefined;
  #told: readonly TopicPosition[] = [];
  #toldAt: Instant = { monotonicMs: Number.NEGATIVE_INFINITY, wallMs: Number.NEGATIVE_INFINITY };
  #era = 0;
  /** Ends were forgotten for want of room: answers given before this moment may not know them. */
  #forgotUntilMonotonicMs = Number.NEGATIVE_INFINITY;

  constructor(maxEntries: number) {
    this.#maxEntries = maxEntries;
  }

  get size(): number {
    return this.#entries.size;
  }

  /** A mark of the stream; `first`: of a new one, which may lack what was pushed between it and the one before. */
  marked(positions: readonly TopicPosition[], first: boolean, now: Instant): void {
    if (first && !this.#missedNothing(positions, now)) {
      this.#baseline = positions;
      this.#era += 1;
    }
    this.#told = positions;
    this.#toldAt = now;
    for (const [id, ends] of this.#ends) {
      if (now.monotonicMs - ends.atMonotonicMs < rememberEndsMs) break;
      this.#ends.delete(id);
    }
  }

  /** What may be trusted under `key` while the watcher is live; what has run out is dropped. */
  find(key: string, now: Instant): CachedToken | undefined {
    const entry = this.#entries.get(key);
    if (!entry) return undefined;
    const over = now.wallMs >= entry.endsAtMs || now.monotonicMs >= entry.endsAtMonotonicMs;
    if (over || !this.#isCovered(entry)) {
      this.#drop(entry);
      return undefined;
    }
    return now.wallMs < entry.notBeforeMs ? undefined : entry;
  }

  /** What was under `key` when its revocation was pushed: it is refused, live or not. */
  findRevoked(key: string): CachedToken | undefined {
    return this.#revoked.get(key);
  }

  /** Keeps what the verifier says may be kept, unless the stream knows better. The oldest entry makes room. */
  keep(key: string, token: CacheableToken, now: Instant): void {
    const { tokenId, generation, grant, ancestors } = token;
    const expiresAtMs = msOf(token.expiresAt, 0);
    if (!grant || expiresAtMs <= now.wallMs || this.endOf(tokenId, generation, ancestors, now)) return;
    const rotations = this.#ends.get(tokenId)?.rotations ?? [];
    const applicable = rotations.filter(({ upToGeneration }) => generation <= upToGeneration);
    const entry: Entry = {
      key,
      tokenId,
      generation,
      grant,
      revoked: false,
      ancestors,
      asOf: token.asOf,
      notBeforeMs: msOf(token.notBefore, 0),
      endsAtMs: Math.min(expiresAtMs, ...applicable.map(({ endsAtMs }) => endsAtMs)),
      endsAtMonotonicMs: now.monotonicMs + (expiresAtMs - now.wallMs),
      era: Number.NaN,
    };
    if (!this.#isCovered(entry)) return;
    const before = this.#entries.get(key);
    if (before) this.#drop(before);
    for (const oldest of this.#entries.values()) {
      if (this.#entries.size < this.#maxEntries) break;
      this.#drop(oldest);
    }
    this.#entries.set(key, entry);
    for (const id of [tokenId, ...ancestors]) {
      const set = this.#byId.get(id);
      if (set) set.add(entry);
      else this.#byId.set(id, new Set([entry]));
    }
  }

  /** Whether a push has ended the token, whatever a verifier said meanwhile. UNKNOWN: there were too many pushes to remember. */
  endOf(
    tokenId: string,
    generation: number,
    ancestors: readonly string[],
    now: Instant,
  ): "REVOKED" | "SUPERSEDED" | "UNKNOWN" | undefined {
    if (now.monotonicMs < this.#forgotUntilMonotonicMs) return "UNKNOWN";
    const ends = this.#ends.get(tokenId);
    if (ends?.revoked || ancestors.some((id) => this.#ends.get(id)?.revoked)) return "REVOKED";
    const over = ends?.rotations.some(
      (r) => generation > 0 && generation <= r.upToGeneration && r.endsAtMs <= now.wallMs,
    );
    return over ? "SUPERSEDED" : undefined;
  }

  /** Applies pushed ends: from here on no entry stands against them. */
  end(tokens: readonly EndedToken[], now: Instant): void {
    for (const { tokenId, upToGeneration, endsAt } of tokens) {
      const revoked = upToGeneration === 0;
      const endsAtMs = msOf(endsAt, 0);
      this.#remember(tokenId, revoked ? undefined : { upToGeneration, endsAtMs }, now);
      for (const entry of [...(this.#byId.get(tokenId) ?? [])]) {
        if (revoked) this.#revoke(entry);
        else if (entry.tokenId === tokenId && entry.generation <= upToGeneration)
          entry.endsAtMs = Math.min(entry.endsAtMs, endsAtMs);
      }
    }
  }

  /** Drops what has run out and was not asked for again. */
  sweep(now: Instant): void {
    for (const entry of this.#entries.values())
      if (now.wallMs >= entry.endsAtMs || now.monotonicMs >= entry.endsAtMonotonicMs) this.#drop(entry);
  }

  clear(): void {
    this.#entries.clear();
    this.#byId.clear();
    this.#revoked.clear();
  }

  #remember(tokenId: string, rotation: Ends["rotations"][number] | undefined, now: Instant): void {
    const known = this.#ends.get(tokenId);
    const rotations = [...(known?.rotations ?? []), ...(rotation ? [rotation] : [])];
    if (this.#ends.size >= maxEnds && !known) {
      this.#ends.clear();
      this.#forgotUntilMonotonicMs = now.monotonicMs + rememberEndsMs;
    }
    // Last again: `marked` forgets from the front.
    this.#ends.delete(tokenId);
    const revoked = rotation === undefined || known?.revoked === true;
    this.#ends.set(tokenId, { revoked, rotations, atMonotonicMs: now.monotonicMs });
  }

  #missedNothing(positions: readonly TopicPosition[], now: Instant): boolean {
    const { monotonicMs, wallMs } = this.#toldAt;
    const gapMs = Math.max(now.monotonicMs - monotonicMs, now.wallMs - wallMs);
    return this.#baseline !== undefined && (gapMs < gaplessMs || isAtLeast(this.#told, positions));
  }

  #isCovered(entry: Entry): boolean {
    if (entry.era === this.#era) return true;
    if (!this.#baseline || !isAtLeast(entry.asOf, this.#baseline)) return false;
    entry.era = this.#era;
    return true;
  }

  #revoke(entry: Entry): void {
    this.#drop(entry);
    const { key, tokenId, generation, grant } = entry;
    this.#revoked.set(key, { tokenId, generation, grant, revoked: true });
    if (this.#revoked.size > maxRevoked) this.#revoked.delete(this.#revoked.keys().next().value as string);
  }

  #drop(entry: Entry): void {
    this.#entries.delete(entry.key);
    for (const id of [entry.tokenId, ...entry.ancestors]) {
      const set = this.#byId.get(id);
      set?.delete(entry);
      if (set?.size === 0) this.#byId.delete(id);
    }
  }
}
