import type { Log } from "./log.ts";

/** Something to close. Steps run in reverse order of the list: what was opened last closes first. */
export interface ShutdownStep {
  readonly name: string;
  /** May tell `at` what of it is being closed, for the log. */
  close(at: (part: string) => void): Promise<void> | void;
}

/**
 * SIGTERM and SIGINT close `steps` (which may still grow until then) in reverse order, all within `graceMs`, and exit 0; a step
 * that failed or was not reached in time makes it 1. Further signals change nothing: npm delivers Ctrl-C twice. An uncaught
 * error or unhandled rejection is logged and exits 1 at once, without closing: state is in doubt, and a start after kill -9 is
 * always safe.
 */
export const onShutdown = (
  steps: readonly ShutdownStep[],
  options: { readonly graceMs: number; readonly log: Log },
): void => {
  const { graceMs, log } = options;
  let stopping = false;
  const stop = async (signal: string) => {
    if (stopping) return;
    stopping = true;
    log.info({ signal }, "stopping");
    let current = "";
    setTimeout(() => {
      log.error({ step: current, graceMs }, "not closed in time");
      process.exit(1);
    }, graceMs);
    let failed = false;
    for (const step of steps.toReversed()) {
      current = step.name;
      try {
        await step.close((part) => {
          current = `${step.name}: ${part}`;
        });
      } catch (err) {
        failed = true;
        log.error({ err, step: step.name }, "closing failed");
      }
    }
    log.info({ signal }, "stopped");
    process.exit(failed ? 1 : 0);
  };
  for (const signal of ["SIGTERM", "SIGINT"] as const) process.on(signal, () => void stop(signal));
  const crash = (err: unknown, origin: string) => {
    try {
      log.error({ err, origin }, "crashed");
    } finally {
      process.exit(1);
    }
  };
  process.on("uncaughtException", crash);
  process.on("unhandledRejection", (reason) => crash(reason, "unhandledRejection"));
};
