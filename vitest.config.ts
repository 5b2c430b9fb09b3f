import { spawnSync } from "node:child_process";
import { fileURLToPath } from "node:url";
import { defineConfig } from "vitest/config";
import type { Reporter, TestModule } from "vitest/node";
import { ferretAvailable, kafkaAvailable } from "./deploy/dev/servers.ts";

/** Closes a run with the plain line that CI reads: "N passed, N failed, N skipped". */
class PlainLine implements Reporter {
  onTestRunEnd(modules: readonly TestModule[], errors: readonly unknown[]) {
    const n = { passed: 0, failed: errors.length, skipped: 0, pending: 0 };
    for (const module of modules) {
      n.failed += module.errors().length;
      for (const test of module.children.allTests()) n[test.result().state] += 1;
    }
    process.once("exit", () =>
      process.stdout.write(`${n.passed} passed, ${n.failed} failed, ${n.skipped + n.pending} skipped\n`),
    );
  }
}

/**
 * The live tests need a real broker and a real database. Where those cannot run, the tests are left out, said plainly; in CI nothing may be.
 */
const lacking = [kafkaAvailable(), ferretAvailable()].flatMap((found) => (found.ok ? [] : [found.why]));
if (lacking.length > 0) {
  const what = `LEFT OUT: the live tests (test/live), which run on a real Kafka broker and a MongoDB-protocol database:\n${lacking.map((why) => `  ${why}\n`).join("")}`;
  if (process.env.CI) throw new Error(`in CI nothing may be left out. ${what}`);
  process.stdout.write(`\n${what}\n`);
  process.once("exit", () => process.stdout.write(what));
}

/** Programs of others that single tests run; each says in its title which. */
const absent = ["python3", "openssl", "strace", "unzip"].filter((program) => spawnSync(program, ["-h"]).error);
if (absent.length > 0) {
  const what = `LEFT OUT: the tests that need ${absent.join(", ")}, which ${absent.length > 1 ? "are" : "is"} not installed\n`;
  if (process.env.CI) throw new Error(`in CI nothing may be left out. ${what}`);
  process.stdout.write(`\n${what}`);
  process.once("exit", () => process.stdout.write(what));
}
// For the tests, whose processes inherit it. Not CURFEW_…: a service refuses a setting it does not know.
process.env.ABSENT_PROGRAMS = absent.join(" ");
// Tests start some hundred processes, each of which would compile the same files again.
process.env.NODE_COMPILE_CACHE ??= fileURLToPath(new URL(".cache/compile", import.meta.url));

/** One at a time: suites that are killed, flooded, starved and watched do not tell apart what another test does. */
const alone = ["test/{chaos,hostile}/**/*.test.ts", "test/journey/{canary,demo,disk}.test.ts"];

/** For a busy machine, not expectations. */
const bounds = { testTimeout: 60_000, hookTimeout: 60_000 };

export default defineConfig({
  test: {
    reporters: ["default", new PlainLine()],
    retry: 0,
    expect: { poll: { timeout: 20_000 } },
    passWithNoTests: lacking.length > 0,
    projects: [
      {
        extends: true,
        test: {
          name: "unit",
          include: ["{packages,services,deploy,test}/**/*.test.ts"],
          exclude: [...alone, "test/live/**", "**/node_modules/**"],
          maxWorkers: 2,
          ...bounds,
          sequence: { groupOrder: 0 },
        },
      },
      {
        extends: true,
        test: {
          name: "alone",
          include: alone,
          exclude: ["**/node_modules/**"],
          fileParallelism: false,
          ...bounds,
          sequence: { groupOrder: 1 },
        },
      },
      {
        extends: true,
        test: {
          name: "live",
          include: lacking.length > 0 ? [] : ["test/live/**/*.test.ts"],
          exclude: ["**/node_modules/**"],
          // After the others and one at a time: real servers on two cores suffer from company.
          fileParallelism: false,
          sequence: { groupOrder: 2 },
          testTimeout: 180_000,
          hookTimeout: 300_000,
        },
      },
    ],
  },
});
