import { lstatSync, mkdirSync, readdirSync } from "node:fs";
import { join } from "node:path";
import { DatabaseSync } from "node:sqlite";

/** Another process holds the directory, or whether one does cannot be told. */
export class DirectoryInUse extends Error {
  override name = "DirectoryInUse";
}

/** Keys could be read by others than their owner. */
export class NotPrivate extends Error {
  override name = "NotPrivate";
}

const sqliteBusy = 5;

/** A `DatabaseSync` that is garbage-collected closes and drops its lock, so each is kept here until it is released. */
const held = new Set<DatabaseSync>();

/**
 * Makes this process the only one on `dir` (created if absent) until `release` or its death, kill -9 included: an exclusive
 * transaction held open in `lock.db`. No pid file, nothing to clean up. Throws DirectoryInUse.
 */
export const lockDirectory = (dir: string): { release(): void } => {
  mkdirSync(dir, { recursive: true, mode: 0o700 });
  const file = join(dir, "lock.db");
  let db: DatabaseSync | undefined;
  try {
    db = new DatabaseSync(file, { timeout: 0 });
    db.exec("begin exclusive");
  } catch (e) {
    db?.close();
    const { errcode = 0, message } = e as Error & { errcode?: number };
    throw new DirectoryInUse(
      errcode % 256 === sqliteBusy
        ? `another instance is using ${dir}: stop it first, or choose another data directory`
        : `${file} cannot be locked (${message}): it must be writable; if it is damaged, remove it, nothing is kept in it`,
      { cause: e },
    );
  }
  held.add(db);
  return {
    release: () => {
      if (held.delete(db)) db.close();
    },
  };
};

const maxEntries = 10_000;

/**
 * Throws NotPrivate unless `dir` and the directories in it are at most 0700 and its files at most 0600, all of them ours or
 * root's; links are refused. An entry that vanishes meanwhile is somebody's finished temporary file.
 */
export const assertPrivate = (dir: string): void => {
  const problems: string[] = [];
  const uid = process.getuid?.();
  let seen = 0;
  const visit = (path: string, top: boolean) => {
    if (++seen > maxEntries) throw new NotPrivate(`${dir} holds more than ${maxEntries} entries`);
    const stat = lstatSync(path, { throwIfNoEntry: false });
    if (!stat && !top) return;
    const allowed = stat?.isDirectory() ? 0o700 : 0o600;
    if (!(stat?.isDirectory() || (stat?.isFile() && !top)))
      problems.push(`${path} is not a ${top ? "directory" : "file or directory"}`);
    else if ((stat.mode & 0o777 & ~allowed) !== 0)
      problems.push(`${path} is open wider than 0${allowed.toString(8)} (chmod 0${allowed.toString(8)} it)`);
    else if (uid !== undefined && stat.uid !== uid && stat.uid !== 0) problems.push(`${path} belongs to another user`);
    else if (stat.isDirectory()) for (const name of readdirSync(path)) visit(join(path, name), false);
  };
  try {
    visit(dir, true);
  } catch (e) {
    const { code, path } = e as NodeJS.ErrnoException;
    if (code === undefined) throw e;
    problems.push(`${path} cannot be read (${code})`);
  }
  if (problems.length > 0) throw new NotPrivate(`keys must be private: ${problems.slice(0, 10).join("; ")}`);
};
