import { type ChildProcess, spawn } from "node:child_process";
import { once } from "node:events";
import { readFileSync } from "node:fs";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import type { Endpoints } from "@curfew/deploy/installation.ts";

/** A program of this repository as a child process, with what it has said so far. */
export interface Program {
  readonly child: ChildProcess;
  readonly out: string;
  readonly err: string;
  /** Resolves once standard output has a line that begins so; rejects, with what was said, when the process ends before. */
  until(beginning: string): Promise<void>;
  /** Exit code and signal. */
  readonly ended: Promise<{ readonly code: number | null; readonly signal: NodeJS.Signals | null }>;
}

const root = fileURLToPath(new URL("../../", import.meta.url));
const quiet = ["--disable-warning=ExperimentalWarning", "--disable-warning=TimeoutNegativeWarning"];

/** Nothing of ours comes from the shell that the tests run in. */
const cleanEnvironment = () =>
  Object.fromEntries(Object.entries(process.env).filter(([name]) => !/^CURFEW_/.test(name)));

export const startProgram = (
  file: string,
  args: readonly string[],
  options: {
    readonly env?: Readonly<Record<string, string>>;
    readonly cwd?: string;
    readonly prefix?: readonly string[];
  } = {},
): Program => {
  const [command, ...rest] = [...(options.prefix ?? []), process.execPath, ...quiet, join(root, file), ...args];
  const child = spawn(command as string, rest, {
    stdio: ["ignore", "pipe", "pipe"],
    env: { ...cleanEnvironment(), NO_COLOR: "1", ...options.env },
    ...(options.cwd !== undefined && { cwd: options.cwd }),
  });
  const said = { out: "", err: "" };
  const waiting = new Set<() => void>();
  child.stdout?.on("data", (chunk: Buffer) => {
    said.out += chunk.toString("utf8");
    for (const look of waiting) look();
  });
  child.stderr?.on("data", (chunk: Buffer) => {
    said.err += chunk.toString("utf8");
  });
  const ended = once(child, "close").then(([code, signal]) => ({ code, signal }));
  return {
    child,
    get out() {
      return said.out;
    },
    get err() {
      return said.err;
    },
    ended,
    until: async (beginning) => {
      const seen = new Promise<void>((resolve) => {
        const look = () => {
          if (`\n${said.out}`.includes(`\n${beginning}`)) resolve();
        };
        waiting.add(look);
        look();
      });
      const over = ended.then(() => {
        throw new Error(`${file} ended before it said "${beginning}":\n${said.out}\n${said.err}`);
      });
      over.catch(() => undefined);
      await Promise.race([seen, over]);
    },
  };
};

/** What `npm start` runs. */
export const startSuite = (
  dataDir: string,
  options: Parameters<typeof startProgram>[2] & { args?: readonly string[] } = {},
) => startProgram("deploy/embedded/main.ts", ["--data", dataDir, "--port", "0", ...(options.args ?? [])], options);

export const readEndpoints = (dataDir: string): Endpoints =>
  JSON.parse(readFileSync(join(dataDir, "endpoints.json"), "utf8")) as Endpoints;
