import { spawn } from "node:child_process";
import { once } from "node:events";
import { fileURLToPath } from "node:url";

const main = fileURLToPath(new URL("../../packages/cli/main.ts", import.meta.url));

/** Runs a command whose standard output and error are no terminals. Killed after a minute: `code` is then null. */
const run = async (command: string, ...args: string[]) => {
  const child = spawn(command, args, { stdio: ["ignore", "pipe", "pipe"], timeout: 60_000, killSignal: "SIGKILL" });
  const texts = [child.stdout, child.stderr].map(async (stream) =>
    Buffer.concat(await stream.toArray()).toString("utf8"),
  );
  const [code] = (await once(child, "close")) as [number | null];
  const [out = "", err = ""] = await Promise.all(texts);
  return { code, out, err };
};

/** `curfew …` as a process of its own. */
export const curfew = (...args: string[]) => run(process.execPath, main, ...args);

/** The same with options for Node itself. */
export const curfewUnder = (options: readonly string[], ...args: string[]) =>
  run(process.execPath, ...options, main, ...args);

/** The same started by another command. */
export const curfewBy = (command: readonly string[], ...args: string[]) => {
  const [first = process.execPath, ...more] = [...command, process.execPath, main, ...args];
  return run(first, ...more);
};

/** The same on a terminal, which shows both outputs. */
export const curfewOnTerminal = (...args: string[]) => {
  const quoted = [process.execPath, main, ...args].map((word) => `'${word.replaceAll("'", "'\\''")}'`);
  return run("script", "--quiet", "--return", "--command", quoted.join(" "), "/dev/null");
};
