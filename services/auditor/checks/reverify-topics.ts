import { DriftCause } from "@curfew/contracts/gen/curfew/events/v1/evidence_pb.ts";
import { type Bus, BusRefused, type InRecord, OffsetGone } from "@curfew/event-log/bus.ts";
import { topicNames } from "@curfew/event-log/event-types.ts";
import { readTopic } from "@curfew/event-log/read-topic.ts";
import { leafHash, sameHash } from "@curfew/ledger/hash.ts";
import { encodeLeaf } from "@curfew/ledger/leaf.ts";
import type { Clock } from "@curfew/runtime/clock.ts";
import { nextOffset } from "../domain.ts";
import type { CheckpointRow } from "../projections.ts";
import type { Drift } from "./drift.ts";
import type { DriftLog } from "./drift-log.ts";
import type { Compared } from "./passes.ts";
import { type SealedPlace, type SealedPlaces, sealedPlaces } from "./sealed-places.ts";

/** Reads what was sealed off the topics once more and compares each record with its leaf (design: evidence, "Drift watch"). */
export interface ReverifyParts extends SealedPlaces {
  readonly bus: Bus;
  readonly drifts: Pick<DriftLog, "found" | "settle">;
  readonly latest: () => CheckpointRow | undefined;
  /** Records compared a second, at most. */
  readonly perSecond: number;
  readonly clock: Clock;
}

/** It rests for ten times as long as it has worked, at least. */
const pauseRatio = 10;

const hex = (bytes: Uint8Array) => Buffer.from(bytes).toString("hex");
const recordCauses: ReadonlySet<DriftCause> = new Set([
  DriftCause.RECREATED,
  DriftCause.RECORD_MISSING,
  DriftCause.RECORD_CHANGED,
  DriftCause.RECORD_INSERTED,
]);

/** Of a record that is not what was sealed in its place; `record`: there is none. */
const driftAt = (
  place: { readonly topic: string; readonly partition: number },
  sealed: SealedPlace | undefined,
  record: InRecord | undefined,
): Drift | undefined => {
  const seen = record && leafHash(encodeLeaf(record, sealed?.sealedAtMs ?? 0, sealed?.opening).leaf);
  if (sealed && seen && sameHash(sealed.leafHash, seen)) return undefined;
  const offset = sealed?.offset ?? record?.offset ?? 0;
  const changed = offset === 0 ? DriftCause.RECREATED : DriftCause.RECORD_CHANGED;
  const cause = sealed ? (record ? changed : DriftCause.RECORD_MISSING) : DriftCause.RECORD_INSERTED;
  const expected = sealed ? hex(sealed.leafHash) : "";
  const index = sealed && { ledgerIndex: sealed.index };
  return { cause, ...place, offset, setting: "", expected, seen: seen ? hex(seen) : "", ...index };
};

/** One partition: its records beside its leaves, both in the order of their offsets. */
class PartitionCheck {
  readonly #place: { readonly topic: string; readonly partition: number };
  readonly #leaves: AsyncGenerator<SealedPlace>;
  #sealed: IteratorResult<SealedPlace, unknown> | undefined;
  /** Offset of the next record to be read. */
  next: number;

  constructor(parts: SealedPlaces, place: { topic: string; partition: number }, latest: CheckpointRow) {
    this.#place = place;
    this.next = 0;
    this.#leaves = sealedPlaces(parts, place, 0, latest);
  }

