import { createHash, createSecretKey, type KeyObject } from "node:crypto";
import { readdirSync } from "node:fs";
import { KeyringError, readKeyFile } from "./key-files.ts";

export const keyBytes = 32;

export interface StoredKey {
  readonly key: KeyObject;
  readonly createdAtMs: number;
}

/** Tells a damaged file from a wrong key. */
export const checkOf = (key: Uint8Array): string =>
  createHash("sha256").update("curfew-key-check\n").update(key).digest("hex").slice(0, 8);

/** One line: format, creation time, key, and its check. */
export const storedText = (createdAtMs: number, key: Uint8Array): string =>
  `curfew-key-v1 ${createdAtMs} ${Buffer.from(key).toString("base64url")} ${checkOf(key)}\n`;

/** Throws KeyringError, which names the file. */
export const parseStored = (file: string, text: string): StoredKey => {
  const m = /^curfew-key-v1 (\d{1,15}) ([0-9A-Za-z_-]{43}) ([0-9a-f]{8})\n$/.exec(text);
  const key = Buffer.from(m?.[2] ?? "", "base64url");
  if (!m || key.length !== keyBytes || checkOf(key) !== m[3]) throw new KeyringError(`${file}: damaged key file`);
  return { key: createSecretKey(key), createdAtMs: Number(m[1]) };
};

const filesOf = (dir: string): string[] => {
  try {
    return readdirSync(dir).sort();
  } catch {
    return [];
  }
};

/**
 * What is wrong with the files of `dir` whose name fits, so that it is told at start and not when a key is first used. Makes nothing;
 * of a directory that cannot be listed openKeyring tells.
 */
export const damagedKeys = (dir: string, ours: RegExp): string[] =>
  filesOf(dir)
    .filter((name) => ours.test(name))
    .flatMap((file) => {
      try {
        const text = readKeyFile(dir, file);
        // Gone meanwhile: an epoch that is over.
        if (text !== undefined) parseStored(file, text);
        return [];
      } catch (error) {
        if (error instanceof KeyringError) return [error.message];
        throw error;
      }
    });
