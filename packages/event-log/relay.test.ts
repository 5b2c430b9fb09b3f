import type { CollectionOptions, Doc, DocumentStore } from "@curfew/document-store/port.ts";
import { type Fault, faultyStore, never, type StorePlan } from "@curfew/simulation/faulty-store.ts";
import { type BusPlan, type MemoryBus, memoryBus } from "@curfew/simulation/memory-bus.ts";
import { memoryStore } from "@curfew/simulation/memory-store.ts";
import { seededRandom } from "@curfew/simulation/seeded-random.ts";
import { settle, type VirtualClock, virtualClock } from "@curfew/simulation/virtual-clock.ts";
import { beforeEach, describe, expect, it } from "vitest";
import type { InRecord } from "./bus.ts";
import type { EpochRow } from "./epochs.ts";
import { leaseTtlMs } from "./lease.ts";
import { NotHolder, type Relay } from "./relay.ts";
import type { CommitDoc } from "./streams.ts";
import { openReplica, type Replica, topic } from "./testing/replica.ts";

const stream = "token/tok_test";
const upTo = (n: number) => Array.from({ length: n }, (_, i) => i + 1);
const header = (record: InRecord, name: string) => record.headers.find(([n]) => n === name)?.[1];
const sequences = (records: readonly InRecord[], of = stream) =>
  records.filter((r) => r.key === of).map((r) => Number(header(r, "ce_sequence")));

