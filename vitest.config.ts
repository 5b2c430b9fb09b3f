import { defineConfig } from "vitest/config";
import type { Reporter, TestModule } from "vitest/node";

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

export default defineConfig({
  test: {
    reporters: ["default", new PlainLine()],
    retry: 0,
    projects: [
      {
        extends: true,
        test: {
          name: "unit",
          include: ["{packages,services,deploy,test}/**/*.test.ts"],
          exclude: ["test/live/**", "**/node_modules/**"],
          testTimeout: 30_000,
          hookTimeout: 30_000,
        },
      },
      {
        extends: true,
        test: {
          name: "live",
          include: ["test/live/**/*.test.ts"],
          exclude: ["**/node_modules/**"],
          fileParallelism: false,
          testTimeout: 180_000,
          hookTimeout: 300_000,
        },
      },
    ],
  },
});
