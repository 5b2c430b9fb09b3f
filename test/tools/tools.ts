import { execFile } from "node:child_process";
import { createHash } from "node:crypto";
import { globSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join, resolve } from "node:path";
import { DatabaseSync } from "node:sqlite";
import { pathToFileURL } from "node:url";
import { cached } from "@curfew/deploy/dev/cache.ts";
import { freePort, openServerProcess, type ServerProcess } from "@curfew/deploy/dev/server-process.ts";

/*
 * Transparency-log programs of others, against which ours are tested. Go builds them once per version of the module
 * here that asks for them; every call runs one program, for a limited time.
 *
 * A log is given as a folder or an http URL of the c2sp.org/tlog-tiles layout; a vkey is a verifier key of
 * c2sp.org/signed-note; a policy is text of c2sp.org/tlog-policy.
 */

/** A folder here with a Go module. */
type Module = "verify" | "litewitness" | "versitygw";

export interface Tree {
  /** Entries. */
  readonly size: number;
  /** Base64. */
  readonly root: string;
}

/** What a verifier found; `said` is its output, or that it did not end in time. */
export interface Verdict {
  readonly sound: boolean;
  readonly said: string;
}

export interface LogKey {
  readonly origin: string;
  /** Signing key, `PRIVATE+KEY+…`. */
  readonly secret: string;
  readonly vkey: string;
}

const buildLimitMs = 590_000;
const checkLimitMs = 30_000;
const writeLimitMs = 60_000;

interface Ended {
  /** Null when it was killed for taking too long. */
  readonly code: number | null;
  readonly out: string;
  readonly err: string;
}

/** Runs a program to its end, whatever its exit status; rejects only when it cannot be started. */
const run = (program: string, args: readonly string[], limitMs: number) =>
  new Promise<Ended>((done, fail) => {
    const options = { timeout: limitMs, killSignal: "SIGKILL", maxBuffer: 1 << 26 } as const;
    execFile(program, args, options, (error, out, err) => {
      if (typeof error?.code === "string") fail(error);
      else done({ code: error ? (error.code ?? null) : 0, out, err });
    });
  });

/** The output of a program that must succeed. */
const succeed = async (program: string, args: readonly string[], limitMs: number): Promise<string> => {
  const { code, out, err } = await run(program, args, limitMs);
  if (code === 0) return out;
  throw new Error(`${program} ${code === null ? "was killed" : `ended with ${code}`}:\n${err.slice(-3000)}`);
};

const withScratch = async <T>(use: (file: (name: string, content?: string | Uint8Array) => string) => Promise<T>) => {
  const dir = mkdtempSync(join(tmpdir(), "curfew-tools-"));
  const file = (name: string, content: string | Uint8Array = "") => {
    writeFileSync(join(dir, name), content, { mode: 0o600 });
    return join(dir, name);
  };
  try {
    return await use(file);
  } finally {
    rmSync(dir, { recursive: true, force: true });
  }
};

/** The folder of a module's programs, built on first use. */
export const builtTools = (module: Module): Promise<string> => {
  const dir = join(import.meta.dirname, module);
  const sources = globSync(["go.mod", "go.sum", "cmd/*/*.go"], { cwd: dir }).sort();
  const hash = createHash("sha256");
  for (const file of sources) hash.update(`${file}\n`).update(readFileSync(join(dir, file)));
  const build = async (path: string) => {
    const own = sources.some((file) => file.startsWith("cmd/")) ? ["./cmd/..."] : [];
    await succeed("go", ["build", "-C", dir, "-trimpath", "-o", `${path}/`, ...own, "tool"], buildLimitMs);
  };
  return cached(`tools-${module}-${hash.digest("hex").slice(0, 16)}`, build, () => undefined);
};

const tool = async (name: "fsck" | "tlogcheck" | "mklog") => join(await builtTools("verify"), name);

const isUrl = (log: string) => /^https?:/.test(log);
const escaped = (text: string) => text.replace(/[+]/g, "\\$&");

