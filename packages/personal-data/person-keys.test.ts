import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { epochActivationMs, openEpochKeys } from "@curfew/keyring/epoch-keys.ts";
import { systemRandom } from "@curfew/runtime/random.ts";
import { memoryStore } from "@curfew/simulation/memory-store.ts";
import { afterEach, expect, test } from "vitest";
import { openPersonKeys, type PersonDoc } from "./person-keys.ts";

const closers: (() => void)[] = [];
afterEach(() => {
  for (const close of closers.splice(0)) close();
});

const anna = `psn_${"a".repeat(32)}`;
const open = async () => {
  const parent = mkdtempSync(join(tmpdir(), "curfew-person-keys-"));
  closers.push(() => rmSync(parent, { recursive: true }));
  let nowMs = 1_000_000;
  const clock = { now: () => nowMs, monotonicMs: () => nowMs, sleep: async () => {} };
  const epochs = openEpochKeys({ dir: join(parent, "keys"), random: systemRandom, clock });
  const rows = await memoryStore().collection<PersonDoc>("persons");
  const replica = () => openPersonKeys({ rows, epochs, random: systemRandom, cacheSize: 10, cacheMs: 300_000, clock });
  return { epochs, rows, replica, pass: (ms: number) => (nowMs += ms) };
};
const bytes = async (key: ReturnType<ReturnType<typeof openPersonKeys>["keyOf"]>) => (await key)?.export();

test("whoever asks first makes the key, and racing replicas have the same one", async () => {
  const { replica, rows } = await open();
  const keys = await Promise.all(Array.from({ length: 20 }, () => bytes(replica().keyOf(anna))));
  for (const key of keys) expect(key).toEqual(keys[0]);
  expect(keys[0]).toHaveLength(32);
  const [row] = await rows.find({ limit: 10 });
  expect(Object.keys(row ?? {})).toEqual(["_id", "w1"]);
  expect(Buffer.from(row?.w1 as Uint8Array).includes(keys[0] as Buffer)).toBe(false);
});

test("an erased person has no key, and never gets another one under that id", async () => {
  const { replica, rows } = await open();
  const keys = replica();
  expect(await keys.keyOf(anna)).toBeDefined();
  await rows.set(anna, { erased: true });
  await rows.unset(anna, "w1");
  await keys.drop(anna);
  expect(await keys.keyOf(anna)).toBeUndefined();
  expect(await replica().keyOf(anna)).toBeUndefined();
  expect(await rows.find({ limit: 10 })).toEqual([{ _id: anna, erased: true }]);
});

test("without being told, a replica forgets a key after five minutes", async () => {
  const { replica, rows, pass } = await open();
  const keys = replica();
  await keys.keyOf(anna);
  await rows.set(anna, { erased: true });
  pass(299_999);
  expect(await keys.keyOf(anna)).toBeDefined();
  pass(1);
  expect(await keys.keyOf(anna)).toBeUndefined();
});

test("a row does not open under another person's id, nor without its epoch's key", async () => {
  const { replica, rows, epochs, pass } = await open();
  await replica().keyOf(anna);
  const other = `psn_${"b".repeat(32)}`;
  const row = await rows.get(anna);
  await rows.insert({ ...(row as PersonDoc), _id: other });
  await expect(replica().keyOf(other)).rejects.toThrow();
  epochs.begin();
  pass(epochActivationMs);
  epochs.destroy(1);
  await expect(replica().keyOf(anna)).rejects.toThrow("no key that is left");
});
