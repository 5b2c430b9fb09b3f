import { existsSync, mkdirSync, renameSync, rmSync } from "node:fs";
import { join } from "node:path";
import { DatabaseSync } from "node:sqlite";
import { setTimeout as sleep } from "node:timers/promises";
import { fileURLToPath } from "node:url";

export type Log = (line: string) => void;

const cacheFolder = fileURLToPath(new URL("../../.cache/curfew/", import.meta.url));

/**
 * What `build` makes at a path of its own, kept as `<root>/<name>`. Of several processes one builds and the others wait;
 * the lock is SQLite's, so it goes with its owner however that one ends, and a half-built result is never seen.
 */
export const cached = async (
  name: string,
  build: (path: string) => Promise<void>,
  log: Log,
  root = cacheFolder,
): Promise<string> => {
  const path = join(root, name);
  if (existsSync(path)) return path;
  mkdirSync(root, { recursive: true });
  const lock = new DatabaseSync(join(root, `${name}.lock`), { timeout: 0 });
  try {
    let waiting = false;
    while (!take(lock)) {
      if (!waiting) log(`waiting for another process that prepares ${name}`);
      waiting = true;
      await sleep(200);
    }
    if (existsSync(path)) return path;
    const unfinished = `${path}.unfinished`;
    rmSync(unfinished, { recursive: true, force: true });
    await build(unfinished);
    renameSync(unfinished, path);
    return path;
  } finally {
    lock.close();
  }
};

const take = (lock: DatabaseSync) => {
  try {
    lock.exec("BEGIN EXCLUSIVE");
    return true;
  } catch (e) {
    if (e instanceof Error && "errcode" in e && e.errcode === 5 /* SQLITE_BUSY */) return false;
    throw e;
  }
};
