import { openSqliteStore } from "@curfew/document-store/sqlite.ts";
import { afterEach, expect, test } from "vitest";
import type { RequestKey } from "./request-key.ts";
import { openUsedRequests } from "./used-requests.ts";

const dayMs = 86_400_000;
const closers: (() => Promise<void>)[] = [];
afterEach(async () => {
  for (const close of closers.splice(0)) await close();
});

const rig = async () => {
  const store = await openSqliteStore({ file: ":memory:" });
  closers.push(() => store.close());
  const at = { nowMs: 20_000 * dayMs + 1 };
  const clock = { now: () => at.nowMs, monotonicMs: () => at.nowMs, sleep: async () => undefined };
  const open = () => openUsedRequests({ store, clock, log: { warn: () => undefined } });
  const rows = await store.collection("requests");
  return { at, open, used: await open(), left: () => rows.find({ limit: 1_000 }) };
};
const keyOf = (name: string, requestHash: string): RequestKey => ({
  key: new Uint8Array(32),
  keyHex: Buffer.from(name).toString("hex"),
  requestHash,
});
const reused = { failure: { status: "INVALID_ARGUMENT", reason: "REQUEST_ID_REUSED" } };

test("an id belongs to the first request that comes with it, at every replica and over midnight", async () => {
  const { at, open, used } = await rig();
  await used.claim(keyOf("a", "01"));
  await used.claim(keyOf("b", "02"));
  const other = await open();
  for (const replica of [used, other]) {
    await replica.claim(keyOf("a", "01"));
    await expect(replica.claim(keyOf("a", "02"))).rejects.toMatchObject(reused);
  }
  at.nowMs += dayMs;
  await expect(other.claim(keyOf("a", "02"))).rejects.toMatchObject(reused);
  await used.claim(keyOf("a", "01"));
});

test("racing requests of one id: one of them has it", async () => {
  const { used } = await rig();
  const claims = await Promise.allSettled(Array.from({ length: 20 }, (_, i) => used.claim(keyOf("a", `0${i % 2}`))));
  expect(claims.filter(({ status }) => status === "fulfilled")).toHaveLength(10);
});

test("ids are forgotten by the second day after", async () => {
  const { at, used, left } = await rig();
  for (let i = 0; i < 600; i += 1) await used.claim(keyOf(`${i}`, "01"));
  at.nowMs += 2 * dayMs;
  await used.claim(keyOf("late", "01"));
  await expect.poll(async () => (await left()).length, { timeout: 10_000 }).toBe(1);
  await used.claim(keyOf("1", "02"));
});
