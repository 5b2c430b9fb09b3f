import { chmodSync, cpSync, mkdtempSync, readdirSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { epochActivationMs, openEpochKeys } from "@curfew/keyring/epoch-keys.ts";
import { systemClock } from "@curfew/runtime/clock.ts";
import { systemRandom } from "@curfew/runtime/random.ts";
import { memoryStore } from "@curfew/simulation/memory-store.ts";
import { afterEach, expect, test } from "vitest";
import { destroyPeople, openRotation, rewrapAll } from "./erase.ts";
import { openPersonKeys } from "./person-keys.ts";
import { checkEpochs, openPersonalStore } from "./personal-store.ts";
import { openPseudonyms } from "./pseudonyms.ts";

const closers: (() => void)[] = [];
afterEach(() => {
  for (const close of closers.splice(0)) close();
});

const openWorld = async () => {
  const dir = mkdtempSync(join(tmpdir(), "curfew-erase-"));
  closers.push(() => rmSync(dir, { recursive: true }));
  let nowMs = 1_000_000;
  const clock = { now: () => nowMs, monotonicMs: () => nowMs, sleep: async () => {} };
  const store = memoryStore();
  const open = (keys = "keys") => openPersonalStore({ store, keysDir: join(dir, keys), random: systemRandom, clock });
  const personal = await open();
  const common = { epochs: personal.epochs, random: systemRandom, cacheSize: 1, cacheMs: 0, clock };
  const { identities: collection, identifierKey, persons: rows } = personal;
  const pseudonyms = openPseudonyms({ ...common, collection, identifierKey });
  const keys = openPersonKeys({ ...common, rows });
  const personOf = async (value: string) => {
    const pseudonym = await pseudonyms.pseudonymOf({ controller: "acme", identifierType: "email", value });
    return { pseudonym, key: (await keys.keyOf(pseudonym))?.export().toString("hex") };
  };
  return { open, dir, personal, personOf, clock, pass: (ms: number) => (nowMs += ms) };
};

test("a directory with other keys is refused before anything is done with it, by whoever opens the store", async () => {
  const { open, dir, personal, personOf } = await openWorld();
  await personOf("anna");
  await expect(open("elsewhere")).rejects.toThrow(/elsewhere has no epoch-1\.key, under which the personal store/);
  expect(readdirSync(join(dir, "elsewhere"))).toEqual([]);
  cpSync(join(dir, "keys", "epoch-1.key"), join(dir, "elsewhere", "epoch-1.key"));
  await expect(open("elsewhere")).rejects.toThrow("secret-identifiers.key is not the key that the personal store was");
  openEpochKeys({ dir: join(dir, "other"), random: systemRandom, clock: systemClock }).live();
  await expect(open("other")).rejects.toThrow("epoch-1.key is not the key that the personal store was filled with");
  expect(await personal.identities.find({ limit: 9 })).toHaveLength(1);
  await open();
});

test("a directory that is older than the store is refused, and no key is made in it under a number that was used", async () => {
  const { open, dir, personal, pass } = await openWorld();
  cpSync(join(dir, "keys"), join(dir, "old"), { recursive: true });
  chmodSync(join(dir, "old"), 0o700);
  await checkEpochs(personal, [personal.epochs.begin()]);
  pass(epochActivationMs);
  personal.epochs.destroy(1);
  await expect(open("old")).rejects.toThrow(/old has no epoch-2\.key.*put the right one back/);
  rmSync(join(dir, "keys", "epoch-2.key"));
  pass(1_000);
  expect(() => personal.epochs.live()).toThrow(/no epoch key any more: put the directory back/);
  expect(readdirSync(join(dir, "keys"))).toEqual(["secret-identifiers.key"]);
});

test("a replica that was paused for an epoch takes away nothing that is newer", async () => {
  const { personal, personOf, pass } = await openWorld();
  const anna = await personOf("anna");
  const [first] = personal.epochs.live();
  personal.epochs.begin();
  pass(epochActivationMs);
  await rewrapAll(personal, systemRandom);
  const paused = { ...personal, epochs: { ...personal.epochs, current: () => first as NonNullable<typeof first> } };
  expect(await rewrapAll(paused, systemRandom)).toEqual({ changed: 0, lost: 0 });
  pass(epochActivationMs);
  personal.epochs.destroy(1);
  expect(await personOf("anna")).toEqual(anna);
});

test("the old key goes only after a look, a settling time later, that found nothing; what was written late is found", async () => {
  const { personal, personOf, clock, pass } = await openWorld();
  const rotation = openRotation({ store: personal, epochMs: 100_000, settleMs: 60_000, random: systemRandom, clock });
  const anna = await personOf("anna");
  const [first] = personal.epochs.live();
  pass(89_000);
  await rotation.step();
  expect(personal.epochs.live()).toHaveLength(1);
  pass(2_000);
  expect(await rotation.step()).toEqual([]);
  pass(2 * epochActivationMs);
  await rotation.step();
  // Somebody who read which epoch is current long ago.
  const late = openPersonKeys({
    ...{ rows: personal.persons, random: systemRandom, cacheSize: 1, cacheMs: 0, clock },
    epochs: { ...personal.epochs, current: () => first as NonNullable<typeof first> },
  });
  const bert = (await late.keyOf(`psn_${"b".repeat(32)}`))?.export().toString("hex");
  for (const ms of [59_000, 1_000]) {
    pass(ms);
    await rotation.step();
    expect(personal.epochs.live()).toHaveLength(2);
  }
  pass(60_000);
  expect(await rotation.step()).toEqual([1]);
  expect(personal.epochs.live().map(({ number }) => number)).toEqual([2]);
  expect(await personOf("anna")).toEqual(anna);
  expect((await late.keyOf(`psn_${"b".repeat(32)}`))?.export().toString("hex")).toBe(bert);
});

test("people are destroyed together, others stay, and doing it again changes nothing", async () => {
  const { personal, personOf } = await openWorld();
  const [anna, bert, carl] = [await personOf("anna"), await personOf("bert"), await personOf("carl")];
  for (let times = 0; times < 2; times += 1)
    await destroyPeople(personal, new Set([anna.pseudonym, bert.pseudonym, "psn_of_nobody"]));
  expect(await personOf("carl")).toEqual(carl);
  expect((await personOf("anna")).pseudonym).not.toBe(anna.pseudonym);
  expect(await personal.persons.get(bert.pseudonym)).toEqual({
    ...{ _id: bert.pseudonym, erased: true, known: true, destroyed: true },
  });
  expect(await personal.persons.get("psn_of_nobody")).toEqual({ _id: "psn_of_nobody", erased: true, destroyed: true });
});
