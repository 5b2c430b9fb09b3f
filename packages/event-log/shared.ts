import type { Clock } from "@curfew/runtime/clock.ts";

/** After so long the next run does not wait for the one before: one hung connection must not hold back all who ask. */
export const overtakenMs = 250;

/**
 * Runs of `work` shared by all who ask for the same key: each caller gets one that began after it asked, so that a read shows what was
 * there by then; one runs at a time, unless it hangs, and it begins when all who ask in the same turn have asked.
 */
export const sharedByKey = <K extends string, T>(
  work: (key: K) => Promise<T>,
  clock: Pick<Clock, "sleep">,
): ((key: K) => Promise<T>) => {
  const running = new Map<K, Promise<void>>();
  const next = new Map<K, Promise<T>>();
  const begin = (key: K): Promise<T> => {
    next.delete(key);
    const run = work(key);
    const over = () => {
      if (running.get(key) === ended) running.delete(key);
    };
    const ended: Promise<void> = run.then(over, over);
    running.set(key, ended);
    return run;
  };
  const whenOver = async (run: Promise<void> | undefined): Promise<void> => {
    if (!run) return;
    const over = new AbortController();
    await Promise.race([run, clock.sleep(overtakenMs, over.signal)]);
    over.abort("over");
  };
  return (key) => {
    const waiting = next.get(key);
    if (waiting !== undefined) return waiting;
    const run = whenOver(running.get(key)).then(() => begin(key));
    next.set(key, run);
    return run;
  };
};
