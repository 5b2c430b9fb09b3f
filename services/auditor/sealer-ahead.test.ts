import type { DocumentStore } from "@curfew/document-store/port.ts";
import { topicNames } from "@curfew/event-log/event-types.ts";
import { type Fault, faultyStore, never, type StoreOperation } from "@curfew/simulation/faulty-store.ts";
import { afterEach, beforeEach, describe, expect, it, type MockInstance, vi } from "vitest";
import { batchId, maxBatchRecords } from "./domain.ts";
import { entryId } from "./projections.ts";
import {
  assertOneTree,
  bound,
  openWorld,
  replayAll,
  seal,
  sendOn,
  startAuditor,
  untilSealed,
  use,
  type World,
} from "./testing/rig.ts";

/** While full batches wait, the next one is made and signed before the one before it is staged, and staged before that one's rows are there. */

const count = 2 * maxBatchRecords + 50;
/** A producer for each thousand: more are not sent at once. */
const produce = async (world: World, from = 0, upTo = count): Promise<void> => {
  for (let first = from; first < upTo; first += maxBatchRecords) {
    const records = Array.from({ length: Math.min(maxBatchRecords, upTo - first) }, (_, i) => use(first + i, i % 3));
    await sendOn(world.bus, topicNames.uses, `verifier/from${first}`, records);
  }
};

let signing: MockInstance<typeof seal.sign>;
beforeEach(() => {
  signing = vi.spyOn(Object.getPrototypeOf(seal) as typeof seal, "sign");
});
const closers: (() => Promise<unknown>)[] = [];
afterEach(async () => {
  for (const close of closers.splice(0).reverse()) await close();
  signing.mockRestore();
});
const start = async (world: World, store?: DocumentStore) => {
  const auditor = await startAuditor(world, store);
  closers.push(() => auditor.close());
  return auditor;
};
const isStaging = ({ collection, method }: StoreOperation) => collection === "batches" && method === "insert";
/** The trees of two batches are signed. */
const nextMade = () =>
  vi.waitFor(
    () => expect(signing.mock.calls.map(([, size]) => size)).toEqual([maxBatchRecords, 2 * maxBatchRecords]),
    bound,
  );

describe("a batch made before the one before it is staged", () => {
  it("is dropped when another sequencer was first there", async () => {
    const world = await openWorld();
    const go = Promise.withResolvers<undefined>();
    let staging = 0;
    const slow = faultyStore(world.store, async (operation) => {
      if (!isStaging(operation)) return undefined;
      staging += 1;
      return await go.promise;
    });
    await produce(world);
    await start(world, slow);
    await nextMade();
    await start(world);
    await untilSealed(world);
    const before = await replayAll(world.store);
    go.resolve(undefined);
    await produce(world, count, count + 20);
    await untilSealed(world);
    expect(staging).toBeGreaterThan(0);
    await assertOneTree(world);
    const after = await replayAll(world.store);
    for (const [i, { doc }] of before.batches.entries()) expect(after.batches[i]?.doc.checkpoint).toBe(doc.checkpoint);
  });

  for (const fault of ["lost", "unacknowledged"] as const)
    it(`waits until that one is there: its write is ${fault}, again and again`, async () => {
      const world = await openWorld();
      let failures = 3;
      const faulty = faultyStore(world.store, async (operation) => {
        if (!isStaging(operation) || failures === 0) return undefined;
        await nextMade();
        expect(await (await world.store.collection("batches")).get(batchId(2))).toBeUndefined();
        failures -= 1;
        return fault;
      });
      await produce(world);
      await start(world, faulty);
      await untilSealed(world);
      expect(failures).toBe(0);
      await assertOneTree(world);
    });
});

