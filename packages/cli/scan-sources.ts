import { spawn } from "node:child_process";
import { once } from "node:events";
import { createReadStream, type Dirent } from "node:fs";
import { readdir, stat } from "node:fs/promises";
import { join } from "node:path";
import { createInterface } from "node:readline";
import { SecretScanner } from "@curfew/token-format/scan.ts";

/** A secret and where it stands. The secret itself stays in memory and is hashed; only places are ever printed. */
export interface Sighting {
  readonly kind: "file" | "git" | "other";
  /** path:line, or commit:path:line. */
  readonly location: string;
  readonly secret: string;
  /** Since when it could be read there: a commit's date. */
  readonly exposedSince?: Date;
}

const maxDepth = 64;
const binaryProbeBytes = 8_192;

/** Secrets in a stream, with line numbers. A stream that looks binary in its first bytes is skipped. */
async function* scanStream(
  chunks: AsyncIterable<Buffer>,
  skipBinary: boolean,
): AsyncGenerator<{ secret: string; line: number }> {
  const scanner = new SecretScanner();
  let seenBytes = 0;
  let line = 1;
  for await (const chunk of chunks) {
    if (seenBytes === 0 && skipBinary && chunk.subarray(0, binaryProbeBytes).includes(0)) return;
    const found = scanner.push(chunk);
    let at = 0;
    for (const { offset, secret } of found) {
      const end = Math.max(0, offset - seenBytes);
      for (; at < end; at += 1) if (chunk[at] === 10) line += 1;
      yield { secret, line };
    }
    for (; at < chunk.length; at += 1) if (chunk[at] === 10) line += 1;
    seenBytes += chunk.length;
  }
}

/** Files below a path that is not a git work tree; symbolic links are not followed. */
async function* filesBelow(path: string, depth = 0): AsyncGenerator<string> {
  if (depth > maxDepth) return;
  const entries: Dirent[] = await readdir(path, { withFileTypes: true });
  for (const entry of entries.sort((a, b) => (a.name < b.name ? -1 : 1))) {
    if (entry.name === ".git" || entry.name === "node_modules") continue;
    if (entry.isDirectory()) yield* filesBelow(join(path, entry.name), depth + 1);
    else if (entry.isFile()) yield join(path, entry.name);
  }
}

const git = async (cwd: string, args: readonly string[]) => {
  const child = spawn("git", ["-C", cwd, ...args], { stdio: ["ignore", "pipe", "ignore"] });
  const ended = once(child, "close") as Promise<[number | null]>;
  ended.catch(() => undefined);
  return { stdout: child.stdout, ended };
};

const gitText = async (cwd: string, args: readonly string[]): Promise<string | undefined> => {
  try {
    const { stdout, ended } = await git(cwd, args);
    const chunks: Buffer[] = [];
    for await (const chunk of stdout) chunks.push(chunk as Buffer);
    return (await ended)[0] === 0 ? Buffer.concat(chunks).toString("utf8") : undefined;
  } catch {
    return undefined; // no git here: then there is no history either
  }
};

/** Added lines of every commit of every branch, oldest first: a secret that was "removed" later is still there for everyone. */
async function* scanHistory(repository: string): AsyncGenerator<Sighting> {
  const { stdout, ended } = await git(repository, [
    "log",
    "--all",
    "--reverse",
    "--no-color",
    "--no-ext-diff",
    "--no-textconv",
    "-p",
    "-U0",
    "--format=curfew-commit %H %ct",
  ]);
  let commit = "";
  let since = new Date(0);
  let file = "";
  let line = 0;
  for await (const text of createInterface({ input: stdout, crlfDelay: Number.POSITIVE_INFINITY })) {
    const header = /^curfew-commit ([0-9a-f]{40,64}) (\d+)$/.exec(text);
    const hunk = /^@@ -\S+ \+(\d+)/.exec(text);
    if (header) [commit, since] = [header[1] as string, new Date(Number(header[2]) * 1_000)];
    else if (text.startsWith("+++ ")) file = text.slice(4).replace(/^b\//, "");
    else if (hunk) line = Number(hunk[1]);
    else if (text.startsWith("+")) {
      for (const { secret } of new SecretScanner().push(Buffer.from(text, "latin1")))
        yield {
          kind: "git",
          location: `${repository}@${commit.slice(0, 12)}:${file}:${line}`,
          secret,
          exposedSince: since,
        };
      line += 1;
    }
  }
  await ended;
}

/** Files that git tracks or would track: .gitignore is honoured. */
const gitFiles = async (repository: string): Promise<string[] | undefined> => {
  const listed = await gitText(repository, ["ls-files", "-z", "--cached", "--others", "--exclude-standard"]);
  return listed
    ?.split("\0")
    .filter(Boolean)
    .map((name) => join(repository, name));
};

async function* scanFile(file: string): AsyncGenerator<Sighting> {
  const found = await stat(file).catch(() => undefined);
  if (!found?.isFile()) return; // tracked and deleted, or a link to nowhere
  for await (const { secret, line } of scanStream(createReadStream(file, { highWaterMark: 1 << 20 }), true))
    yield { kind: "file", location: `${file}:${line}`, secret };
}

/** Everything in a path: a file; a folder; a git work tree with its whole history. "-" is standard input. */
export async function* scanPath(path: string, onFile: (file: string) => void): AsyncGenerator<Sighting> {
  if (path === "-") {
    for await (const { secret, line } of scanStream(process.stdin as AsyncIterable<Buffer>, false))
      yield { kind: "other", location: `standard input:${line}`, secret };
    return;
  }
  if (!(await stat(path)).isDirectory()) return yield* scanFile(path);
  const tracked = await gitFiles(path);
  for await (const file of tracked ?? filesBelow(path)) {
    onFile(file);
    yield* scanFile(file);
  }
  if (tracked) yield* scanHistory(path);
}
