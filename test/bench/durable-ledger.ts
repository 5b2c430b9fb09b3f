import { closeSync, fsyncSync, mkdtempSync, openSync, rmSync, writeSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { type Batch, type BatchDoc, batchId, type LedgerHead, maxBatchRecords } from "@curfew/auditor/domain.ts";
import { openLedger } from "@curfew/auditor/ledger.ts";
import { openReadModels } from "@curfew/auditor/projections.ts";
import { sealUntil } from "@curfew/auditor/sealer.ts";
import { clock, quiet, seal } from "@curfew/auditor/testing/rig.ts";
import type { DocumentStore } from "@curfew/document-store/port.ts";
import { openSqliteStore } from "@curfew/document-store/sqlite.ts";
import type { Bus, InRecord } from "@curfew/event-log/bus.ts";
import { type Figure, median, ofRounds, perSecond, ratio } from "./figures.ts";
import { collectGarbage, watchOthers } from "./machine.ts";
import { openRecords } from "./sealing-records.ts";

/** The sequencer on records out of memory, which come as fast as it takes them. Rows of the read models are no part of it: they follow. */
const openSequencer = async (store: DocumentStore) => {
  const batches = await store.collection<BatchDoc>("batches");
  const models = await openReadModels(store);
  const derived = (): never => {
    throw new Error("there was nothing to derive");
  };
  const made = openLedger({ batches, models, projection: { derive: derived }, seal, clock, published: derived });
  const waiting: { size: number; reached: () => void }[] = [];
  const derive = async (_before: LedgerHead, { head }: Batch) => {
    if (head.size === waiting[0]?.size) waiting.shift()?.reached();
  };
  const subscribed = Promise.withResolvers<(records: readonly InRecord[]) => Promise<void>>();
  const subscribe: Bus["subscribe"] = async ({ onRecords }) => {
    subscribed.resolve(async (records) => await onRecords(records));
    return { failed: new Promise(() => undefined), close: async () => undefined };
  };
  const stop = new AbortController();
  const topics = { sound: async () => undefined, lost: () => new Promise<never>(() => undefined) };
  const parts = { ledger: { ...made, derive }, bus: { subscribe }, topics, clock, log: quiet };
  const running = sealUntil(parts, { fence: 1, signal: stop.signal });
  const give = await subscribed.promise;
  return {
    batches,
    /** Until the ledger has `size` leaves, all of them staged. */
    async seal(groups: readonly InRecord[][], size: number): Promise<void> {
      const { promise, resolve } = Promise.withResolvers<void>();
      waiting.push({ size, reached: resolve });
      for (const group of groups) await give(group);
      await promise;
    },
    async close() {
      stop.abort();
      await running;
    },
  };
};

/**
 * Ours: leaves, tree and signature of each full batch, and one insert of it, which is acknowledged when the store's log is synced; that
 * the log is then moved into the file counts too. The peer: the same leaf bytes, a batch at a time, at the end of a file, and an fsync.
 */
export const durable = async (rounds: number): Promise<Figure> => {
  const dir = mkdtempSync(join(tmpdir(), "curfew-bench-"));
  const store = await openSqliteStore({ file: join(dir, "auditor.db") });
  const file = openSync(join(dir, "raw"), "w");
  const batchesARound = 40;
  try {
    const sequencer = await openSequencer(store);
    const records = openRecords();
    const ratios: number[] = [];
    const rates: number[] = [];
    const others = watchOthers();
    const before = process.cpuUsage();
    for (let round = 0; round <= rounds; round += 1) {
      const last = (round + 1) * batchesARound;
      const groups = Array.from({ length: batchesARound }, () => records(maxBatchRecords));
      collectGarbage();
      let started = performance.now();
      await sequencer.seal(groups, last * maxBatchRecords);
      await store.ping(); // after all that followed the last answer
      const ours = performance.now() - started;
      let raw = 0;
      for (let number = last - batchesARound + 1; number <= last; number += 1) {
        const { leaves } = (await sequencer.batches.get(batchId(number))) as BatchDoc;
        started = performance.now();
        writeSync(file, Buffer.concat(leaves));
        fsyncSync(file);
        raw += performance.now() - started;
      }
      if (round === 0) continue; // not compiled yet
      ratios.push(raw / ours);
      rates.push((1_000 * batchesARound * maxBatchRecords) / ours);
    }
    await sequencer.close();
    const what = `sealed and durable, ${maxBatchRecords} at once / append and fsync of the same bytes`;
    const { user, system } = process.cpuUsage(before);
    const notes = [`${perSecond(median(rates))} events sealed and durable`, others((user + system) / 1_000)];
    return ofRounds(ratios, { what, show: ratio, target: { least: 0.2 }, notes });
  } finally {
    closeSync(file);
    await store.close();
    rmSync(dir, { recursive: true });
  }
};
