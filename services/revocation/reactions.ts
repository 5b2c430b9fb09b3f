import type { UseReportingGap } from "@curfew/contracts/gen/curfew/events/v1/revocations_pb.ts";
import type { Aggregates } from "@curfew/event-log/handle-command.ts";
import { type Lease, openLease, type Tenure } from "@curfew/event-log/lease.ts";
import type { Outbox } from "@curfew/event-log/outbox.ts";
import type { Clock } from "@curfew/runtime/clock.ts";
import type { Log } from "@curfew/runtime/log.ts";
import { span, withSpan } from "@curfew/runtime/telemetry.ts";
import { type InstanceFact, proofOf, type Reading, surelyEndedMs } from "./domain/effective.ts";
import { type GapState, gapIsDue, type RecordGap } from "./domain/watcher.ts";
import type { RevocationCommand, RevocationEvent, RevocationState } from "./domain.ts";
import type { LeaseBook, LeaseRow, SeenLeaseRow } from "./lease-book.ts";
import type { PendingRevocation, PendingRevocations } from "./pending.ts";
import type { EffectiveProof, Proofs } from "./proofs.ts";
import type { WatchLimits } from "./watch-limits.ts";

export type Revocations = Aggregates<RevocationState, RevocationCommand, RevocationEvent>;

export interface ReactionParts {
  readonly outbox: Outbox;
  readonly revocations: Revocations;
  readonly gaps: Aggregates<GapState, RecordGap, UseReportingGap>;
  readonly pending: PendingRevocations;
  readonly book: LeaseBook;
  readonly proofs: Proofs;
  /** When our store was restored from a backup; 0: never. */
  readonly restoredMs: number;
  readonly instance: string;
  readonly address: () => string;
  readonly exclusive: boolean;
  readonly clock: Clock;
  readonly log: Log;
  readonly limits: WatchLimits;
}

/** While a revocation is pending, its leases are looked at this often. */
const pendingEveryMs = 100;
/** After news, so that acknowledgements which come together share a look, and none competes with the push of the revocation itself. */
const restMs = 20;
const commandsAtOnce = 50;

/**
 * What follows from acknowledgements and leases, on one replica at a time: the effective time of each revocation, and the gaps that
 * SDKs left. Everything is derived from the log and the lease rows, and the streams know what they have, so a restart repeats nothing.
 */
export const openReactions = (parts: ReactionParts): Lease => {
  const { outbox, clock, log, pending } = parts;
  let woken = Promise.withResolvers<void>();
  pending.onChange = () => woken.resolve();

  const work = async ({ signal }: Tenure) => {
    const tenure = new ReactionTenure(parts);
    signal.addEventListener("abort", () => woken.resolve(), { once: true });
    while (!signal.aborted) {
      woken = Promise.withResolvers<void>();
      const beganMs = clock.monotonicMs();
      try {
        await tenure.look();
      } catch (error) {
        log.warn({ err: error }, "effective times and gaps are looked at again");
      }
      const tookMs = clock.monotonicMs() - beganMs;
      const over = new AbortController();
      const everyMs = pending.size > 0 ? pendingEveryMs : parts.limits.gapEveryMs;
      await Promise.race([woken.promise, clock.sleep(everyMs, over.signal)]);
      over.abort();
      // Half of the time at most: leases are read from a store that others wait for.
      await clock.sleep(Math.min(Math.max(restMs, tookMs), pendingEveryMs), signal);
    }
  };

  return openLease({
    rows: outbox.leases,
    name: "reactions-revocation",
    holder: parts.instance,
    address: parts.address,
    clock,
    log,
    exclusive: parts.exclusive,
    work,
  });
};

class ReactionTenure {
  readonly #parts: ReactionParts;
  readonly #startedMs: number;
  /** Leases whose gap is recorded, or that left none. */
  readonly #closed = new Set<string>();
  /** What is known of the gaps of instances that live and are late, so that their streams are not read at every look. */
  readonly #late = new Map<string, GapState>();
  #anchor: { readonly wallMs: number; readonly monotonicMs: number };
  #gapsMs = Number.NEGATIVE_INFINITY;

  constructor(parts: ReactionParts) {
    this.#parts = parts;
    this.#startedMs = parts.clock.now();
    this.#anchor = this.#now();
  }

  async look(): Promise<void> {
    const { pending, book, clock, limits } = this.#parts;
    const gapsDue = clock.monotonicMs() - this.#gapsMs >= limits.gapEveryMs;
    if (pending.size === 0) this.#anchor = this.#now();
    if (pending.size === 0 && !gapsDue) return;
    // What is pending here was committed before this read of the leases begins.
    const waiting = [...pending.all()];
    const { leases, read } = await book.newest();
    await this.#inGroups(waiting, (revocation) => this.#takeEffect(revocation, leases, read));
    if (!gapsDue) return;
    this.#gapsMs = clock.monotonicMs();
    await this.#inGroups(leases, (lease) => this.#closeLease(lease, read));
    await book.prune();
  }

