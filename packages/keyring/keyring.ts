import type { KeyObject } from "node:crypto";
import type { Clock } from "@curfew/runtime/clock.ts";
import type { Random } from "@curfew/runtime/random.ts";
import { type KeyFiles, KeyringError, openKeyFiles } from "./key-files.ts";
import { openSigningKeys, type SigningKeys } from "./signing-keys.ts";
import { keyBytes, parseStored, type StoredKey, storedText } from "./stored-key.ts";

export interface Pepper {
  /** "p1", "p2", …: stored beside every digest. Never used again after retirement. */
  readonly id: string;
  /** For HMAC-SHA-256, 32 bytes. */
  readonly key: KeyObject;
}

export interface Peppers {
  /** The one for new digests. */
  readonly current: Pepper;
  /** All live ones, newest first: at most four. A look-up tries each. */
  readonly all: readonly Pepper[];
}

/**
 * The keys of a deployment, in a directory that the services of one machine share. A key is created when it is first asked for, so
 * a service causes, and loads, only what it uses. Keys are KeyObjects: printed or put into JSON they show nothing.
 */
export interface Keyring extends SigningKeys {
  /** Reads the directory again at most once a second. Throws KeyringError. */
  peppers(): Peppers;
  /**
   * Adds a pepper. It becomes the current one `pepperActivationMs` later, when every process has seen it, so that nobody is given
   * a digest he cannot look up. Throws KeyringError when four are live.
   */
  rotatePepper(): Pepper;
  /** Destroys a pepper: every token whose digest was made with it is unknown from then on. Refuses the current and newer ones. */
  retirePepper(id: string): void;
  /** A 32-byte symmetric key by its use: "identifiers" (HMAC). */
  secretKey(name: string): KeyObject;
}

export const maxLivePeppers = 4;
export const pepperActivationMs = 5000;
const rescanMs = 1000;
const maxPepperNumber = 999_999;

const pepperFile = (n: number): string => `pepper-${n}.key`;
const pepperName = /^pepper-([1-9]\d{0,5})\.key$/;

interface StoredKeys {
  /** The key in a file, made now unless it is there. */
  create(file: string): StoredKey;
  /** Never creates: a pepper that another process has just retired must not come back with other bytes. */
  load(file: string): StoredKey | undefined;
  forget(file: string): void;
}

const openStoredKeys = (files: KeyFiles, random: Random, clock: Clock): StoredKeys => {
  const known = new Map<string, StoredKey>();
  const keep = (file: string, text: string): StoredKey => {
    const key = parseStored(file, text);
    known.set(file, key);
    return key;
  };
  return {
    create: (file) =>
      known.get(file) ??
      keep(
        file,
        files.createOnce(file, () => storedText(clock.now(), random(keyBytes))),
      ),
    load: (file) => {
      const text = known.has(file) ? undefined : files.read(file);
      return text === undefined ? known.get(file) : keep(file, text);
    },
    forget: (file) => void known.delete(file),
  };
};

type PepperKeys = Pick<Keyring, "peppers" | "rotatePepper" | "retirePepper">;

const openPeppers = (files: KeyFiles, keys: StoredKeys, clock: Clock): PepperKeys => {
  /** Numbers of the live peppers, newest first. */
  const numbers = (): number[] =>
    files
      .list()
      .flatMap((name) => pepperName.exec(name)?.[1] ?? [])
      .map(Number)
      .sort((a, b) => b - a);

  const readPeppers = (): Peppers => {
    if (numbers().length === 0) keys.create(pepperFile(1));
    const live = numbers();
    if (live.length > maxLivePeppers) throw new KeyringError(`more than ${maxLivePeppers} peppers are live`);
    const all: (Pepper & { readonly createdAtMs: number })[] = [];
    for (const n of live) {
      const found = keys.load(pepperFile(n));
      if (found) all.push({ id: `p${n}`, ...found });
    }
    const activeFrom = clock.now() - pepperActivationMs;
    const current = all.find((p) => p.createdAtMs <= activeFrom) ?? all.at(-1);
    if (!current) throw new KeyringError("no pepper is live");
    return { current, all };
  };

  let seen: { readonly atMs: number; readonly peppers: Peppers } | undefined;
  const rescan = (): Peppers => {
    seen = { atMs: clock.monotonicMs(), peppers: readPeppers() };
    return seen.peppers;
  };

  return {
    peppers: () => (seen && clock.monotonicMs() - seen.atMs < rescanMs ? seen.peppers : rescan()),
    rotatePepper: () => {
      if (rescan().all.length >= maxLivePeppers)
        throw new KeyringError(`${maxLivePeppers} peppers are live: retire the oldest before adding another`);
      const next = (numbers()[0] ?? 0) + 1;
      if (next > maxPepperNumber) throw new KeyringError("no pepper number is left");
      const { key } = keys.create(pepperFile(next));
      rescan();
      return { id: `p${next}`, key };
    },
    retirePepper: (id) => {
      const { all, current } = rescan();
      const at = all.findIndex((p) => p.id === id);
      if (at < 0) throw new KeyringError(`${id} is not a live pepper`);
      if (at <= all.indexOf(current))
        throw new KeyringError(`${id} is in use for new tokens: add another and wait until it is current`);
      const file = pepperFile(Number(id.slice(1)));
      files.remove(file);
      keys.forget(file);
      rescan();
    },
  };
};

/** Opens the keys in `dir`, which is created with mode 0700. Throws NotPrivate if others could read them, or KeyringError. */
export const openKeyring = (options: {
  readonly dir: string;
  readonly random: Random;
  readonly clock: Clock;
}): Keyring => {
  const files = openKeyFiles(options);
  const keys = openStoredKeys(files, options.random, options.clock);
  return {
    ...openPeppers(files, keys, options.clock),
    ...openSigningKeys(files, options.random, options.clock),
    secretKey: (name) => {
      if (!/^[a-z][a-z0-9-]{0,62}$/.test(name)) throw new KeyringError("not a secret key name");
      return keys.create(`secret-${name}.key`).key;
    },
  };
};
