import { setImmediate } from "node:timers/promises";
import type { Bus, InRecord } from "@curfew/event-log/bus.ts";
import { topicNames } from "@curfew/event-log/event-types.ts";
import type { Tenure } from "@curfew/event-log/lease.ts";
import { aboutLeafBytes } from "@curfew/ledger/leaf.ts";
import type { Clock } from "@curfew/runtime/clock.ts";
import type { Log } from "@curfew/runtime/log.ts";
import type { TopicWatch } from "./checks/topic-watch.ts";
import {
  type Batch,
  LedgerBroken,
  type LedgerHead,
  makeBatch,
  maxBatchBytes,
  maxBatchRecords,
  nextOffset,
} from "./domain.ts";
import { Interrupted, type Ledger } from "./ledger.ts";

/**
 * The sequencer: reads all topics from the positions of the last batch and stages batch after batch. The insert of a batch decides; a
 * lease only spares the work of a second one. When another was first, everything read is discarded and reading begins anew.
 */

/** What arrives within this time is sealed together. */
export const groupMs = 50;
/** Read and not yet sealed; past it the bus has to wait. */
const maxWaitingRecords = 4 * maxBatchRecords;
const maxWaitingBytes = 4 * maxBatchBytes;

/** Records between the subscription and the next batch. */
const openIntake = (head: LedgerHead) => {
  let waiting: InRecord[] = [];
  /** Of the leaf of each of these, about. */
  let sizes: number[] = [];
  let bytes = 0;
  let closed = false;
  /** By topic, and by partition. */
  const next = new Map<string, Map<number, number>>();
  let changed = Promise.withResolvers<void>();
  const tell = () => {
    changed.resolve();
    changed = Promise.withResolvers();
  };
  const isFull = () => waiting.length >= maxWaitingRecords || bytes >= maxWaitingBytes;
  return {
    /** Takes records in; what is sealed or waiting already is dropped, and nothing else. Resolves when there is room for more. */
    async accept(records: readonly InRecord[]): Promise<void> {
      for (const record of records) {
        const { topic, partition, offset } = record;
        const offsets = next.get(topic) ?? new Map<number, number>();
        if (offsets.size === 0) next.set(topic, offsets);
        if (offset < (offsets.get(partition) ?? nextOffset(head.positions, topic, partition))) continue;
        offsets.set(partition, offset + 1);
        const size = aboutLeafBytes(record);
        waiting.push(record);
        sizes.push(size);
        bytes += size;
      }
      tell();
      while (isFull() && !closed) await changed.promise;
    },
    get size() {
      return waiting.length;
    },
    /** Whether a batch would be full. */
    get enough() {
      return waiting.length >= maxBatchRecords || bytes >= maxBatchBytes;
    },
    /** Resolves at the next change. */
    changed: () => changed.promise,
    take(): InRecord[] {
      let count = 0;
      let taken = 0;
      for (const size of sizes) {
        if (count >= maxBatchRecords || (count > 0 && taken + size > maxBatchBytes)) break;
        count += 1;
        taken += size;
      }
      const records = waiting.slice(0, count);
      waiting = waiting.slice(count);
      sizes = sizes.slice(count);
      bytes -= taken;
      tell();
      return records;
    },
    close() {
      closed = true;
      tell();
    },
  };
};
type Intake = ReturnType<typeof openIntake>;

/** Until there is something, and then for as long as more may come with it. False when told to stop. */
const gather = async (intake: Intake, clock: Clock, signal: AbortSignal): Promise<boolean> => {
  while (intake.size === 0 && !signal.aborted) await intake.changed();
  const over = new AbortController();
  const timer = clock.sleep(groupMs, over.signal);
  let late = false;
  void timer.then(() => {
    late = true;
  });
  while (!late && !intake.enough && !signal.aborted) await Promise.race([timer, intake.changed()]);
  over.abort();
  return !signal.aborted;
};

