import { closeSync, constants, createReadStream, fstatSync, openSync, readdirSync, readSync } from "node:fs";
import { setImmediate } from "node:timers/promises";
import { printable } from "./output.ts";
import { type Hit, TextScanner } from "./scan-text.ts";

/** File names are bytes, and need not be UTF-8. */
export const join = (folder: Buffer, name: Buffer): Buffer =>
  folder.toString("latin1") === "."
    ? name
    : Buffer.concat([folder, Buffer.from(folder.at(-1) === 47 ? "" : "/"), name]);

/** For people and reports: one line, and no secret even where the name holds one. */
export const shown = (path: Buffer): string => printable(path.toString("utf8")).replaceAll("\n", "\\n");

const chunkBytes = 1 << 20;
const buffer = Buffer.allocUnsafe(chunkBytes);
const { O_RDONLY, O_NOFOLLOW, O_NONBLOCK } = constants;
/** It was there a moment ago, is a link, or is no file: not ours to search. */
const passedOver = new Set(["ENOENT", "ENOTDIR", "ELOOP", "ENXIO"]);

const openRegular = (path: Buffer, follow: boolean, problem: (text: string) => void): number | undefined => {
  try {
    const fd = openSync(path, O_RDONLY | O_NONBLOCK | (follow ? 0 : O_NOFOLLOW));
    if (fstatSync(fd).isFile()) return fd;
    closeSync(fd);
  } catch (error) {
    if (!passedOver.has((error as NodeJS.ErrnoException).code ?? "")) problem((error as Error).message);
  }
  return undefined;
};

export interface FileOptions {
  readonly problem: (text: string) => void;
  readonly binary: () => void;
}

/** Secrets in a file; in one that was `named`, also when it is a link or binary. */
export async function* scanFile(path: Buffer, named: boolean, options: FileOptions): AsyncGenerator<Hit> {
  // Synchronous calls: for many small files they are several times faster, and there is little else to do meanwhile.
  const fd = openRegular(path, named, options.problem);
  if (fd === undefined) return;
  try {
    const scanner = new TextScanner({ skipBinary: !named });
    for (let chunks = 1; ; chunks += 1) {
      const length = readSync(fd, buffer, 0, chunkBytes, null);
      if (length === 0) return;
      yield* scanner.push(buffer.subarray(0, length));
      if (scanner.isBinary) return options.binary();
      if (chunks % 16 === 0) await setImmediate();
    }
  } catch (error) {
    options.problem(`${shown(path)}: ${(error as Error).message}`);
  } finally {
    closeSync(fd);
  }
}

/** Secrets in what can only be read once: standard input, a pipe. */
export async function* scanStream(stream: AsyncIterable<Buffer>): AsyncGenerator<Hit> {
  const scanner = new TextScanner({ skipBinary: false });
  for await (const chunk of stream) yield* scanner.push(chunk);
}

export const openPipe = (path: Buffer): AsyncIterable<Buffer> => createReadStream(path);

export interface Folder {
  readonly folders: readonly Buffer[];
  readonly files: readonly Buffer[];
  /** It has a `.git`. */
  readonly hasGit: boolean;
  /** It looks like a bare repository, or like a `.git` itself. */
  readonly isBare: boolean;
}

/** What is in a folder, in the order of the names; links are not followed. */
export const readFolder = (path: Buffer, problem: (text: string) => void): Folder => {
  try {
    const entries = readdirSync(path, { withFileTypes: true, encoding: "buffer" });
    entries.sort((a, b) => Buffer.compare(a.name, b.name));
    const names = new Set(entries.map((entry) => entry.name.toString("latin1")));
    return {
      folders: entries.filter((e) => e.isDirectory() && e.name.toString() !== ".git").map((e) => join(path, e.name)),
      files: entries.filter((e) => e.isFile()).map((e) => join(path, e.name)),
      hasGit: names.has(".git"),
      isBare: ["HEAD", "objects", "refs"].every((name) => names.has(name)),
    };
  } catch (error) {
    if (!passedOver.has((error as NodeJS.ErrnoException).code ?? "")) problem((error as Error).message);
    return { folders: [], files: [], hasGit: false, isBare: false };
  }
};
