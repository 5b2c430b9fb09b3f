import { type ChildProcess, spawn } from "node:child_process";
import { createHmac, type KeyObject, sign, verify } from "node:crypto";
import { once } from "node:events";
import {
  chmodSync,
  existsSync,
  linkSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  rmSync,
  statSync,
  utimesSync,
  writeFileSync,
} from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { inspect } from "node:util";
import type { Clock } from "@curfew/runtime/clock.ts";
import { NotPrivate } from "@curfew/runtime/exclusive.ts";
import { systemRandom } from "@curfew/runtime/random.ts";
import { afterEach, beforeEach, expect, test } from "vitest";
import { KeyringError } from "./key-files.ts";
import { openKeyring, pepperActivationMs } from "./keyring.ts";

let parent = "";
let dir = "";
let nowMs = 0;
const clock: Clock = { now: () => nowMs, monotonicMs: () => nowMs, sleep: async () => {} };
const children: ChildProcess[] = [];
beforeEach(() => {
  parent = mkdtempSync(join(tmpdir(), "curfew-keyring-"));
  dir = join(parent, "keys");
  nowMs = Date.now();
});
afterEach(() => {
  for (const child of children.splice(0)) child.kill("SIGKILL");
  rmSync(parent, { recursive: true });
});

const open = () => openKeyring({ dir, random: systemRandom, clock });
const print = (key: Parameters<typeof createHmac>[1]) => createHmac("sha256", key).update("x").digest("hex");

test("keys are created once, private, and the same after opening again", () => {
  const first = open();
  const before = [
    print(first.peppers().current.key),
    print(first.secretKey("identifiers")),
    print(first.secretKey("epoch-1")),
  ];
  const signing = first.signingKeys("curfew.example/ledger/2026")[0];
  const again = open();
  const after = [
    print(again.peppers().current.key),
    print(again.secretKey("identifiers")),
    print(again.secretKey("epoch-1")),
  ];
  expect(after).toEqual(before);
  expect(new Set(before).size).toBe(3);
  const signature = sign(null, Buffer.from("m"), signing.privateKey as KeyObject);
  expect(verify(null, Buffer.from("m"), again.signingKeys("curfew.example/ledger/2026")[0].publicKey, signature)).toBe(
    true,
  );
  const next = again.signingKeys("curfew.example/ledger/2027")[0].publicKey;
  expect(verify(null, Buffer.from("m"), next, signature)).toBe(false);
  expect(statSync(dir).mode & 0o777).toBe(0o700);
  for (const name of readdirSync(dir)) expect(statSync(join(dir, name)).mode & 0o777).toBe(0o600);
  expect(readdirSync(dir)).toHaveLength(5);
});

test("keys of other uses are no peppers, whichever is made first", () => {
  const keyring = open();
  for (let i = 1; i <= 6; i++) keyring.secretKey(`epoch-${i}`);
  keyring.signingKeys("pepper-1");
  expect(keyring.peppers().all.map((p) => p.id)).toEqual(["p1"]);
  expect(keyring.rotatePepper().id).toBe("p2");
});

test("a pepper retired elsewhere is gone here within a second and does not come back", () => {
  const keyring = open();
  keyring.peppers();
  keyring.rotatePepper();
  nowMs += pepperActivationMs;
  const other = open();
  other.peppers();
  keyring.retirePepper("p1");
  nowMs += 1000;
  expect(other.peppers().all.map((p) => p.id)).toEqual(["p2"]);
  expect(readdirSync(dir)).toEqual(["pepper-2.key"]);
});

test("a directory or key that others can read is refused, with the command that mends it", () => {
  open().peppers();
  chmodSync(dir, 0o750);
  expect(open).toThrow(NotPrivate);
  chmodSync(dir, 0o700);
  chmodSync(join(dir, "pepper-1.key"), 0o644);
  expect(open).toThrow(/chmod 0600/);
});

