import { spawn } from "node:child_process";
import { once } from "node:events";
import { fileURLToPath } from "node:url";

const main = fileURLToPath(new URL("../../packages/cli/main.ts", import.meta.url));

/** `curfew …` as a process of its own, its standard output and error no terminals. Killed after a minute: `code` is then null. */
export const curfew = async (...args: string[]) => {
  const child = spawn(process.execPath, [...process.execArgv, main, ...args], {
    stdio: ["ignore", "pipe", "pipe"],
    timeout: 60_000,
    killSignal: "SIGKILL",
  });
  const texts = [child.stdout, child.stderr].map(async (stream) =>
    Buffer.concat(await stream.toArray()).toString("utf8"),
  );
  const [code] = (await once(child, "close")) as [number | null];
  const [out = "", err = ""] = await Promise.all(texts);
  return { code, out, err };
};
