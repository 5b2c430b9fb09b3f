import { type ChildProcess, spawn } from "node:child_process";
import { once } from "node:events";
import { closeSync, openSync, readdirSync, readFileSync } from "node:fs";
import { connect, createServer } from "node:net";
import { setTimeout as sleep } from "node:timers/promises";

const startLimitMs = 60_000;
const stopLimitMs = 20_000;
const pauseLimitMs = 2000;

/** A server of somebody else's making that runs as a child process and listens on a port of this machine. */
export interface ServerProcess {
  readonly pid: number;
  /** SIGTERM, and waits for the end; fails when that takes over 20 s (then it is killed) or ends with a code not in `goodCodes`. */
  stop(): Promise<void>;
  /** SIGKILL, and waits for the end. */
  kill(): Promise<void>;
  /** SIGSTOP, and returns once every thread stands still: connections stay open and nothing answers. */
  pause(): void;
  /** SIGCONT. */
  resume(): void;
}

/** Starts `command` with its output appended to `logFile`, and resolves once something accepts connections on localhost:`port`. */
export const openServerProcess = async (options: {
  command: string[];
  port: number;
  logFile: string;
  goodCodes: number[];
}): Promise<ServerProcess> => {
  const { command, logFile } = options;
  const output = openSync(logFile, "a");
  // Detached: a Ctrl-C in the terminal reaches only us, and we stop the servers in our order.
  const child = spawn(command[0] ?? "", command.slice(1), { detached: true, stdio: ["ignore", output, output] });
  closeSync(output);
  const ended = new Promise<void>((resolve) => child.once("exit", () => resolve()));
  await once(child, "spawn");
  const pid = child.pid ?? 0;
  const watcher = killWhenWeDie(pid);
  child.once("exit", () => watcher.kill("SIGKILL"));
  const failed = (what: string) => new Error(`${command[0]} ${what}; the end of ${logFile}:\n${tail(logFile)}`);
  const running = () => child.exitCode === null && child.signalCode === null;
  const kill = async () => {
    child.kill("SIGKILL");
    await ended;
  };

  const deadlineMs = performance.now() + startLimitMs;
  while (!(await accepts(options.port))) {
    if (!running()) throw failed(`ended with ${child.signalCode ?? child.exitCode} before it answered`);
    if (performance.now() > deadlineMs) {
      await kill();
      throw failed(`did not answer within ${startLimitMs} ms`);
    }
    await sleep(25);
  }
  return {
    pid,
    kill,
    pause: () => {
      child.kill("SIGSTOP");
      const limitMs = performance.now() + pauseLimitMs;
      while (!standsStill(pid)) {
        if (running() && performance.now() < limitMs) continue;
        child.kill("SIGCONT");
        throw failed(`does not stand still ${pauseLimitMs} ms after SIGSTOP`);
      }
    },
    resume: () => void child.kill("SIGCONT"),
    async stop() {
      if (!running()) return;
      child.kill("SIGCONT");
      child.kill("SIGTERM");
      const timer = setTimeout(() => child.kill("SIGKILL"), stopLimitMs);
      await ended;
      clearTimeout(timer);
      const good = child.signalCode === "SIGTERM" || options.goodCodes.includes(child.exitCode ?? -1);
      if (!good) throw failed(`ended with ${child.signalCode ?? child.exitCode} when stopped`);
    },
  };
};

/** A shell that waits for the end of a pipe only we hold open; the kernel closes it even when we are killed with -9. */
const killWhenWeDie = (pid: number): ChildProcess => {
  const watcher = spawn("sh", ["-c", 'read _; kill -9 "$0"', String(pid)], {
    detached: true,
    stdio: ["pipe", "ignore", "ignore"],
  });
  watcher.unref();
  return watcher;
};

/** The signal is sent before the threads have it: on a busy machine one may still answer for some milliseconds. */
const standsStill = (pid: number): boolean => {
  try {
    return readdirSync(`/proc/${pid}/task`).every((thread) => {
      const stat = readFileSync(`/proc/${pid}/task/${thread}/stat`, "utf8");
      return stat.slice(stat.lastIndexOf(")") + 2).startsWith("T");
    });
  } catch {
    return false; // a thread ended meanwhile
  }
};

const tail = (file: string) => readFileSync(file, "utf8").slice(-3000);

const accepts = (port: number) =>
  new Promise<boolean>((resolve) => {
    const socket = connect({ port, host: "127.0.0.1" });
    socket.once("connect", () => resolve(true));
    socket.once("error", () => resolve(false));
    socket.once("close", () => resolve(false));
    socket.once("connect", () => socket.destroy());
  });

const lowestPort = 15_000;
const highestPort = 30_000;
let next = Math.floor(Math.random() * (highestPort - lowestPort));

/**
 * A port nobody listens on, below the range from which systems take the ports of outgoing connections: a client that retries
 * against a stopped server cannot take its port, nor connect to itself. One after another: it is given to nobody else before its
 * server listens, or while that is killed.
 */
export const freePort = async (): Promise<number> => {
  for (let i = 0; i < 100; i += 1) {
    const port = lowestPort + (next % (highestPort - lowestPort));
    next += 1;
    if (await listens(port)) return port;
  }
  throw new Error(`no free port found between ${lowestPort} and ${highestPort}`);
};

const listens = (port: number) =>
  new Promise<boolean>((resolve) => {
    const server = createServer();
    server.once("error", () => resolve(false));
    server.listen(port, "127.0.0.1", () => server.close(() => resolve(true)));
  });
