import type { Collection, DocumentStore } from "@curfew/document-store/port.ts";
import type { Clock } from "@curfew/runtime/clock.ts";
import { type Lease, provenEndMs, type Reading, type SeenLease, surelyEndedMs } from "./domain/effective.ts";

/**
 * The durable leases of watchers: a row per grant, inserted before the watcher hears of it, numbered per instance, never changed.
 * The newest row of an instance says all that matters, so older ones are deleted once it stands.
 */
export type LeaseRow = Lease & {
  /** `<instance>@<number>`. */
  _id: string;
  number: number;
  startMs: number;
  /** Last use whose report was acknowledged. */
  reportedSequence: number;
  /** Every use that the instance decided before this is reported, on our clock. */
  allReportedAtMs: number;
  /** It said goodbye, and that nothing is left to report. */
  complete: boolean;
};

export type SeenLeaseRow = LeaseRow & SeenLease;

type InstanceRow = { _id: string; uri: string; name: string };

/** What a grant is made from. */
export interface Grantee {
  readonly instance: string;
  readonly name: string;
  readonly reportsUses: boolean;
  readonly reportedSequence: number;
  readonly allReportedAtMs: number;
  readonly clockOffsetMs: number;
  readonly goodbye: boolean;
  readonly complete: boolean;
  /** Newest row known; wrong knowledge costs one round. */
  last: LeaseRow | undefined;
}

export interface LeaseBook {
  /** Makes the instance the caller's, or finds that it is; "taken" when it is another's. */
  claim(instance: string, caller: { readonly uri: string; readonly name: string }): Promise<"ours" | "taken">;
  newestOf(instance: string): Promise<LeaseRow | undefined>;
  /** Notes on its newest row what an instance whose stream has ended had reported by then: no grant will say so any more. */
  ended(grantee: Grantee): Promise<void>;
  /** Inserts one row for each; undefined where another row was there first. Sets `last`. All are durable when it resolves. */
  grant(grantees: readonly Grantee[]): Promise<(LeaseRow | undefined)[]>;
  /** The newest row of every instance: a read begun now, which is `read`. */
  newest(): Promise<{ readonly leases: SeenLeaseRow[]; readonly read: Reading }>;
  /** Deletes what newer rows replaced. Best effort. */
  prune(): Promise<void>;
  /** Forgets an instance whose lease ended long ago. */
  forget(row: LeaseRow): Promise<void>;
}

const pageSize = 5_000;
const maxGrants = 1_000;
const maxPruned = 500;
/** A replaced row that is not deleted in time is deleted at a later grant's turn, or with its instance. */
const maxReplaced = 20_000;
/** Instances whose newest row is remembered as seen. One that is forgotten is seen anew, and waits a lease longer for its proof. */
const maxSeen = 100_000;

/** When this process first saw the newest row of each instance. */
class Sightings {
  readonly #leaseMs: number;
  readonly #seen = new Map<string, { readonly number: number; readonly atMs: number; readonly provenEndMs: number }>();

  constructor(leaseMs: number) {
    this.#leaseMs = leaseMs;
  }

