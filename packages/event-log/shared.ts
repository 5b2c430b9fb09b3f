/**
 * Runs of `work` shared by all who ask for the same key: each caller gets one that began after it asked, so that a read shows what was
 * there by then; one runs at a time, and it begins when all who ask in the same turn have asked.
 */
export const sharedByKey = <K extends string, T>(work: (key: K) => Promise<T>): ((key: K) => Promise<T>) => {
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
  return (key) => {
    const waiting = next.get(key);
    if (waiting !== undefined) return waiting;
    const run = (running.get(key) ?? Promise.resolve()).then(() => begin(key));
    next.set(key, run);
    return run;
  };
};
