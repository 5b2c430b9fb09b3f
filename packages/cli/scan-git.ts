import { piecesOf, startGit } from "./git.ts";
import { type Hit, TextScanner } from "./scan-text.ts";

export interface ObjectHit extends Hit {
  readonly oid: string;
}

export interface ObjectListener {
  readonly problem: (text: string) => void;
  readonly object: () => void;
  readonly binary: () => void;
}

const headerForm = /^([0-9a-f]{40,64}) (blob|commit|tag|tree) (\d+)$/;
const maxHeaderBytes = 256;

/** Reads `git cat-file --batch`: a header line, so many bytes, a line feed, and so on. */
class ObjectReader {
  #header = "";
  #oid = "";
  #leftBytes = 0;
  #scanner: TextScanner | undefined;
  readonly #repository: string;
  readonly #options: ObjectListener;

  constructor(repository: string, options: ObjectListener) {
    this.#repository = repository;
    this.#options = options;
  }

  *push(chunk: Buffer): Generator<ObjectHit> {
    for (let at = 0; at < chunk.length; ) {
      if (this.#leftBytes === 0) at = this.#readHeader(chunk, at);
      else {
        const content = chunk.subarray(at, at + this.#leftBytes);
        at += content.length;
        this.#leftBytes -= content.length;
        yield* this.#search(content);
      }
    }
  }

  #readHeader(chunk: Buffer, at: number): number {
    const end = chunk.indexOf(10, at);
    this.#header += chunk.toString("latin1", at, end === -1 ? chunk.length : end);
    if (this.#header.length > maxHeaderBytes) throw new Error("git cat-file answers in a form that is not known");
    if (end === -1) return chunk.length;
    const [, oid, type, size] = headerForm.exec(this.#header) ?? [];
    if (oid === undefined) this.#options.problem(`${this.#repository}: a damaged object, ${this.#header}`);
    this.#header = "";
    if (oid !== undefined) {
      this.#oid = oid;
      this.#leftBytes = Number(size) + 1;
      // A tree holds names and hashes only.
      this.#scanner = type === "tree" ? undefined : new TextScanner({ skipBinary: true });
      this.#options.object();
    }
    return end + 1;
  }

  *#search(content: Buffer): Generator<ObjectHit> {
    if (!this.#scanner || this.#scanner.isBinary) return;
    for (const hit of this.#scanner.push(content)) yield { ...hit, oid: this.#oid };
    if (this.#scanner.isBinary) this.#options.binary();
  }
}

/**
 * Secrets in every object of a repository: all versions of all files, messages and tags, of every branch, stash and merge, and what was
 * amended away or only staged. Each object is read once, however many commits hold it.
 */
export async function* scanObjects(repository: string, options: ObjectListener): AsyncGenerator<ObjectHit> {
  const git = startGit(repository, ["cat-file", "--batch", "--batch-all-objects", "--unordered", "--buffer"]);
  try {
    const reader = new ObjectReader(repository, options);
    for await (const chunk of git.output) yield* reader.push(chunk);
    const { code, message } = await git.ended;
    if (code !== 0) options.problem(`the history of ${repository} could not be read whole: ${message}`);
  } finally {
    git.stop();
  }
}

/** Where an object came into the history. */
export interface Origin {
  readonly oid: string;
  readonly commit: string;
  /** As committed; hostile clocks included. */
  readonly committedMs: number;
  /** Undefined: the object is the commit itself. */
  readonly path?: Buffer;
}

const logArguments = [
  "log",
  "--all",
  "--reflog",
  "--topo-order", // parents last, whatever the dates claim
  "-m", // merges too: a secret may have come in while a conflict was solved
  "--root",
  "--raw",
  "-r",
  "-z",
  "--no-abbrev",
  "--no-renames",
  "--no-notes",
  "--no-color",
  "--no-ext-diff",
  "--no-textconv",
  "--ignore-submodules=none",
  "-O/dev/null",
  "--format=commit %H %ct",
];

/** Commits in which the objects appear, children before parents; each object as often as there are such commits. */
export async function* originsOf(
  repository: string,
  oids: ReadonlySet<string>,
  problem: (text: string) => void,
): AsyncGenerator<Origin> {
  const git = startGit(repository, logArguments);
  try {
    let commit = "";
    let committedMs = Number.NaN;
    let oid: string | undefined; // its path comes next
    for await (const piece of piecesOf(git.output)) {
      if (oid !== undefined) {
        if (oids.has(oid)) yield { oid, commit, committedMs, path: piece };
        oid = undefined;
        continue;
      }
      const text = piece.toString("latin1").trimStart();
      const [, hash, seconds] = /^commit ([0-9a-f]{40,64}) (-?\d+)$/.exec(text) ?? [];
      if (hash !== undefined) {
        commit = hash;
        committedMs = Number(seconds) * 1_000;
        if (oids.has(commit)) yield { oid: commit, commit, committedMs };
      } else if (text.startsWith(":")) oid = text.split(" ")[3] ?? "";
    }
    const { code, message } = await git.ended;
    if (code !== 0) problem(`the commits of ${repository} could not be read: ${message}`);
  } finally {
    git.stop();
  }
}
