import { mkdir, readdir, readFile, rm, stat } from "node:fs/promises";
import { dirname, join, resolve } from "node:path";
import { replaceFile, syncFolder } from "@curfew/runtime/durable-file.ts";
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

const draftPrefix = ".new-";
/** A draft as old as this is what a kill left behind, not what another is writing. */
const leftoverMs = 60_000;

/** The files in a directory of this machine, which is made when first written to. */
export const openDirectory = (
  dir: string,
  { clock, random }: { readonly clock: { now(): number }; readonly random: (bytes: number) => Uint8Array },
): LogFiles => {
  const root = resolve(dir);
  const fileOf = (path: string): string => {
    if (path !== CHECKPOINT_PATH) parseTilePath(path);
    return join(root, path);
  };

  /** Up to the one that holds the root: a folder that is there may have been made by whom a kill kept from syncing its name. */
  const foldersOf = (path: string): string[] => {
    const folders: string[] = [];
    for (let at = dirname(fileOf(path)); at.length >= root.length; at = dirname(at)) folders.push(at);
    return [...folders, dirname(root)];
  };

  const writeOne = async ({ path, bytes }: TileFile): Promise<void> => {
    const file = fileOf(path);
    await mkdir(dirname(file), { recursive: true, mode: 0o700 });
    const draft = join(root, `${draftPrefix}${Buffer.from(random(12)).toString("hex")}`);
    await replaceFile(file, draft, bytes);
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
      const folders = new Set(files.flatMap(({ path }) => foldersOf(path)));
      await mkdir(root, { recursive: true, mode: 0o700 });
      if (!isClean) await removeLeftovers();
      isClean = true;
      for (const file of files) await writeOne(file);
      for (const folder of folders) await syncFolder(folder);
      for (const { path } of files)
        if (path !== CHECKPOINT_PATH && parseTilePath(path).width === TILE_WIDTH)
          await rm(`${fileOf(path)}.p`, { recursive: true, force: true });
    },
  };
};
