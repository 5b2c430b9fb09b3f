import { readdirSync, readFileSync, statSync } from "node:fs";
import { join } from "node:path";
import { gunzipSync, inflateSync, zstdDecompressSync } from "node:zlib";
import { secretVariants } from "@curfew/token-format/variants.ts";

/** Looks for secrets in every form (packages/token-format/variants.ts) where none may be. */
export interface Places {
  /** Searched with everything below: databases, topics and logs as they are on disk; compressed data is opened. */
  readonly directories: readonly string[];
  /** Log lines, mails, pages, rows and records as they were read through the product. */
  readonly texts: readonly (string | Uint8Array)[];
}

const maxFileBytes = 512 * 1024 * 1024;
const magics: readonly (readonly [Buffer, (bytes: Buffer) => Buffer])[] = [
  [Buffer.from([0x1f, 0x8b]), gunzipSync],
  [Buffer.from([0x28, 0xb5, 0x2f, 0xfd]), zstdDecompressSync],
  [Buffer.from([0x78, 0x9c]), inflateSync],
];

const opened = (bytes: Buffer): Buffer[] => {
  const inner = magics.flatMap(([magic, open]) => {
    if (!bytes.subarray(0, magic.length).equals(magic)) return [];
    try {
      return [open(bytes)];
    } catch {
      return []; // it only looked compressed
    }
  });
  return [bytes, ...inner];
};

const filesBelow = (directory: string): string[] =>
  readdirSync(directory, { recursive: true, withFileTypes: true })
    .filter((entry) => entry.isFile())
    .map((entry) => join(entry.parentPath, entry.name));

/** Every place in which a form of one of the secrets stands: the form's name and the file, never the secret. */
export const findSecrets = (secrets: readonly string[], places: Places): string[] => {
  const forms = secrets.flatMap((secret) => secretVariants(secret));
  const look = (where: string, bytes: Buffer) =>
    opened(bytes).flatMap((each) =>
      forms.filter((form) => each.includes(form.bytes)).map((form) => `${where}: ${form.form}`),
    );
  const files = places.directories.flatMap(filesBelow);
  return [
    ...files.flatMap((file) => {
      if (statSync(file).size > maxFileBytes) throw new Error(`${file} is too large to be searched`);
      return look(file, readFileSync(file));
    }),
    ...places.texts.flatMap((text, i) => look(`text ${i}`, Buffer.from(text as string))),
  ];
};
