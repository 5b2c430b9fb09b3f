import type { KeyObject } from "node:crypto";
import type { Clock } from "@curfew/runtime/clock.ts";
import type { Random } from "@curfew/runtime/random.ts";
import { KeyringError, openKeyFiles } from "./key-files.ts";
import { keyBytes, parseStored, storedText } from "./stored-key.ts";

/**
 * Keys that wrap what a store of personal data holds. They are numbered from 1; everything is wrapped anew under the next one and the one
 * before is destroyed, and with it whatever of the store is left in write-ahead logs, free pages and backups. A number is never used again.
 */
export interface EpochKey {
  readonly number: number;
  /** AES-256, 32 bytes. */
  readonly key: KeyObject;
  readonly createdAtMs: number;
}

export interface EpochKeys {
  /** Newest first: one, and two while the store is wrapped anew. Reads the directory again at most once a second. */
  live(): readonly EpochKey[];
  /** For what is written now: the newest that every process has seen. Made where there is none. */
  current(): EpochKey;
  /** Number of the newest key in the directory, 0 where there is none. Makes none. */
  newest(): number;
  /** Begins the next epoch, of a number above `after`, current after `epochActivationMs`; the same one again while two are live. */
  begin(after?: number): EpochKey;
  /** Removes the file of a key that is not current nor newer; nothing where it is gone. Other processes forget it within a second of use. */
  destroy(number: number): void;
}

export const epochActivationMs = 5_000;
const rescanMs = 1_000;
const maxNumber = 999_999;
const fileOf = (number: number) => `epoch-${number}.key`;
const namePattern = /^epoch-([1-9]\d{0,5})\.key$/;

/** Opens the epoch keys in a directory of keys. Throws NotPrivate, or KeyringError. */
export const openEpochKeys = (options: {
  readonly dir: string;
  readonly random: Random;
  readonly clock: Clock;
}): EpochKeys => {
  const { dir, random, clock } = options;
  const files = openKeyFiles(options);
  let known = new Map<number, EpochKey>();
  let seen: { readonly atMs: number; readonly keys: readonly EpochKey[] } | undefined;

  const numbers = (): number[] =>
    files
      .list()
      .flatMap((name) => namePattern.exec(name)?.[1] ?? [])
      .map(Number)
      .sort((a, b) => b - a);
  const create = (number: number) => {
    if (number > maxNumber) throw new KeyringError("no epoch number is left");
    files.createOnce(fileOf(number), () => storedText(clock.now(), random(keyBytes)));
  };
  const load = (number: number): EpochKey[] => {
    const found = known.get(number);
    if (found) return [found];
    const text = files.read(fileOf(number));
    return text === undefined ? [] : [{ number, ...parseStored(fileOf(number), text) }];
  };
  const rescan = (): readonly EpochKey[] => {
    if (numbers().length === 0) {
      // Another under a number that was used would pass for the one that is gone.
      if (known.size > 0)
        throw new KeyringError(`${dir} has no epoch key any more: put the directory back, or stop and empty the store`);
      create(1);
    }
    const keys = numbers().flatMap(load);
    if (keys.length === 0) throw new KeyringError("no epoch key can be read");
    known = new Map(keys.map((key) => [key.number, key]));
    seen = { atMs: clock.monotonicMs(), keys };
    return keys;
  };
  const live = () => (seen && clock.monotonicMs() - seen.atMs < rescanMs ? seen.keys : rescan());
  const currentOf = (keys: readonly EpochKey[]): EpochKey =>
    keys.find((key) => key.createdAtMs <= clock.now() - epochActivationMs) ?? (keys.at(-1) as EpochKey);

  return {
    live,
    current: () => currentOf(live()),
    newest: () => numbers()[0] ?? 0,
    begin: (after = 0) => {
      const keys = rescan();
      const [newest] = keys as readonly [EpochKey, ...EpochKey[]];
      if (keys.length > 1 && newest.number > after) return newest;
      create(Math.max(newest.number, after) + 1);
      return rescan()[0] as EpochKey;
    },
    destroy: (number) => {
      const keys = rescan();
      if (!keys.some((key) => key.number === number)) return;
      if (number >= currentOf(keys).number)
        throw new KeyringError(`epoch ${number} is in use: begin another and wait until it is current`);
      files.remove(fileOf(number));
      rescan();
    },
  };
};
