import { type ChildProcess, spawn } from "node:child_process";
import { once } from "node:events";
import { fileURLToPath } from "node:url";

/** `curfew witness` as people run it: a process of its own, ended by whoever started it. */
export interface OwnWitness {
  readonly url: string;
  readonly vkey: string;
  /** By a signal; answers the exit code, null after SIGKILL. */
  stop(signal?: NodeJS.Signals): Promise<number | null>;
}

const main = fileURLToPath(new URL("../../packages/cli/main.ts", import.meta.url));

/** Ended already, with this code; `said` is its standard error. */
export class WitnessEnded extends Error {
  readonly code: number | null;
  constructor(code: number | null, said: string) {
    super(said);
    this.code = code;
  }
}

const running = new Set<ChildProcess>();
process.once("exit", () => {
  for (const child of running) child.kill("SIGKILL");
});

/** Starts it on its directory, `under` another program; resolves once it listens, rejects with WitnessEnded. */
export const openOwnWitness = async (
  dir: string,
  logs: readonly string[],
  more: readonly string[] = ["--name", "witness.example/own"],
  listen = "127.0.0.1:0",
  under: readonly string[] = [],
): Promise<OwnWitness> => {
  const flags = logs.flatMap((log) => ["--log", log]);
  const [program = "", ...args] = [
    ...under,
    process.execPath,
    main,
    "witness",
    "--data",
    dir,
    "--listen",
    listen,
    ...flags,
    ...more,
  ];
  const child = spawn(program, args, { stdio: ["ignore", "pipe", "pipe"] });
  running.add(child);
  const exited = once(child, "exit").then(([code]) => {
    running.delete(child);
    return code as number | null;
  });
  let [out, err] = ["", ""];
  const line = Promise.withResolvers<string>();
  child.stderr.on("data", (text) => {
    err += text;
  });
  child.stdout.on("data", (text) => {
    out += text;
    if (out.includes("\n")) line.resolve(out);
  });
  const ended = once(child, "close").then(async () => Promise.reject(new WitnessEnded(await exited, err)));
  ended.catch(() => undefined);
  const [, , vkey = "", url = ""] = (await Promise.race([line.promise, ended])).trim().split(" ");
  return {
    url,
    vkey,
    async stop(signal = "SIGTERM") {
      child.kill(signal);
      return await exited;
    },
  };
};
