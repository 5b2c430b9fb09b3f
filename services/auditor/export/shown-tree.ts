import type { Policy } from "@curfew/ledger/policy.ts";
import type { Clock } from "@curfew/runtime/clock.ts";
import { LedgerBroken, type Seal } from "../domain.ts";
import type { CheckpointRow } from "../projections.ts";
import { type CosignedRow, type CosignedRows, cosignedId, newestCosigned } from "../public-log/cosigned.ts";

/** The tree that a bundle's proofs lead to. */
export type ShownTree = Pick<CheckpointRow, "shard" | "size" | "root" | "checkpoint">;

/** Who cosigns, and what they have cosigned. */
export interface Cosigning {
  readonly policy: Policy;
  readonly rows: Pick<CosignedRows, "find">;
}

/** Witnesses are asked once a second. */
const waitMs = 4_000;
const pollMs = 100;

const opened = (seal: Pick<Seal, "open">, { shard, size, checkpoint }: CosignedRow): ShownTree => {
  try {
    return { shard, size, root: seal.open(shard, checkpoint).root, checkpoint };
  } catch (error) {
    throw new LedgerBroken(`the cosigned checkpoint of size ${size} is not signed by this ledger's key`, {
      cause: error,
    });
  }
};

/** Of a shard that has ended: the last tree, whose cosignatures are there, or will not come any more. */
const endedTree = async (latest: ShownTree, seal: Pick<Seal, "open">, { rows }: Cosigning): Promise<ShownTree> => {
  const [row] = await rows.find({ from: cosignedId(latest.size), limit: 1 });
  return row?.size === latest.size ? opened(seal, row) : latest;
};

/**
 * The newest tree of a shard, with its cosignatures where witnesses are asked for them: waited for a little, since what a stranger is given should not
 * rest on the log alone; where they do not come, without.
 */
export const shownTree = async (
  latest: ShownTree,
  parts: { readonly seal: Pick<Seal, "open">; readonly cosigning: Cosigning | undefined; readonly clock: Clock },
  signal: AbortSignal,
): Promise<ShownTree> => {
  const { seal, cosigning, clock } = parts;
  if (!cosigning) return latest;
  const untilMs = clock.monotonicMs() + waitMs;
  do {
    const row = await newestCosigned(cosigning.rows, latest.size);
    if (row?.shard.year === latest.shard.year) return opened(seal, row);
    if (row) return await endedTree(latest, seal, cosigning);
    await clock.sleep(pollMs, signal);
  } while (clock.monotonicMs() < untilMs && !signal.aborted);
  return latest;
};
