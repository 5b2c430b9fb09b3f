import { randomBytes } from "node:crypto";
import { existsSync } from "node:fs";
import { dirname } from "node:path";
import type { OpenedCheckpoint } from "@curfew/ledger/checkpoint.ts";
import { MAX_NOTE_BYTES } from "@curfew/ledger/note.ts";
import { NoteError } from "@curfew/ledger/note-error.ts";
import { openByPolicy, type Policy } from "@curfew/ledger/policy.ts";
import { replaceFile, syncFolder } from "@curfew/runtime/durable-file.ts";
import { CommandFailed, exitCode } from "./exit.ts";
import { readSmall } from "./read-small.ts";

/** The signed checkpoint in a file of ours, as it was seen before; CommandFailed for what is none of a log of `policy`. */
export const readRemembered = async (file: string, policy: Policy): Promise<OpenedCheckpoint> => {
  try {
    return openByPolicy(await readSmall(file, MAX_NOTE_BYTES), policy).opened;
  } catch (error) {
    if (!(error instanceof NoteError)) throw error;
    throw new CommandFailed(exitCode.usage, `${file} is no checkpoint under this key or policy: ${error.message}`);
  }
};

export const isRemembered = (file: string): boolean => existsSync(file);

/** Puts a checkpoint into a file, whole or not at all, and on disk when it resolves. */
export const remember = async (file: string, note: string): Promise<void> => {
  const draft = `${file}.${randomBytes(6).toString("hex")}.new`;
  await replaceFile(file, draft, note);
  await syncFolder(dirname(file));
};
