import { timestampMs } from "@bufbuild/protobuf/wkt";
import type { TokenRevoked } from "@curfew/contracts/gen/curfew/events/v1/revocations_pb.ts";
import { Reason, type UseDecided } from "@curfew/contracts/gen/curfew/events/v1/uses_pb.ts";
import type { ReadEvent } from "@curfew/event-log/envelope.ts";
import { topicNames } from "@curfew/event-log/event-types.ts";
import { nextByTime, type TokenEvent, type TokenState } from "./domain/token-state.ts";
import { tokenDecider, tokenStream } from "./domain.ts";
import { type Heap, openHeap } from "./heap.ts";

/** What the log says about a token, as far as it was read; in whatever order the topics were read. */
export interface TokenEntry {
  readonly tokenId: string;
  readonly state: TokenState;
  /** ce_sequence of the last event applied. */
  readonly sequence: number;
  /** Offset of that event. */
  readonly offset: number;
  readonly revokedMs: number | undefined;
  /** Last allowed use. */
  readonly lastUsedMs: number | undefined;
}

/**
 * Every token of the log in memory, folded by each replica for itself from offset 0: for lists, for what is due, and for what other
 * services say about tokens. Tokens that ended long ago are dropped; single tokens are read from the store instead.
 */
export interface TokenBook {
  apply(event: ReadEvent): void;
  get(tokenId: string): TokenEntry | undefined;
  /** Ids after `after` in order, at most `limit`, of one subject or (undefined) of all. */
  list(subject: string | undefined, after: string, limit: number): TokenEntry[];
  /** Takes the tokens for which something is due at `nowMs`, at most `limit`; each comes again when `postpone` or an event says so. */
  takeDue(nowMs: number, limit: number): TokenEntry[];
  postpone(tokenId: string, atMs: number): void;
}

/** Ended tokens stay in lists this long: as long as a lineage may live. */
export const keepEndedMs = 30 * 24 * 3_600_000;
/** The topic of uses is read beside that of tokens and may be ahead of it; ids in it that no token has must not fill the memory. */
export const maxEarlyUses = 100_000;
/** How far an SDK's clock may be from the broker's; what claims to be later was used when the broker took it. */
export const useClockToleranceMs = 300_000;
const tokenPrefix = tokenStream("");

interface Due {
  readonly atMs: number;
  readonly tokenId: string;
}
type Held = { -readonly [K in keyof TokenEntry]: TokenEntry[K] } & { dueMs: number };

const endedMs = ({ state, revokedMs }: Held): number | undefined => {
  if (revokedMs !== undefined) return revokedMs;
  return state.status === "expired" ? state.generation.expiresMs : undefined;
};

/** When something has to happen to the token: its next step, or after its end that it is forgotten. */
const dueOf = (entry: Held, nowMs: number): number => {
  const ended = endedMs(entry);
  if (ended !== undefined) return ended + keepEndedMs;
  return entry.state.status === "issued" ? nextByTime(entry.state).atMs : nowMs + keepEndedMs;
};

const openDues = (entries: ReadonlyMap<string, Held>) => {
  let heap: Heap<Due> = openHeap((a, b) => a.atMs - b.atMs);
  return {
    /** An entry's earlier places in the heap are known by their other time. */
    put(entry: Held, atMs: number) {
      if (entry.dueMs === atMs) return;
      entry.dueMs = atMs;
      heap.push({ atMs, tokenId: entry.tokenId });
      if (heap.size <= 4 * entries.size + 1_000) return;
      heap = openHeap((a, b) => a.atMs - b.atMs);
      for (const { tokenId, dueMs } of entries.values()) heap.push({ atMs: dueMs, tokenId });
    },
    take(nowMs: number): Held | undefined {
      for (;;) {
        const first = heap.peek();
        if (!first || first.atMs > nowMs) return undefined;
        heap.pop();
        const entry = entries.get(first.tokenId);
        if (entry?.dueMs === first.atMs) return entry;
      }
    },
  };
};

