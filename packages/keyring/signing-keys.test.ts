import { sign, verify } from "node:crypto";
import { mkdtempSync, readdirSync, readFileSync, rmSync, statSync, unlinkSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { systemRandom } from "@curfew/runtime/random.ts";
import { afterEach, beforeEach, expect, test } from "vitest";
import { KeyringError } from "./key-files.ts";
import { openKeyring } from "./keyring.ts";

const name = "curfew.example/ledger";
let dir = "";
beforeEach(() => {
  dir = join(mkdtempSync(join(tmpdir(), "curfew-signing-")), "keys");
});
afterEach(() => rmSync(join(dir, ".."), { recursive: true }));
let nowMs = 0;
const clock = { now: () => nowMs, monotonicMs: () => nowMs, sleep: async () => {} };
const open = () => openKeyring({ dir, random: systemRandom, clock });
const shape = (keyring = open()) =>
  keyring.signingKeys(name).map(({ number, after, privateKey }) => [number, after, privateKey !== undefined]);

test("the next key waits until it follows; then the one before may be retired, and what it signed stays verifiable", () => {
  const keyring = open();
  const [first] = keyring.signingKeys(name);
  const signature = first.privateKey && sign(null, Buffer.from("m"), first.privateKey);
  expect(shape()).toEqual([[1, -1, true]]);
  const second = keyring.rotateSigningKey(name);
  expect(shape(keyring)).toEqual([
    [1, -1, true],
    [2, undefined, true],
  ]);
  expect(() => keyring.rotateSigningKey(name)).toThrow("has not followed");
  expect(keyring.retireSigningKeys(name)).toBe(0);
  keyring.follow(name, 2, 7);
  keyring.follow(name, 2, 7);
  expect(() => open().follow(name, 2, 8)).toThrow("key 2 of curfew.example/ledger follows after 7");
  expect(keyring.retireSigningKeys(name)).toBe(1);
  expect(shape()).toEqual([
    [1, -1, false],
    [2, 7, true],
  ]);
  const [again, next] = open().signingKeys(name);
  expect(verify(null, Buffer.from("m"), again.publicKey, signature as Buffer)).toBe(true);
  expect(next?.publicKey.equals(second.publicKey)).toBe(true);
  for (const file of readdirSync(dir)) expect(statSync(join(dir, file)).mode & 0o777).toBe(0o600);
});

test("a rotation elsewhere is seen within a second, and at once where it is asked for", () => {
  const [here, there] = [open(), open()];
  expect(shape(here)).toHaveLength(1);
  there.rotateSigningKey(name);
  expect(shape(here)).toHaveLength(1);
  expect(here.signingKeys(name, "now")).toHaveLength(2);
  there.follow(name, 2, 3);
  nowMs += 1_000;
  expect(shape(here).at(-1)).toEqual([2, 3, true]);
});

test("two that rotate at once make one key", () => {
  const [one, other] = [open(), open()];
  one.signingKeys(name);
  one.rotateSigningKey(name);
  expect(() => other.rotateSigningKey(name)).toThrow(KeyringError);
  expect(shape()).toHaveLength(2);
});

test("three keys: names do not mix, and the names are listed", () => {
  const keyring = open();
  keyring.rotateSigningKey(name);
  keyring.follow(name, 2, 3);
  keyring.rotateSigningKey(name);
  keyring.follow(name, 3, 9);
  keyring.signingKeys("curfew.example/ledger-2");
  expect(keyring.signingNames().sort()).toEqual(["curfew.example/ledger", "curfew.example/ledger-2"]);
  expect(keyring.retireSigningKeys(name)).toBe(2);
  expect(shape()).toEqual([
    [1, -1, false],
    [2, 3, false],
    [3, 9, true],
  ]);
});

test.each([
  ["cut short", (text: string) => text.slice(0, -3)],
  ["of another place", (text: string) => text.replace(/-v1 \d+/, "-v1 x")],
  ["of another key", (text: string) => text.replace(/ [\w-]{43} /, ` ${"A".repeat(43)} `)],
])("what a key follows, %s, is refused and not replaced", (_what, damage) => {
  const keyring = open();
  keyring.rotateSigningKey(name);
  keyring.follow(name, 2, 7);
  const file = join(dir, readdirSync(dir).find((found) => found.endsWith(".follow")) as string);
  const damaged = damage(readFileSync(file, "utf8"));
  writeFileSync(file, damaged);
  expect(() => open().signingKeys(name)).toThrow(KeyringError);
  expect(readFileSync(file, "utf8")).toBe(damaged);
});

test("a key that vanished before it was followed, or whose place did, is not made anew", () => {
  const keyring = open();
  keyring.rotateSigningKey(name);
  keyring.follow(name, 2, 7);
  keyring.rotateSigningKey(name);
  const [, second] = readdirSync(dir)
    .filter((found) => found.endsWith(".key"))
    .sort();
  unlinkSync(join(dir, second as string));
  expect(() => open().signingKeys(name)).toThrow("is not there");
});
