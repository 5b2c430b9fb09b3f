import { type ChildProcess, spawn } from "node:child_process";
import { once } from "node:events";

/**
 * Git on a repository that nobody vouches for. Its configuration can name programs (fsmonitor, hooks, pagers, filters, signature
 * checkers, transports): each way to one that the commands used here have is closed, and the reader's own configuration is left out too.
 */
const config = [
  "core.fsmonitor=false",
  "core.hooksPath=/dev/null",
  "core.pager=cat",
  "core.excludesFile=/dev/null",
  "core.attributesFile=/dev/null",
  "core.untrackedCache=false",
  "log.showSignature=false",
  "log.showRoot=true",
  "log.follow=false",
  "diff.orderFile=/dev/null",
  "protocol.allow=never",
  // Searching somebody else's folder is what this is for, and nothing of it is run.
  "safe.directory=*",
];
const before = ["--no-pager", "--no-replace-objects", ...config.flatMap((one) => ["-c", one])];

const environment = (): NodeJS.ProcessEnv => ({
  // In a hook GIT_DIR and GIT_INDEX_FILE name another repository than the one to be searched.
  ...Object.fromEntries(Object.entries(process.env).filter(([name]) => !name.startsWith("GIT_"))),
  LC_ALL: "C",
  GIT_CONFIG_NOSYSTEM: "1",
  GIT_CONFIG_GLOBAL: "/dev/null",
  GIT_ATTR_NOSYSTEM: "1",
  GIT_OPTIONAL_LOCKS: "0",
  GIT_TERMINAL_PROMPT: "0",
  GIT_ALLOW_PROTOCOL: "none", // what a partial clone lacks is not fetched: that would run a transport
  GIT_NO_LAZY_FETCH: "1",
});

const maxMessageLength = 1_000;

export interface GitRun {
  readonly output: AsyncIterable<Buffer>;
  /** Resolves with the exit code and the first line that git complained with; code -1: there is no git. */
  readonly ended: Promise<{ readonly code: number; readonly message: string }>;
  /** Ends it, finished or not. */
  stop(): void;
}

/** Starts git in `folder`. */
export const startGit = (folder: string, args: readonly string[]): GitRun => {
  const child: ChildProcess = spawn("git", [...before, ...args], {
    cwd: folder,
    stdio: ["ignore", "pipe", "pipe"],
    env: environment(),
  });
  let message = "";
  child.stderr?.on("data", (chunk: Buffer) => {
    if (message.length < maxMessageLength) message += chunk.toString("utf8");
  });
  const ended = once(child, "close").then(
    ([code]) => ({
      code: (code as number | null) ?? 1,
      message: message.slice(0, maxMessageLength).split("\n")[0] ?? "",
    }),
    (error: Error) => ({ code: -1, message: error.message }),
  );
  return { output: child.stdout as AsyncIterable<Buffer>, ended, stop: () => void child.kill("SIGKILL") };
};

/** What git answers, at most 64 KiB of it, where it is short. */
export const askGit = async (folder: string, args: readonly string[]) => {
  const run = startGit(folder, args);
  const chunks: Buffer[] = [];
  let length = 0;
  for await (const chunk of run.output) {
    chunks.push(chunk);
    length += chunk.length;
    if (length > 65_536) break;
  }
  run.stop();
  return { ...(await run.ended), text: Buffer.concat(chunks).toString("utf8") };
};

/** The NUL-terminated pieces of a stream; a piece over 1 MiB is cut, no name is that long. */
export async function* piecesOf(output: AsyncIterable<Buffer>): AsyncGenerator<Buffer> {
  let rest: Buffer[] = [];
  let restLength = 0;
  for await (const chunk of output) {
    let start = 0;
    for (let end = chunk.indexOf(0); end !== -1; end = chunk.indexOf(0, start)) {
      yield Buffer.concat([...rest, chunk.subarray(start, end)]);
      rest = [];
      restLength = 0;
      start = end + 1;
    }
    if (restLength < 1 << 20) rest.push(chunk.subarray(start));
    restLength += chunk.length - start;
  }
  if (restLength > 0) yield Buffer.concat(rest);
}
