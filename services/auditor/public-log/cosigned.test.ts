import { memoryStore } from "@curfew/simulation/memory-store.ts";
import { expect, it } from "vitest";
import { shard } from "../testing/rig.ts";
import { cosignedAround, cosignedId, newestCosigned, openCosigned } from "./cosigned.ts";

const rowsOf = async (...sizes: number[]) => {
  const rows = await openCosigned(memoryStore());
  for (const size of sizes) await rows.insert({ _id: cosignedId(size), shard, size, checkpoint: `of ${size}` });
  return rows;
};

it("the newest cosigned checkpoint is found if it is at a size or past it", async () => {
  const rows = await rowsOf(9, 10, 70_000);
  expect(await newestCosigned(rows)).toMatchObject({ size: 70_000 });
  expect(await newestCosigned(rows, 70_000)).toMatchObject({ size: 70_000, checkpoint: "of 70000" });
  expect(await newestCosigned(rows, 70_001)).toBeUndefined();
  expect(await newestCosigned(await rowsOf())).toBeUndefined();
});

it("an entry lies between the last checkpoint without it and the first with it", async () => {
  const rows = await rowsOf(9, 10, 70_000);
  const around = async (index: number) => {
    const { before, after } = await cosignedAround(rows, index);
    return [before?.size, after?.size];
  };
  expect(await around(0)).toEqual([undefined, 9]);
  expect(await around(8)).toEqual([undefined, 9]);
  expect(await around(9)).toEqual([9, 10]);
  expect(await around(10)).toEqual([10, 70_000]);
  expect(await around(69_999)).toEqual([10, 70_000]);
  expect(await around(70_000)).toEqual([70_000, undefined]);
});
