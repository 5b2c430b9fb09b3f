import { spawn } from "node:child_process";
import { once } from "node:events";
import { mkdtempSync, readFileSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { parsePaging } from "@curfew/breach-notifier/paging.ts";
import { configFileOf, openSuite } from "@curfew/deploy/embedded/suite.ts";
import { readSuiteConfig } from "@curfew/deploy/embedded/suite-config.ts";
import { openLog } from "@curfew/runtime/log.ts";
import { afterEach, expect, it, vi } from "vitest";

const root = fileURLToPath(new URL("../../", import.meta.url));
const bound = { timeout: 30_000, interval: 50 };
const undo: (() => unknown)[] = [];
afterEach(async () => {
  for (const step of undo.splice(0).reverse()) await step();
});

it("the auditor's store comes back by a command: its read models from the batches, all of it from the ledger's files", async () => {
  const dataDir = mkdtempSync(join(tmpdir(), "curfew-rebuild-"));
  undo.push(() => rmSync(dataDir, { recursive: true, force: true }));
  const start = async () => {
    const sample = readFileSync(join(root, "deploy/embedded/curfew.yaml"), "utf8");
    const config = readSuiteConfig(
      configFileOf(dataDir, () => sample),
      parsePaging,
    );
    const log = openLog({ service: "test", level: "error", write: () => undefined });
    const suite = await openSuite({ dataDir, config, port: 0, reflection: false, log });
    undo.push(() => suite.close());
    return suite;
  };
  const run = async (program: string, ...args: string[]) => {
    const words = [join(root, program), ...args];
    const child = spawn(process.execPath, words, { env: { ...process.env, CURFEW_DATA_DIR: dataDir } });
    undo.push(() => child.kill("SIGKILL"));
    const texts = [child.stdout, child.stderr].map(async (stream) => Buffer.concat(await stream.toArray()).toString());
    const [code] = await once(child, "close");
    const [out = "", err = ""] = await Promise.all(texts);
    return { code, out, err };
  };
  const curfew = async (...args: string[]) => {
    const { code, out, err } = await run("packages/cli/main.ts", ...args, "-o", "json");
    return { code, out: code === 0 ? JSON.parse(out) : out, err };
  };
  const asAuditor = ["--as", "person/dana"];
  const checkpointFile = join(dataDir, "ledger", String(new Date().getUTCFullYear()), "checkpoint");
  /** Every event of the ledger, once all of it is published. */
  const events = async () => {
    await vi.waitFor(async () => {
      const { out } = await curfew("audit", "checkpoint", ...asAuditor);
      expect(out.size).toBeGreaterThan(1);
      expect(readFileSync(checkpointFile, "utf8")).toBe(out.checkpoint);
    }, bound);
    return (await curfew("audit", "list", ...asAuditor)).out;
  };

  let suite = await start();
  for (const name of ["one", "two"]) expect((await curfew("identity", "create", `workload/${name}`)).code).toBe(0);
  const before = await events();
  expect(before.length).toBeGreaterThan(1);
  expect(await curfew("auditor", "rebuild")).toMatchObject({ code: 3, err: expect.stringContaining("stop it first") });

  await suite.close();
  // The suite seals events of its own for as long as it runs.
  const published = () => Number(readFileSync(checkpointFile, "utf8").split("\n")[1]);
  const [rebuilt] = (await curfew("auditor", "rebuild")).out;
  expect(rebuilt.batches).toBeGreaterThan(0);
  expect(rebuilt.entries).toBeGreaterThanOrEqual(published());
  suite = await start();
  expect((await events()).slice(0, before.length)).toEqual(before);

  await suite.close();
  for (const end of ["", "-wal", "-shm"]) rmSync(join(dataDir, `store/auditor.db${end}`), { force: true });
  expect(await curfew("auditor", "rebuild")).toMatchObject({ code: 3 });
  // Who starts it all the same is told what to do, and it still can be done.
  const started = await run("deploy/embedded/main.ts", "--port", "0");
  expect(started).toMatchObject({ code: 1, err: expect.stringContaining("npx curfew auditor rebuild") });
  expect((await curfew("auditor", "rebuild", "--from-files")).out).toMatchObject([{ entries: published() }]);
  suite = await start();
  expect((await events()).slice(0, before.length)).toEqual(before);
  expect((await curfew("audit", "show", "0", ...asAuditor)).out.proof).toMatch(/^holds/);
}, 300_000);
