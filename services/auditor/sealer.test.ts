import { fromBinary } from "@bufbuild/protobuf";
import { EvidenceGapFoundSchema, GapCause } from "@curfew/contracts/gen/curfew/events/v1/evidence_pb.ts";
import type { DocumentStore } from "@curfew/document-store/port.ts";
import { topicNames } from "@curfew/event-log/event-types.ts";
import { type Fault, faultyStore, type StoreOperation } from "@curfew/simulation/faulty-store.ts";
import { afterEach, describe, expect, it, vi } from "vitest";
import { driftCauseName } from "./checks/drift.ts";
import type { BatchDoc } from "./domain.ts";
import { batchId, maxBatchRecords } from "./domain.ts";
import {
  assertOneTree,
  bound,
  type MemoryWorld,
  openWorld,
  replayAll,
  sendOn,
  sorted,
  startAuditor,
  tokenEvent,
  untilSealed,
  use,
  type World,
} from "./testing/rig.ts";

const closers: (() => Promise<unknown>)[] = [];
afterEach(async () => {
  for (const close of closers.splice(0).reverse()) await close();
});
const start = async (world: World, store?: DocumentStore) => {
  const auditor = await startAuditor(world, store);
  closers.push(() => auditor.close());
  return auditor;
};
const numbers = (n: number, from = 0) => Array.from({ length: n }, (_, i) => from + i);
const never = () => new Promise<undefined>(() => undefined);

/** Two producers on two topics, one of them on all partitions. */
const produce = async (world: World, count: number, from = 0): Promise<void> => {
  await Promise.all([
    sendOn(
      world.bus,
      topicNames.tokens,
      "issuer/a",
      numbers(count, from).map((n) => tokenEvent(n, 1)),
    ),
    sendOn(
      world.bus,
      topicNames.uses,
      "verifier/b",
      numbers(count, from).map((n) => use(n, n % 3)),
    ),
  ]);
};

describe("sealing", () => {
  it("stops at a topic that ends before what was sealed of it, says so, and goes on once it is whole again", async () => {
    const world = await openWorld();
    await produce(world, 40);
    const first = await start(world);
    await untilSealed(world);
    await first.close();
    const { bus } = await openWorld(); // the topics recreated
    await produce({ ...world, bus }, 3);
    const again = await startAuditor(world, world.store, bus);
    const open = async () =>
      sorted(
        (await again.drifts.open()).map((d) => `${driftCauseName(d.cause)} ${d.topic}/${d.partition} ${d.expected}`),
      );
    const shrunk = [[topicNames.tokens, 0, 40] as const, ...[14, 13, 13].map((end, p) => [topicNames.uses, p, end])];
    const expected = sorted(shrunk.map(([topic, partition, end]) => `DRIFT_CAUSE_SHRUNK ${topic}/${partition} ${end}`));
    await vi.waitFor(async () => expect(await open()).toEqual(expected), bound);
    // What comes on offsets that are taken is not passed over, nor sealed.
    await produce({ ...world, bus }, 60, 3);
    await again.close();
    expect((await replayAll(world.store)).head.size).toBe(80);
    await produce(world, 5, 40);
    const whole = await start(world);
    await untilSealed(world);
    expect(await whole.drifts.open()).toEqual([]);
    await assertOneTree(world);
  });

  it("makes every record of every topic one leaf, and seals together what comes together", async () => {
    const world = await openWorld();
    await produce(world, 40);
    await start(world);
    await untilSealed(world);
    await assertOneTree(world);
    expect((await replayAll(world.store)).batches.length).toBeLessThan(5);
  });

  it("fills batches to their bound and no further", async () => {
    const world = await openWorld();
    for (let from = 0; from < 3_000; from += 1_000) await produce(world, 1_000, from);
    await start(world);
    await untilSealed(world);
    const sizes = (await replayAll(world.store)).batches.map((batch) => batch.records.length);
    expect(Math.max(...sizes)).toBe(maxBatchRecords);
    expect(sizes.reduce((a, b) => a + b)).toBe(6_000);
  });

  it("goes on after a restart where it was", async () => {
    const world = await openWorld();
    await produce(world, 5);
    const first = await start(world);
    await untilSealed(world);
    await first.close();
    await produce(world, 5, 5);
    await start(world);
    await untilSealed(world);
    await assertOneTree(world);
  });

  it("stays one tree when a sequencer is paused between reading and staging while another seals", async () => {
    const world = await openWorld();
    const paused = Promise.withResolvers<void>();
    const go = Promise.withResolvers<undefined>();
    let staging = 0;
    const slow = faultyStore(world.store, async ({ collection, method }: StoreOperation) => {
      if (collection !== "batches" || method !== "insert") return undefined;
      staging += 1;
      paused.resolve();
      return await go.promise;
    });
    await produce(world, 10);
    await start(world, slow);
    await paused.promise;
    await start(world);
    await untilSealed(world);
    const before = (await replayAll(world.store)).head;
    go.resolve(undefined);
    await produce(world, 10, 10);
    await untilSealed(world);
    await vi.waitFor(() => expect(staging).toBeGreaterThan(0), bound);
    await assertOneTree(world);
    // What had been published stands under what came later.
    const after = (await replayAll(world.store)).batches[before.batch - 1];
    expect(after?.head.frontier.root()).toEqual(before.frontier.root());
  });

  it("drops what the bus delivers again", async () => {
    const world = await openWorld();
    await produce(world, 20);
    const twice = world.bus.seenBy(({ kind }) => (kind === "deliver" ? "unacknowledged" : undefined));
    const auditor = await startAuditor(world, world.store, twice);
    closers.push(() => auditor.close());
    await untilSealed(world);
    await produce(world, 5, 20);
    await untilSealed(world);
    await assertOneTree(world);
  });

  it("stays one tree with two sequencers at once", async () => {
    const world = await openWorld();
    await start(world);
    await start(world);
    for (let from = 0; from < 50; from += 5) {
      await produce(world, 5, from);
      await untilSealed(world);
    }
    await assertOneTree(world);
  });
});

