import { lstatSync, statSync } from "node:fs";
import { setImmediate } from "node:timers/promises";
import { askGit, piecesOf, startGit } from "./git.ts";
import { type Folder, join, openPipe, readFolder, scanFile, scanStream, shown } from "./scan-files.ts";
import { scanHistory } from "./scan-history.ts";

/** A secret and where it stands. The secret itself stays in memory and is hashed; only places are ever printed. */
export interface Sighting {
  readonly kind: "file" | "git" | "other";
  /** path:line, or repository@commit:path:line; printable and without secrets. */
  readonly location: string;
  readonly secret: string;
  /** Since when it could be read there: a commit's date. */
  readonly exposedSince?: Date;
}

export interface ScanOptions {
  /** Whether a secret is one of ours, asked before the commits that hold it are looked for. */
  readonly isOurs: (secret: string) => Promise<boolean>;
  /** Called for what could not be searched. */
  readonly problem: (text: string) => void;
  /** Called for each binary file that was passed over. */
  readonly binary: () => void;
  readonly progress: (what: "files" | "objects") => void;
  readonly nowMs: number;
}

type Step = { readonly path: Buffer; readonly named: boolean };
const slash = 47;

/** A folder as git sees it: whether its files are listed by git, and which part of the history it is. */
interface Repository {
  readonly path: string;
  readonly prefix: string;
  readonly listsFiles: boolean;
}

/** Undefined where there is no repository, or git cannot read it; that is a problem. */
const repositoryOf = async (
  path: Buffer,
  folder: Folder,
  { problem }: ScanOptions,
): Promise<Repository | undefined> => {
  const isOne = folder.hasGit || folder.isBare;
  const missed = (why: string) => problem(`${shown(path)}: its history was not searched: ${why}`);
  const name = path.toString("utf8");
  if (!Buffer.from(name).equals(path)) {
    if (isOne) missed("its name is not UTF-8");
    return undefined;
  }
  const { code, text, message } = await askGit(name, ["rev-parse", "--is-inside-work-tree", "--show-prefix"]);
  if (code !== 0) {
    if (isOne || (code !== -1 && !message.includes("not a git repository")))
      missed(code === -1 ? "git cannot be run" : message);
    return undefined;
  }
  const [inside, below = ""] = text.split("\n");
  const prefix = isOne ? "" : below; // whatever work tree its own configuration claims
  // Somebody named a folder that is ignored there: then it is meant, and searched as it is.
  const ignored = prefix !== "" && (await askGit(name, ["check-ignore", "-q", "."])).code === 0;
  return { path: name, prefix, listsFiles: inside === "true" && !ignored && prefix === below };
};

/** What git tracks or would track: .gitignore is honoured. */
async function* trackedIn(path: string, { problem }: ScanOptions): AsyncGenerator<Buffer> {
  const git = startGit(path, ["ls-files", "-z", "--cached", "--others", "--exclude-standard"]);
  let before: Buffer | undefined;
  for await (const name of piecesOf(git.output)) {
    if (before?.equals(name)) continue; // a conflict is listed once for each side
    before = name;
    yield name;
  }
  const { code, message } = await git.ended;
  if (code !== 0) problem(`${path}: its files could not be listed: ${message}`);
}

const isFolder = (path: Buffer) => lstatSync(path, { throwIfNoEntry: false })?.isDirectory() ?? false;

async function* sightingsIn(file: Buffer, named: boolean, options: ScanOptions): AsyncGenerator<Sighting> {
  options.progress("files");
  for await (const { secret, line } of scanFile(file, named, options))
    yield { kind: "file", location: `${shown(file)}:${line}`, secret };
}

/** A plain folder file by file; a repository as git sees it, with its history. Folders that are left to do go on `later`. */
async function* scanFolder({ path, named }: Step, later: Step[], options: ScanOptions): AsyncGenerator<Sighting> {
  const folder = readFolder(path, options.problem);
  const asked = named || folder.hasGit || folder.isBare;
  const repository = asked ? await repositoryOf(path, folder, options) : undefined;
  if (repository?.listsFiles) {
    for await (const name of trackedIn(repository.path, options)) {
      const file = join(path, name.at(-1) === slash ? name.subarray(0, -1) : name);
      if (!isFolder(file)) yield* sightingsIn(file, false, options);
      else if (readFolder(file, options.problem).hasGit) later.push({ path: file, named: false }); // a submodule
    }
  } else if (!(repository && folder.isBare)) {
    for (const [i, file] of folder.files.entries()) {
      yield* sightingsIn(file, false, options);
      if (i % 256 === 255) await setImmediate();
    }
    later.push(...folder.folders.toReversed().map((each) => ({ path: each, named: false })));
  }
  if (repository) yield* scanHistory(repository.path, repository.prefix, options);
}

/** Everything in a path: a file; a folder with all below; a repository with its whole history; "-": standard input. */
export async function* scanPath(path: string, options: ScanOptions): AsyncGenerator<Sighting> {
  if (path === "-") {
    for await (const { secret, line } of scanStream(process.stdin))
      yield { kind: "other", location: `standard input:${line}`, secret };
    return;
  }
  const named = Buffer.from(path);
  const kind = statSync(named);
  if (kind.isFile()) yield* sightingsIn(named, true, options);
  else if (kind.isDirectory()) {
    const steps: Step[] = [{ path: named, named: true }];
    for (let step = steps.pop(); step; step = steps.pop()) yield* scanFolder(step, steps, options);
  } else
    for await (const { secret, line } of scanStream(openPipe(named)))
      yield { kind: "other", location: `${shown(named)}:${line}`, secret };
}
