import { closeSync, fsyncSync, openSync, unlinkSync, writeSync } from "node:fs";
import { CommandFailed, exitCode } from "./exit.ts";

/** Keeps a secret in the file that was opened for it; on disk when it returns. */
export type KeepSecret = (secret: string) => void;

const openNew = (file: string): number => {
  // Elsewhere the standard streams; a file of this name would surprise.
  if (file === "-") throw new CommandFailed(exitCode.usage, "a secret is written to a file only: name a new one");
  try {
    return openSync(file, "wx", 0o600);
  } catch (error) {
    const exists = (error as NodeJS.ErrnoException).code === "EEXIST";
    const why = exists ? "it is there already, and nothing is overwritten" : (error as Error).message;
    throw new CommandFailed(exitCode.usage, `${file} cannot be the new file for the secret: ${why}`);
  }
};

/** Opens a new file that only its owner can read before anything else happens, and removes it again when no secret came into it. */
export const withSecretFile = async <T>(file: string, run: (keep: KeepSecret) => Promise<T>): Promise<T> => {
  const fd = openNew(file);
  let kept = false;
  try {
    return await run((secret) => {
      writeSync(fd, `${secret}\n`);
      fsyncSync(fd);
      kept = true;
    });
  } finally {
    closeSync(fd);
    if (!kept) unlinkSync(file);
  }
};
