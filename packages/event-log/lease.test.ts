import type { Collection, DocumentStore } from "@curfew/document-store/port.ts";
import { type Fault, faultyStore, never, type StorePlan } from "@curfew/simulation/faulty-store.ts";
import { memoryStore } from "@curfew/simulation/memory-store.ts";
import { settle, type VirtualClock, virtualClock } from "@curfew/simulation/virtual-clock.ts";
import { describe, expect, it } from "vitest";
import { type Lease, type LeaseRow, leasePollMs, leaseTenureMs, leaseTtlMs, openLease, type Tenure } from "./lease.ts";
import { listLog } from "./testing/collected.ts";

const name = "relay-issuer";

interface Contender {
  readonly lease: Lease;
  /** Every tenure there was. */
  readonly tenures: Tenure[];
  readonly lines: string[];
  /** From now on nothing it asks of the store is done: it is dead, or cut off for good. */
  die(): void;
}

const contend = async (
  store: DocumentStore,
  clock: VirtualClock,
  holder: string,
  more: {
    plan?: StorePlan;
    exclusive?: boolean;
    work?: (tenure: Tenure) => Promise<void>;
    address?: () => string;
  } = {},
): Promise<Contender> => {
  let dead = false;
  const seen = faultyStore(store, (operation) => (dead ? never<Fault>() : more.plan?.(operation)));
  const tenures: Tenure[] = [];
  const log = listLog();
  const lease = openLease({
    rows: await seen.collection<LeaseRow>("leases"),
    name,
    holder,
    address: more.address ?? (() => `${holder}:1`),
    clock,
    log,
    exclusive: more.exclusive ?? false,
    async work(tenure) {
      tenures.push(tenure);
      if (more.work) return await more.work(tenure);
      await aborted(tenure.signal);
    },
  });
  return {
    lease,
    tenures,
    lines: log.lines,
    die() {
      dead = true;
    },
  };
};

const aborted = (signal: AbortSignal) =>
  new Promise<void>((resolve) => {
    if (signal.aborted) resolve();
    else signal.addEventListener("abort", () => resolve());
  });
const working = (contender: Contender) => contender.tenures.filter((t) => !t.signal.aborted).length;
const rowsOf = async (store: DocumentStore): Promise<Collection<LeaseRow>> => store.collection<LeaseRow>("leases");
const opened = () => ({ store: memoryStore(), clock: virtualClock() });