/**
 * Tessera's fsck, whose Merkle code is transparency-dev/merkle. Its exit status says nothing, and on bad tiles it can
 * hang unless it has more workers than there are tiles: only its line about success, with what we expect, counts.
 */
export const fsck = (log: string, vkey: string, expected: Tree): Promise<Verdict> =>
  withScratch(async (file) => {
    const storage = isUrl(log) ? log : pathToFileURL(resolve(log)).href;
    const args = ["-N", "1024", "--ui=false", `--public_key=${file("vkey", vkey)}`, `--storage_url=${storage}`];
    const { code, err } = await run(await tool("fsck"), args, checkLimitMs);
    const hex = Buffer.from(expected.root, "base64").toString("hex");
    const tree = `size ${expected.size} and root ${escaped(expected.root)} \\(${hex}\\)`;
    const success = `I\\d{4} [\\d:.]+ +\\d+ fsck\\.go:\\d+\\] Successfully fsck'd log with ${tree}`;
    const sound = new RegExp(`^${success}$`, "m").test(err);
    return { sound, said: code === null ? `did not end within ${checkLimitMs} ms\n${err}` : err };
  });

/** Runs tlogcheck; rejects unless it came to a verdict. */
const judged = async (args: readonly string[]): Promise<Verdict> => {
  const { code, out, err } = await run(await tool("tlogcheck"), args, checkLimitMs);
  if (code === 0) return { sound: true, said: out };
  if (code === 1 && err.includes("tlogcheck: FAIL: ")) return { sound: false, said: err };
  throw new Error(`tlogcheck ${args[0]} ${code === null ? "was killed" : `ended with ${code}`}:\n${err}`);
};

/** Its output; rejects when the log is not sound. */
const answered = async (args: readonly string[]): Promise<string> => {
  const { sound, said } = await judged(args);
  if (!sound) throw new Error(said);
  return said;
};

/** torchwood on the Merkle code of golang.org/x/mod; strict about every byte. */
export const tlogcheck = {
  /** The checkpoint against the policy, every entry, every tile; and that the log contains `remembered`. */
  log: (log: string, policy: string, remembered?: Tree): Promise<Verdict> =>
    withScratch((file) => {
      const old = remembered ? [`${remembered.size}:${remembered.root}`] : [];
      return judged(["log", log, file("policy", policy), ...old]);
    }),

  /** An entry with its c2sp.org/tlog-proof; rejects when the log is not sound. */
  prove: (log: string, policy: string, index: number): Promise<{ proof: Buffer; entry: Buffer }> =>
    withScratch(async (file) => {
      const [proof, entry] = [file("proof"), file("entry")];
      await answered(["prove", log, file("policy", policy), `${index}`, proof, entry]);
      return { proof: readFileSync(proof), entry: readFileSync(entry) };
    }),

  /** Whether a c2sp.org/tlog-proof shows that `entry` is in the log. */
  proof: (proof: Uint8Array, policy: string, entry: Uint8Array): Promise<Verdict> =>
    withScratch((file) => judged(["proof", file("proof", proof), file("policy", policy), file("entry", entry)])),

  /** The body of `POST /add-checkpoint` (c2sp.org/tlog-witness) that takes a witness from size `old` to the log's. */
  addCheckpoint: (log: string, policy: string, old: number): Promise<string> =>
    withScratch((file) => answered(["add-checkpoint", log, file("policy", policy), `${old}`])),
};

/** A new signing key for a log. */
export const newLogKey = async (origin: string): Promise<LogKey> => {
  const [secret = "", vkey = ""] = (await succeed(await tool("mklog"), ["key", origin], writeLimitMs)).split("\n");
  return { origin, secret, vkey };
};

/**
 * Appends the entries `entry <number> of the test log` (8 digits) for from <= number < to to the log in `dir`, with
 * Tessera, and returns the published checkpoint. The witnesses of `policy` must cosign first.
 */
export const mklog = (dir: string, key: LogKey, from: number, to: number, policy?: string): Promise<string> =>
  withScratch(async (file) => {
    const witnesses = policy === undefined ? [] : [file("policy", policy)];
    const args = ["grow", resolve(dir), file("key", key.secret), `${from}`, `${to}`, ...witnesses];
    return await succeed(await tool("mklog"), args, writeLimitMs);
  });

