import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterEach, beforeEach, expect } from "vitest";
import { type Program, startSuite } from "./suite-process.ts";

/** Programs that each test starts in a directory of its own, and that end with it. */
export let dir: string;
export const data = () => join(dir, "data");
const programs: Program[] = [];
/** What a test has open; closed before its programs end. */
export const closers: (() => unknown)[] = [];
beforeEach(() => {
  dir = mkdtempSync(join(tmpdir(), "curfew-start-"));
});
afterEach(async () => {
  for (const close of closers.splice(0)) await close();
  for (const { child } of programs) child.kill("SIGKILL");
  await Promise.all(programs.splice(0).map(({ ended }) => ended));
  rmSync(dir, { recursive: true, force: true });
});

export const keep = (program: Program) => {
  programs.push(program);
  return program;
};
export const start = (options: Parameters<typeof startSuite>[1] = {}) => keep(startSuite(data(), options));
export const startReady = async () => {
  const program = start();
  await program.until("ready");
  return program;
};
/** Starts what must not come up: code, and what it complains of. */
export const refusal = async (program: Program) => {
  const { code } = await program.ended;
  expect(program.out).not.toMatch(/^ready/m);
  expect(program.err).not.toMatch(/^\s+at /m);
  return { code, err: program.err };
};
export const stop = async (program: Program, ...signals: NodeJS.Signals[]) => {
  for (const signal of signals) program.child.kill(signal);
  return await program.ended;
};
