import fs from "node:fs/promises";
import { syncBuiltinESMExports } from "node:module";
import { join } from "node:path";
import type { Collection, Doc, DocumentStore } from "@curfew/document-store/port.ts";
import { openSqliteStore } from "@curfew/document-store/sqlite.ts";
import type { EpochRow } from "@curfew/event-log/epochs.ts";
import { openSqliteBus } from "@curfew/event-log/sqlite.ts";
import { openDirectory } from "@curfew/ledger/directory.ts";
import { systemRandom } from "@curfew/runtime/random.ts";
import type { BatchDoc } from "../domain.ts";
import { publishTiles } from "../public-log/tile-log.ts";
import { clock, partitions, quiet, seal, shard, startAuditor, untilSealed, type World } from "./rig.ts";

/**
 * The sequencer on files: seals what is on the bus and publishes it. As a process of its own, to be killed: `kill.test.ts` starts it with
 * its orders as JSON, and it ends itself as `kill -9` would, at one of its writes.
 */
export interface Orders {
  readonly dir: string;
  /** Number of the write at which it ends, from 1, counted over store and files alike. */
  readonly at: number;
  readonly when: "before" | "after";
}

export const ledgerIn = (dir: string) => join(dir, "ledger");

export const openFiles = async (dir: string): Promise<World & { close(): Promise<void> }> => {
  const store = await openSqliteStore({ file: join(dir, "auditor.db") });
  const producers = await openSqliteStore({ file: join(dir, "producers.db") });
  const epochs = await producers.collection<EpochRow>("epochs");
  const bus = await openSqliteBus({ file: join(dir, "bus.db"), epochs, clock, topics: partitions });
  const close = async () => {
    await bus.close();
    await store.close();
    await producers.close();
  };
  return { store, epochs, bus, close };
};

/** Seals and publishes until all is published that is on the bus. */
export const sealAll = async (dir: string, world: World, store: DocumentStore = world.store): Promise<void> => {
  const files = openDirectory(ledgerIn(dir), { clock, random: systemRandom });
  const auditor = await startAuditor(world, store);
  const batches = await store.collection<BatchDoc>("batches");
  const stop = new AbortController();
  const latest = () => Number.POSITIVE_INFINITY;
  const publishing = publishTiles({ files: () => files, batches, latest, seal, clock, log: quiet }, stop.signal);
  const published = async () => {
    await untilSealed(world);
    const [last] = await batches.find({ order: -1, limit: 1 });
    const isThere = (bytes: Uint8Array | undefined) => bytes && seal.open(shard, Buffer.from(bytes).toString()).size;
    while (isThere(await files.read("checkpoint")) !== last?.size) await clock.sleep(10);
  };
  try {
    await Promise.race([published(), auditor.running, publishing]);
  } finally {
    stop.abort();
    await publishing;
    await auditor.close();
  }
};

type Pass = <T>(write: () => Promise<T>) => Promise<T>;

/** Ends the process at the write that was ordered. */
const openPass = ({ at, when }: Orders): Pass => {
  let writes = 0;
  const end = () => {
    process.kill(process.pid, "SIGKILL");
    return new Promise<never>(() => undefined);
  };
  return async (write) => {
    writes += 1;
    const isIt = writes === at;
    if (isIt && when === "before") await end();
    const result = await write();
    return isIt ? await end() : result;
  };
};

const reads = ["get", "find", "getLatest", "findLatest"];

const watched = (store: DocumentStore, pass: Pass): DocumentStore => ({
  ping: () => store.ping(),
  close: () => store.close(),
  async collection<D extends Doc>(name: string, options?: Parameters<DocumentStore["collection"]>[1]) {
    const inner = await store.collection<D>(name, options);
    // A promise looks whether it has a `then`: that is no method.
    const get = (target: Collection<D>, method: keyof Collection<D>) => {
      const call = target[method] as ((...args: unknown[]) => Promise<unknown>) | undefined;
      if (call === undefined || reads.includes(method)) return call?.bind(target);
      return (...args: unknown[]) => pass(() => call.apply(target, args));
    };
    return new Proxy(inner, { get: get as ProxyHandler<Collection<D>>["get"] & {} });
  },
});

/** Every call by which a ledger's directory changes. What is not yet synced survives a kill: to sync is no change here. */
const watchDirectory = (pass: Pass): void => {
  const { open, rename, rm } = fs;
  fs.rename = (...args) => pass(() => rename(...args));
  fs.rm = (...args) => pass(() => rm(...args));
  fs.open = async (...args) => {
    if (args[1] !== "wx") return await open(...args);
    const handle = await pass(() => open(...args));
    const { writeFile } = handle;
    handle.writeFile = (...what) => pass(() => writeFile.apply(handle, what));
    return handle;
  };
  syncBuiltinESMExports();
};

if (import.meta.main) {
  const orders: Orders = JSON.parse(process.argv[2] as string);
  const world = await openFiles(orders.dir);
  const pass = openPass(orders);
  watchDirectory(pass);
  await sealAll(orders.dir, world, watched(world.store, pass));
  await world.close();
}
