import type { Collection } from "@curfew/document-store/port.ts";
import { HASH_BYTES } from "@curfew/ledger/hash.ts";
import type { NodeAddress, ReadNodes } from "@curfew/ledger/tree.ts";
import { type EntryRow, entryId } from "../projections.ts";

const rowsPerRead = 1_000;

/** The leaf whose row has a node: the last one below it. */
const rowOf = ({ level, index }: NodeAddress): number => (index + 1) * 2 ** level - 1;

/**
 * As `readNodes`, for the proofs of many leaves, a group of them at a time and in ascending order: what a group shares with the one before
 * it, all but the lowest nodes, is not read again. No more is kept.
 */
export const nearbyNodes = (entries: Pick<Collection<EntryRow>, "getMany">): ReadNodes => {
  let kept: ReadonlyMap<number, Uint8Array> = new Map();
  return async (wanted) => {
    const needed = new Map<number, Uint8Array>();
    const missing = new Set<number>();
    for (const row of wanted.map(rowOf)) {
      const nodes = kept.get(row);
      if (nodes) needed.set(row, nodes);
      else missing.add(row);
    }
    const ids = [...missing].map(entryId);
    for (let at = 0; at < ids.length; at += rowsPerRead)
      for (const { _id, nodes } of await entries.getMany(ids.slice(at, at + rowsPerRead)))
        needed.set(Number(_id), Uint8Array.from(nodes));
    kept = needed;
    return wanted.map((node) => {
      const { level } = node;
      return needed.get(rowOf(node))?.subarray(level * HASH_BYTES, (level + 1) * HASH_BYTES) ?? new Uint8Array();
    });
  };
};
