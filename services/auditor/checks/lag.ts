import { durationFromMs } from "@bufbuild/protobuf/wkt";
import type { Collection } from "@curfew/document-store/port.ts";
import type { Bus } from "@curfew/event-log/bus.ts";
import { topicNames } from "@curfew/event-log/event-types.ts";
import { decodeLeaf } from "@curfew/ledger/leaf.ts";
import type { Clock } from "@curfew/runtime/clock.ts";
import { gauge } from "@curfew/runtime/telemetry.ts";
import { type BatchDoc, batchId, nextOffset } from "../domain.ts";
import type { Follower } from "../follower.ts";
import { p99 } from "./verdicts.ts";

/** Declared service level of sealing: 99 of 100 records within this (design: evidence, "Sequencing"). */
export const mergeObjectiveMs = 2_000;

/** How far sealing is behind what is durable, as every replica can tell. */
export const openLag = (parts: {
  readonly bus: Pick<Bus, "ends">;
  readonly batches: Pick<Collection<BatchDoc>, "get">;
  readonly follower: Pick<Follower, "latest">;
  readonly clock: Pick<Clock, "monotonicMs">;
}) => {
  const { bus, batches, follower, clock } = parts;
  const [unsealedGauge, delayGauge] = [gauge.unsealedRecords(), gauge.mergeDelayMs()];
  let read: { batch: number; size: number; atMs: number; delayMs: number | undefined } | undefined;

  /** The newest batch: when it was sealed, and how long 99 of 100 of its records had waited at most. */
  const newest = async () => {
    const row = follower.latest();
    if (!row || row.batch === read?.batch) return read;
    const records = (await batches.get(batchId(row.batch)))?.leaves.map(decodeLeaf) ?? [];
    const delays = records.map(({ sealedAtMs, timestampMs }) => Math.max(0, sealedAtMs - timestampMs));
    read = { batch: row.batch, size: row.size, atMs: records[0]?.sealedAtMs ?? 0, delayMs: p99(delays) };
    return read;
  };

  /** Undefined: the bus cannot be asked. */
  const unsealed = async (): Promise<number | undefined> => {
    try {
      let count = 0;
      for (const topic of Object.values(topicNames)) {
        const ends = await bus.ends(topic);
        const positions = follower.latest()?.positions ?? [];
        for (const [partition, end] of ends.entries())
          count += Math.max(0, end - nextOffset(positions, topic, partition));
      }
      return count;
    } catch {
      return undefined;
    }
  };

  /** Since when there are records that no batch has taken, and which was the newest then. */
  let waiting: { readonly batch: number; readonly sinceMs: number } | undefined;
  /** How long some record has waited at least, in whole ms; 0 where none is known to wait. */
  const waitedMs = (batch: number, records: number | undefined): number => {
    if (records === 0 || waiting?.batch !== batch)
      waiting = records ? { batch, sinceMs: clock.monotonicMs() } : undefined;
    return waiting ? Math.floor(clock.monotonicMs() - waiting.sinceMs) : 0;
  };

  const answer = (records: number | undefined, delayMs: number | undefined) => ({
    ...(records !== undefined && { unsealedRecords: BigInt(records) }),
    ...(delayMs !== undefined && { mergeDelay: durationFromMs(delayMs) }),
    objective: durationFromMs(mergeObjectiveMs),
  });
  let last = answer(undefined, undefined);

  return {
    newest,
    /** As it was when last measured. */
    last: () => last,
    /** Rejects with StoreUnavailable. */
    async measure() {
      const before = follower.latest()?.batch ?? 0;
      const [records, batch] = [await unsealed(), await newest()];
      const waited = waitedMs(before, records);
      const delayMs = waited > 0 ? Math.max(waited, batch?.delayMs ?? 0) : batch?.delayMs;
      if (records !== undefined) unsealedGauge.record(records);
      if (delayMs !== undefined) delayGauge.record(delayMs);
      last = answer(records, delayMs);
      return last;
    },
  };
};