/** What `openLease` runs. Returns when told to stop; throws what ends the tenure. */
export const sealUntil = async (
  parts: {
    readonly ledger: Ledger;
    readonly bus: Pick<Bus, "subscribe">;
    readonly topics: Pick<TopicWatch, "sound" | "lost">;
    /** Entries that are published of the ledger up to a head, or past it; absent: none is published. */
    readonly published?: (head: LedgerHead) => Promise<number>;
    readonly clock: Clock;
    readonly log: Log;
  },
  { fence, signal }: Tenure,
): Promise<void> => {
  const { ledger, bus, topics, clock, log } = parts;

  /** The batch after `batch`, made while that is being staged: where it would be full, since else more may yet come with it. */
  const makeNext = async (before: LedgerHead, batch: Batch, intake: Intake): Promise<Batch | undefined> => {
    await setImmediate(); // the write goes out first
    if (!intake.enough) return undefined;
    const seal = ledger.seal.turned(before.size, batch.records);
    return makeBatch(batch.head, intake.take(), clock.now(), seal);
  };

  /** Undefined where another sequencer's stands in its place: what is broken then is what this one knew, where a key rotates, say. */
  const make = async (head: LedgerHead, intake: Intake, stopped: AbortSignal): Promise<Batch | undefined> => {
    try {
      return makeBatch(head, intake.take(), clock.now(), ledger.seal);
    } catch (error) {
      if (error instanceof LedgerBroken && (await ledger.isTaken(head.batch + 1, stopped))) return undefined;
      throw error;
    }
  };

  /**
   * Until told to stop, or another sequencer was first. While full batches are waiting, three are under way: the rows of one are derived,
   * one is staged, one is made. So a tree may be signed whose batch is never staged; it is dropped here. Only what is staged is ever
   * stored, and only what has its rows is published.
   */
  const sealAfter = async (start: LedgerHead, intake: Intake, stopped: AbortSignal): Promise<void> => {
    let head = start;
    let next: Batch | undefined;
    let deriving = Promise.resolve();
    while (next || (await gather(intake, clock, stopped))) {
      const batch = next ?? (await make(head, intake, stopped));
      const staging = batch && ledger.stage(batch, stopped);
      const making = batch && makeNext(head, batch, intake);
      await Promise.allSettled([deriving, staging, making]);
      await deriving;
      if (!batch || (await staging) === "other") {
        log.warn({ batch: head.batch + 1 }, "another sequencer was first; starting again from its batch");
        return;
      }
      next = await making;
      deriving = ledger.derive(head, batch, stopped);
      if (!next) await deriving;
      head = batch.head;
    }
  };

  /** From the last batch on, with a subscription of its own. */
  const session = async (stop: AbortController): Promise<void> => {
    const head = await ledger.load(stop.signal);
    const published = (await parts.published?.(head)) ?? 0;
    // A store that was put back would sign other trees of sizes that it has signed.
    if (published > head.size)
      throw new LedgerBroken(
        `${published} entries are published and the store has ${head.size}: it was put back, or is another ledger's`,
      );
    await topics.sound(head.positions, stop.signal);
    if (stop.signal.aborted) return;
    const intake = openIntake(head);
    stop.signal.addEventListener("abort", intake.close);
    const subscription = await bus.subscribe({
      name: `auditor-seal-${fence}`,
      topics: Object.values(topicNames),
      start: (topic, partition) => nextOffset(head.positions, topic, partition),
      onRecords: intake.accept,
    });
    const lost = topics.lost();
    const sealing = sealAfter(head, intake, stop.signal);
    try {
      await Promise.race([sealing, subscription.failed, lost]);
    } finally {
      stop.abort();
      await subscription.close();
      // Whatever ended the race is thrown; nothing of this session goes on beside the next one.
      await sealing.catch(() => undefined);
    }
  };

  while (!signal.aborted) {
    const stop = new AbortController();
    const relay = () => stop.abort();
    signal.addEventListener("abort", relay);
    try {
      await session(stop);
    } catch (error) {
      if (!(error instanceof Interrupted)) throw error;
    } finally {
      signal.removeEventListener("abort", relay);
    }
  }
};
