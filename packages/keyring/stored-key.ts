import { createHash, createSecretKey, type KeyObject } from "node:crypto";
import { KeyringError } from "./key-files.ts";

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
