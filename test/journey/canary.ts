import { readdirSync, readFileSync, statSync } from "node:fs";
import { join } from "node:path";
import { createGunzip, createInflate, createZstdDecompress } from "node:zlib";
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
  look(kind: string, where: string, content: string | Uint8Array): Promise<void>;
  /** Every file below, as it is on disk. */
  lookBelow(directory: string): Promise<void>;
  readonly found: readonly Finding[];
  /** How many of each kind were read: a canary that read nothing proves nothing. */
  readonly read: Readonly<Record<string, number>>;
}

const maxFileBytes = 512 * 2 ** 20;
const maxOpenedBytes = 64 * 2 ** 20;
const maxDepth = 3;

/** Where each format begins, wherever it stands: also inside a record batch or a document. */
const formats = [
  { magic: [0x1f, 0x8b, 0x08], open: () => createGunzip() },
  { magic: [0x28, 0xb5, 0x2f, 0xfd], open: () => createZstdDecompress() },
  ...[0x01, 0x5e, 0x9c, 0xda].map((level) => ({ magic: [0x78, level], open: () => createInflate() })),
].map(({ magic, open }) => ({ magic: Buffer.from(magic), open }));

/** What a stream gives until it ends or breaks: what follows the compressed part is no part of it. */
const decompress = (stream: ReturnType<typeof createGunzip>, input: Buffer): Promise<Buffer> =>
  new Promise((resolve) => {
    const chunks: Buffer[] = [];
    let size = 0;
    const done = () => {
      stream.destroy();
      resolve(Buffer.concat(chunks));
    };
    stream.on("data", (chunk: Buffer) => {
      chunks.push(chunk);
      size += chunk.length;
      if (size > maxOpenedBytes) done();
    });
    stream.once("end", done).once("error", done).end(input);
  });

async function* opened(bytes: Buffer, depth = 0): AsyncGenerator<Buffer> {
  yield bytes;
  if (depth === maxDepth) return;
  for (const { magic, open } of formats)
    for (let at = bytes.indexOf(magic); at >= 0; at = bytes.indexOf(magic, at + 1)) {
      const inner = await decompress(open() as ReturnType<typeof createGunzip>, bytes.subarray(at));
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
  const look = async (kind: string, where: string, content: string | Uint8Array) => {
    read[kind] = (read[kind] ?? 0) + 1;
    const here = new Set<string>();
    for await (const bytes of opened(withoutZeros(Buffer.from(content as Uint8Array))))
      for (const { form, bytes: wanted } of forms) if (bytes.includes(wanted)) here.add(form);
    for (const form of here) found.push({ kind, where, form });
  };
  return {
    look,
    async lookBelow(directory) {
      for (const file of filesBelow(directory)) {
        const bytes = readIfThere(file);
        if (bytes) await look("file", file, bytes);
      }
    },
    found,
    read,
  };
};
