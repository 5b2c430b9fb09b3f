import type { Collection } from "@curfew/document-store/port.ts";
import { HASH_BYTES } from "@curfew/ledger/hash.ts";
import type { ReadNodes } from "@curfew/ledger/tree.ts";
import type { Shard } from "../domain.ts";
import { type EntryRow, nodeEntryId } from "../projections.ts";

const rowsPerRead = 1_000;

/**
 * As `readNodes`, for the proofs of many leaves, a group of them at a time and in ascending order: what a group shares with the one before
 * it, all but the lowest nodes, is not read again. No more is kept.
 */
export const nearbyNodes = (entries: Pick<Collection<EntryRow>, "getMany">, shard: Shard): ReadNodes => {
  let kept: ReadonlyMap<string, Uint8Array> = new Map();
  return async (wanted) => {
    const needed = new Map<string, Uint8Array>();
    const missing = new Set<string>();
    const rows = wanted.map((node) => nodeEntryId(shard, node));
    for (const row of rows) {
      const nodes = kept.get(row);
      if (nodes) needed.set(row, nodes);
      else missing.add(row);
    }
    const ids = [...missing];
    for (let at = 0; at < ids.length; at += rowsPerRead)
      for (const { _id, nodes } of await entries.getMany(ids.slice(at, at + rowsPerRead)))
        needed.set(_id, Uint8Array.from(nodes));
    kept = needed;
    return wanted.map(({ level }, i) => {
      const nodes = needed.get(rows[i] as string);
      return nodes?.subarray(level * HASH_BYTES, (level + 1) * HASH_BYTES) ?? new Uint8Array();
    });
  };
};