/** The entries, and which subject each belongs to. */
const openEntries = () => {
  const entries = new Map<string, Held>();
  const bySubject = new Map<string, Set<string>>();
  return {
    entries,
    entryOf(tokenId: string): Held {
      const found = entries.get(tokenId);
      if (found) return found;
      const entry: Held = {
        tokenId,
        state: tokenDecider.initial,
        sequence: 0,
        offset: -1,
        revokedMs: undefined,
        lastUsedMs: undefined,
        dueMs: Number.NaN,
      };
      entries.set(tokenId, entry);
      return entry;
    },
    index({ state, tokenId }: Held) {
      if (state.status === "none") return;
      const ids = bySubject.get(state.subject) ?? new Set();
      bySubject.set(state.subject, ids.add(tokenId));
    },
    forget({ tokenId, state }: Held) {
      entries.delete(tokenId);
      if (state.status === "none") return;
      const ids = bySubject.get(state.subject);
      ids?.delete(tokenId);
      if (ids?.size === 0) bySubject.delete(state.subject);
    },
    list(subject: string | undefined, after: string, limit: number): TokenEntry[] {
      // The largest on top: what is kept are the `limit` smallest, whatever the number of tokens.
      const page = openHeap<string>((a, b) => (a < b ? 1 : -1));
      for (const id of subject === undefined ? entries.keys() : (bySubject.get(subject) ?? [])) {
        if (id <= after || entries.get(id)?.state.status === "none") continue;
        if (page.size >= limit && id > (page.peek() ?? "")) continue;
        page.push(id);
        if (page.size > limit) page.pop();
      }
      const ids: string[] = [];
      for (let id = page.pop(); id !== undefined; id = page.pop()) ids.push(id);
      return ids.reverse().map((id) => entries.get(id) as TokenEntry);
    },
  };
};

/** Uses that were read before their tokens' issuance, if those were ever issued: the latest of each, the longest unheard dropped first. */
const openEarlyUses = () => {
  const lastUsedMs = new Map<string, number>();
  return {
    put(tokenId: string, atMs: number) {
      const before = lastUsedMs.get(tokenId) ?? 0;
      lastUsedMs.delete(tokenId);
      for (const oldest of lastUsedMs.keys()) {
        if (lastUsedMs.size < maxEarlyUses) break;
        lastUsedMs.delete(oldest);
      }
      lastUsedMs.set(tokenId, Math.max(before, atMs));
    },
    take(tokenId: string): number | undefined {
      const atMs = lastUsedMs.get(tokenId);
      lastUsedMs.delete(tokenId);
      return atMs;
    },
  };
};

export const openTokenBook = (): TokenBook => {
  const { entries, entryOf, index, forget, list } = openEntries();
  const dues = openDues(entries);
  const early = openEarlyUses();

  const applyToken = (event: ReadEvent) => {
    if (!event.subject.startsWith(tokenPrefix)) return;
    const tokenId = event.subject.slice(tokenPrefix.length);
    // The bus delivers at least once; a gap is the auditor's to find, and nothing can be folded over it.
    if (event.sequence !== (entries.get(tokenId)?.sequence ?? 0) + 1) return;
    const entry = entryOf(tokenId);
    entry.state = tokenDecider.evolve(entry.state, event.message as TokenEvent);
    entry.sequence = event.sequence;
    entry.offset = event.record.offset;
    if (entry.sequence === 1) {
      index(entry);
      const usedMs = early.take(tokenId);
      if (usedMs !== undefined) noteUse(entry, usedMs);
    }
    dues.put(entry, dueOf(entry, event.timeMs));
  };

  const applyRevoked = ({ tokenId }: TokenRevoked, timeMs: number) => {
    const entry = entryOf(tokenId);
    entry.revokedMs ??= timeMs;
    dues.put(entry, dueOf(entry, timeMs));
  };

  const noteUse = (entry: Held, atMs: number) => {
    entry.lastUsedMs = Math.max(entry.lastUsedMs ?? 0, atMs);
  };

  const applyUse = ({ tokenId, reason, decidedAt }: UseDecided, { timeMs, record }: ReadEvent) => {
    if (tokenId === "" || reason !== Reason.OK) return;
    const saidMs = decidedAt ? timestampMs(decidedAt) : timeMs;
    const atMs = saidMs > record.timestampMs + useClockToleranceMs ? record.timestampMs : saidMs;
    const entry = entries.get(tokenId);
    if (entry && entry.state.status !== "none") noteUse(entry, atMs);
    else early.put(tokenId, atMs);
  };

  return {
    apply(event) {
      if (event.record.topic === topicNames.tokens) applyToken(event);
      else if (event.message.$typeName === "curfew.events.v1.TokenRevoked")
        applyRevoked(event.message as TokenRevoked, event.timeMs);
      else if (event.message.$typeName === "curfew.events.v1.UseDecided") applyUse(event.message as UseDecided, event);
    },
    get: (tokenId) => entries.get(tokenId),
    list,
    takeDue(nowMs, limit) {
      const due: TokenEntry[] = [];
      while (due.length < limit) {
        const entry = dues.take(nowMs);
        if (!entry) break;
        entry.dueMs = Number.NaN;
        if (endedMs(entry) !== undefined || entry.state.status === "none") forget(entry);
        else due.push(entry);
      }
      return due;
    },
    postpone(tokenId, atMs) {
      const entry = entries.get(tokenId);
      // An event that came meanwhile has said when.
      if (entry && Number.isNaN(entry.dueMs)) dues.put(entry, atMs);
    },
  };
};