describe("a relay", () => {
  let store: DocumentStore;
  let clock: VirtualClock;
  let bus: MemoryBus;
  let network: Map<string, Relay>;
  const random = seededRandom(1);
  beforeEach(async () => {
    store = memoryStore();
    clock = virtualClock();
    bus = memoryBus({ epochs: await store.collection<EpochRow>("epochs"), clock, topics: { [topic]: 1 } });
    network = new Map();
  });

  const replica = async (
    name: string,
    { storePlan = () => undefined, busPlan = () => undefined }: { storePlan?: StorePlan; busPlan?: BusPlan } = {},
  ): Promise<Replica & { die(): void }> => {
    let dead = false;
    const plan =
      <Operation>(of: (operation: Operation) => ReturnType<StorePlan>) =>
      (operation: Operation) =>
        dead ? never<Fault>() : of(operation);
    const opened = await openReplica({
      name,
      store: faultyStore(store, plan(storePlan)),
      bus: bus.seenBy(plan(busPlan)),
      clock,
      random: random.bytes,
      network,
    });
    await settle();
    return {
      ...opened,
      die() {
        dead = true;
        network.delete(name);
      },
    };
  };
  const append = async (to: Replica, n: number, of = stream): Promise<CommitDoc> =>
    (await to.handle(of, { numbers: [n], again: true })).commit as CommitDoc;
  const commits = async () => (await store.collection<CommitDoc>("commits")).find({ limit: 10_000 });
  const flagged = async () => (await commits()).filter((doc) => doc.unpublished).length;

  it("publishes at once what it is woken with, exact bytes and headers, and clears the flag", async () => {
    const one = await replica("one");
    const commit = await append(one, 1);
    expect(await one.relay.published(commit)).toBe(0);
    await settle();
    const [record] = bus.records(topic);
    expect(record).toMatchObject({ key: stream, partition: 0, value: commit.events[0]?.value });
    const own = record?.headers.filter(([name]) => !name.startsWith("curfew-"));
    expect(own).toEqual(Object.entries(commit.events[0]?.headers ?? {}));
    expect(await flagged()).toBe(0);
    expect(clock.monotonicMs()).toBe(0);
  });

  it("finds by its scan what nobody woke it for", async () => {
    const one = await replica("one");
    for (const n of upTo(3)) await append(one, n);
    await settle();
    expect(bus.records(topic)).toEqual([]);
    await clock.advance(1_000);
    expect(sequences(bus.records(topic))).toEqual([1, 2, 3]);
    expect(await flagged()).toBe(0);
  });

  it("publishes what comes while a send is open with the next one, not with the next scan", async () => {
    const gate = Promise.withResolvers<undefined>();
    const one = await replica("one", {
      busPlan: ({ kind, n }) => (kind === "send" && n === 1 ? gate.promise : undefined),
    });
    const first = one.relay.published(await append(one, 1));
    await settle();
    const later = [one.relay.published(await append(one, 2)), one.relay.published(await append(one, 1, "token/b"))];
    gate.resolve(undefined);
    expect(await Promise.all([first, ...later])).toEqual([0, 1, 2]);
    expect(clock.monotonicMs()).toBe(0);
  });

  it("keeps the order of a stream when woken out of order, or with a later commit only", async () => {
    const one = await replica("one");
    const docs: CommitDoc[] = [];
    for (const n of upTo(6)) docs.push(await append(one, n));
    const offsets = await Promise.all([5, 1, 4, 3, 0].map((i) => one.relay.published(docs[i] as CommitDoc)));
    expect(offsets).toEqual([5, 1, 4, 3, 0]);
    expect(sequences(bus.records(topic))).toEqual(upTo(6));
    await append(one, 7);
    expect(await one.relay.published(await append(one, 8))).toBe(7);
    expect(sequences(bus.records(topic))).toEqual(upTo(8));
  });

  it("publishes a backlog of thousands without a pause of a second per page, each once", async () => {
    const idle = await replica("idle");
    await idle.lease.close();
    for (let i = 0; i < 45; i += 1) for (const n of upTo(50)) await append(idle, n, `token/${i}`);
    const one = await replica("one");
    await clock.advance(100);
    expect(bus.records(topic)).toHaveLength(2_250);
    for (let i = 0; i < 45; i += 1) expect(sequences(bus.records(topic), `token/${i}`)).toEqual(upTo(50));
    expect(await flagged()).toBe(0);
    expect(one.lines).toEqual([]);
  });

  it("reads few documents for a long stream", async () => {
    const idle = await replica("idle");
    await idle.lease.close();
    for (const n of upTo(900)) await append(idle, n);
    let gets = 0;
    let sends = 0;
    await replica("one", {
      busPlan: ({ kind }) => {
        if (kind === "send") sends += 1;
        return undefined;
      },
      storePlan: ({ method }) => {
        if (method === "get") gets += 1;
        return undefined;
      },
    });
    await clock.advance(0);
    expect(sequences(bus.records(topic))).toEqual(upTo(900));
    expect(gets).toBeLessThan(10);
    expect(sends).toBe(1);
  });

  it("wakes the holder for a commit of a replica that is not", async () => {
    await replica("holder");
    const other = await replica("other");
    expect(await other.relay.published(await append(other, 1))).toBe(0);
    expect(clock.monotonicMs()).toBe(0);
    await expect(other.relay.publishNow([])).rejects.toThrow(NotHolder);
  });

  it("answers a fellow once all is on the topic, and refuses to vouch for what it did not publish", async () => {
    const holder = await replica("holder");
    const docs = [await append(holder, 1), await append(holder, 2)];
    const ids = docs.map((doc) => doc._id);
    expect(await holder.relay.publishNow([...ids].reverse())).toEqual([1, 0]);
    expect(await holder.relay.publishNow(ids)).toEqual([0, 1]);
    await expect(holder.relay.publishNow([`${stream}@0000000099`])).rejects.toThrow(NotHolder);
    holder.die();
    const next = await replica("next");
    await clock.advance(leaseTtlMs + 1_000);
    await expect(next.relay.publishNow(ids)).rejects.toThrow(NotHolder);
    expect(bus.records(topic)).toHaveLength(2);
  });

  it("answers undefined after the wait while the bus is down, and the record follows when it is back", async () => {
    let down = true;
    const one = await replica("one", { busPlan: ({ kind }) => (kind === "send" && down ? "lost" : undefined) });
    const commit = await append(one, 1);
    let answer: number | undefined | "open" = "open";
    void one.relay.published(commit).then((offset) => {
      answer = offset;
    });
    await clock.advance(999);
    expect(answer).toBe("open");
    await clock.advance(1);
    expect(answer).toBeUndefined();
    for (const n of upTo(5).map((i) => i + 1)) await append(one, n);
    await clock.advance(20_000);
    expect(bus.records(topic)).toEqual([]);
    down = false;
    await clock.advance(2_000);
    expect(sequences(bus.records(topic))).toEqual(upTo(6));
    expect(await flagged()).toBe(0);
  });

  it("sends again, with the same event ids, after a death between the send and the flag", async () => {
    const dying: { die?: () => void } = {};
    const one = await replica("one", {
      storePlan({ method }) {
        if (method !== "unsetMany") return undefined;
        dying.die?.();
        return never<Fault>();
      },
    });
    dying.die = () => one.die();
    await one.relay.published(await append(one, 1));
    await settle();
    expect(await flagged()).toBe(1);
    const two = await replica("two");
    await clock.advance(leaseTtlMs + 1_000);
    expect(two.lease.held).toBe(true);
    const records = bus.records(topic);
    expect(records.map((r) => header(r, "ce_id"))).toEqual([
      header(records[0] as InRecord, "ce_id"),
      expect.anything(),
    ]);
    expect(new Set(records.map((r) => header(r, "ce_id"))).size).toBe(1);
    expect(await flagged()).toBe(0);
  });

  it("clears a flag later when that failed, without sending again", async () => {
    let failing = true;
    const one = await replica("one", {
      storePlan: ({ method }) => (method === "unsetMany" && failing ? "lost" : undefined),
    });
    await one.relay.published(await append(one, 1));
    await clock.advance(5_000);
    expect(await flagged()).toBe(1);
    failing = false;
    await clock.advance(1_000);
    expect(await flagged()).toBe(0);
    expect(bus.records(topic)).toHaveLength(1);
  });

  it("ends soon after its tenure, however many flags a slow database has to clear; the next one clears the rest", async () => {
    const idle = await replica("idle");
    for (let i = 0; i < 18; i += 1) for (const n of upTo(50)) await append(idle, n, `token/${i}`);
    await idle.lease.close();
    const fast = store;
    // 22 ms each is what FerretDB took on a busy machine (test/live/issuer.test.ts).
    store = {
      ...fast,
      async collection<D extends Doc>(name: string, options?: CollectionOptions) {
        const inner = await fast.collection<D>(name, options);
        const unsetMany: typeof inner.unsetMany = async (ids, ...fields) => {
          await clock.sleep(22 * ids.length);
          await inner.unsetMany(ids, ...fields);
        };
        return { ...inner, unsetMany };
      },
    };
    const one = await replica("one");
    await clock.advance(2_000);
    expect(bus.records(topic)).toHaveLength(900);
    let closed = false;
    void one.lease.close().then(() => {
      closed = true;
    });
    await clock.advance(1_500);
    expect(closed).toBe(true);
    const left = await flagged();
    expect(left).toBeGreaterThan(500);
    await replica("two");
    await clock.advance(30_000);
    expect(await flagged()).toBe(0);
    expect(bus.records(topic)).toHaveLength(900 + left);
  });

  it("goes on after an outage of the database, losing nothing it was woken with", async () => {
    let down = false;
    const one = await replica("one", { storePlan: () => (down ? "lost" : undefined) });
    const other = await replica("other");
    const docs: CommitDoc[] = [];
    for (const n of upTo(4)) docs.push(await append(other, n));
    down = true;
    const late = one.relay.published(docs[3] as CommitDoc, 10_000);
    await clock.advance(2_500);
    down = false;
    await clock.advance(2_000);
    expect(await late).toBe(3);
    expect(sequences(bus.records(topic))).toEqual(upTo(4));
  });

  it("settles when everything that was unpublished at the call is out, whatever comes after it", async () => {
    let allowed = 0;
    const one = await replica("one", {
      busPlan({ kind }) {
        if (kind !== "send") return undefined;
        allowed -= 1;
        return allowed < 0 ? "lost" : undefined;
      },
    });
    const other = await replica("other");
    await append(one, 1);
    const settled: string[] = [];
    void one.relay.settled().then(() => settled.push("holder"));
    void other.relay.settled().then(() => settled.push("other"));
    await clock.advance(5_000);
    await append(one, 1, "token/later");
    await clock.advance(1_000);
    expect(settled).toEqual([]);
    allowed = 1;
    await clock.advance(2_000);
    expect(settled.sort()).toEqual(["holder", "other"]);
    expect(bus.records(topic).map((r) => r.key)).toEqual([stream]);
  });

  it("does not settle past its signal, nor while the database cannot be asked", async () => {
    let cut = false;
    const one = await replica("one", { busPlan: () => "lost", storePlan: () => (cut ? "lost" : undefined) });
    await append(one, 1);
    const over = new AbortController();
    const refused = expect(one.relay.settled(over.signal)).rejects.toThrow("not settled in time");
    await clock.advance(300);
    over.abort();
    await clock.advance(200);
    await refused;
    cut = true;
    await expect(one.relay.settled()).rejects.toThrow();
  });

  it("settles at once where nothing waits", async () => {
    const one = await replica("one");
    await one.relay.published(await append(one, 1));
    await settle();
    await one.relay.settled();
    expect(clock.monotonicMs()).toBe(0);
  });

  it("publishes nothing from memory in a later tenure that another has published meanwhile", async () => {
    let down = true;
    let cut = false;
    const one = await replica("one", {
      busPlan: ({ kind }) => (kind === "send" && down ? "lost" : undefined),
      storePlan: ({ collection }) => (cut && collection === "leases" ? "lost" : undefined),
    });
    const commit = await append(one, 1);
    void one.relay.published(commit);
    await clock.advance(2_000);
    cut = true;
    const two = await replica("two");
    await clock.advance(leaseTtlMs + 2_000);
    expect([one.lease.held, two.lease.held, bus.records(topic).length]).toEqual([false, true, 1]);
    down = false;
    cut = false;
    two.die();
    await clock.advance(leaseTtlMs + 2_000);
    expect(one.lease.held).toBe(true);
    await append(one, 2);
    await clock.advance(1_000);
    expect(sequences(bus.records(topic))).toEqual([1, 2]);
  });
});
