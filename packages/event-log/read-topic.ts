import type { Bus, InRecord } from "./bus.ts";

/**
 * Hands over what is on a topic now, partition by partition in the order of its offsets, and resolves once that is all: no more than a
 * read's worth is in memory. `last`: only the last so many records of each partition; `from`, `below`: only those offsets. Rejects with
 * BusUnavailable, OffsetGone, with what `onRecords` throws, or with the signal's reason.
 */
export const readTopic = async (
  parts: {
    readonly bus: Bus;
    readonly topic: string;
    readonly name: string;
    readonly last?: number;
    readonly from?: (partition: number) => number;
    readonly below?: readonly number[];
  },
  onRecords: (records: readonly InRecord[]) => Promise<void> | void,
  signal?: AbortSignal,
): Promise<void> => {
  const { bus, topic, name, last = Number.POSITIVE_INFINITY } = parts;
  const now = await bus.ends(topic);
  signal?.throwIfAborted();
  const ends = now.map((end, partition) => Math.min(end, parts.below?.[partition] ?? end));
  // A partition of which nothing is wanted is followed from its end.
  const starts = ends.map((end, partition) => {
    const start = Math.max(0, end - last, parts.from?.(partition) ?? 0);
    return start < end ? start : (now[partition] ?? 0);
  });
  const open = new Set(ends.flatMap((end, partition) => (end > (starts[partition] ?? 0) ? [partition] : [])));
  if (open.size === 0) return;
  const done = Promise.withResolvers<void>();
  const gaveUp = () => done.reject(signal?.reason);
  done.promise.catch(() => undefined);
  signal?.addEventListener("abort", gaveUp, { once: true });
  const opening = bus.subscribe({
    name,
    topics: [topic],
    start: (_, partition) => starts[partition] ?? 0,
    async onRecords(records) {
      const { partition } = records[0] as InRecord;
      const end = ends[partition] ?? 0;
      const wanted = records.filter(({ offset }) => offset < end);
      if (wanted.length > 0) await onRecords(wanted);
      if ((records.at(-1) as InRecord).offset >= end - 1) open.delete(partition);
      if (open.size === 0) done.resolve();
    },
  });
  try {
    const subscription = await Promise.race([opening, done.promise.then(() => opening)]);
    await Promise.race([done.promise, subscription.failed]);
  } finally {
    signal?.removeEventListener("abort", gaveUp);
    // One that opens only now is closed then.
    const closing = opening.then((subscription) => subscription.close()).catch(() => undefined);
    if (!signal?.aborted) await closing;
  }
};