  async *add(records: readonly InRecord[]): AsyncGenerator<Drift> {
    for (const record of records) {
      yield* this.skipTo(record.offset);
      const sealed = await this.#peek();
      const same = sealed?.offset === record.offset ? sealed : undefined;
      const drift = driftAt(this.#place, same, record);
      if (drift) yield drift;
      if (same) this.#sealed = undefined;
      this.next = record.offset + 1;
    }
  }

  /** What is sealed below `offset` and was not read is not there. */
  async *skipTo(offset: number): AsyncGenerator<Drift> {
    for (let sealed = await this.#peek(); sealed && sealed.offset < offset; sealed = await this.#peek()) {
      yield driftAt(this.#place, sealed, undefined) as Drift;
      this.#sealed = undefined;
    }
    this.next = Math.max(this.next, offset);
  }

  async #peek(): Promise<SealedPlace | undefined> {
    this.#sealed ??= await this.#leaves.next();
    return this.#sealed.done ? undefined : this.#sealed.value;
  }
}

/**
 * One pass over every topic, up to what is sealed as it begins. Answers how many entries the ledger had then; undefined where some topic could
 * not be read. Rejects with BusUnavailable or StoreUnavailable.
 */
export const reverifyTopics = async (
  parts: ReverifyParts,
  compared: Compared,
  signal: AbortSignal,
): Promise<number | undefined> => {
  const { bus, drifts, clock, perSecond } = parts;
  const latest = parts.latest();
  if (!latest) return 0;
  /** The first of each kind in each partition: only that is recorded. */
  const first = new Map<string, Drift>();
  const report = async (drift: Drift) => {
    const key = `${drift.cause} ${drift.topic}/${drift.partition}`;
    if (first.has(key)) return;
    first.set(key, drift);
    await drifts.found(drift);
  };

  const readOn = async (topic: string, checks: readonly PartitionCheck[], ends: readonly number[]) => {
    const onRecords = async (records: readonly InRecord[]) => {
      signal.throwIfAborted();
      const beganMs = clock.monotonicMs();
      const { partition } = records[0] as InRecord;
      const sealed = records.filter(({ offset }) => offset < (ends[partition] ?? 0));
      for await (const drift of checks[partition]?.add(sealed) ?? []) await report(drift);
      await compared(sealed.length, `${topic}/${partition}@${checks[partition]?.next}`);
      // However fast it may be: on a slow database it must not be felt.
      const restMs = pauseRatio * (clock.monotonicMs() - beganMs);
      await clock.sleep(Math.max((1_000 * sealed.length) / perSecond, restMs), signal);
    };
    const from = (partition: number) => checks[partition]?.next ?? 0;
    await readTopic({ bus, topic, name: "auditor-reverify", from, below: ends }, onRecords, signal);
  };

  /** False where the topic is absent: the drift watch tells. */
  const verify = async (topic: string): Promise<boolean> => {
    const state = await bus.describe(topic).catch((error: unknown) => {
      if (error instanceof BusRefused) return undefined;
      throw error;
    });
    if (!state) return false;
    const ends = state.ends.map((end, partition) => Math.min(end, nextOffset(latest.positions, topic, partition)));
    const checks = ends.map((_, partition) => new PartitionCheck(parts, { topic, partition }, latest));
    const skip = async (partition: number, offset: number) => {
      for await (const drift of checks[partition]?.skipTo(Math.min(offset, ends[partition] ?? 0)) ?? [])
        await report(drift);
    };
    for (const [partition, start] of state.starts.entries()) await skip(partition, start);
    // Each gap is passed by steps that grow: where it ends is not told, and what they pass over with it is reported as missing too.
    for (let step = 1, before = "", doubted = ""; ; ) {
      try {
        await readOn(topic, checks, ends);
        break;
      } catch (error) {
        const check = error instanceof OffsetGone && error.topic === topic ? checks[error.partition] : undefined;
        if (!(error instanceof OffsetGone) || !check || check.next >= (ends[error.partition] ?? 0)) throw error;
        const place = `${error.partition}@${error.offset}`;
        // Asked once more: this opens a case, and a client loses its place too where a leader changes.
        if (place !== doubted) {
          doubted = place;
          continue;
        }
        step = place === before ? 2 * step : 1;
        await skip(error.partition, error.offset + step);
        before = `${error.partition}@${check.next}`;
      }
    }
    for (const [partition, end] of ends.entries()) await skip(partition, end);
    return true;
  };

  const verified = new Set<string>();
  for (const topic of Object.values(topicNames)) if (await verify(topic)) verified.add(topic);
  signal.throwIfAborted();
  const isLooked = ({ cause, topic }: Drift) => recordCauses.has(cause) && verified.has(topic);
  await drifts.settle(isLooked, [...first.values()]);
  return verified.size === Object.keys(topicNames).length ? latest.size : undefined;
};
