import { execFileSync, spawnSync } from "node:child_process";
import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { sourceOf } from "./byte-source.ts";
import { file } from "./layout.ts";
import { allOf, bytesOf, partsOf, policy, sampleLog, sampleRecords, verifierKey } from "./testing/sample.ts";
import { openBundle } from "./verify-bundle.ts";

const folder = mkdtempSync(join(tmpdir(), "curfew-bundle-"));
afterAll(() => rmSync(folder, { recursive: true, force: true }));
const script = join(import.meta.dirname, "verify.py");
const byPython = (bundle: Uint8Array, key = verifierKey) => {
  const path = join(folder, "bundle.zip");
  writeFileSync(path, bundle);
  const { status, stdout, stderr } = spawnSync("python3", [script, path, key], { encoding: "utf8" });
  return { status, text: stdout + stderr };
};

describe("a bundle of a whole log", () => {
  const log = sampleLog(sampleRecords(9));
  let bundle: Buffer;
  beforeAll(async () => {
    bundle = await bytesOf(partsOf(log, allOf(log)));
  });

  it("holds, and so do its chains and streams", async () => {
    const { manifest, report, drafts, first } = await openBundle(sourceOf(bundle), policy);
    expect(manifest).toMatchObject({ entries: 11, size: 11, range: { first: 0, end: 11 } });
    expect(first.size).toBe(1);
    expect(drafts).toBe(1);
    expect(report.missing).toEqual([]);
    expect(report.chains.map(({ first: from, last }) => [from, last])).toEqual([
      [1, 9],
      [1, 1],
      [1, 1],
    ]);
    expect(report.streams).toHaveLength(2);
  });

  it("is the same whenever it is made", async () => {
    expect(await bytesOf(partsOf(log, allOf(log)))).toEqual(bundle);
  });

  it.skipIf(process.env.ABSENT_PROGRAMS?.includes("unzip"))("is a ZIP that unzip reads", () => {
    const path = join(folder, "whole.zip");
    writeFileSync(path, bundle);
    expect(execFileSync("unzip", ["-t", path], { encoding: "utf8" })).toMatch(/No errors detected/);
    expect(execFileSync("unzip", ["-p", path, file.key], { encoding: "utf8" })).toBe(`${verifierKey}\n`);
  });

  it.skipIf(/python3|openssl/.test(process.env.ABSENT_PROGRAMS ?? ""))(
    "is verified by the script inside it, in fewer than 80 lines of Python",
    () => {
      const { status, text } = byPython(bundle);
      expect(text).toBe(
        "integrity holds: 11 entries are in the tree of 11 that test.example/ledger has signed\nevery leaf from 0 to 10 is there\n",
      );
      expect(status).toBe(0);
    },
  );
});
