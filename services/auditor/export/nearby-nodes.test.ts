import { leafHash } from "@curfew/ledger/hash.ts";
import { verifyInclusion } from "@curfew/ledger/proof.ts";
import { Frontier, proveInclusions } from "@curfew/ledger/tree.ts";
import { memoryStore } from "@curfew/simulation/memory-store.ts";
import { expect, it } from "vitest";
import { type EntryRow, entryId, openReadModels } from "../projections.ts";
import { shard } from "../testing/rig.ts";
import { nearbyNodes } from "./nearby-nodes.ts";

const size = 5_000;
const leaves = Array.from({ length: size }, (_, i) => leafHash(Buffer.from(`leaf ${i}`)));
const frontier = new Frontier();
const rows = leaves.map((leaf, i): EntryRow => {
  const completed: Uint8Array[] = [];
  frontier.append(leaf, (_level, _index, hash) => completed.push(hash));
  return { _id: entryId(i), batch: 1, leaf: new Uint8Array(), nodes: Buffer.concat(completed) };
});

it.each([
  ["each", 1, 1.2],
  ["every seventh", 7, 4],
  ["every thousandth", 1_000, 13],
])("proves %s leaf, and reads few rows for each", async (_which, step, rowsEach) => {
  const { entries } = await openReadModels(memoryStore());
  for (let at = 0; at < size; at += 1_000) await entries.insertMany(rows.slice(at, at + 1_000));
  let read = 0;
  const counted = {
    getMany: (ids: readonly string[]) => {
      read += ids.length;
      return entries.getMany(ids);
    },
  };
  const readNodes = nearbyNodes(counted, shard);
  const indexes = leaves.map((_, i) => i).filter((i) => i % step === 0);
  for (let at = 0; at < indexes.length; at += 128) {
    const group = indexes.slice(at, at + 128);
    const proofs = await proveInclusions(group, size, readNodes);
    for (const [i, index] of group.entries()) {
      const [leaf, proof] = [leaves[index] as Uint8Array, proofs[i] as Uint8Array[]];
      if (!verifyInclusion(index, size, leaf, proof, frontier.root())) expect.fail(`leaf ${index}`);
    }
  }
  expect(read / indexes.length).toBeLessThan(rowsEach);
});

it("refuses to prove where a row is missing", async () => {
  const { entries } = await openReadModels(memoryStore());
  await entries.insertMany(rows.slice(0, 1_000));
  await expect(proveInclusions([3, 999], size, nearbyNodes(entries, shard))).rejects.toThrow("the node store gave");
});
