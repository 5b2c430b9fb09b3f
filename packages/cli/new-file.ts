import { randomBytes } from "node:crypto";
import { existsSync } from "node:fs";
import { link, open, rm } from "node:fs/promises";
import { basename, dirname, join } from "node:path";
import { syncFolder } from "@curfew/runtime/durable-file.ts";
import { CommandFailed, exitCode } from "./exit.ts";

const exists = (file: string) =>
  new CommandFailed(exitCode.usage, `${file} is there already, and nothing is overwritten`);

/** Throws CommandFailed where there is such a file. */
export const assertNew = (file: string): void => {
  if (existsSync(file)) throw exists(file);
};

/**
 * Makes a new file that only its owner can read out of pieces; it appears whole or not at all, and is on disk when this resolves. Answers
 * its length.
 */
export const writeNewFile = async (file: string, pieces: AsyncIterable<Uint8Array>): Promise<number> => {
  assertNew(file);
  const folder = dirname(file);
  const draft = join(folder, `.${basename(file)}.${randomBytes(6).toString("hex")}`);
  const handle = await open(draft, "wx", 0o600).catch(({ code }: NodeJS.ErrnoException) => {
    throw new CommandFailed(exitCode.usage, `${file} cannot be written: no file can be made in ${folder} (${code})`);
  });
  try {
    let length = 0;
    for await (const piece of pieces) {
      await handle.writeFile(piece);
      length += piece.length;
    }
    await handle.sync();
    // Unlike a rename it fails where there is one meanwhile.
    await link(draft, file).catch((error: NodeJS.ErrnoException) => {
      throw error.code === "EEXIST" ? exists(file) : error;
    });
    return length;
  } finally {
    await handle.close();
    await rm(draft, { force: true });
    await syncFolder(folder);
  }
};
