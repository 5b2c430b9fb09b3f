import { readdirSync, readFileSync, statSync } from "node:fs";
import { join } from "node:path";
import { constants, inflateRawSync, zstdDecompressSync } from "node:zlib";
import { secretVariants } from "@curfew/token-format/variants.ts";

/** Looks for secrets in every form (packages/token-format/variants.ts) where none may be. Knows only bytes; `places.ts` brings them. */
export interface Finding {
  /** record, row, file, log line, …: what was read. */
  readonly kind: string;
  readonly where: string;
  /** The form's name, never the secret. */
  readonly form: string;
}

export interface Canary {
  look(kind: string, where: string, content: string | Uint8Array): void;
  /** Every file below, as it is on disk. */
  lookBelow(directory: string): void;
  readonly found: readonly Finding[];
  /** How many of each kind were read: a canary that read nothing proves nothing. */
  readonly read: Readonly<Record<string, number>>;
}

const maxFileBytes = 512 * 2 ** 20;
const maxOpenedBytes = 64 * 2 ** 20;
const maxDepth = 3;

/** RFC 1952 §2.3: ten bytes, then what the flags announce. */
const gzipHeaderBytes = (bytes: Buffer): number => {
  const flags = bytes[3] ?? 0;
  let at = 10;
  if (flags & 4) at += 2 + bytes.readUInt16LE(at);
  for (const named of [8, 16]) if (flags & named) at = bytes.indexOf(0, at) + 1;
  return flags & 2 ? at + 2 : at;
};

/** Raw, because what follows in a file is no part of it; an end that is missing (a page, a torn write) is no reason to stop. */
const inflate = (bytes: Buffer): Buffer =>
  inflateRawSync(bytes, { finishFlush: constants.Z_SYNC_FLUSH, maxOutputLength: maxOpenedBytes });

/** Where each format begins, wherever it stands: also inside a record batch or a document. */
const formats = [
  { magic: [0x1f, 0x8b, 0x08], open: (bytes: Buffer) => inflate(bytes.subarray(gzipHeaderBytes(bytes))) },
  {
    magic: [0x28, 0xb5, 0x2f, 0xfd],
    open: (bytes: Buffer) => zstdDecompressSync(bytes, { maxOutputLength: maxOpenedBytes }),
  },
  ...[0x01, 0x5e, 0x9c, 0xda].map((level) => ({
    magic: [0x78, level],
    open: (bytes: Buffer) => inflate(bytes.subarray(2)),
  })),
].map(({ magic, open }) => ({ magic: Buffer.from(magic), open }));

const openIfCompressed = (open: (bytes: Buffer) => Buffer, bytes: Buffer): Buffer => {
  try {
    return open(bytes);
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === "ERR_BUFFER_TOO_LARGE") throw error;
    return Buffer.alloc(0); // it only looked so
  }
};

function* opened(bytes: Buffer, depth = 0): Generator<Buffer> {
  yield bytes;
  if (depth === maxDepth) return;
  for (const { magic, open } of formats)
    for (let at = bytes.indexOf(magic); at >= 0; at = bytes.indexOf(magic, at + 1)) {
      const inner = openIfCompressed(open, bytes.subarray(at));
      if (inner.length > 0) yield* opened(inner, depth + 1);
    }
}

/** Kafka makes its index files large and leaves them empty: the zeros at the end need no search. */
const withoutZeros = (bytes: Buffer): Buffer => {
  let end = bytes.length;
  while (end > 0 && bytes[end - 1] === 0) end -= 1;
  return bytes.subarray(0, end);
};

const filesBelow = (directory: string): string[] =>
  readdirSync(directory, { recursive: true, withFileTypes: true })
    .filter((entry) => entry.isFile())
    .map((entry) => join(entry.parentPath, entry.name));

/** Undefined for a file that went away since it was listed. */
const readIfThere = (file: string): Buffer | undefined => {
  try {
    if (statSync(file).size > maxFileBytes) throw new Error(`${file} is too large to be searched`);
    return readFileSync(file);
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code !== "ENOENT") throw error;
    return undefined;
  }
};

export const openCanary = (secrets: readonly string[]): Canary => {
  const forms = secrets.flatMap((secret) => secretVariants(secret));
  const found: Finding[] = [];
  const read: Record<string, number> = {};
  const look = (kind: string, where: string, content: string | Uint8Array) => {
    read[kind] = (read[kind] ?? 0) + 1;
    const here = new Set<string>();
    for (const bytes of opened(withoutZeros(Buffer.from(content as Uint8Array))))
      for (const { form, bytes: wanted } of forms) if (bytes.includes(wanted)) here.add(form);
    for (const form of here) found.push({ kind, where, form });
  };
  return {
    look,
    lookBelow(directory) {
      for (const file of filesBelow(directory)) {
        const bytes = readIfThere(file);
        if (bytes) look("file", file, bytes);
      }
    },
    found,
    read,
  };
};

/** Every form of one of the secrets in these directories and texts: kind, place and form, never the secret. */
export const findSecrets = (
  secrets: readonly string[],
  places: { readonly directories: readonly string[]; readonly texts: readonly (string | Uint8Array)[] },
): string[] => {
  const canary = openCanary(secrets);
  for (const directory of places.directories) canary.lookBelow(directory);
  for (const [n, text] of places.texts.entries()) canary.look("text", String(n), text);
  return canary.found.map(({ kind, where, form }) => `${kind} ${where}: ${form}`);
};
