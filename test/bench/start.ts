import { spawn } from "node:child_process";
import { once } from "node:events";
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { createInterface } from "node:readline";
import { fileURLToPath } from "node:url";
import { type Figure, millis, ofRounds } from "./figures.ts";

/** `npm start` on a directory that was used before: from the first instruction of the shell to "ready". */

const root = fileURLToPath(new URL("../../", import.meta.url));

const startOnce = async (dataDir: string): Promise<number> => {
  const startMs = performance.now();
  const child = spawn("npm", ["start", "--", "--data", dataDir, "--port", "0"], {
    cwd: root,
    stdio: ["ignore", "pipe", "inherit"],
    detached: true,
  });
  const exited = once(child, "exit");
  try {
    for await (const line of createInterface({ input: child.stdout }))
      if (line.startsWith("ready in")) return performance.now() - startMs;
    throw new Error(`npm start ended with ${child.exitCode} before it was ready`);
  } finally {
    // The whole group: npm does not always pass a signal on.
    if (child.pid !== undefined && child.exitCode === null) process.kill(-child.pid, "SIGTERM");
    await exited;
  }
};

export const start = async ({ quick }: { readonly quick: boolean }): Promise<Figure[]> => {
  const dataDir = mkdtempSync(join(tmpdir(), "curfew-start-"));
  try {
    const first = await startOnce(dataDir);
    const rounds: number[] = [];
    for (let round = 0; round < (quick ? 3 : 7); round += 1) rounds.push(await startOnce(dataDir));
    const notes = [`the first start, which makes authority, keys and identities: ${millis(first)}`];
    return [ofRounds(rounds, { what: "warm npm start to ready", show: millis, target: { most: 3_000 }, notes })];
  } finally {
    rmSync(dataDir, { recursive: true, force: true });
  }
};
