import { createHmac, type KeyObject } from "node:crypto";
import { linkSync, mkdtempSync, readdirSync, rmSync, statSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import type { Clock } from "@curfew/runtime/clock.ts";
import { systemRandom } from "@curfew/runtime/random.ts";
import { afterEach, beforeEach, expect, test } from "vitest";
import { epochActivationMs, openEpochKeys } from "./epoch-keys.ts";

let parent = "";
let dir = "";
let nowMs = 0;
const clock: Clock = { now: () => nowMs, monotonicMs: () => nowMs, sleep: async () => {} };
beforeEach(() => {
  parent = mkdtempSync(join(tmpdir(), "curfew-epochs-"));
  dir = join(parent, "keys");
  nowMs = 1_000_000;
});
afterEach(() => rmSync(parent, { recursive: true }));
const open = () => openEpochKeys({ dir, random: systemRandom, clock });
const print = (key: KeyObject) => createHmac("sha256", key).update("x").digest("hex");

test("the first epoch is made when it is asked for, private, and is the same for everybody", () => {
  const [one, other] = [open(), open()];
  expect(one.current()).toMatchObject({ number: 1, createdAtMs: nowMs });
  expect(print(other.current().key)).toBe(print(one.current().key));
  expect(statSync(join(dir, "epoch-1.key")).mode & 0o777).toBe(0o600);
});

test("the next one is current once everybody has seen it, and beginning it again is the same one", () => {
  const [one, other] = [open(), open()];
  const first = other.current();
  const next = one.begin();
  expect([next.number, one.begin().number, other.begin().number]).toEqual([2, 2, 2]);
  expect([one.current().number, other.current().number]).toEqual([1, 1]);
  expect(() => one.destroy(1)).toThrow(/in use/);
  nowMs += epochActivationMs;
  expect([one.current().number, other.current().number]).toEqual([2, 2]);
  expect(print(next.key)).not.toBe(print(first.key));
});

test("a destroyed key is gone from the directory and, within a second, from every process; its number never comes again", () => {
  const [one, other] = [open(), open()];
  one.current();
  one.begin();
  nowMs += epochActivationMs;
  other.live();
  one.destroy(1);
  one.destroy(1);
  expect(readdirSync(dir)).toEqual(["epoch-2.key"]);
  nowMs += 1_000;
  expect(other.live().map(({ number }) => number)).toEqual([2]);
  expect(() => one.destroy(2)).toThrow(/in use/);
  expect(one.begin().number).toBe(3);
});

test("a second name of a key, left by a kill while it was made, does not outlive the key, however young", () => {
  const epochs = open();
  epochs.current();
  linkSync(join(dir, "epoch-1.key"), join(dir, ".new-0011223344556677889900aa"));
  writeFileSync(join(dir, ".new-of-another"), "unfinished", { mode: 0o600 });
  epochs.begin();
  nowMs += epochActivationMs;
  epochs.destroy(1);
  expect(readdirSync(dir).sort()).toEqual([".new-of-another", "epoch-2.key"]);
});

test("the next number can be told to be above one that is known from elsewhere", () => {
  const epochs = open();
  epochs.current();
  expect([epochs.begin(4).number, epochs.begin(4).number, epochs.begin(5).number]).toEqual([5, 5, 6]);
});

test("a damaged key file is named, and not taken for another key", () => {
  open().current();
  writeFileSync(join(dir, "epoch-1.key"), "curfew-key-v1 1 AAAA 00000000\n", { mode: 0o600 });
  expect(() => open().current()).toThrow(/epoch-1\.key: damaged/);
});
