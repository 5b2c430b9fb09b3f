import { closeSync, constants, fstatSync, openSync, readSync, read as readWithCallback } from "node:fs";
import { realpath } from "node:fs/promises";
import http from "node:http";
import https from "node:https";
import { dirname, join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { promisify } from "node:util";
import { CHECKPOINT_PATH } from "@curfew/ledger/directory.ts";
import { MAX_NOTE_BYTES } from "@curfew/ledger/note.ts";
import { NoteError } from "@curfew/ledger/note-error.ts";
import { shardYears } from "@curfew/ledger/shard.ts";
import type { ReadLogFile } from "@curfew/ledger/verify-log.ts";
import { systemClock } from "@curfew/runtime/clock.ts";
import { CommandFailed, exitCode } from "./exit.ts";

/** The files of a log that somebody else keeps: every size and time is limited, and what is no plain answer is an error. */
export interface LogSource {
  readonly read: ReadLogFile;
  /** Files that it pays to ask for before their turn. */
  readonly ahead: number;
  /** Takes back bytes that `read` gave. */
  readonly release: (bytes: Uint8Array) => void;
  close(): void;
}

/** The log cannot be read, now or by us: nothing is said about it. */
const unreadable = (what: string) => new CommandFailed(exitCode.unavailable, what);
const longer = (mostBytes: number) => new NoteError(`it is longer than ${mostBytes} bytes`);

const codeOf = (error: unknown) => (error as NodeJS.ErrnoException).code ?? "";
const isAbsent = (error: unknown) => codeOf(error) === "ENOENT" || codeOf(error) === "ENOTDIR";

const readAsync = promisify(readWithCallback);
/** Smaller files are read at once: to wait for another thread takes longer. */
const smallBytes = 1_048_576;
const mostBuffers = 4;
// Not to wait for the other end of a FIFO, should it be one.
const flags = constants.O_RDONLY | constants.O_NOFOLLOW | constants.O_NONBLOCK;

/** Memory that large files are read into again and again: what is merely dropped may stay for long, in a ledger of many GB. */
const openBuffers = () => {
  const free: Buffer<ArrayBuffer>[] = [];
  return {
    take(bytes: number): Buffer<ArrayBuffer> {
      if (bytes <= smallBytes) return Buffer.allocUnsafe(bytes);
      const at = free.findIndex((each) => each.buffer.byteLength >= bytes);
      const [found] = at < 0 ? [] : free.splice(at, 1);
      // With room for a somewhat longer one.
      const buffer = found?.buffer ?? Buffer.allocUnsafeSlow(Math.ceil(bytes / smallBytes) * smallBytes).buffer;
      return Buffer.from(buffer, 0, bytes);
    },
    give(bytes: Uint8Array): void {
      if (bytes.length <= smallBytes) return;
      free.push(Buffer.from(bytes.buffer as ArrayBuffer));
      if (free.length > mostBuffers) free.shift();
    },
  };
};
type Buffers = ReturnType<typeof openBuffers>;

const readPlain = async (file: string, mostBytes: number, buffers: Buffers): Promise<Uint8Array> => {
  const fd = openSync(file, flags);
  try {
    const stat = fstatSync(fd);
    if (!stat.isFile()) throw new NoteError("it is no plain file");
    if (stat.size > mostBytes) throw longer(mostBytes);
    const bytes = buffers.take(stat.size);
    let end = 0;
    while (end < bytes.length) {
      const rest = [bytes, end, bytes.length - end, null] as const;
      const count = bytes.length <= smallBytes ? readSync(fd, ...rest) : (await readAsync(fd, ...rest)).bytesRead;
      if (count === 0) break;
      end += count;
    }
    return bytes.subarray(0, end);
  } finally {
    closeSync(fd);
  }
};

/** A log in a directory of this machine. No link in it is followed: it may lead anywhere. */
export const openLogDirectory = async (dir: string): Promise<LogSource> => {
  const root = await realpath(dir);
  const buffers = openBuffers();
  const plainFolders = new Set<string>();
  const assertPlainFolder = async (folder: string) => {
    if (plainFolders.has(folder)) return;
    if ((await realpath(folder)) !== folder) throw new NoteError("a folder of it is a link");
    plainFolders.add(folder);
  };
  return {
    ahead: 2,
    release: buffers.give,
    close: () => undefined,
    async read(path, mostBytes) {
      const file = join(root, path);
      try {
        await assertPlainFolder(dirname(file));
        return await readPlain(file, mostBytes, buffers);
      } catch (error) {
        if (isAbsent(error)) return undefined;
        if (codeOf(error) === "ELOOP") throw new NoteError("it is a link");
        if (error instanceof NoteError) throw error;
        throw unreadable(`${path} cannot be read: ${codeOf(error) || (error as Error).message}`);
      }
    },
  };
};

/** `fileMs`: of one file, from the request to its last byte; `idleMs`: until one more byte. */
const httpLimits = { fileMs: 60_000, idleMs: 10_000 };
type HttpLimits = typeof httpLimits;
const attempts = 3;
const pauseMs = 250;
const connections = 8;

/** The network, or a server that cannot answer now: asked again. */
class TryAgain extends Error {
  override name = "TryAgain";
}

const get = (agent: http.Agent, url: URL, mostBytes: number, { fileMs, idleMs }: HttpLimits) =>
  new Promise<Uint8Array | undefined>((resolve, reject) => {
    const signal = AbortSignal.timeout(fileMs);
    const headers = { accept: "*/*", "accept-encoding": "identity" };
    const call = (url.protocol === "https:" ? https : http).get(url, { agent, signal, headers, timeout: idleMs });
    const fail = (error: Error) => {
      reject(error);
      call.destroy();
    };
    call.on("timeout", () => fail(new TryAgain(`no byte within ${idleMs} ms`)));
    const broke = (error: Error) =>
      reject(new TryAgain(signal.aborted ? `not whole within ${fileMs} ms` : codeOf(error) || error.message));
    call.on("error", broke);
    call.on("response", (response) => {
      const { statusCode = 0 } = response;
      response.on("error", broke);
      if (statusCode === 404 || statusCode === 410) {
        resolve(undefined);
        return void call.destroy(); // whatever it goes on to say
      }
      if (statusCode >= 500 || statusCode === 429) return fail(new TryAgain(`answered ${statusCode}`));
      const moved = statusCode >= 300 && statusCode < 400 ? ": no redirect is followed" : "";
      if (statusCode !== 200) return fail(unreadable(`${url.href} answered ${statusCode}${moved}`));
      const chunks: Buffer[] = [];
      let length = 0;
      response.on("data", (chunk: Buffer) => {
        length += chunk.length;
        chunks.push(chunk);
        if (length > mostBytes) fail(longer(mostBytes));
      });
      response.on("end", () => resolve(Buffer.concat(chunks, length)));
    });
  });

const loopback = /^(localhost|127(\.\d{1,3}){3}|\[::1\])$/;

const parseLogUrl = (text: string): URL => {
  const url = URL.parse(text.endsWith("/") ? text : `${text}/`);
  if (!url || url.username || url.password || url.search || url.hash)
    throw new CommandFailed(exitCode.usage, "a log's URL is https://HOST/PATH/, without user, query or fragment");
  if (url.protocol === "http:" && !loopback.test(url.hostname))
    throw new CommandFailed(
      exitCode.usage,
      "http is for this machine only: anybody in between could answer; use https",
    );
  return url;
};

/** A log behind a URL: https, or http on loopback. */
export const openLogUrl = (text: string, limits: HttpLimits = httpLimits): LogSource => {
  const base = parseLogUrl(text);
  const { Agent } = base.protocol === "https:" ? https : http;
  const agent = new Agent({ keepAlive: true, maxSockets: connections });
  return {
    ahead: connections,
    release: () => undefined,
    close: () => agent.destroy(),
    async read(path, mostBytes) {
      const url = new URL(path, base);
      for (let attempt = 1; ; attempt += 1) {
        try {
          return await get(agent, url, mostBytes, limits);
        } catch (error) {
          if (!(error instanceof TryAgain)) throw error;
          if (attempt === attempts) throw unreadable(`${url.href} cannot be read: ${error.message}`);
          await sleep(attempt * pauseMs);
        }
      }
    },
  };
};

/** A log, and below which folder it is of what was asked for. */
export interface LogShard {
  readonly folder: string;
  readonly source: LogSource;
}

const isUrl = (target: string) => /^https?:/i.test(target);

const hasCheckpoint = async ({ read }: LogSource): Promise<boolean> => {
  try {
    return (await read(CHECKPOINT_PATH, MAX_NOTE_BYTES)) !== undefined;
  } catch (error) {
    if (error instanceof NoteError) return true; // for whoever verifies it to say
    throw error;
  }
};

const below = (whole: LogSource, folder: string): LogSource => ({
  ...whole,
  read: (path, mostBytes) => whole.read(`${folder}${path}`, mostBytes),
});

/** The log at a directory or URL, or, where it is a ledger of Curfew, those of all its years, in order. To close one closes all. */
export const openShards = async (target: string): Promise<[LogShard, ...LogShard[]]> => {
  const whole = isUrl(target) ? openLogUrl(target) : await openLogDirectory(target);
  const own = { folder: "", source: whole };
  if (await hasCheckpoint(whole)) return [own];
  const folders = shardYears(systemClock.now()).map((year) => `${year}/`);
  const shards: LogShard[] = [];
  for (const folder of folders) {
    const source = below(whole, folder);
    if (await hasCheckpoint(source)) shards.push({ folder, source });
  }
  const [first = own, ...others] = shards;
  return [first, ...others];
};