describe("a batch staged beside the rows of the one before it", () => {
  /** Holds the rows of the first batch until told. */
  const holdRows = (world: World) => {
    const go = Promise.withResolvers<undefined>();
    const held = faultyStore(world.store, ({ collection, method }) =>
      collection === "entries" && method === "insertMany" ? go.promise : undefined,
    );
    return { held, go: () => go.resolve(undefined) };
  };

  it("is the only one, and is published after it", async () => {
    const world = await openWorld();
    const { held, go } = holdRows(world);
    await produce(world, 0, count + maxBatchRecords);
    const auditor = await start(world, held);
    const batches = await world.store.collection("batches");
    await vi.waitFor(async () => expect(await batches.get(batchId(2))).toBeDefined(), bound);
    await vi.waitFor(() => expect(signing.mock.calls.length).toBe(3), bound);
    expect(await batches.get(batchId(3))).toBeUndefined();
    expect(await auditor.models.checkpoints.find({ limit: 1 })).toEqual([]);
    go();
    await untilSealed(world);
    await assertOneTree(world);
  });

  it("is not published when those rows turn out to be another ledger's", async () => {
    const world = await openWorld();
    const { held, go } = holdRows(world);
    await produce(world);
    const auditor = await startAuditor(world, held);
    const batches = await world.store.collection("batches");
    await vi.waitFor(async () => expect(await batches.get(batchId(2))).toBeDefined(), bound);
    const foreign = { _id: entryId(5), batch: 1, leaf: Buffer.of(1), nodes: Buffer.alloc(32) };
    await (await world.store.collection("entries")).insert(foreign);
    go();
    await expect(auditor.running).rejects.toMatchObject({ name: "LedgerBroken" });
    expect(await auditor.models.checkpoints.find({ limit: 1 })).toEqual([]);
    expect(await batches.get(batchId(3))).toBeUndefined();
  });
});

it("goes on by itself though every fifth write fails, of batches and rows alike, done or not", async () => {
  const world = await openWorld();
  let writes = 0;
  const faulty = faultyStore(world.store, ({ kind }) => {
    if (kind === "read") return undefined;
    writes += 1;
    return writes % 5 > 0 ? undefined : writes % 10 > 0 ? "lost" : "unacknowledged";
  });
  await produce(world, 0, count + maxBatchRecords);
  await start(world, faulty);
  await untilSealed(world);
  expect(writes).toBeGreaterThan(16);
  await assertOneTree(world);
});

describe("a sequencer killed at any of its writes, with full batches waiting", () => {
  const derived = ["batches", "keys", "entries", "checkpoints"];

  /** Whether it was killed; else it had fewer writes, and sealed all. */
  const dieAt = async (world: World, n: number, fault: Fault): Promise<boolean> => {
    let writes = 0;
    const died = Promise.withResolvers<boolean>();
    const dying = faultyStore(world.store, async ({ kind, collection }) => {
      if (writes >= n) return await never();
      if (kind === "read" || !derived.includes(collection)) return undefined;
      writes += 1;
      if (writes < n) return undefined;
      died.resolve(true);
      return fault === "lost" ? await never() : fault;
    });
    const auditor = await startAuditor(world, dying);
    const finished = untilSealed(world).then(() => false);
    finished.catch(() => undefined);
    const killed = await Promise.race([died.promise, finished]);
    if (!killed) await auditor.close();
    return killed;
  };

  for (const fault of ["lost", "unanswered"] as const)
    it(`leaves the old head or a new one, and nothing twice or missing: the write is ${fault}`, async () => {
      let n = 1;
      for (let killed = true; killed; n += 1) {
        const world = await openWorld();
        await produce(world);
        killed = await dieAt(world, n, fault);
        const before = await replayAll(world.store);
        const next = await startAuditor(world);
        await untilSealed(world);
        await next.close();
        await assertOneTree(world);
        const after = await replayAll(world.store);
        for (const [i, { doc }] of before.batches.entries())
          expect(after.batches[i]?.doc.checkpoint).toBe(doc.checkpoint);
      }
      // Of three batches: the batch itself, its keys, its entries, its checkpoint row.
      expect(n).toBeGreaterThan(12);
    }, 120_000);
});
