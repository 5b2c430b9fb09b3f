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
  /** The last row seen, whoever holds it. */
  holder(): { holder: string; address: string } | undefined;
  readonly held: boolean;
  /** Stops contending, ends the tenure, gives the lease back. */
  close(): Promise<void>;
}

export const leaseTtlMs = 6_000;
const renewEveryMs = leaseTtlMs / 4;
const keptRows = 16;

const rowId = (name: string, fence: number) => `${name}#${String(fence).padStart(12, "0")}`;
const fenceOf = (row: LeaseRow) => Number(row._id.slice(row._id.lastIndexOf("#") + 1));

/**
 * Contends for `name` and runs `work` whenever it is held; `work` should return soon after its signal aborts, and the next tenure begins
 * only after that. A `work` that throws gives the lease back for a moment and is tried again.
 */
export const openLease = (parts: {
  rows: Collection<LeaseRow>;
  name: string;
  holder: string;
  /** host:port where this replica answers its fellows. */
  address: () => string;
  clock: Clock;
  log: Log;
  /** No other process can exist (embedded: the data directory is locked), so a leftover of a killed one is taken over at once. */
  exclusive?: boolean;
  work: (tenure: Tenure) => Promise<void>;
}): Lease => {
  const { rows, name, clock, log } = parts;
  const closing = new AbortController();
  let held = false;
  let lastSeen: LeaseRow | undefined;

  const highest = async () => {
    const [row] = await rows.findLatest({ from: `${name}#`, below: `${name}$`, order: -1, limit: 1 });
    lastSeen = row;
    return row;
  };

  /** Inserts the next number; whether it is the highest when read back. */
  const take = async (fence: number): Promise<boolean> => {
    const row = { _id: rowId(name, fence), holder: parts.holder, address: parts.address(), released: false };
    if ((await rows.insert(row)) === "exists") {
      const found = await rows.getLatest(row._id); // our own insert may have been applied although its reply was lost
      if (found?.holder !== parts.holder) return false;
    }
    const top = await highest();
    return top?._id === row._id;
  };

  /** Waits until the lease may be taken; the number to take, or undefined when closing. */
  const contend = async (): Promise<number | undefined> => {
    let seen: string | undefined;
    let sinceMs = clock.monotonicMs();
    while (!closing.signal.aborted) {
      const top = await highest();
      if (!top) return 1;
      if (top.released || parts.exclusive || top.holder === parts.holder) return fenceOf(top) + 1;
      if (top._id !== seen) {
        seen = top._id;
        sinceMs = clock.monotonicMs();
      } else if (clock.monotonicMs() - sinceMs >= leaseTtlMs) return fenceOf(top) + 1;
      await clock.sleep(500, closing.signal);
    }
    return undefined;
  };

  const prune = (fence: number) =>
    rows.delete(...Array.from({ length: 4 }, (_, i) => fence - keptRows - i).filter((n) => n > 0).map((n) => rowId(name, n)));

  /** Holds from `first` until lost, closed, or `work` returned. */
  const hold = async (first: number, takenMs: number) => {
    const tenure = new AbortController();
    held = true;
    let fence = first;
    let renewedMs = takenMs;
    const expiry = () => renewedMs + (leaseTtlMs * 2) / 3;
    // Its own timer, so that a database call that hangs cannot keep a lost lease alive.
    const watchdog = (async () => {
      while (!tenure.signal.aborted) {
        await clock.sleep(Math.max(1, expiry() - clock.monotonicMs()), tenure.signal);
        if (clock.monotonicMs() >= expiry()) tenure.abort();
      }
      held = false;
    })();
    const stop = () => tenure.abort();
    closing.signal.addEventListener("abort", stop);
    if (closing.signal.aborted) stop();
    const working = parts.work({ fence: first, signal: tenure.signal }).finally(stop);
    const renewing = (async () => {
      for (;;) {
        await clock.sleep(renewEveryMs, tenure.signal);
        if (tenure.signal.aborted) return;
        const sentMs = clock.monotonicMs();
        try {
          if (!(await take(fence + 1))) return tenure.abort();
          fence += 1;
          renewedMs = sentMs;
          await prune(fence);
        } catch (error) {
          log.warn({ lease: name, err: error }, "the lease could not be renewed; trying until it ends");
        }
      }
    })();
    try {
      await working;
    } finally {
      closing.signal.removeEventListener("abort", stop);
      await Promise.all([renewing, watchdog]);
      if (clock.monotonicMs() < expiry()) await release(fence + 1);
    }
  };

  const release = async (fence: number) => {
    const row = { _id: rowId(name, fence), holder: parts.holder, address: parts.address(), released: true };
    await rows.insert(row).catch((error) => log.warn({ lease: name, err: error }, "the lease could not be given back"));
  };

  const loop = (async () => {
    while (!closing.signal.aborted) {
      try {
        const fence = await contend();
        if (fence === undefined) return;
        const takenMs = clock.monotonicMs();
        if (await take(fence)) await hold(fence, takenMs);
      } catch (error) {
        log.warn({ lease: name, err: error }, "the work under a lease ended with an error; contending again");
        await clock.sleep(1_000, closing.signal);
      }
    }
  })();

  return {
    holder: () => lastSeen && { holder: lastSeen.holder, address: lastSeen.address },
    get held() {
      return held;
    },
    async close() {
      closing.abort();
      await loop;
    },
  };
};