/** A policy that asks for the log's signature and for a cosignature of every witness. */
export const policyOf = (vkey: string, witnesses: readonly { vkey: string; url: string }[] = []): string => {
  if (witnesses.length === 0) return `log ${vkey}\nquorum none\n`;
  const names = witnesses.map((_, i) => `w${i + 1}`);
  const lines = witnesses.map((witness, i) => `witness ${names[i]} ${witness.vkey} ${witness.url}\n`);
  return `log ${vkey}\n${lines.join("")}group each all ${names.join(" ")}\nquorum each\n`;
};

/** A witness of others' making; it ends with this process, however this process ends. */
export interface Litewitness {
  /** `http://127.0.0.1:<port>/` */
  readonly url: string;
  /** Of its cosignatures. */
  readonly vkey: string;
  /** Stops it; `up` starts it again, on its port and with its memory. */
  down(): Promise<void>;
  up(): Promise<void>;
  /** Stops it for good. */
  stop(): Promise<void>;
}

/** Gives the witness its key by way of an agent of its own, which ends by itself soon after the witness. */
const underAgent =
  'ssh-add -q "$1" && echo "$SSH_AGENT_PID" >agent.pid && shift && exec "$@" -ssh-agent "$SSH_AUTH_SOCK"';

/** Starts litewitness on a free port; it knows one log, at size 0. */
export const openLitewitness = async (
  log: { origin: string; vkey: string },
  name = "witness.example/lite",
): Promise<Litewitness> => {
  const program = join(await builtTools("litewitness"), "litewitness");
  const dir = mkdtempSync(join(tmpdir(), "curfew-litewitness-"));
  const forget = () => rmSync(dir, { recursive: true, force: true });
  try {
    const [key, database, logFile] = [join(dir, "key"), join(dir, "w.db"), join(dir, "log")];
    await succeed("ssh-keygen", ["-q", "-t", "ed25519", "-N", "", "-C", "witness", "-f", key], writeLimitMs);
    const fingerprint = (await succeed("ssh-keygen", ["-lf", `${key}.pub`], writeLimitMs)).split(" ")[1] ?? "";
    const port = await freePort();
    const listen = `127.0.0.1:${port}`;
    const witness = [program, "-db", database, "-name", name, "-key", fingerprint, "-listen", listen];
    const command = ["env", "-C", dir, "ssh-agent", "sh", "-c", underAgent, "sh", key, ...witness];
    const begin = () => openServerProcess({ command, port, logFile, goodCodes: [0] });
    let server: ServerProcess | undefined = await begin();
    const down = async () => {
      const ending = server;
      server = undefined;
      if (!ending) return;
      await ending.stop();
      process.kill(Number(readFileSync(join(dir, "agent.pid"), "utf8")), "SIGTERM");
    };
    const up = async () => {
      server ??= await begin();
    };
    const stop = async () => {
      await down();
      forget();
    };
    try {
      addLog(database, log);
      const vkey = /msg="verifier key" vkey=(\S+)/.exec(readFileSync(logFile, "utf8"))?.[1];
      if (vkey === undefined) throw new Error("litewitness did not say its verifier key");
      return { url: `http://${listen}/`, vkey, down, up, stop };
    } catch (e) {
      await stop();
      throw e;
    }
  } catch (e) {
    forget();
    throw e;
  }
};

/** In place of witnessctl, which cannot be built without sigsum. The witness sees it at once. */
const addLog = (database: string, { origin, vkey }: { origin: string; vkey: string }) => {
  const emptyRoot = createHash("sha256").digest("base64");
  const db = new DatabaseSync(database, { timeout: 5000 });
  try {
    db.prepare("INSERT INTO log VALUES (?, 0, ?)").run(origin, emptyRoot);
    db.prepare("INSERT INTO key VALUES (?, ?)").run(origin, vkey);
  } finally {
    db.close();
  }
};
