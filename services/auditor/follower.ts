import type { Position } from "@curfew/contracts/gen/curfew/events/v1/common_pb.ts";
import { type AtLeast, Progress } from "@curfew/projection/progress.ts";
import type { Clock } from "@curfew/runtime/clock.ts";
import type { Log } from "@curfew/runtime/log.ts";
import { LedgerBroken, type Seal } from "./domain.ts";
import { type CheckpointRow, checkpointId, type ReadModels } from "./projections.ts";

/** How far the ledger has come, as this replica knows: told by its own sealer, or read from the rows of another's. */
export interface Follower {
  /** The newest finished batch; undefined: nothing was sealed yet. */
  latest(): CheckpointRow | undefined;
  /** Positions after the last record sealed. */
  positions(): Position[];
  /** Waits at most `waitMs` until everything below `wanted` is sealed. */
  reached(wanted: readonly AtLeast[], waitMs: number): Promise<boolean>;
  /** The sealer of this replica has finished a batch. */
  published(row: CheckpointRow): void;
  /** Rejects when a published checkpoint is not ours. */
  readonly failed: Promise<never>;
  close(): Promise<void>;
}

const pollMs = 100;

/** A row of the read models whose checkpoint this ledger has signed, of that tree. Throws LedgerBroken: whoever can write rows cannot sign. */
export const checkedRow = (seal: Pick<Seal, "open">, row: CheckpointRow): CheckpointRow => {
  if (row.shard === undefined)
    throw new LedgerBroken(`checkpoint ${row._id} is from before the ledger had shards: keep that store, begin anew`);
  try {
    const { size, root } = seal.open(row.shard, row.checkpoint);
    if (size === row.size && Buffer.compare(root, row.root) === 0) return row;
  } catch (error) {
    throw new LedgerBroken(`checkpoint ${row._id} is not signed by this ledger's key`, { cause: error });
  }
  throw new LedgerBroken(`checkpoint ${row._id} is of another tree`);
};

/** Begins with the newest row there is. Rejects with StoreUnavailable, or with LedgerBroken. */
export const openFollower = async (parts: {
  models: ReadModels;
  seal: Seal;
  clock: Clock;
  log: Log;
}): Promise<Follower> => {
  const { models, seal, clock, log } = parts;
  const { checkpoints } = models;
  const progress = new Progress(clock);
  const closing = new AbortController();
  const failed = Promise.withResolvers<never>();
  failed.promise.catch(() => undefined); // whoever waits sees it; nobody has to
  let latest: CheckpointRow | undefined;

  const published = (row: CheckpointRow) => {
    if (row.batch <= (latest?.batch ?? 0)) return;
    latest = row;
    for (const { topic, partition, next } of row.positions) progress.advance(topic, partition, next);
  };

  const follow = async (): Promise<void> => {
    let reachable = true;
    while (!closing.signal.aborted) {
      try {
        const row = await checkpoints.get(checkpointId((latest?.batch ?? 0) + 1));
        if (row) published(checkedRow(seal, row));
        else await clock.sleep(pollMs, closing.signal);
        reachable = true;
      } catch (error) {
        if (error instanceof LedgerBroken) throw error;
        if (reachable) log.warn({ err: error }, "the ledger's progress cannot be read; trying again");
        reachable = false;
        await clock.sleep(pollMs, closing.signal);
      }
    }
  };

  const [newest] = await checkpoints.find({ order: -1, limit: 1 });
  if (newest) published(checkedRow(seal, newest));
  const following = follow().catch(failed.reject);
  return {
    latest: () => latest,
    positions: () => progress.positions(),
    reached: (wanted, waitMs) => progress.reached(wanted, waitMs),
    published,
    failed: failed.promise,
    async close() {
      closing.abort();
      progress.close();
      await following;
    },
  };
};
