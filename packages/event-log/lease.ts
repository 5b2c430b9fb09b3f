import type { Collection } from "@curfew/document-store/port.ts";
import type { Clock } from "@curfew/runtime/clock.ts";
import type { Log } from "@curfew/runtime/log.ts";

/**
 * A lease is a row per fence number, inserted. You hold n only if n is the highest when read back; numbers are never reused. Nobody
 * compares clocks: a contender takes over after seeing the same highest number for a whole TTL on its own monotonic clock; a holder stops
 * at two thirds of the TTL, counted from before it sent its last renewal. Leases only avoid double work: correctness never rests on them.
 */
export type LeaseRow = {
  _id: string;
  /** Who holds it: an instance id, new at every start. */
  holder: string;
  /** host:port where the holder answers its fellow replicas. */
  address: string;
  /** Set by a holder that stops in order: the next one need not wait. */
  released: boolean;
};

export interface Tenure {
  /** Fence number with which this tenure began; higher than that of every tenure before. */
  readonly fence: number;
  /** Aborted when the lease is lost or given back: stop working. */
  readonly signal: AbortSignal;
}

export interface Lease {
  /** The holder in the last row seen; undefined where that one was given back. */
  holder(): { holder: string; address: string } | undefined;
  readonly held: boolean;
  /** Stops contending, ends the tenure, gives the lease back. Waits at most two thirds of the TTL for the work and the database. */
  close(): Promise<void>;
}

export interface LeaseParts {
  readonly rows: Collection<LeaseRow>;
  readonly name: string;
  readonly holder: string;
  /** Asked at each row: the port is known late. */
  readonly address: () => string;
  readonly clock: Clock;
  readonly log: Log;
  /** No other process can exist (embedded: the data directory is locked), so a leftover of a killed one is taken over at once. */
  readonly exclusive?: boolean;
  /** Returns soon after its signal aborts; the next tenure begins only after that. */
  readonly work: (tenure: Tenure) => Promise<void>;
}

export const leaseTtlMs = 6_000;
/** How often a contender looks. */
export const leasePollMs = 500;
/** A tenure ends this long after its last renewal was sent. */
export const leaseTenureMs = (leaseTtlMs * 2) / 3;
const renewEveryMs = leaseTtlMs / 4;
/** After a renewal that failed. */
const retryMs = 500;
/** Before contending again after `work` returned by itself or threw. */
const restMs = 1_000;
const keptRows = 16;
const prunedAtOnce = 4;

const rowId = (name: string, fence: number) => `${name}#${String(fence).padStart(12, "0")}`;
const fenceOf = (row: LeaseRow) => Number(row._id.slice(row._id.lastIndexOf("#") + 1));

/** Whether somebody holds `name`: it was given back, or is not renewed for a whole TTL, where nobody does. Takes so long, unless it was. */
export const isLeaseHeld = async (rows: Collection<LeaseRow>, name: string, clock: Clock): Promise<boolean> => {
  const top = async () => (await rows.findLatest({ from: `${name}#`, below: `${name}$`, order: -1, limit: 1 }))[0];
  const seen = await top();
  if (!seen || seen.released) return false;
  await clock.sleep(leaseTtlMs);
  return (await top())?._id !== seen._id;
};

/** Contends for `name` and runs `work` whenever it is held. A `work` that throws gives the lease back and is tried again. */
export const openLease = (parts: LeaseParts): Lease => new ContendedLease(parts);

class ContendedLease implements Lease {
  readonly #parts: LeaseParts;
  readonly #closing = new AbortController();
  readonly #loop: Promise<void>;
  #lastSeen: LeaseRow | undefined;
  /** On the monotonic clock; undefined while not held. */
  #expiryMs: number | undefined;

  constructor(parts: LeaseParts) {
    this.#parts = parts;
    this.#loop = this.#run();
  }

  holder() {
    const row = this.#lastSeen;
    return row && !row.released ? { holder: row.holder, address: row.address } : undefined;
  }

  get held(): boolean {
    return this.#expiryMs !== undefined && this.#parts.clock.monotonicMs() < this.#expiryMs;
  }

