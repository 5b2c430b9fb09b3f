import { type ChildProcess, spawn } from "node:child_process";
import { once } from "node:events";
import { appendFileSync, existsSync, mkdtempSync, readFileSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { createInterface } from "node:readline";
import { afterEach, beforeEach, expect, test } from "vitest";
import { cached } from "./cache.ts";

let root = "";
const children: ChildProcess[] = [];
beforeEach(() => {
  root = mkdtempSync(join(tmpdir(), "curfew-cache-test-"));
});
afterEach(() => {
  for (const child of children.splice(0)) child.kill("SIGKILL");
  rmSync(root, { recursive: true, force: true });
});

/** A process that is building "thing": says so, and ends its build when a line comes in. */
const builder = async () => {
  const code = `
    const { once } = await import("node:events");
    const { appendFileSync } = await import("node:fs");
    const { cached } = await import(${JSON.stringify(import.meta.resolve("./cache.ts"))});
    await cached("thing", async (path) => {
      appendFileSync(path, "half");
      console.log("building");
      await once(process.stdin, "data");
      appendFileSync(path, " and whole");
    }, console.log, ${JSON.stringify(root)});
    process.exit();
  `;
  const args = ["--disable-warning=ExperimentalWarning", "--input-type=module", "-e", code];
  const child = spawn(process.execPath, args, { stdio: ["pipe", "pipe", "inherit"] });
  children.push(child);
  const [line] = await once(createInterface(child.stdout), "line");
  expect(line).toBe("building");
  return child;
};
const buildHere = (log: (line: string) => void) =>
  cached("thing", async (path) => appendFileSync(path, "built here"), log, root);

test("while one process builds, another waits, then takes what was built", async () => {
  const child = await builder();
  const said = Promise.withResolvers<string>();
  const waited = buildHere(said.resolve);
  expect(await said.promise).toContain("waiting");
  expect(existsSync(join(root, "thing"))).toBe(false);
  child.stdin?.write("go\n");
  expect(readFileSync(await waited, "utf8")).toBe("half and whole");
});

test("what a killed process left half-built is never taken, and its lock is gone with it", async () => {
  const child = await builder();
  child.kill("SIGKILL");
  await once(child, "exit");
  expect(readFileSync(await buildHere(() => {}), "utf8")).toBe("built here");
});

test("a failed build leaves nothing, and the next call builds again", async () => {
  const failing = cached(
    "thing",
    () => Promise.reject(new Error("no network")),
    () => {},
    root,
  );
  await expect(failing).rejects.toThrow("no network");
  expect(readFileSync(await buildHere(() => {}), "utf8")).toBe("built here");
  expect(readFileSync(await buildHere(() => {}), "utf8")).toBe("built here");
});
