import { mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import type { Collection, Doc, DocumentStore } from "@curfew/document-store/port.ts";
import { topicNames } from "@curfew/event-log/event-types.ts";
import type { LeaseRow } from "@curfew/event-log/lease.ts";
import { openKeyring } from "@curfew/keyring/keyring.ts";
import { type LogFiles, openDirectory } from "@curfew/ledger/directory.ts";
import { createAuthority } from "@curfew/rpc/identity-authority.ts";
import type { Clock } from "@curfew/runtime/clock.ts";
import { systemRandom } from "@curfew/runtime/random.ts";
import { failWrite, faultyStore } from "@curfew/simulation/faulty-store.ts";
import { memoryStore } from "@curfew/simulation/memory-store.ts";
import { afterEach, describe, expect, it, vi } from "vitest";
import type { BatchDoc } from "../domain.ts";
import { openReadModels, type ReadModels } from "../projections.ts";
import { publishTiles } from "../public-log/tile-log.ts";
import {
  assertOneTree,
  bound,
  clock,
  identities,
  ledgerName,
  openWorld,
  quiet,
  replayAll,
  seal,
  sendOn,
  shard,
  startAuditor,
  tokenEvent,
  untilSealed,
  use,
  type World,
} from "../testing/rig.ts";
import { assertNoRebuild, rebuild } from "./rebuild.ts";
import { rebuildOnce, sealLease } from "./rebuild-once.ts";

const undo: (() => unknown)[] = [];
afterEach(async () => {
  for (const step of undo.splice(0).reverse()) await step();
});
const numbers = (n: number, from = 0) => Array.from({ length: n }, (_, i) => from + i);
const { trust } = identities;
const trustDomain = "test.example";
const going = new AbortController().signal;

const allOf = async <D extends Doc>(rows: Collection<D>) => await rows.find({ limit: 10_000 });
const rowsOf = async ({ entries, keys, checkpoints }: ReadModels) => ({
  entries: await allOf(entries),
  keys: await allOf(keys),
  checkpoints: await allOf(checkpoints),
});

/** A ledger of several batches, with all that its rows tell of: events twice, a gap in a stream, more than one chain. */
const openLedgerOf = async (count: number) => {
  const world = await openWorld();
  for (const from of numbers(4).map((n) => (n * count) / 4)) {
    const auditor = await startAuditor(world);
    await sendOn(
      world.bus,
      topicNames.uses,
      "verifier/b",
      numbers(count / 4, from).map((n) => use(n, n % 3, `use-${n % (count / 2)}`)),
    );
    await sendOn(world.bus, topicNames.tokens, "issuer/a", [tokenEvent(from, 1), tokenEvent(from, 3)]);
    await untilSealed(world);
    await auditor.close();
  }
  return { world, live: await rowsOf(await openReadModels(world.store)) };
};
const rebuilt = (world: Pick<World, "epochs" | "store">, store: DocumentStore = world.store) =>
  rebuild({ store, epochs: world.epochs, trust, seal, clock }, () => undefined, going);

describe("read models made anew from the ledger", () => {
  it("are the live ones, row by row, whatever had become of those", async () => {
    const { world, live } = await openLedgerOf(200);
    expect(live.entries.some(({ duplicate }) => duplicate)).toBe(true);
    const models = await openReadModels(world.store);
    await models.entries.set(live.entries[3]?._id ?? "", { leaf: new Uint8Array(9), tokenId: "other" });
    await models.entries.delete(live.entries[7]?._id ?? "");
    await models.keys.delete(...live.keys.slice(0, 20).map(({ _id }) => _id));
    await models.keys.set(live.keys[30]?._id ?? "", { index: 0 });
    await models.keys.insert({ _id: "event nobody-sent", index: 1 });
    await models.checkpoints.delete(live.checkpoints[1]?._id ?? "");
    const { batches, entries } = await rebuilt(world);
    expect([batches, entries]).toEqual([live.checkpoints.length, live.entries.length]);
    expect(await rowsOf(models)).toEqual(live);
    await assertNoRebuild(world.store);
    await assertOneTree(world);
  });

  it("come out the same whichever write a kill cut off, and until then no auditor starts", async () => {
    const { world, live } = await openLedgerOf(20);
    const models = await openReadModels(world.store);
    let killed = 0;
    for (let n = 1; ; n += 1) {
      for (const fault of ["lost", "unanswered"] as const) {
        const hung = Promise.withResolvers<"killed">();
        const plan = failWrite(n, fault);
        const dying = faultyStore(world.store, (operation) => {
          const found = plan(operation);
          if (!found) return found;
          hung.resolve("killed");
          return fault === "lost" ? new Promise<never>(() => undefined) : found;
        });
        if ((await Promise.race([rebuilt(world, dying), hung.promise])) !== "killed") {
          expect(killed).toBeGreaterThan(20);
          return;
        }
        killed += 1;
        await new Promise(setImmediate);
        const isDone = await assertNoRebuild(world.store).then(
          () => true,
          () => false,
        );
        if (isDone) expect(await rowsOf(models)).toEqual(live);
        await rebuilt(world);
        expect(await rowsOf(models)).toEqual(live);
      }
    }
  });

  it("are not made where nothing was staged, nor while another auditor seals", async () => {
    const world = await openWorld();
    await expect(rebuilt(world)).rejects.toMatchObject({ name: "RebuildRefused" });
    const leases = await world.store.collection<LeaseRow>("leases");
    const row = { holder: "another", address: "", released: false };
    const renewing: Clock = {
      ...clock,
      sleep: async () => void (await leases.insert({ _id: `${sealLease}#000000000002`, ...row })),
    };
    await leases.insert({ _id: `${sealLease}#000000000001`, ...row });
    const dir = mkdtempSync(join(tmpdir(), "curfew-rebuild-"));
    undo.push(() => rmSync(dir, { recursive: true, force: true }));
    const keyring = openKeyring({ dir: join(dir, "keys"), random: systemRandom, clock });
    const { certPem: caPem } = await createAuthority({ trustDomain, clock });
    const parts = { store: world.store, keyring, caPem, trustDomain, clock: renewing };
    const how = { epochs: world.epochs, origin: ledgerName, files: undefined };
    await expect(rebuildOnce({ ...parts, log: quiet }, how)).rejects.toThrow("another auditor seals");
  });
});

describe("a store that is gone", () => {
  const publish = async (world: World) => {
    const dir = mkdtempSync(join(tmpdir(), "curfew-rebuild-"));
    undo.push(() => rmSync(dir, { recursive: true, force: true }));
    const files = openDirectory(dir, { clock, random: systemRandom });
    const batches = await world.store.collection<BatchDoc>("batches");
    const stop = new AbortController();
    const [last] = await batches.find({ order: -1, limit: 1 });
    const latest = () => Number(last?._id.slice(5));
    const publishing = publishTiles({ files: () => files, batches, latest, seal, clock, log: quiet }, stop.signal);
    const size = async () => seal.open(shard, String(await files.read("checkpoint"))).size;
    await vi.waitFor(async () => expect(await size()).toBe(last?.size), bound);
    stop.abort();
    await publishing;
    return { dir, files };
  };
  const none: LogFiles = { read: async () => undefined, write: async () => undefined };
  const inItsYear = (files: LogFiles) => (year: number) => (year === shard.year ? files : none);
  const fromFiles = (world: World, store: DocumentStore, files: ReturnType<typeof openDirectory>) =>
    rebuild({ store, epochs: world.epochs, trust, seal, files: inItsYear(files), clock }, () => undefined, going);

  it("comes back from the ledger's files: the same leaves under the same checkpoint, and sealing goes on", async () => {
    const { world, live } = await openLedgerOf(1_200);
    const { files } = await publish(world);
    const store = memoryStore();
    expect(await fromFiles(world, store, files)).toMatchObject({ entries: live.entries.length });
    const rows = await rowsOf(await openReadModels(store));
    const content = ({ _id, leaf, nodes, tokenId, type, duplicate }: (typeof rows.entries)[number]) =>
      [_id, leaf, nodes, tokenId, type, duplicate] as const;
    expect(rows.entries.map(content)).toEqual(live.entries.map(content));
    expect(rows.keys).toEqual(live.keys);
    expect(rows.checkpoints.at(-1)?.checkpoint).toBe(live.checkpoints.at(-1)?.checkpoint);
    const restored = { ...world, store };
    const auditor = await startAuditor(restored);
    await sendOn(world.bus, topicNames.tokens, "issuer/c", [tokenEvent(9_999, 1)]);
    await untilSealed(restored);
    await auditor.close();
    const { batches, head } = await replayAll(store);
    expect(batches.length).toBeGreaterThan(2);
    expect(head.size).toBe(live.entries.length + 1);
  });

  it("comes back the same whichever write a kill cut off", async () => {
    const { world } = await openLedgerOf(1_200);
    const { files } = await publish(world);
    const whole = memoryStore();
    await fromFiles(world, whole, files);
    const expected = await rowsOf(await openReadModels(whole));
    for (const n of [1, 2, 3, 4, 6]) {
      const store = memoryStore();
      const hung = Promise.withResolvers<"killed">();
      const dying = faultyStore(store, ({ kind, n: at }) => {
        if (kind !== "write" || at !== n) return undefined;
        hung.resolve("killed");
        return "unanswered";
      });
      await Promise.race([fromFiles(world, dying, files), hung.promise]);
      await new Promise(setImmediate);
      await expect(fromFiles(world, store, files).catch(() => rebuilt(world, store))).resolves.toBeDefined();
      expect(await rowsOf(await openReadModels(store))).toEqual(expected);
    }
  });

  it("is not made of files that are spoilt, nor over a store that has batches", async () => {
    const { world } = await openLedgerOf(400);
    const { dir, files } = await publish(world);
    await expect(fromFiles(world, world.store, files)).rejects.toMatchObject({ name: "RebuildRefused" });
    const path = join(dir, "tile/entries/000");
    const bytes = readFileSync(path);
    bytes[bytes.length - 1] = (bytes[bytes.length - 1] as number) ^ 1;
    writeFileSync(path, bytes);
    const store = memoryStore();
    await expect(fromFiles(world, store, files)).rejects.toMatchObject({ name: "LedgerBroken" });
    expect(await allOf(await store.collection<BatchDoc>("batches"))).toEqual([]);
  });
});
