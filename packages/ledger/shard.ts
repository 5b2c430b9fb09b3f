import { type NoteVerifier, parseVerifierKey, renamedKeyText } from "./note-key.ts";
import type { Policy } from "./policy.ts";

/**
 * A ledger has a tree for each UTC year, a shard: a log of its own, which signs, is served and is verified under its own name,
 * `<origin>/<year>`. The same key signs them all, so that who trusts the ledger in one year need not be told anew in the next.
 */

/** No ledger is older: whoever looks for its shards begins here. */
const firstYear = 2025;
/** Whether there can be a shard of `year`: a clock that was never set says another. */
export const isShardYear = (year: number): boolean => year >= firstYear && year < 2100;
/** The most that two shards can be apart. A clock that is wrong by more opens none, and whoever looks for shards looks so far ahead. */
export const yearsAhead = 10;

export const yearOf = (ms: number): number => new Date(ms).getUTCFullYear();

/** The origin of a shard's log, and the name of the keys that sign it. */
export const shardOrigin = (origin: string, year: number): string => `${origin}/${year}`;

/** The years whose shards there can be, in order, from `since` on. Future ones too: whoever began them has a clock of his own. */
export const shardYears = (nowMs: number, since = firstYear): number[] => {
  const first = Math.max(since, firstYear);
  const last = Math.max(yearOf(nowMs), first) + yearsAhead;
  return Array.from({ length: last - first + 1 }, (_, i) => first + i);
};

/** The key of one year's log, first, and what it is called in the other years; one that names no year is alone. */
export const inEachYear = (key: NoteVerifier, nowMs: number): NoteVerifier[] => {
  const [, origin] = /^(.+)\/20\d{2}$/.exec(key.name) ?? [];
  if (origin === undefined) return [key];
  const names = shardYears(nowMs).map((year) => shardOrigin(origin, year));
  const others = names.filter((name) => name !== key.name);
  return [key, ...others.map((name) => parseVerifierKey(renamedKeyText(key, name)))];
};

/** A policy with a log line of one year, for all years: as a file it has one, since there no key may stand twice. */
export const policyInEachYear = (policy: Policy, nowMs: number): Policy => ({
  ...policy,
  logs: policy.logs.flatMap((log) => inEachYear(log.key, nowMs).map((key) => ({ ...log, key }))),
});

/** The same for one log alone. */
export const policyOfLog = (policy: Policy, origin: string): Policy => ({
  ...policy,
  logs: policy.logs.filter(({ key }) => key.name === origin),
});