  async close(): Promise<void> {
    this.#closing.abort();
    const over = new AbortController();
    await Promise.race([this.#loop, this.#parts.clock.sleep(leaseTenureMs, over.signal)]);
    over.abort();
  }

  async #run(): Promise<void> {
    const { clock, log, name } = this.#parts;
    const { signal } = this.#closing;
    while (!signal.aborted) {
      try {
        const fence = await this.#contend();
        const sentMs = clock.monotonicMs();
        if (fence === undefined || signal.aborted) return;
        // A number that is taken is never ours here, even in our own name: an insert reported lost may have waited for its turn long ago.
        if ((await this.#insert(fence, false)) === "exists" || !(await this.#isHighest(fence))) continue;
        if (await this.#hold(fence, sentMs)) await clock.sleep(restMs, signal);
      } catch (error) {
        log.warn({ lease: name, err: error }, "contending for a lease, or the work under it, failed; trying again");
        await clock.sleep(restMs, signal);
      }
    }
  }

  /** Waits until the lease may be taken; the number to take, or undefined when closing. */
  async #contend(): Promise<number | undefined> {
    const { clock, exclusive, holder } = this.#parts;
    let seen: string | undefined;
    let sinceMs = 0;
    while (!this.#closing.signal.aborted) {
      const top = await this.#highest();
      if (!top) return 1;
      if (top.released || exclusive || top.holder === holder) return fenceOf(top) + 1;
      const nowMs = clock.monotonicMs();
      if (top._id !== seen) {
        seen = top._id;
        sinceMs = nowMs;
      } else if (nowMs - sinceMs >= leaseTtlMs) return fenceOf(top) + 1;
      await clock.sleep(leasePollMs, this.#closing.signal);
    }
    return undefined;
  }

  /** Works from `fence` until lost, closed, or `work` ended; true when that was of its own accord. */
  async #hold(fence: number, sentMs: number): Promise<boolean> {
    const { work } = this.#parts;
    const tenure = new AbortController();
    const stop = () => tenure.abort();
    this.#expiryMs = sentMs + leaseTenureMs;
    this.#closing.signal.addEventListener("abort", stop);
    if (this.#closing.signal.aborted || !this.held) stop();
    const over = new AbortController();
    const renewed = { fence };
    const renewing = this.#renew(renewed, tenure);
    const expired = this.#watch(tenure, over.signal);
    try {
      if (!tenure.signal.aborted) await work({ fence, signal: tenure.signal });
      return !tenure.signal.aborted;
    } finally {
      this.#closing.signal.removeEventListener("abort", stop);
      stop();
      // A renewal on its way could take the number of the release. One that hangs is not waited for past the end: nothing is left to release.
      await Promise.race([renewing, expired]);
      if (this.held) await Promise.race([this.#release(renewed.fence + 1), expired]);
      this.#expiryMs = undefined;
      over.abort();
    }
  }

  /** Aborts the tenure at its end, by a timer of its own, so that a database call that hangs cannot prolong it. Resolves at the end. */
  async #watch(tenure: AbortController, over: AbortSignal): Promise<void> {
    const { clock } = this.#parts;
    const leftMs = () => (this.#expiryMs ?? 0) - clock.monotonicMs();
    while (leftMs() > 0 && !over.aborted) await clock.sleep(leftMs(), over);
    tenure.abort();
  }

  async #renew(renewed: { fence: number }, tenure: AbortController): Promise<void> {
    const { clock, log, name } = this.#parts;
    // Of the first try of a number: contenders may have seen it since then, although we heard of no success.
    let firstTryMs: number | undefined;
    for (;;) {
      await clock.sleep(firstTryMs === undefined ? renewEveryMs : retryMs, tenure.signal);
      if (tenure.signal.aborted) return;
      const fence = renewed.fence + 1;
      firstTryMs ??= clock.monotonicMs();
      try {
        const taken = (await this.#insert(fence, false)) === "inserted" || (await this.#isOurs(fence));
        if (!taken || !(await this.#isHighest(fence))) return this.#lose(tenure);
        renewed.fence = fence;
        // Too late is too late: the work was told to stop.
        if (this.#expiryMs !== undefined && !tenure.signal.aborted) this.#expiryMs = firstTryMs + leaseTenureMs;
        firstTryMs = undefined;
        this.#prune(fence);
      } catch (error) {
        log.warn({ lease: name, err: error }, "the lease could not be renewed; trying until it ends");
      }
    }
  }

  #lose(tenure: AbortController): void {
    if (tenure.signal.aborted) return;
    this.#expiryMs = undefined;
    tenure.abort();
  }

  async #highest(): Promise<LeaseRow | undefined> {
    const { name, rows } = this.#parts;
    [this.#lastSeen] = await rows.findLatest({ from: `${name}#`, below: `${name}$`, order: -1, limit: 1 });
    return this.#lastSeen;
  }

  async #isHighest(fence: number): Promise<boolean> {
    return (await this.#highest())?._id === rowId(this.#parts.name, fence);
  }

  async #isOurs(fence: number): Promise<boolean> {
    const row = await this.#parts.rows.getLatest(rowId(this.#parts.name, fence));
    return row?.holder === this.#parts.holder;
  }

  #insert(fence: number, released: boolean): Promise<"inserted" | "exists"> {
    const { address, holder, name, rows } = this.#parts;
    return rows.insert({ _id: rowId(name, fence), holder, address: address(), released });
  }

  async #release(fence: number): Promise<void> {
    const { log, name } = this.#parts;
    await this.#insert(fence, true).catch((error) =>
      log.warn({ lease: name, err: error }, "the lease could not be given back"),
    );
    this.#lastSeen = undefined;
  }

  /** Far below the highest, several at once because one may have failed before. Best effort. */
  #prune(fence: number): void {
    const { log, name, rows } = this.#parts;
    const old = Array.from({ length: prunedAtOnce }, (_, i) => fence - keptRows - i).filter((n) => n > 0);
    if (old.length === 0) return;
    rows
      .delete(...old.map((n) => rowId(name, n)))
      .catch((error) => log.warn({ lease: name, err: error }, "old rows of a lease stay"));
  }
}