  /** `at`: after the row was inserted, or after the ping that it was inserted for. Answers its `provenEndMs`. */
  see(row: LeaseRow, at: Reading): number {
    const before = this.#seen.get(row.instance);
    // A newer one that a read begun before it has missed: that lease has not ended before this one.
    if (before && before.number > row.number) return before.provenEndMs;
    const provenMs = provenEndMs(row, at, this.#leaseMs);
    // A read may have seen the row before the grant that inserted it was answered.
    if (before && before.number === row.number && before.provenEndMs <= provenMs) return before.provenEndMs;
    const sighting = { number: row.number, atMs: at.monotonicMs, provenEndMs: provenMs };
    this.#seen.set(row.instance, sighting);
    if (this.#seen.size > maxSeen) this.#seen.delete(this.#seen.keys().next().value as string);
    return sighting.provenEndMs;
  }

  /** Forgets those without a row in a read begun at `beganMs`. */
  keep(instances: ReadonlyMap<string, unknown>, beganMs: number): void {
    for (const [instance, { atMs }] of this.#seen)
      if (atMs < beganMs && !instances.has(instance)) this.#seen.delete(instance);
  }
}

const rowId = (instance: string, number: number) => `${instance}@${String(number).padStart(10, "0")}`;
/** Rows of one instance stand between these: "A" follows "@", and neither is in an instance's name. */
const rangeOf = (instance: string) => ({ from: `${instance}@`, below: `${instance}A` });

const continuing = (last: LeaseRow | undefined, nowMs: number, leaseMs: number) => {
  if (!last) return { sinceMs: nowMs, previousEndMs: 0 };
  const endMs = surelyEndedMs(last, leaseMs);
  return endMs < nowMs ? { sinceMs: nowMs, previousEndMs: endMs } : last;
};

export const openLeaseBook = async (parts: {
  readonly store: DocumentStore;
  readonly clock: Clock;
  readonly leaseMs: number;
}): Promise<LeaseBook> => {
  const { store, clock, leaseMs } = parts;
  const rows: Collection<LeaseRow> = await store.collection<LeaseRow>("watchers");
  const instances = await store.collection<InstanceRow>("instances");
  const sightings = new Sightings(leaseMs);
  const readClocks = (): Reading => ({ wallMs: clock.now(), monotonicMs: clock.monotonicMs() });
  let replaced: string[] = [];

  const newestOf = async (instance: string): Promise<LeaseRow | undefined> => {
    const [row] = await rows.findLatest({ ...rangeOf(instance), order: -1, limit: 1 });
    return row;
  };

  const rowFor = (grantee: Grantee, nowMs: number): LeaseRow => {
    const { last, goodbye, instance, name, reportsUses, reportedSequence, allReportedAtMs, complete, clockOffsetMs } =
      grantee;
    const { sinceMs, previousEndMs } = continuing(last, nowMs, leaseMs);
    const number = (last?.number ?? 0) + 1;
    const untilMs = goodbye ? nowMs : nowMs + leaseMs;
    const uses = { reportsUses, reportedSequence, allReportedAtMs, complete };
    const lease = { instance, name, sinceMs, previousEndMs, startMs: nowMs, untilMs, goodbye, clockOffsetMs };
    return { _id: rowId(instance, number), number, ...lease, ...uses };
  };

  const grantSome = async (grantees: readonly Grantee[]) => {
    // Read after the pings were: a lease that the watcher counts from its ping has ended before this one has.
    const now = readClocks();
    const docs = grantees.map((grantee) => rowFor(grantee, now.wallMs));
    const verdicts = await rows.insertMany(docs);
    return await Promise.all(
      docs.map(async (doc, i) => {
        const grantee = grantees[i] as Grantee;
        if (verdicts[i] === "exists") {
          grantee.last = await newestOf(doc.instance);
          return undefined;
        }
        if (grantee.last && replaced.length < maxReplaced) replaced.push(grantee.last._id);
        grantee.last = doc;
        sightings.see(doc, now);
        return doc;
      }),
    );
  };

  return {
    async claim(instance, { uri, name }) {
      if ((await instances.insert({ _id: instance, uri, name })) === "inserted") return "ours";
      return (await instances.get(instance))?.uri === uri ? "ours" : "taken";
    },
    newestOf,
    async ended({ last, reportsUses, allReportedAtMs, reportedSequence }) {
      if (!last || !reportsUses || allReportedAtMs <= last.allReportedAtMs) return;
      await rows.set(last._id, { allReportedAtMs, reportedSequence });
    },
    async grant(grantees) {
      const granted: (LeaseRow | undefined)[] = [];
      for (let i = 0; i < grantees.length; i += maxGrants)
        granted.push(...(await grantSome(grantees.slice(i, i + maxGrants))));
      return granted;
    },
    async newest() {
      const read = readClocks();
      const newest = new Map<string, LeaseRow>();
      for (let from: string | undefined; ; ) {
        // Ascending: a row is deleted only after a newer one stands, which a read that missed the older one still comes to.
        const page = await rows.findLatest({ ...(from === undefined ? {} : { from }), limit: pageSize });
        for (const row of page) newest.set(row.instance, row);
        if (page.length < pageSize) break;
        from = `${page.at(-1)?._id}!`;
      }
      const seen = readClocks();
      const leases = [...newest.values()].map((row) => Object.assign(row, { provenEndMs: sightings.see(row, seen) }));
      sightings.keep(newest, read.monotonicMs);
      return { leases, read };
    },
    async prune() {
      const ids = replaced;
      replaced = [];
      for (let i = 0; i < ids.length; i += maxPruned) await rows.delete(...ids.slice(i, i + maxPruned));
    },
    async forget({ instance }) {
      const all = await rows.find({ ...rangeOf(instance), limit: pageSize });
      // The instance last: while it is there, no other caller can take its name and be bound by its leases.
      await rows.delete(...all.map((row) => row._id));
      await instances.delete(instance);
    },
  };
};