  #now() {
    const { clock } = this.#parts;
    return { wallMs: clock.now(), monotonicMs: clock.monotonicMs() };
  }

  /** The wall clock, without what it may have jumped ahead since a revocation became pending: a lease must not end by that. */
  #steadyMs(): number {
    const { wallMs, monotonicMs } = this.#now();
    return Math.min(wallMs, this.#anchor.wallMs + monotonicMs - this.#anchor.monotonicMs);
  }

  async #inGroups<T>(items: readonly T[], act: (item: T) => Promise<void>): Promise<void> {
    for (let i = 0; i < items.length; i += commandsAtOnce)
      await Promise.all(items.slice(i, i + commandsAtOnce).map(act));
  }

  async #takeEffect(revocation: PendingRevocation, leases: readonly SeenLeaseRow[], read: Reading): Promise<void> {
    const { limits, proofs, revocations, pending, outbox } = this.#parts;
    const nowMs = this.#steadyMs();
    const found = proofOf(leases, revocation, { ...read, wallMs: nowMs }, limits.leaseMs);
    const lostMs = this.#lostLeasesEndMs(revocation);
    if (found.effectiveAtMs === undefined || nowMs < lostMs) return;
    const effectiveAtMs = Math.max(found.effectiveAtMs, lostMs);
    const proof = await proofs.keep(revocation.id, { effectiveAtMs, instances: found.instances });
    const command = { type: "TakeEffect", tokenId: revocation.tokenId, revocationEventId: revocation.id } as const;
    const { commit } = await revocations.handle(`revocations/${revocation.tokenId}`, {
      ...command,
      ...effectOf(proof),
    });
    pending.effective(revocation.id);
    if (commit) void outbox.relay.published(commit, 0);
  }

  /** When every lease has surely ended of which the row went with our store, before it was restored: nothing served while that was done. */
  #lostLeasesEndMs({ committedMs }: PendingRevocation): number {
    const { restoredMs, limits } = this.#parts;
    if (committedMs > restoredMs) return Number.NEGATIVE_INFINITY;
    return surelyEndedMs({ untilMs: restoredMs + limits.leaseMs, goodbye: false }, limits.leaseMs);
  }

  /** Records what a lease that ended without goodbye may have left unreported; forgets instances that ended long ago. */
  async #closeLease(lease: SeenLeaseRow, read: Reading): Promise<void> {
    const { clock, limits, book, pending } = this.#parts;
    const endMs = surelyEndedMs(lease, limits.leaseMs);
    const nowMs = clock.now();
    if (nowMs < endMs || read.monotonicMs < lease.provenEndMs) return this.#noteLag(lease);
    if (nowMs < endMs + limits.gapGraceMs || nowMs < this.#startedMs + limits.gapGraceMs) return;
    if (!this.#closed.has(lease._id)) {
      if (lease.reportsUses && !lease.complete) await this.#recordGap(lease, endMs, false);
      this.#closed.add(lease._id);
      this.#late.delete(lease.instance);
    }
    const needed = [...pending.all()].some(({ committedMs }) => committedMs <= endMs);
    if (needed || nowMs < endMs + limits.forgetAfterMs) return;
    await book.forget(lease);
    this.#closed.delete(lease._id);
  }

  /** As of its last grant: what it pinged by then was that far behind. */
  async #noteLag(lease: LeaseRow): Promise<void> {
    const { instance, startMs: toMs, allReportedAtMs: fromMs } = lease;
    const known = this.#late.get(instance);
    if (!lease.reportsUses || toMs - fromMs < this.#parts.limits.reportLagMs) {
      this.#late.delete(instance);
      return;
    }
    if (!known || gapIsDue(known, { fromMs, toMs, live: true }))
      this.#late.set(instance, await this.#recordGap(lease, toMs, true));
  }

  async #recordGap({ instance, name, allReportedAtMs }: LeaseRow, toMs: number, live: boolean): Promise<GapState> {
    const { gaps, outbox, log } = this.#parts;
    const resourceService = name.slice(name.indexOf("/") + 1);
    const command = { instance, resourceService, fromMs: allReportedAtMs, toMs, live };
    const { commit, state } = await withSpan(span.reaction("record-gap"), {}, () =>
      gaps.handle(`watchers/${instance}`, command),
    );
    if (!commit) return state;
    const why = live ? "is late with reporting its uses" : "ended without having reported all its uses";
    log.warn({ watcher: instance, resourceService }, `an instance ${why}`);
    void outbox.relay.published(commit, 0);
    return state;
  }
}

const effectOf = ({ effectiveAtMs, instances }: EffectiveProof) => ({
  effectiveAtMs,
  acknowledged: instances.filter((fact) => fact.acknowledgedAtMs !== undefined).length,
  lapsed: instances.flatMap(({ instance, name, leaseEndedAtMs }: InstanceFact) =>
    leaseEndedAtMs === undefined ? [] : [{ instance, name, endedAtMs: leaseEndedAtMs }],
  ),
  largestClockOffsetMs: Math.round(Math.max(0, ...instances.map((fact) => Math.abs(fact.clockOffsetMs)))),
});
