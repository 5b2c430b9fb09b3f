import type { Clock } from "@curfew/runtime/clock.ts";

/** What was read lately, in memory, bounded in number and time, and dropped where its person is erased. */
export interface Kept<V> {
  get(key: string): V | undefined;
  /** Reads and keeps; what was read before a drop is answered and not kept. */
  read(keys: readonly string[], load: (keys: readonly string[]) => Promise<Map<string, V>>): Promise<Map<string, V>>;
  /** Removes what is `gone`, and resolves once no read that began before is under way. */
  drop(gone: (value: V, key: string) => boolean): Promise<void>;
}

export const openKept = <V>(maxEntries: number, keepMs: number, clock: Clock): Kept<V> => {
  const entries = new Map<string, { readonly value: V; readonly untilMs: number }>();
  const reading = new Set<Promise<unknown>>();
  let drops = 0;
  const set = (key: string, value: V) => {
    entries.delete(key);
    entries.set(key, { value, untilMs: clock.monotonicMs() + keepMs });
    // Insertion order is age order, so the first is the oldest.
    for (const [oldest, { untilMs }] of entries) {
      if (entries.size <= maxEntries && untilMs > clock.monotonicMs()) break;
      entries.delete(oldest);
    }
  };
  return {
    get: (key) => {
      const entry = entries.get(key);
      if (entry && entry.untilMs > clock.monotonicMs()) return entry.value;
      entries.delete(key);
      return undefined;
    },
    async read(keys, load) {
      const before = drops;
      const loading = load(keys);
      reading.add(loading);
      try {
        const found = await loading;
        if (drops === before) for (const [key, value] of found) set(key, value);
        return found;
      } finally {
        reading.delete(loading);
      }
    },
    async drop(gone) {
      drops += 1;
      for (const [key, { value }] of entries) if (gone(value, key)) entries.delete(key);
      await Promise.allSettled([...reading]);
    },
  };
};
