import { type ChildProcess, spawn } from "node:child_process";
import { once } from "node:events";
import { chmodSync, mkdirSync, mkdtempSync, rmSync, symlinkSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterEach, beforeEach, expect, test } from "vitest";
import { assertPrivate, DirectoryInUse, lockDirectory, NotPrivate } from "./exclusive.ts";

let dir = "";
const children: ChildProcess[] = [];
beforeEach(() => {
  dir = mkdtempSync(join(tmpdir(), "curfew-process-"));
});
afterEach(() => {
  for (const child of children.splice(0)) child.kill("SIGKILL");
  rmSync(dir, { recursive: true });
});

/** Starts real Node on `code`, with this folder's modules, as in production. */
const start = (code: string) => {
  const base = new URL("./", import.meta.url).href;
  const child = spawn(
    process.execPath,
    [
      "--expose-gc",
      "--disable-warning=ExperimentalWarning",
      "--input-type=module",
      "-e",
      code.replaceAll("BASE/", base),
    ],
    { env: { DIR: dir }, stdio: ["ignore", "pipe", "pipe"] },
  );
  children.push(child);
  const out = { text: "", err: "" };
  child.stdout.on("data", (d) => {
    out.text += d;
  });
  child.stderr.on("data", (d) => {
    out.err += d;
  });
  const exited = once(child, "close") as Promise<[number | null, string | null]>;
  const says = async (word: string) => {
    while (!out.text.includes(word)) {
      if (child.exitCode !== null) throw new Error(`ended without "${word}": ${out.text}${out.err}`);
      await once(child.stdout, "data", { signal: AbortSignal.timeout(20_000) });
    }
  };
  return { child, out, exited, says };
};

const serve = (steps: string, graceMs = 5000) => `
  import { onShutdown } from "BASE/shutdown.ts";
  import { openLog } from "BASE/log.ts";
  const say = (s) => process.stdout.write(s + "\\n");
  onShutdown([${steps}], { graceMs: ${graceMs}, log: openLog({ service: "t", level: "info" }) });
  const alive = setInterval(() => {}, 1000);
  say("ready");`;

test("a signal closes in reverse order, a second one changes nothing, and the exit code is 0", async () => {
  // The server's step ends only once the second signal has been seen by this process.
  const server = `{ name: "server", close: () => {
    const again = new Promise((resolve) => process.once("SIGINT", resolve));
    say("server");
    return again;
  } }`;
  const p = start(serve(`{ name: "store", close: () => say("store") }, ${server}`));
  await p.says("ready");
  p.child.kill("SIGTERM");
  await p.says("server");
  expect(p.out.text).not.toContain("store");
  p.child.kill("SIGINT");
  expect(await p.exited).toEqual([0, null]);
  expect(p.out.text).toBe("ready\nserver\nstore\n");
});

test("a step that never ends is bounded and named, exit code 1", async () => {
  const p = start(serve(`{ name: "stuck", close: (at) => { at("feeds"); return new Promise(() => {}); } }`, 50));
  await p.says("ready");
  p.child.kill("SIGTERM");
  expect(await p.exited).toEqual([1, null]);
  expect(p.out.err).toContain('"step":"stuck: feeds"');
});

test("a step that fails does not keep the others from closing, exit code 1", async () => {
  const p = start(
    serve(`{ name: "first", close: () => say("closed") }, { name: "bad", close: () => { throw new Error("no") } }`),
  );
  await p.says("ready");
  p.child.kill("SIGTERM");
  expect(await p.exited).toEqual([1, null]);
  expect(p.out.text).toContain("closed");
});

test.each([
  ["throw", "setImmediate(() => { throw new Error('boom') });"],
  ["rejection", "Promise.reject(new Error('boom'));"],
])("an uncaught %s is logged and exits 1", async (_name, code) => {
  const p = start(serve("") + code);
  expect(await p.exited).toEqual([1, null]);
  expect(p.out.err).toContain("boom");
  expect(p.out.err).toContain('"msg":"crashed"');
});

test("one process has a directory, through garbage collection, and kill -9 frees it at once", async () => {
  const p = start(`
    import { lockDirectory } from "BASE/exclusive.ts";
    lockDirectory(process.env.DIR);
    for (let i = 0; i < 5; i++) { gc(); await new Promise((r) => setImmediate(r)); }
    setInterval(() => {}, 1000);
    process.stdout.write("locked\\n");`);
  await p.says("locked");
  expect(() => lockDirectory(dir)).toThrow(DirectoryInUse);
  expect(() => lockDirectory(dir)).toThrow(/another instance/);
  p.child.kill("SIGKILL");
  await p.exited;
  const lock = lockDirectory(dir);
  expect(() => lockDirectory(dir)).toThrow(DirectoryInUse);
  lock.release();
  lock.release();
  lockDirectory(dir).release();
});

test("a keys directory is refused when it, a directory or a file in it is too wide, or a link", () => {
  const keys = join(dir, "keys");
  mkdirSync(join(keys, "deep"), { recursive: true, mode: 0o700 });
  const file = join(keys, "deep", "k");
  writeFileSync(file, "x", { mode: 0o600 });
  assertPrivate(keys);
  chmodSync(file, 0o400);
  assertPrivate(keys);
  for (const [path, wide, right] of [
    [file, 0o640, 0o600],
    [file, 0o700, 0o600],
    [join(keys, "deep"), 0o710, 0o700],
    [keys, 0o701, 0o700],
  ] as const) {
    chmodSync(path, wide);
    expect(() => assertPrivate(keys)).toThrow(NotPrivate);
    expect(() => assertPrivate(keys)).toThrow(path);
    chmodSync(path, right);
    assertPrivate(keys);
  }
  symlinkSync(file, join(keys, "link"));
  expect(() => assertPrivate(keys)).toThrow(/link is not a file/);
  expect(() => assertPrivate(join(dir, "absent"))).toThrow(NotPrivate);
});