describe("a lease", () => {
  it("is taken at once where there is none, kept by renewals, and names its holder to everybody", async () => {
    const { store, clock } = opened();
    let port = 0;
    const one = await contend(store, clock, "one", { address: () => `localhost:${port}` });
    const other = await contend(store, clock, "other");
    await clock.advance(0);
    expect([one.lease.held, other.lease.held]).toEqual([true, false]);
    port = 4711;
    await clock.advance(60_000);
    expect(one.tenures).toHaveLength(1);
    expect([working(one), working(other)]).toEqual([1, 0]);
    for (const { lease } of [one, other]) expect(lease.holder()).toEqual({ holder: "one", address: "localhost:4711" });
  });

  it("goes to the other within TTL and one poll after its holder was killed, never within two thirds", async () => {
    const { store, clock } = opened();
    const one = await contend(store, clock, "one");
    await clock.advance(0);
    const other = await contend(store, clock, "other");
    await clock.advance(10_000);
    one.die();
    const killedMs = clock.monotonicMs();
    while (!other.lease.held) {
      expect(clock.monotonicMs() - killedMs).toBeLessThanOrEqual(leaseTtlMs + leasePollMs);
      await clock.advance(50);
      // By its own clock the dead one has stopped before.
      if (other.lease.held) expect(one.lease.held).toBe(false);
    }
    expect(clock.monotonicMs() - killedMs).toBeGreaterThan(leaseTenureMs);
    expect(other.tenures[0]?.fence).toBeGreaterThan(one.tenures[0]?.fence as number);
  });

  it("goes to the other at its next look when given back", async () => {
    const { store, clock } = opened();
    const one = await contend(store, clock, "one");
    await clock.advance(0);
    const other = await contend(store, clock, "other");
    await clock.advance(10_000);
    const closing = one.lease.close();
    await settle();
    expect([one.lease.held, working(one)]).toEqual([false, 0]);
    await closing;
    expect(one.lease.holder()).toBeUndefined();
    await clock.advance(leasePollMs);
    expect([other.lease.held, working(other)]).toEqual([true, 1]);
  });

  it("ends at two thirds of the TTL when the database never answers, counted from before the last renewal was sent", async () => {
    const { store, clock } = opened();
    let hanging = false;
    const one = await contend(store, clock, "one", { plan: () => (hanging ? never() : undefined) });
    await clock.advance(1_000);
    hanging = true;
    const sentMs = 0;
    await clock.advance(sentMs + leaseTenureMs - clock.monotonicMs() - 1);
    expect([one.lease.held, working(one)]).toEqual([true, 1]);
    await clock.advance(1);
    expect([one.lease.held, working(one)]).toEqual([false, 0]);
  });

  it("is contended for anew by the one that lost it, whose late renewal then changes nothing", async () => {
    const { store, clock } = opened();
    const late = Promise.withResolvers<undefined>();
    let inserts = 0;
    const one = await contend(store, clock, "one", {
      plan({ method }) {
        if (method !== "insert") return undefined;
        inserts += 1;
        if (inserts === 2) return late.promise; // the first renewal
        return inserts === 4 ? "lost" : undefined; // the first renewal of the second tenure
      },
    });
    await clock.advance(leaseTenureMs);
    expect(one.tenures.map((t) => t.signal.aborted)).toEqual([true, false]);
    late.resolve(undefined);
    for (let step = 0; step < 500; step += 1) {
      await clock.advance(10);
      expect([one.lease.held, one.tenures.length]).toEqual([true, 2]);
    }
  });

  it("is contended for anew although a call to the database never returns", async () => {
    const { store, clock } = opened();
    let inserts = 0;
    const one = await contend(store, clock, "one", {
      plan({ method }) {
        if (method === "insert") inserts += 1;
        return method === "insert" && inserts === 2 ? never() : undefined;
      },
    });
    await clock.advance(10_000);
    expect([one.lease.held, one.tenures.length]).toEqual([true, 2]);
  });

  it("is not taken by a contender whose insert comes so late that its number was pruned", async () => {
    const { store, clock } = opened();
    const one = await contend(store, clock, "one");
    await clock.advance(0);
    const late = Promise.withResolvers<undefined>();
    const slow = await contend(store, clock, "slow", {
      plan: ({ method }) => (method === "insert" ? late.promise : undefined),
    });
    await clock.advance(10_000);
    // It sees the highest number stand still for a TTL, and its insert is on its way.
    one.die();
    await clock.advance(leaseTtlMs + leasePollMs);
    const two = await contend(store, clock, "two");
    await clock.advance(60_000);
    expect(two.lease.held).toBe(true);
    late.resolve(undefined);
    await clock.advance(20_000);
    expect([slow.tenures.length, two.lease.held, working(two)]).toEqual([0, true, 1]);
  });

  it("closes in bounded time although the database never answers", async () => {
    const { store, clock } = opened();
    const one = await contend(store, clock, "one");
    await clock.advance(0);
    one.die();
    let closed = false;
    void one.lease.close().then(() => {
      closed = true;
    });
    await clock.advance(leaseTenureMs);
    expect([closed, working(one)]).toEqual([true, 0]);
  });

  it("counts a renewal from its first try, since when the others may have seen it", async () => {
    const { store, clock } = opened();
    let unacknowledgedMs: number | undefined;
    // The first renewal is done but reported lost; from the second try on nothing is done any more.
    const one = await contend(store, clock, "one", {
      plan({ kind, n }) {
        if (unacknowledgedMs !== undefined && clock.monotonicMs() > unacknowledgedMs + 1_000) return never();
        if (kind !== "write" || n !== 2) return undefined;
        unacknowledgedMs = clock.monotonicMs();
        return "unacknowledged";
      },
    });
    await clock.advance(0);
    while (one.lease.held) await clock.advance(10);
    expect(clock.monotonicMs()).toBeLessThanOrEqual((unacknowledgedMs as number) + leaseTenureMs + 10);
    expect(clock.monotonicMs()).toBeGreaterThan(leaseTenureMs + 10);
  });

  it("survives renewals that fail either way, as long as one succeeds in time", async () => {
    for (const fault of ["lost", "unacknowledged"] as const) {
      const { store, clock } = opened();
      const one = await contend(store, clock, "one", {
        plan: ({ kind, n }) => (kind === "write" && n % 2 === 0 ? fault : undefined),
      });
      const other = await contend(store, clock, "other");
      await clock.advance(60_000);
      expect([one.tenures.length, working(one), other.tenures.length]).toEqual([1, 1, 0]);
    }
  });

  it("never gives a number twice and keeps only the last rows", async () => {
    const { store, clock } = opened();
    const fences: number[] = [];
    for (let i = 0; i < 6; i += 1) {
      const holder = await contend(store, clock, `holder-${i}`);
      await clock.advance(10_000);
      if (i % 2 === 0) await holder.lease.close();
      else holder.die();
      fences.push(...holder.tenures.map((t) => t.fence));
      await clock.advance(10_000);
    }
    expect(fences).toEqual([...new Set(fences)].sort((a, b) => a - b));
    const last = await contend(store, clock, "last");
    await clock.advance(200_000);
    expect(last.tenures).toHaveLength(1);
    expect(last.tenures[0]?.fence).toBeGreaterThan(Math.max(...fences));
    const rows = await (await rowsOf(store)).find({ limit: 1_000 });
    expect(rows.length).toBeLessThanOrEqual(32);
  });

  it("is taken over at once from a leftover where no other process can exist", async () => {
    const { store, clock } = opened();
    const killed = await contend(store, clock, "killed");
    await clock.advance(0);
    killed.die();
    const exclusive = await contend(store, clock, "next", { exclusive: true });
    await clock.advance(0);
    expect(exclusive.lease.held).toBe(true);
  });

  it("is noticed as lost by a holder that was paused, who stops and contends again", async () => {
    const store = memoryStore();
    const [its, others] = [virtualClock(), virtualClock()];
    const paused = await contend(store, its, "paused");
    await its.advance(0);
    const other = await contend(store, others, "other");
    await others.advance(leaseTtlMs + leasePollMs);
    expect(other.lease.held).toBe(true);
    its.jump(leaseTtlMs + leasePollMs);
    expect(paused.lease.held).toBe(false);
    await its.advance(0);
    expect(working(paused)).toBe(0);
    await others.advance(1_000);
    await its.advance(20);
    await settle();
    expect(paused.lease.holder()?.holder).toBe("other");
    expect(other.lease.held).toBe(true);
  });

  it("is given back and tried again after work that throws, and after work that ends by itself", async () => {
    const { store, clock } = opened();
    let runs = 0;
    const one = await contend(store, clock, "one", {
      async work({ signal }) {
        runs += 1;
        if (runs === 1) throw new Error("cannot open the producer");
        if (runs > 2) await aborted(signal);
      },
    });
    await clock.advance(500);
    expect([runs, one.lease.held]).toEqual([1, false]);
    expect(one.lines).toHaveLength(1);
    await clock.advance(5_000);
    expect([runs, one.lease.held]).toEqual([3, true]);
  });

  it("waits for work that is slow to stop before the next tenure", async () => {
    const { store, clock } = opened();
    const stopped = Promise.withResolvers<void>();
    let cutOff = false;
    const one = await contend(store, clock, "one", {
      plan: () => (cutOff ? "lost" : undefined),
      work: ({ signal }) => aborted(signal).then(() => stopped.promise),
    });
    await clock.advance(0);
    cutOff = true;
    await clock.advance(10_000);
    cutOff = false;
    await clock.advance(10_000);
    expect([one.tenures.length, one.lease.held]).toEqual([1, false]);
    stopped.resolve();
    await clock.advance(10_000);
    expect([one.tenures.length, one.lease.held]).toEqual([2, true]);
  });

  it("is held by at most one, by its own view, over many faults, kills and pauses", async () => {
    const store = memoryStore();
    const clock = virtualClock();
    let n = 0;
    let faulty = true;
    const plan: StorePlan = () => {
      n += 1;
      if (!faulty || n % 7 > 1) return undefined;
      return n % 7 === 0 ? "lost" : "unacknowledged";
    };
    const contenders = await Promise.all(["a", "b", "c"].map((holder) => contend(store, clock, holder, { plan })));
    let changes = 0;
    let last: string | undefined;
    for (let step = 0; step < 600; step += 1) {
      await clock.advance(250);
      const holders = contenders.filter((c) => c.lease.held);
      expect(holders.length).toBeLessThanOrEqual(1);
      const now = holders[0]?.tenures.at(-1)?.fence.toString();
      if (now !== undefined && now !== last) {
        changes += 1;
        last = now;
      }
      if (step % 100 === 99) {
        const victim = holders[0];
        victim?.die();
        if (victim) contenders.splice(contenders.indexOf(victim), 1, await contend(store, clock, `n${step}`, { plan }));
      }
      faulty = step % 100 < 60;
    }
    expect(changes).toBeGreaterThan(4);
  });
});