const derived = ["batches", "keys", "entries", "checkpoints", "commits"];
const counted = ({ kind, collection }: StoreOperation) => kind === "write" && derived.includes(collection);

/** A record that nobody we know produced, so that a gap is found, recorded and sealed on the way. */
const produceWithGap = async (world: World): Promise<void> => {
  await produce(world, 3);
  await sendOn(world.bus, topicNames.revocations, "revocation/stranger", [use(1)]);
  await world.epochs.delete("revocation/stranger/1");
};

const gapsOn = (world: MemoryWorld) => world.bus.records(topicNames.evidence).length;

/** The one gap there is, however often its record came out; nothing else was ever found. */
const assertOneGap = (world: MemoryWorld) => {
  const records = world.bus.records(topicNames.evidence);
  expect(new Set(records.map(({ headers }) => headers.find(([name]) => name === "ce_id")?.[1])).size).toBe(1);
  expect(fromBinary(EvidenceGapFoundSchema, records[0]?.value ?? new Uint8Array())).toMatchObject({
    producer: "revocation/stranger/1",
    cause: GapCause.UNKNOWN_PRODUCER,
  });
};

describe("a sequencer killed at any of its writes", () => {
  /** Runs until the process "dies" at write `n`; false when there were fewer writes. */
  const dieAt = async (world: MemoryWorld, n: number, fault: Fault): Promise<boolean> => {
    let writes = 0;
    let dead = false;
    const died = Promise.withResolvers<boolean>();
    const dying = faultyStore(world.store, async (operation) => {
      if (dead) return await never();
      if (!counted(operation)) return undefined;
      writes += 1;
      if (writes < n) return undefined;
      dead = true;
      died.resolve(true);
      // "lost": nothing was written, and no answer comes either.
      return fault === "lost" ? await never() : "unanswered";
    });
    const auditor = await startAuditor(world, dying);
    auditor.outbox.start("localhost:1");
    const finished = untilSealed(world)
      .then(() => vi.waitFor(() => expect(gapsOn(world)).toBe(1), bound))
      .then(() => untilSealed(world))
      .then(() => false);
    finished.catch(() => undefined);
    const killed = await Promise.race([died.promise, finished]);
    if (!killed) closers.push(() => auditor.close());
    return killed;
  };

  for (const fault of ["lost", "unanswered"] as const)
    it(`leaves the old head or the new one: the write is ${fault === "lost" ? "lost" : "done, but the reply is lost"}`, async () => {
      let n = 1;
      for (let killed = true; killed; n += 1) {
        const world = await openWorld();
        await produceWithGap(world);
        killed = await dieAt(world, n, fault);
        const before = await replayAll(world.store);
        const next = await start(world);
        next.outbox.start("localhost:2");
        await vi.waitFor(() => expect(gapsOn(world)).toBeGreaterThanOrEqual(1), bound);
        await untilSealed(world);
        await assertOneTree(world);
        assertOneGap(world);
        const after = await replayAll(world.store);
        for (const [i, batch] of before.batches.entries())
          expect(after.batches[i]?.doc.checkpoint).toBe(batch.doc.checkpoint);
      }
      expect(n).toBeGreaterThan(8);
    }, 60_000);

  for (const fault of ["lost", "unacknowledged"] as const)
    it(`goes on by itself when one write is ${fault}`, async () => {
      let total = 0;
      for (let n = 1; n === 1 || n <= total; n += 1) {
        const world = await openWorld();
        await produceWithGap(world);
        let writes = 0;
        const faulty = faultyStore(world.store, (operation) => {
          if (!counted(operation)) return undefined;
          writes += 1;
          return writes === n ? fault : undefined;
        });
        const auditor = await start(world, faulty);
        auditor.outbox.start("localhost:1");
        await vi.waitFor(() => expect(gapsOn(world)).toBeGreaterThanOrEqual(1), bound);
        await untilSealed(world);
        await assertOneTree(world);
        assertOneGap(world);
        total = Math.max(total, writes);
        await auditor.close();
      }
      expect(total).toBeGreaterThan(8);
    }, 60_000);
});

