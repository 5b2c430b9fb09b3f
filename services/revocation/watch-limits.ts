/** Times and sizes of the watch protocol; tests shorten the times. */
export interface WatchLimits {
  /** Life of a lease. */
  readonly leaseMs: number;
  /** A ping renews a lease that is older than this. */
  readonly renewAfterMs: number;
  /** Reads for marks begin at most this often; one serves every ping that came before it began. */
  readonly markEveryMs: number;
  /** A read that takes longer gives no mark: the watcher's 2 s would be used up. */
  readonly markTimeoutMs: number;
  /** What ended within this time is pushed to a new stream at once. Longer than any lease and any answer under way. */
  readonly recentMs: number;
  readonly maxRecent: number;
  /** Messages waiting for one slow watcher; past it his stream ends. */
  readonly maxQueued: number;
  /** Open streams of one caller, so that no one takes them all. */
  readonly maxStreamsPerCaller: number;
  /** Acknowledgements that arrive within this time share a commit. */
  readonly acknowledgeEveryMs: number;
  /** An SDK that came back within this time after its lease ended, or after we started, has left no gap. */
  readonly gapGraceMs: number;
  /** An SDK whose reports lag further behind its pings leaves a gap while it lives: it may die before it reports. */
  readonly reportLagMs: number;
  /** Leases are looked at this often for gaps. */
  readonly gapEveryMs: number;
  /** A lapsed instance is forgotten after this. */
  readonly forgetAfterMs: number;
}

export const defaultWatchLimits: WatchLimits = {
  leaseMs: 5_000,
  renewAfterMs: 1_500,
  markEveryMs: 50,
  markTimeoutMs: 1_500,
  recentMs: 60_000,
  maxRecent: 100_000,
  maxQueued: 10_000,
  maxStreamsPerCaller: 512,
  acknowledgeEveryMs: 20,
  gapGraceMs: 5_000,
  reportLagMs: 10_000,
  gapEveryMs: 1_000,
  forgetAfterMs: 86_400_000,
};
