/**
 * When a watcher of revocations may answer (design "Verification", rule 5 of the watch protocol): only while it has applied a mark
 * whose ping it sent less than 2 s ago, and holds a lease counted from before the ping that renewed it. Elapsed time is the larger
 * of what the monotonic and the wall clock say, so that neither a suspended machine nor a clock set back lengthens anything. Pure.
 */

/** One moment on both clocks, milliseconds. */
export interface Instant {
  readonly monotonicMs: number;
  readonly wallMs: number;
}

/** A place after the last record covered. */
export interface TopicPosition {
  readonly topic: string;
  readonly partition: number;
  readonly offset: bigint;
}

/** How long a mark counts, from before its ping was sent. */
export const freshForMs = 2_000;
/** Unanswered pings remembered: 8 s of them, longer than a lease. */
const maxOutstanding = 16;

interface Ping {
  /** Its number in the present stream. */
  readonly sequence: number;
  /** Its number among all pings of this watcher. */
  readonly ordinal: number;
  readonly sentAt: Instant;
}

interface PendingMark {
  readonly ping: Ping;
  readonly positions: readonly TopicPosition[];
}

export interface Freshness {
  readonly nextOrdinal: number;
  readonly outstanding: readonly Ping[];
  /** Marks that arrived and are not applied yet, oldest first. */
  readonly pending: readonly PendingMark[];
  /** The newest ping whose mark is applied. */
  readonly applied: Ping | undefined;
  readonly lease:
    | {
        readonly until: Instant;
        /** Only marks of pings from this one on prove that everything revoked before the grant is applied. */
        readonly fromOrdinal: number;
      }
    | undefined;
}

export type FreshnessEvent =
  /** A new stream: its pings are numbered anew, and those of the one before will never be answered. */
  | { readonly type: "connected" }
  /** `at` was read before the ping was handed over. */
  | { readonly type: "pinged"; readonly sequence: number; readonly at: Instant }
  | {
      readonly type: "marked";
      readonly sequence: number;
      readonly positions: readonly TopicPosition[];
      readonly leaseMs: number | undefined;
      readonly at: Instant;
    }
  /** Everything below the positions of this ping's mark is applied. */
  | { readonly type: "applied"; readonly ordinal: number }
  /** Somebody looked at the clocks: what they say has ended stays ended, whatever they say later. */
  | { readonly type: "observed"; readonly at: Instant }
  /** What was applied cannot be relied on. */
  | { readonly type: "lost" };

export const neverLive: Freshness = {
  nextOrdinal: 1,
  outstanding: [],
  pending: [],
  applied: undefined,
  lease: undefined,
};

const after = (at: Instant, ms: number): Instant => ({ monotonicMs: at.monotonicMs + ms, wallMs: at.wallMs + ms });

const isBefore = (now: Instant, end: Instant): boolean => now.monotonicMs < end.monotonicMs && now.wallMs < end.wallMs;

const isFresh = (ping: Ping, now: Instant): boolean =>
  now.monotonicMs - ping.sentAt.monotonicMs < freshForMs && now.wallMs - ping.sentAt.wallMs < freshForMs;

const observe = (state: Freshness, at: Instant): Freshness => ({
  ...state,
  applied: state.applied && isFresh(state.applied, at) ? state.applied : undefined,
  pending: state.pending.filter(({ ping }) => isFresh(ping, at)),
  lease: state.lease && isBefore(at, state.lease.until) ? state.lease : undefined,
});

/** The lease after a mark that renews it; `observed` at the mark's arrival, so a lease that is left has not lapsed. */
const renewed = ({ lease, nextOrdinal }: Freshness, ping: Ping, leaseMs: number, at: Instant): Freshness["lease"] => {
  const until = after(ping.sentAt, leaseMs);
  if (!isBefore(at, until)) return lease;
  if (!lease) return { until, fromOrdinal: nextOrdinal };
  // An older ping's answer that comes late must not shorten what a newer one gave.
  return until.monotonicMs > lease.until.monotonicMs ? { ...lease, until } : lease;
};

const marked = (before: Freshness, event: Extract<FreshnessEvent, { type: "marked" }>): Freshness => {
  const state = observe(before, event.at);
  const ping = state.outstanding.find(({ sequence }) => sequence === event.sequence);
  if (!ping) return state;
  const { leaseMs, positions, at } = event;
  return {
    ...state,
    outstanding: state.outstanding.filter((each) => each !== ping),
    lease: leaseMs === undefined ? state.lease : renewed(state, ping, leaseMs, at),
    pending: isFresh(ping, at) ? [...state.pending, { ping, positions }] : state.pending,
  };
};

const applied = (state: Freshness, ordinal: number): Freshness => {
  const mark = state.pending.find(({ ping }) => ping.ordinal === ordinal);
  if (!mark) return state;
  return {
    ...state,
    pending: state.pending.filter(({ ping }) => ping.ordinal > ordinal),
    applied: state.applied && state.applied.ordinal > ordinal ? state.applied : mark.ping,
  };
};

export const evolve = (state: Freshness, event: FreshnessEvent): Freshness => {
  switch (event.type) {
    case "connected":
      return { ...state, outstanding: [] };
    case "pinged": {
      const ping = { sequence: event.sequence, ordinal: state.nextOrdinal, sentAt: event.at };
      const outstanding = [...state.outstanding, ping].slice(-maxOutstanding);
      return { ...observe(state, event.at), nextOrdinal: state.nextOrdinal + 1, outstanding };
    }
    case "marked":
      return marked(state, event);
    case "applied":
      return applied(state, event.ordinal);
    case "observed":
      return observe(state, event.at);
    case "lost":
      return { ...state, applied: undefined, pending: [] };
  }
};

/** Whether an answer may be given at `now`. Allocates nothing: it is asked before every answer. */
export const isLiveAt = (state: Freshness, now: Instant): boolean =>
  state.lease !== undefined &&
  state.applied !== undefined &&
  state.applied.ordinal >= state.lease.fromOrdinal &&
  isFresh(state.applied, now) &&
  isBefore(now, state.lease.until);
