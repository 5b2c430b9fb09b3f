import { mkdir } from "node:fs/promises";
import { dirname, join, resolve } from "node:path";
import { type LogFiles, openDirectory } from "@curfew/ledger/directory.ts";
import { syncFolder } from "@curfew/runtime/durable-file.ts";

/** The files of each shard, by its year: they are those of a log of its own. */
export type ShardFiles = (year: number) => LogFiles;

/** Opens those of each year once. */
export const openShardFiles = (open: ShardFiles): ShardFiles => {
  const opened = new Map<number, LogFiles>();
  return (year) => {
    const files = opened.get(year) ?? open(year);
    opened.set(year, files);
    return files;
  };
};

/** A folder for each year in a directory of this machine, which is made. */
export const openShardFolders = async (
  dir: string,
  edges: Parameters<typeof openDirectory>[1],
): Promise<ShardFiles> => {
  await mkdir(dir, { recursive: true, mode: 0o700 });
  await syncFolder(dirname(resolve(dir)));
  return openShardFiles((year) => openDirectory(join(dir, String(year)), edges));
};
