import { failWrite, faultyStore } from "@curfew/simulation/faulty-store.ts";
import { memoryStore } from "@curfew/simulation/memory-store.ts";
import { expect, it } from "vitest";
import { beginEpoch, type EpochRow } from "./epochs.ts";

it("gives each epoch a number of its own, to rivals under one name too, and none twice after a lost reply", async () => {
  const store = memoryStore();
  const rows = await store.collection<EpochRow>("epochs");
  const begun = await Promise.all(Array.from({ length: 8 }, () => beginEpoch(rows, "issuer/a", "t")));
  expect(begun.sort()).toEqual(Array.from({ length: 8 }, (_, i) => `issuer/a/${i + 1}`));
  const failing = await faultyStore(store, failWrite(9, "unacknowledged")).collection<EpochRow>("epochs");
  await expect(beginEpoch(failing, "issuer/a", "t")).rejects.toThrow();
  expect(await beginEpoch(rows, "issuer/a", "t")).toBe("issuer/a/10");
  expect(await rows.get("issuer/a/10")).toEqual({ _id: "issuer/a/10", topic: "t", acknowledged: {}, open: true });
});