test("a new pepper becomes current only after everyone has seen it; a fifth is refused; a retired number never returns", () => {
  const keyring = open();
  const other = open();
  expect(other.peppers().current.id).toBe("p1");
  expect(keyring.rotatePepper().id).toBe("p2");
  expect(keyring.peppers().all.map((p) => p.id)).toEqual(["p2", "p1"]);
  expect(keyring.peppers().current.id).toBe("p1");
  nowMs += 1000;
  expect(other.peppers().all.map((p) => p.id)).toEqual(["p2", "p1"]);
  expect(() => keyring.retirePepper("p1")).toThrow(/in use/);
  nowMs += pepperActivationMs;
  for (const k of [keyring, other]) expect(k.peppers().current.id).toBe("p2");
  expect(() => keyring.retirePepper("p2")).toThrow(/in use/);
  keyring.rotatePepper();
  keyring.rotatePepper();
  expect(() => keyring.rotatePepper()).toThrow(KeyringError);
  expect(() => other.rotatePepper()).toThrow(/4 peppers are live/);
  keyring.retirePepper("p1");
  expect(() => keyring.retirePepper("p1")).toThrow(/not a live pepper/);
  expect(keyring.rotatePepper().id).toBe("p5");
  nowMs += 1000;
  expect(other.peppers().all.map((p) => p.id)).toEqual(["p5", "p4", "p3", "p2"]);
  expect(new Set(other.peppers().all.map((p) => print(p.key))).size).toBe(4);
});

test("nothing of a key shows when anything of the keyring is printed, put into JSON or named in an error", () => {
  const keyring = open();
  const shown = [keyring, keyring.peppers(), keyring.signingKeys("curfew.example")[0], keyring.secretKey("identifiers")]
    .map((v) => inspect(v, { depth: 9, showHidden: true }) + JSON.stringify(v) + String(v))
    .join("\n");
  const files = readdirSync(dir).map((name) => readFileSync(join(dir, name), "utf8"));
  const secrets = files.map((text) => /^curfew-key-v1 \d+ (.{43})/.exec(text)?.[1] ?? "");
  expect(secrets).toHaveLength(3);
  for (const secret of secrets) {
    const key = Buffer.from(secret, "base64").subarray(-32);
    expect(key).toHaveLength(32);
    for (const form of [secret, key.toString("hex"), inspect(key).slice(8, 40)]) expect(shown).not.toContain(form);
  }
});

test.each([
  ["one character changed", (t: string) => t.slice(0, -20) + (t.at(-20) === "A" ? "B" : "A") + t.slice(-19)],
  ["cut short", (t: string) => t.slice(0, -3)],
  ["empty", () => ""],
  ["far too long", (t: string) => t.repeat(100)],
])("a key file with content %s is refused and not replaced", (_what, damage) => {
  const files = ["secret-identifiers.key", "signing-curfew.example.key"].map((name) => join(dir, name));
  const keyring = open();
  keyring.secretKey("identifiers");
  keyring.signingKeys("curfew.example");
  const damaged = files.map((file) => damage(readFileSync(file, "utf8")));
  for (const [i, file] of files.entries()) writeFileSync(file, damaged[i] ?? "");
  expect(() => open().secretKey("identifiers")).toThrow(KeyringError);
  expect(() => open().signingKeys("curfew.example")).toThrow(KeyringError);
  expect(files.map((file) => readFileSync(file, "utf8"))).toEqual(damaged);
});

test.each(["", "../x", "a/b", "A", "a b", "a".repeat(64)])("%j is no name of a secret key", (name) => {
  expect(() => open().secretKey(name)).toThrow(KeyringError);
});

test("what a killed creation left behind is removed, once it cannot be at work any more", () => {
  open().peppers();
  linkSync(join(dir, "pepper-1.key"), join(dir, ".new-old"));
  writeFileSync(join(dir, ".new-young"), "half", { mode: 0o600 });
  const old = new Date(nowMs - 61_000);
  utimesSync(join(dir, ".new-old"), old, old);
  open();
  expect(readdirSync(dir).toSorted()).toEqual([".new-young", "pepper-1.key"]);
});

