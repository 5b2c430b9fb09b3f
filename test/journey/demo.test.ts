import { mkdtempSync, readdirSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterEach, expect, test, vi } from "vitest";
import { type Program, startProgram } from "./suite-process.ts";

const programs: Program[] = [];
afterEach(() => {
  for (const { child } of programs.splice(0)) child.kill("SIGKILL");
});
const demo = (...args: string[]) => {
  const program = startProgram("test/journey/demo.ts", args);
  programs.push(program);
  return program;
};
const time = expect.stringMatching(/^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z$/);

test("npm run demo -- --json tells the story, and ends with one object of exactly these fields", {
  timeout: 120_000,
}, async () => {
  const program = demo("--json");
  expect(await program.ended, program.err).toEqual({ code: 0, signal: null });
  expect(program.err).toBe("");
  const lines = program.out.trimEnd().split("\n");
  const result = JSON.parse(lines.at(-1) as string);
  expect(result).toEqual({
    leakToRefusedMs: expect.any(Number),
    leakToDraftMs: expect.any(Number),
    tokenId: expect.stringMatching(/^tok_[0-9a-f-]{36}$/),
    caseId: `case/${result.tokenId}/1`,
    window: { from: time, to: time },
    // 60 by the stranger alone, and 30 of billing's own in the same window: the script has counted, and fails when the case differs.
    people: { lower: 60, best: 90, upper: expect.any(Number) },
    records: { lower: 150, best: 180, upper: expect.any(Number) },
    clock: { awareAt: time, conservative: time, regulation1182: time },
    pages: expect.any(Number),
    ledger: { size: expect.any(Number), root: expect.stringMatching(/^[A-Za-z0-9+/]{43}=$/) },
    secretsFound: 0,
  });
  expect(result.pages).toBeGreaterThanOrEqual(2);
  expect(Date.parse(result.clock.conservative) - Date.parse(result.clock.awareAt)).toBe(72 * 3_600_000);
  const steps = lines.filter((line) => /^ *\d+\.\d\d s {2}\S/.test(line));
  expect(steps.length).toBeGreaterThanOrEqual(12);
  for (const word of [
    "policy",
    "sealed",
    "git repository",
    "stranger",
    "curfew scan",
    "refused everywhere",
    "case",
    "paged",
    "awareness",
    "ledger",
  ])
    expect(program.out).toContain(word);
});

test("Ctrl-C, as npm delivers it, takes everything down and leaves nothing behind", { timeout: 120_000 }, async () => {
  const folder = mkdtempSync(join(tmpdir(), "curfew-demo-test-"));
  try {
    const program = startProgram("test/journey/demo.ts", [], { env: { TMPDIR: folder } });
    programs.push(program);
    await vi.waitFor(() => expect(program.out).toContain("publishes who may hold"), { timeout: 60_000, interval: 20 });
    program.child.kill("SIGINT");
    program.child.kill("SIGINT");
    expect(await program.ended).toEqual({ code: 1, signal: null });
    expect(program.err).toContain("stopped by SIGINT");
    expect(readdirSync(folder)).toEqual([]);
  } finally {
    rmSync(folder, { recursive: true, force: true });
  }
});

test("an option that does not exist ends it with a clear message", async () => {
  const program = demo("--jsn");
  expect((await program.ended).code).toBe(2);
  expect(program.err).toContain("--jsn");
  expect(program.err).not.toMatch(/^\s+at /m);
});
