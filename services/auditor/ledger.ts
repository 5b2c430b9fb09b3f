import { type Collection, StoreUnavailable } from "@curfew/document-store/port.ts";
import type { Clock } from "@curfew/runtime/clock.ts";
import { leastOf } from "@curfew/runtime/halving.ts";
import { span, withSpan } from "@curfew/runtime/telemetry.ts";
import {
  type Batch,
  type BatchDoc,
  batchId,
  emptyHead,
  headOf,
  LedgerBroken,
  type LedgerHead,
  replayBatch,
} from "./domain.ts";
import type { LedgerSeal } from "./ledger-keys.ts";
import type { CheckpointRow, Projection, ReadModels } from "./projections.ts";

/** The staged batches in the document store, and what brings the read models up to them. */
export interface Ledger {
  readonly seal: LedgerSeal;
  /**
   * The last batch, made again and compared, with every batch before it derived. Waits out an unavailable store until `signal` aborts;
   * throws LedgerBroken.
   */
  load(signal: AbortSignal): Promise<LedgerHead>;
  /** Whether a batch stands under that number by now. */
  isTaken(number: number, signal: AbortSignal): Promise<boolean>;
  /** Inserts a batch under its number, once, whatever the store answers: "other" when another sequencer's stands there. */
  stage(batch: Batch, signal: AbortSignal): Promise<"staged" | "other">;
  derive(before: LedgerHead, batch: Batch, signal: AbortSignal): Promise<void>;
  /**
   * Makes every batch from the first again, slowly, and hands it over; throws LedgerBroken for one that was changed since it was staged.
   */
  verifyAll(visit: (batch: Batch) => Promise<void>, signal: AbortSignal): Promise<void>;
}

const firstBackoffMs = 50;
const maxBackoffMs = 1_000;
/** Between two batches of `verifyAll`, or ten times what the last one took: on a slow database too it must not be felt. */
const verifyPauseMs = 20;
const verifyPauseRatio = 10;

/** The work was told to stop; whatever was being written may or may not be there. */
export class Interrupted extends Error {
  override name = "Interrupted";
}

export type Batches = Pick<Collection<BatchDoc>, "get">;

/** A batch that was sealed: LedgerBroken where it is not there. */
export const batchAt = async (batches: Batches, number: number): Promise<BatchDoc> => {
  const doc = await batches.get(batchId(number));
  if (!doc) throw new LedgerBroken(`${batchId(number)} has vanished`);
  return doc;
};

/** The first batch with which the ledger has `size` leaves or more, by halving: sizes grow with the numbers. Undefined: there is none yet. */
export const batchReaching = async (batches: Pick<Collection<BatchDoc>, "get" | "findLatest">, size: number) => {
  const [last] = await batches.findLatest({ order: -1, limit: 1 });
  if (!last || last.size < size) return undefined;
  const latest = Number(last._id.slice(last._id.indexOf("/") + 1));
  const number = await leastOf(1, latest, async (each) => (await batchAt(batches, each)).size >= size);
  return { doc: await batchAt(batches, number), number };
};

/** The ledger's shards that have an entry, the newest first, each with its last batch. */
export async function* shardsOf(batches: Pick<Collection<BatchDoc>, "get" | "findLatest">) {
  for (let [last] = await batches.findLatest({ order: -1, limit: 1 }); last; ) {
    const { shard } = last;
    yield { shard, last };
    if (shard.first === 0) return;
    last = (await batchReaching(batches, shard.first))?.doc;
    if (!last) throw new LedgerBroken(`the shard before ${shard.year} has vanished`);
  }
}

export const openLedger = (parts: {
  batches: Collection<BatchDoc>;
  models: ReadModels;
  projection: Projection;
  seal: LedgerSeal;
  clock: Clock;
  /** Told of each batch once it is derived. */
  published: (row: CheckpointRow) => void;
}): Ledger => {
  const { batches, models, projection, seal, clock } = parts;

  const patiently = async <T>(signal: AbortSignal, attempt: () => Promise<T>): Promise<T> => {
    for (let backoffMs = firstBackoffMs; ; backoffMs = Math.min(2 * backoffMs, maxBackoffMs)) {
      if (signal.aborted) throw new Interrupted("told to stop");
      try {
        return await attempt();
      } catch (error) {
        if (!(error instanceof StoreUnavailable)) throw error;
        await clock.sleep(backoffMs, signal);
      }
    }
  };

  const read = (number: number) => batchAt(batches, number);

  const lastDerived = async (): Promise<LedgerHead> => {
    const [row] = await models.checkpoints.find({ order: -1, limit: 1 });
    if (!row) return emptyHead;
    const before = row.batch === 1 ? emptyHead : headOf(await read(row.batch - 1), row.batch - 1, seal);
    const { doc, head } = replayBatch(before, await read(row.batch), seal);
    if (doc.checkpoint !== row.checkpoint) throw new LedgerBroken(`${doc._id} is not the batch that was published`);
    return head;
  };

  const derive = async (before: LedgerHead, batch: Batch, signal: AbortSignal): Promise<void> => {
    // Before the rows: whoever reads those needs the key to open them by.
    seal.turned(before.size, batch.records).keep();
    parts.published(await patiently(signal, () => projection.derive(before, batch)));
  };

  return {
    seal,
    derive,
    async load(signal) {
      let head = await patiently(signal, lastDerived);
      for (;;) {
        const doc = await patiently(signal, () => batches.getLatest(batchId(head.batch + 1)));
        if (!doc) return head;
        const batch = replayBatch(head, doc, seal);
        await derive(head, batch, signal);
        head = batch.head;
      }
    },
    isTaken: async (number, signal) =>
      (await patiently(signal, () => batches.getLatest(batchId(number)))) !== undefined,
    stage: ({ doc }, signal) =>
      withSpan(span.append("seal"), {}, () =>
        patiently(signal, async () => {
          if ((await batches.insert(doc)) === "inserted") return "staged";
          // An insert that was reported lost may have been done: the checkpoint covers every leaf, and two sequencers never sign alike.
          const there = await batches.getLatest(doc._id);
          return there?.checkpoint === doc.checkpoint ? "staged" : "other";
        }),
      ),
    async verifyAll(visit, signal) {
      const [last] = await patiently(signal, () => models.checkpoints.find({ order: -1, limit: 1 }));
      let head = emptyHead;
      while (head.batch < (last?.batch ?? 0)) {
        const { batch } = head;
        const beganMs = clock.monotonicMs();
        const next = replayBatch(head, await patiently(signal, () => read(batch + 1)), seal);
        await visit(next);
        head = next.head;
        const tookMs = clock.monotonicMs() - beganMs;
        await clock.sleep(Math.max(verifyPauseMs, verifyPauseRatio * tookMs), signal);
      }
    },
  };
};
