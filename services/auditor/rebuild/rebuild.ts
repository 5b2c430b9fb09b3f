import type { Collection, Doc, DocumentStore } from "@curfew/document-store/port.ts";
import type { EpochRow } from "@curfew/event-log/epochs.ts";
import type { ProducerTrust } from "@curfew/event-log/producer-key.ts";
import type { Clock } from "@curfew/runtime/clock.ts";
import type { BatchDoc } from "../domain.ts";
import { openLedger } from "../ledger.ts";
import type { LedgerSeal } from "../ledger-keys.ts";
import { openProjection, openReadModels } from "../projections.ts";
import type { ShardFiles } from "../public-log/shard-files.ts";
import { restage } from "./restage.ts";

/**
 * The read models made anew from the ledger alone: cleared, and derived from the staged batches; where the store is gone, from batches that are
 * staged again from the ledger's files. Whoever is killed in it begins where it was; until it is done no auditor starts on this store.
 */

/** That a rebuild has begun; gone when it is done. */
type RebuildRow = { _id: "rebuild"; phase: "restage" | "clear" | "derive" };

const rowId = "rebuild";
/** Entries have up to 64 KB. */
const perDelete = 200;

const openRows = (store: DocumentStore) => store.collection<RebuildRow>("rebuild");

export class RebuildRefused extends Error {
  override name = "RebuildRefused";
}

/** Throws RebuildRefused: what a rebuild that was interrupted left behind is no ledger to go on from. */
export const assertNoRebuild = async (store: DocumentStore): Promise<void> => {
  if (await (await openRows(store)).get(rowId))
    throw new RebuildRefused("the read models are being built anew: run the rebuild again, which goes on where it was");
};

/** From the end: whoever looks meanwhile sees fewer, and never a later one without those before it. */
const clear = async <D extends Doc>(rows: Collection<D>): Promise<void> => {
  for (;;) {
    const found = await rows.find({ order: -1, limit: perDelete });
    if (found.length === 0) return;
    await rows.delete(...found.map(({ _id }) => _id));
  }
};

export interface RebuildParts {
  readonly store: DocumentStore;
  readonly epochs: Collection<EpochRow>;
  readonly trust: ProducerTrust;
  readonly seal: LedgerSeal;
  /** The ledger's files, where the store is gone: batches are staged again from them. */
  readonly files?: ShardFiles;
  readonly clock: Clock;
}

export interface Rebuilt {
  readonly batches: number;
  readonly entries: number;
}

/** `told`: how many entries are derived, at each batch. Rejects with RebuildRefused, StoreUnavailable or LedgerBroken. */
export const rebuild = async (
  parts: RebuildParts,
  told: (entries: number) => void,
  signal: AbortSignal,
): Promise<Rebuilt> => {
  const { store, epochs, trust, seal, files, clock } = parts;
  const batches = await store.collection<BatchDoc>("batches");
  const models = await openReadModels(store);
  const rows = await openRows(store);
  const isEmpty = (await batches.find({ limit: 1 })).length === 0;
  const begun = await rows.get(rowId);
  if (files && !isEmpty && begun?.phase !== "restage")
    throw new RebuildRefused("the store has staged batches: they are what to build from, not the files");
  if (!files && (begun?.phase === "restage" || isEmpty))
    throw new RebuildRefused("the store has not all staged batches: build from the ledger's files");
  await rows.insert({ _id: rowId, phase: files ? "restage" : "clear" });
  const go = async (phase: RebuildRow["phase"]) => void (await rows.set(rowId, { phase }));

  if (files) {
    await restage({ files, batches, seal, clock }, signal);
    await go("clear");
  }
  if (begun?.phase !== "derive") {
    // Checkpoints first: they publish what stands in the others.
    for (const collection of [models.checkpoints, models.keys, models.entries]) await clear(collection as Collection);
    await go("derive");
  }
  const projection = openProjection({ models, epochs, trust, report: async () => undefined });
  const published = ({ size }: { size: number }) => told(size);
  const ledger = openLedger({ batches, models, projection, seal, clock, published });
  const head = await ledger.load(signal);
  await rows.delete(rowId);
  return { batches: head.batch, entries: head.size };
};
