import { createSecretKey } from "node:crypto";
import { mkdtempSync, readdirSync, readFileSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import type { Collection, DocumentStore } from "@curfew/document-store/port.ts";
import { openSqliteStore } from "@curfew/document-store/sqlite.ts";
import { type EpochKeys, openEpochKeys } from "@curfew/keyring/epoch-keys.ts";
import type { Clock } from "@curfew/runtime/clock.ts";
import { systemRandom } from "@curfew/runtime/random.ts";
import { afterEach, beforeEach, expect, test } from "vitest";
import {
  type Identity,
  InvalidIdentity,
  maxIdentities,
  openPseudonyms,
  type PseudonymDoc,
  pseudonymIn,
} from "./pseudonyms.ts";

let dir = "";
let store: DocumentStore;
let collection: Collection<PseudonymDoc>;
let epochs: EpochKeys;
let nowMs = 0;
const clock: Clock = { now: () => nowMs, monotonicMs: () => nowMs, sleep: async () => {} };
const identifierKey = createSecretKey(Buffer.alloc(32, 7));

beforeEach(async () => {
  dir = mkdtempSync(join(tmpdir(), "curfew-personal-"));
  store = await openSqliteStore({ file: join(dir, "personal.db") });
  epochs = openEpochKeys({ dir: join(dir, "keys"), random: systemRandom, clock });
  collection = await store.collection<PseudonymDoc>("identities");
});
afterEach(async () => {
  await store.close();
  rmSync(dir, { recursive: true });
});

type Rows = Parameters<typeof openPseudonyms>[0]["collection"];
const open = (more: { key?: typeof identifierKey; cacheSize?: number; on?: Rows } = {}) =>
  openPseudonyms({
    collection: more.on ?? collection,
    identifierKey: more.key ?? identifierKey,
    epochs,
    random: systemRandom,
    cacheSize: more.cacheSize ?? 100,
    cacheMs: 300_000,
    clock,
  });
const person = (value: string, controller = "acme", identifierType = "email"): Identity => ({
  controller,
  identifierType,
  value,
});
const all = () => collection.find({ limit: 10_000 });
const stored = async () => (await all()).map((row) => [row._id, pseudonymIn(epochs, row)]);

test("64 racing callers of two instances get one pseudonym, and one row is stored", async () => {
  const instances = [open(), open()];
  const answers = await Promise.all(
    Array.from({ length: 64 }, (_, i) => instances[i % 2]?.pseudonymOf(person("anna@example.test"))),
  );
  expect(new Set(answers).size).toBe(1);
  expect(answers[0]).toMatch(/^psn_[0-9a-f]{32}$/);
  expect(await stored()).toEqual([[expect.stringMatching(/^[0-9a-f]{64}$/), answers[0]]]);
});

test("a person keeps the pseudonym after a restart; other people, controllers and types have others", async () => {
  const identities = [
    person("anna@example.test"),
    person("Anna@example.test"),
    person("anna@example.test", "other"),
    person("anna@example.test", "acme", "login"),
    person("annaemail", "acme", "e"),
    person("anna", "acme", "email"),
    person("nna", "acmea", "email"),
  ];
  const first = await open().pseudonymsOf(identities);
  expect(new Set(first).size).toBe(identities.length);
  expect(await open().pseudonymsOf(identities)).toEqual(first);
  const foreign = await open({ key: createSecretKey(Buffer.alloc(32, 8)) }).pseudonymOf(person("anna@example.test"));
  expect(first).not.toContain(foreign);
});

test("overlapping batches of a thousand with repetitions agree, in order", async () => {
  const list = (from: number) => Array.from({ length: maxIdentities }, (_, i) => person(`p${(from + i) % 1500}`));
  const [a, b, c] = await Promise.all([
    open().pseudonymsOf(list(0)),
    open().pseudonymsOf(list(700)),
    open().pseudonymsOf(list(0)),
  ]);
  expect(c).toEqual(a);
  expect(b?.slice(0, 300)).toEqual(a?.slice(700));
  expect(new Set([...a, ...b]).size).toBe(1500);
  expect(await all()).toHaveLength(1500);
  const twice = await open().pseudonymsOf([person("p1"), person("p2"), person("p1")]);
  expect(twice).toEqual([a[1], a[2], a[1]]);
  expect(await open().pseudonymsOf([])).toEqual([]);
});

test("a row erased between a lost insert and the read gets a new pseudonym instead of an answer nobody stored", async () => {
  const anna = person("anna@example.test");
  const before = await open().pseudonymOf(anna);
  const [{ _id } = { _id: "" }] = await all();
  let reads = 0;
  // The first read is answered as before the other's insert, then an auditor erases between insert and second read.
  const racing: Rows = {
    insertMany: (docs) => collection.insertMany(docs),
    get: async (id) => {
      reads++;
      if (reads === 1) return undefined;
      if (reads === 2) await collection.delete(_id);
      return collection.get(id);
    },
  };
  const after = await open({ on: racing }).pseudonymOf(anna);
  expect(reads).toBe(2);
  expect(after).not.toBe(before);
  expect(await stored()).toEqual([[_id, after]]);
});

test("the cache answers without the store until its time is over, and never holds more than its size", async () => {
  const pseudonyms = open({ cacheSize: 2 });
  const [a, b] = await pseudonyms.pseudonymsOf([person("a"), person("b")]);
  await collection.delete(...(await all()).map((d) => d._id));
  expect(await pseudonyms.pseudonymsOf([person("a"), person("b")])).toEqual([a, b]);
  await pseudonyms.pseudonymOf(person("c"));
  expect(await pseudonyms.pseudonymOf(person("b"))).toBe(b);
  const again = await pseudonyms.pseudonymOf(person("a"));
  expect(again).not.toBe(a);
  await collection.delete(...(await all()).map((d) => d._id));
  nowMs += 299_999;
  expect(await pseudonyms.pseudonymOf(person("a"))).toBe(again);
  nowMs += 1;
  expect(await pseudonyms.pseudonymOf(person("a"))).not.toBe(again);
});

test("a dropped pseudonym is read again, and what was being read when it was dropped is not kept", async () => {
  const gate = Promise.withResolvers<void>();
  let slow = false;
  const slowly: Rows = {
    insertMany: (docs) => collection.insertMany(docs),
    get: async (id) => {
      const doc = await collection.get(id);
      if (slow) await gate.promise;
      return doc;
    },
  };
  const pseudonyms = open({ on: slowly });
  const anna = person("anna@example.test");
  const before = await pseudonyms.pseudonymOf(anna);
  await pseudonyms.drop(before);
  slow = true;
  const reading = pseudonyms.pseudonymOf(anna);
  await collection.delete(...(await all()).map((d) => d._id));
  let dropped = false;
  const dropping = pseudonyms.drop(before).then(() => {
    dropped = true;
  });
  await new Promise((resolve) => setImmediate(resolve));
  expect(dropped).toBe(false);
  slow = false;
  gate.resolve();
  expect(await reading).toBe(before);
  await dropping;
  expect(await pseudonyms.pseudonymOf(anna)).not.toBe(before);
});

test("a row of before there were epochs is still that person's", async () => {
  const anna = person("anna@example.test");
  await open().pseudonymOf(anna);
  const [{ _id } = { _id: "" }] = await all();
  await collection.delete(_id);
  await collection.insert({ _id, pseudonym: "psn_00" });
  expect(await open().pseudonymOf(anna)).toBe("psn_00");
});

test("neither identifier nor pseudonym is in the files of the store, in plain, hexadecimal or base64", async () => {
  const identities = Array.from({ length: 50 }, (_, i) =>
    person(`anna.muster.${i}@example.test`, "acme-controller", "email-address"),
  );
  const [pseudonym = ""] = await open().pseudonymsOf(identities);
  const [{ _id } = { _id: "" }] = await all();
  const files = readdirSync(dir, { withFileTypes: true })
    .filter((entry) => entry.isFile())
    .map(({ name }) => readFileSync(join(dir, name)));
  const holds = (bytes: Buffer) => files.some((file) => file.includes(bytes));
  // The control: what is stored is found this way.
  expect(holds(Buffer.from(_id))).toBe(true);
  expect(holds(Buffer.from(pseudonym))).toBe(false);
  expect(holds(Buffer.from(pseudonym.slice(4), "hex"))).toBe(false);
  for (const text of ["anna.muster", "acme-controller", "email-address"])
    for (const encoding of ["latin1", "hex", "base64"] as const)
      expect(holds(Buffer.from(Buffer.from(text).toString(encoding).slice(0, -4)))).toBe(false);
});

test.each([
  ["an empty value", person("")],
  ["a value over 512 bytes", person("ä".repeat(257))],
  ["a control character", person("hunter2\n")],
  ["a C1 control character", person("hunter2\u0085")],
  ["a lone surrogate", person("hunter2\ud800")],
  ["an empty controller", person("hunter2", "")],
  ["a long controller", person("hunter2", "c".repeat(129))],
  ["a long type", person("hunter2", "acme", "t".repeat(65))],
  ["a value that is no text", { ...person("x"), value: 1 as unknown as string }],
])("%s is refused, nothing of the batch is stored, and the error does not quote it", async (_what, bad) => {
  const batch = open().pseudonymsOf([person("good"), bad]);
  await expect(batch).rejects.toThrow(InvalidIdentity);
  await expect(batch).rejects.toThrow(/^identity 2: \w+ [a-z]/);
  await expect(batch).rejects.not.toThrow(/hunter2|ää/);
  expect(await all()).toEqual([]);
});

test("the longest value is accepted, one batch more than the limit is not", async () => {
  expect(await open().pseudonymOf(person("ä".repeat(256)))).toMatch(/^psn_/);
  await expect(open().pseudonymsOf(Array.from({ length: maxIdentities + 1 }, () => person("a")))).rejects.toThrow(
    InvalidIdentity,
  );
});
