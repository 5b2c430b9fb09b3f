import {
  closeSync,
  fsyncSync,
  linkSync,
  lstatSync,
  mkdirSync,
  openSync,
  readdirSync,
  readFileSync,
  rmSync,
  type Stats,
  unlinkSync,
  writeSync,
} from "node:fs";
import { dirname, join } from "node:path";
import type { Clock } from "@curfew/runtime/clock.ts";
import { assertPrivate } from "@curfew/runtime/exclusive.ts";
import type { Random } from "@curfew/runtime/random.ts";

/**
 * A directory of small files that are created once and never changed. A file gets its name by `link`, after its content is on
 * disk: whoever comes second finds the name taken and reads the first one's, and a kill leaves at most a temporary file.
 */

/** The directory or a key in it is not usable. Names the file, never its content. */
export class KeyringError extends Error {
  override name = "KeyringError";
}

const maxFileBytes = 4096;
const leftoverMs = 60_000;
const temporary = /^\.new-/;

const syncDirectory = (dir: string): void => {
  const fd = openSync(dir, "r");
  try {
    fsyncSync(fd);
  } finally {
    closeSync(fd);
  }
};

const codeOf = (e: unknown): string => (e as NodeJS.ErrnoException).code ?? "unknown";

export interface KeyFiles {
  /** Names of the finished files. */
  list(): string[];
  /** The content of a file, or undefined if there is none. */
  read(name: string): string | undefined;
  /** Creates the file unless it is there, and answers what is there then, the same for everyone, for ever. */
  createOnce(name: string, content: () => string): string;
  /** The file and every other name of it; nothing where it is gone. */
  remove(name: string): void;
}

const named = <T>(file: string, fn: () => T): T => {
  try {
    return fn();
  } catch (e) {
    if (e instanceof KeyringError) throw e;
    throw new KeyringError(`${file}: ${codeOf(e)}`);
  }
};

/** The content of a file of `dir`, or undefined if there is none. Throws KeyringError. */
export const readKeyFile = (dir: string, name: string): string | undefined => {
  const file = join(dir, name);
  return named(file, () => {
    const stat = lstatSync(file, { throwIfNoEntry: false });
    if (!stat) return undefined;
    if (!stat.isFile() || stat.size > maxFileBytes) throw new KeyringError(`${file}: not a key file`);
    return readFileSync(file, "utf8");
  });
};

/** Leaves alone what another created meanwhile. */
const create = (dir: string, name: string, content: string, random: Random): void => {
  const draft = join(dir, `.new-${Buffer.from(random(12)).toString("hex")}`);
  const fd = openSync(draft, "wx", 0o600);
  try {
    try {
      if (writeSync(fd, content) !== Buffer.byteLength(content)) throw new KeyringError(`${draft}: written in part`);
      fsyncSync(fd);
    } finally {
      closeSync(fd);
    }
    linkSync(draft, join(dir, name));
  } catch (e) {
    if (codeOf(e) !== "EEXIST") throw e;
  } finally {
    unlinkSync(draft);
  }
};

/** Opens `dir`, creating it with mode 0700. Throws NotPrivate if it or anything in it is open wider than it may be, or KeyringError. */
export const openKeyFiles = (options: {
  readonly dir: string;
  readonly random: Random;
  readonly clock: Clock;
}): KeyFiles => {
  const { dir, random, clock } = options;
  const guarded = <T>(what: string, fn: () => T): T => named(join(dir, what), fn);
  guarded("", () => {
    if (lstatSync(dir, { throwIfNoEntry: false })?.isDirectory() === false)
      throw new KeyringError(`${dir} is not a directory: keys are files in one`);
    if (mkdirSync(dir, { recursive: true, mode: 0o700 }) !== undefined) syncDirectory(dirname(dir));
  });
  assertPrivate(dir);

  const read = (name: string) => readKeyFile(dir, name);

  /** A draft that was linked but not unlinked is a second name of a live key: it must not outlive the key. */
  const removeDrafts = (isLeft: (stat: Stats) => boolean): void => {
    for (const name of readdirSync(dir).filter((n) => temporary.test(n))) {
      const stat = lstatSync(join(dir, name), { throwIfNoEntry: false });
      if (stat && isLeft(stat)) rmSync(join(dir, name), { force: true });
    }
  };
  guarded("", () => removeDrafts(({ mtimeMs }) => mtimeMs < clock.now() - leftoverMs));

  return {
    list: () => guarded("", () => readdirSync(dir).filter((n) => !temporary.test(n))),
    read,
    createOnce: (name, content) =>
      guarded(name, () => {
        if (read(name) === undefined) create(dir, name, content(), random);
        // Also when another process made it: its name may not be on disk yet, and what is used must survive.
        syncDirectory(dir);
        const found = read(name);
        if (found === undefined) throw new KeyringError(`${join(dir, name)}: removed while it was being created`);
        return found;
      }),
    remove: (name) =>
      guarded(name, () => {
        const own = lstatSync(join(dir, name), { throwIfNoEntry: false });
        // Before the name: whoever is killed in between finds the name, and comes here again.
        if (own) removeDrafts(({ ino }) => ino === own.ino);
        rmSync(join(dir, name), { force: true });
        syncDirectory(dir);
      }),
  };
};