/** A real process that opens the keyring when told to, and answers prints of what it uses; `before` runs ahead of it. */
const startOpener = async (before = "") => {
  const code = `
    import { createHmac } from "node:crypto";
    import { systemClock } from "RUNTIME/clock.ts";
    import { systemRandom } from "RUNTIME/random.ts";
    import { openKeyring } from "KEYRING/keyring.ts";
    ${before}
    process.stdin.once("data", () => {
      const keyring = openKeyring({ dir: process.env.DIR, random: systemRandom, clock: systemClock });
      const print = (key) => createHmac("sha256", key).update("x").digest("hex");
      const keys = [keyring.peppers().current.key, keyring.secretKey("identifiers"), keyring.secretKey("epoch-1")];
      process.stdout.write(JSON.stringify([...keys.map(print), keyring.signingKeys("curfew.example")[0].publicKey.export({ format: "jwk" }).x]) + "\\n");
      process.exit(0);
    });
    process.stdout.write("ready\\n");`
    .replaceAll("RUNTIME", new URL("../runtime", import.meta.url).href)
    .replaceAll("KEYRING", new URL(".", import.meta.url).href.replace(/\/$/, ""));
  const child = spawn(process.execPath, ["--disable-warning=ExperimentalWarning", "--input-type=module", "-e", code], {
    env: { DIR: dir },
    stdio: ["pipe", "pipe", "inherit"],
  });
  children.push(child);
  let text = "";
  child.stdout.on("data", (d) => {
    text += d;
  });
  const closed = once(child, "close") as Promise<[number | null, string | null]>;
  await once(child.stdout, "data", { signal: AbortSignal.timeout(20_000) });
  return {
    child,
    closed,
    go: () => child.stdin.write("go\n"),
    answer: async () => {
      await closed;
      return text.split("\n")[1] ?? "";
    },
  };
};

const answerHere = () => {
  const keyring = open();
  const keys = [keyring.peppers().current.key, keyring.secretKey("identifiers"), keyring.secretKey("epoch-1")].map(
    print,
  );
  return JSON.stringify([...keys, keyring.signingKeys("curfew.example")[0].publicKey.export({ format: "jwk" }).x]);
};

test("processes that open at once, two killed while keys are being made, all use the same keys", async () => {
  for (let round = 0; round < 3; round++) {
    const openers = await Promise.all(Array.from({ length: 5 }, () => startOpener()));
    for (const o of openers) o.go();
    while (!existsSync(dir) && openers.every((o) => o.child.exitCode === null)) await new Promise(setImmediate);
    for (const o of openers.slice(0, 2)) o.child.kill("SIGKILL");
    const answers = (await Promise.all(openers.map((o) => o.answer()))).filter((a) => a !== "");
    expect(answers.length).toBeGreaterThanOrEqual(3);
    expect(new Set([...answers, answerHere()]).size).toBe(1);
    rmSync(dir, { recursive: true });
  }
});

test.each(
  ["openSync", "writeSync", "fsyncSync", "linkSync", "unlinkSync"].flatMap((call) => [
    [call, "before", 1],
    [call, "after", 1],
    [call, "after", 3],
  ]),
)(
  "a process that dies in %s, %s it, the %dth time, leaves keys that everyone then agrees on",
  async (call, when, nth) => {
    const o = await startOpener(`
    import fs from "node:fs";
    import { syncBuiltinESMExports } from "node:module";
    const real = fs.${call};
    let left = ${nth};
    fs.${call} = (...args) => {
      const due = --left === 0;
      if (due && "${when}" === "before") process.kill(process.pid, "SIGKILL");
      const result = real(...args);
      if (due) process.kill(process.pid, "SIGKILL");
      return result;
    };
    syncBuiltinESMExports();`);
    o.go();
    expect(await o.closed).toEqual([null, "SIGKILL"]);
    const kept = readdirSync(dir).filter((name) => name.endsWith(".key"));
    const texts = kept.map((name) => readFileSync(join(dir, name), "utf8"));
    const first = answerHere();
    expect(answerHere()).toBe(first);
    expect(kept.map((name) => readFileSync(join(dir, name), "utf8"))).toEqual(texts);
  },
);