describe("a ledger that was changed in the store", () => {
  const flip = (bytes: Uint8Array): Uint8Array => bytes.map((byte, i) => (i === bytes.length - 1 ? byte ^ 1 : byte));
  const changes: Record<string, (doc: BatchDoc) => Partial<BatchDoc>> = {
    "a bit of a leaf": ({ leaves }) => ({ leaves: [flip(leaves[0] as Uint8Array), ...leaves.slice(1)] }),
    "a leaf left out": ({ leaves }) => ({ leaves: leaves.slice(1) }),
    "a bit of the root": ({ root }) => ({ root: flip(root) }),
    "a bit of the frontier": ({ frontier }) => ({ frontier: flip(frontier) }),
    "the positions": ({ positions }) => ({ positions: positions.map((p) => ({ ...p, next: p.next + 1 })) }),
    "the size": ({ size }) => ({ size: size + 1 }),
    "the checkpoint's signature": ({ checkpoint }) => ({ checkpoint: checkpoint.replace(/.{6}\n$/, "AAAA==\n") }),
  };
  for (const [what, change] of Object.entries(changes))
    it(`stops the sealer: ${what}`, async () => {
      const world = await openWorld();
      await produce(world, 5);
      const first = await start(world);
      await untilSealed(world);
      await first.close();
      const batches = await world.store.collection<BatchDoc>("batches");
      const { head } = await replayAll(world.store);
      const last = batchId(head.batch);
      const doc = (await batches.get(last)) as BatchDoc;
      await batches.set(last, change(doc));
      await produce(world, 1, 5);
      const second = await startAuditor(world);
      await expect(second.running).rejects.toMatchObject({ name: "LedgerBroken" });
      expect(await batches.get(batchId(head.batch + 1))).toBeUndefined();
    });

  it("is found in an old batch too, by the verification of all of them", async () => {
    const world = await openWorld();
    const auditor = await start(world);
    for (const n of [0, 1, 2]) {
      await produce(world, 2, 2 * n);
      await untilSealed(world);
    }
    const stop = new AbortController();
    await auditor.ledger.verifyAll(async () => undefined, stop.signal);
    const batches = await world.store.collection<BatchDoc>("batches");
    const doc = (await batches.get(batchId(1))) as BatchDoc;
    await batches.set(batchId(1), { leaves: [flip(doc.leaves[0] as Uint8Array), ...doc.leaves.slice(1)] });
    await expect(auditor.ledger.verifyAll(async () => undefined, stop.signal)).rejects.toMatchObject({
      name: "LedgerBroken",
    });
  });
});
