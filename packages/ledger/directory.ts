import { mkdir, open, readdir, readFile, rename, rm, stat } from "node:fs/promises";
import { dirname, join } from "node:path";
import { parseTilePath, TILE_WIDTH } from "./tile.ts";
import type { TileFile } from "./tile-writer.ts";

/** The path of the signed checkpoint in a c2sp.org/tlog-tiles log. */
export const CHECKPOINT_PATH = "checkpoint";

/** Where the files of a tlog-tiles log are kept, by their paths there. */
export interface LogFiles {
  /** Undefined: there is no such file. Rejects with a NoteError for what is no path of such a log. */
  read(path: string): Promise<Uint8Array | undefined>;
  /** Resolves when all are durable. Each appears whole or not at all, in their order; a full tile takes the place of its partial ones. */
  write(files: readonly TileFile[]): Promise<void>;
}

const codeOf = (error: unknown): string => (error as NodeJS.ErrnoException).code ?? "";

const syncFolder = async (path: string): Promise<void> => {
  const folder = await open(path, "r");
  try {
    await folder.sync();
  } finally {
    await folder.close();
  }
};

const draftPrefix = ".new-";
/** A draft as old as this is what a kill left behind, not what another is writing. */
const leftoverMs = 60_000;

/** The files in a directory of this machine, which is made when first written to. */
export const openDirectory = (
  root: string,
  { clock, random }: { readonly clock: { now(): number }; readonly random: (bytes: number) => Uint8Array },
): LogFiles => {
  const fileOf = (path: string): string => {
    if (path !== CHECKPOINT_PATH) parseTilePath(path);
    return join(root, path);
  };

  /** Makes a folder that outlives a crash: its name is synced in every folder above it that is new. */
  const makeFolder = async (folder: string): Promise<void> => {
    const first = await mkdir(folder, { recursive: true, mode: 0o700 });
    if (first === undefined) return;
    for (let at = folder; at.length >= first.length; at = dirname(at)) await syncFolder(dirname(at));
  };

  const writeOne = async ({ path, bytes }: TileFile): Promise<string> => {
    const file = fileOf(path);
    const folder = dirname(file);
    await makeFolder(folder);
    const draft = join(root, `${draftPrefix}${Buffer.from(random(12)).toString("hex")}`);
    const handle = await open(draft, "wx", 0o600);
    try {
      await handle.writeFile(bytes);
      await handle.sync();
    } catch (error) {
      await rm(draft, { force: true });
      throw error;
    } finally {
      await handle.close();
    }
    await rename(draft, file);
    return folder;
  };

  const removeLeftovers = async (): Promise<void> => {
    for (const name of (await readdir(root)).filter((each) => each.startsWith(draftPrefix))) {
      const draft = join(root, name);
      const { mtimeMs } = await stat(draft).catch(() => ({ mtimeMs: Number.POSITIVE_INFINITY }));
      if (mtimeMs < clock.now() - leftoverMs) await rm(draft, { force: true });
    }
  };
  let isClean = false;

  return {
    async read(path) {
      try {
        return await readFile(fileOf(path));
      } catch (error) {
        if (codeOf(error) === "ENOENT" || codeOf(error) === "ENOTDIR") return undefined;
        throw error;
      }
    },
    async write(files) {
      const folders = new Set<string>();
      for (const { path } of files) fileOf(path); // all or none
      await makeFolder(root);
      if (!isClean) await removeLeftovers();
      isClean = true;
      for (const file of files) folders.add(await writeOne(file));
      for (const folder of folders) await syncFolder(folder);
      for (const { path } of files)
        if (path !== CHECKPOINT_PATH && parseTilePath(path).width === TILE_WIDTH)
          await rm(`${fileOf(path)}.p`, { recursive: true, force: true });
    },
  };
};
