import { createServer, type ServerResponse } from "node:http";
import type { AddressInfo } from "node:net";
import { CHECKPOINT_PATH } from "@curfew/ledger/directory.ts";
import { NoteError } from "@curfew/ledger/note-error.ts";
import { parseTilePath, TILE_WIDTH } from "@curfew/ledger/tile.ts";
import { AddressUnavailable } from "@curfew/rpc/server.ts";
import type { Log } from "@curfew/runtime/log.ts";
import type { ShardFiles } from "./shard-files.ts";

/**
 * The ledger's files over HTTP, read-only, for any client of c2sp.org/tlog-tiles: each shard is a log below its year. Plain HTTP and nobody is asked who he is: entries name
 * tokens, services and pseudonyms, so it listens on loopback, or stands behind a proxy that asks.
 */
export interface TileServer {
  /** `http://<host>:<port>/`; a log's own is that and `<year>/`. */
  readonly url: string;
  close(): Promise<void>;
}

/** Verifiers open a thousand at once. */
const maxConnections = 2_000;
/** Read and not yet taken by whoever asked: a bundle may have 16 MB. */
const maxAnswers = 8;
/** Until one of them is; more are refused. */
const maxWaiting = 2_000;
/** For a request to come, and for the next byte of its answer to be taken. */
const requestLimitMs = 10_000;
const idleLimitMs = 5_000;
const checkEveryMs = 1_000;

type Headers = Readonly<Record<string, string>>;
const answer = (response: ServerResponse, status: number, headers: Headers, body: Uint8Array | string): void => {
  const always = { "x-content-type-options": "nosniff", "content-length": String(Buffer.byteLength(body)) };
  response.writeHead(status, { ...always, ...headers }).end(body);
};
const text = { "content-type": "text/plain; charset=utf-8", "cache-control": "no-store" };
const refuse = (response: ServerResponse, status: number, why: string, headers: Headers = {}): void =>
  answer(response, status, { ...text, ...headers }, `${why}\n`);
const tryAgain = { "retry-after": "1" };

const loopback = /^(localhost|127(\.\d{1,3}){3}|\[::1\])(:\d{1,5})?$/i;
/** On loopback only by its names: else any page that a browser here shows could read it under a name of its own (DNS rebinding). */
const isMeant = (host: string, asked = ""): boolean => !loopback.test(host) || loopback.test(asked);

/** Runs `work` when one of few places is free, till its response is over. */
const openPlaces = () => {
  let free = maxAnswers;
  const waiting: (() => void)[] = [];
  return (response: ServerResponse, work: () => Promise<void>): void => {
    if (waiting.length >= maxWaiting) return void refuse(response, 503, "too many ask at once; try again", tryAgain);
    const begin = () => {
      if (response.destroyed) return end();
      response.once("close", end);
      void work();
    };
    const end = () => {
      free += 1;
      if (free > 0 && waiting.length > 0) {
        free -= 1;
        waiting.shift()?.();
      }
    };
    if (free === 0) return void waiting.push(begin);
    free -= 1;
    begin();
  };
};

const shardPath = /^(20[0-9]{2})\/(.*)$/s;

/** A full tile is for ever; a partial one goes when it is full; the checkpoint is another one soon. */
const headersOf = (path: string): Headers => {
  if (path === CHECKPOINT_PATH) return text;
  const isFull = parseTilePath(path).width === TILE_WIDTH;
  const caching = isFull ? "public, max-age=31536000, immutable" : "no-cache";
  return { "content-type": "application/octet-stream", "cache-control": caching };
};

/** Rejects with AddressUnavailable when it cannot listen there. `port` 0: a free one. */
export const openTileServer = async (
  files: ShardFiles,
  listen: { readonly host: string; readonly port: number },
  log: Pick<Log, "warn">,
): Promise<TileServer> => {
  const serve = async (whole: string, response: ServerResponse): Promise<void> => {
    const [, year, path = ""] = shardPath.exec(whole) ?? [];
    if (year === undefined) return refuse(response, 404, "each year is a log of its own: /YEAR/checkpoint");
    try {
      const bytes = await files(Number(year)).read(path);
      if (bytes) answer(response, 200, headersOf(path), bytes);
      else refuse(response, 404, "not in this log (yet)");
    } catch (error) {
      if (error instanceof NoteError) return void refuse(response, 404, error.message);
      log.warn({ err: error }, "a file of the ledger cannot be read");
      refuse(response, 503, "cannot be read now; try again", tryAgain);
    }
  };
  const place = openPlaces();
  const limits = {
    requestTimeout: requestLimitMs,
    keepAliveTimeout: idleLimitMs,
    connectionsCheckingInterval: checkEveryMs,
  };
  const server = createServer(limits, (request, response) => {
    request.resume();
    const { method = "", url = "", headers } = request;
    if (!isMeant(listen.host, headers.host)) return refuse(response, 421, "not under this name");
    if (method !== "GET" && method !== "HEAD")
      return refuse(response, 405, "this log is read with GET", { allow: "GET, HEAD" });
    // As it stands: a path of a log has nothing that could be written in two ways.
    place(response, () => serve(url.slice(1), response));
  });
  server.timeout = requestLimitMs;
  server.maxConnections = maxConnections;
  await new Promise<void>((resolve, reject) => {
    const failed = (error: NodeJS.ErrnoException) => {
      const why = error.code === "EADDRINUSE" ? "the port is taken" : error.code;
      reject(new AddressUnavailable(`cannot listen on ${listen.host}:${listen.port}: ${why}`, { cause: error }));
    };
    server.once("error", failed);
    server.listen(listen.port, listen.host, () => {
      server.off("error", failed);
      server.on("error", (err) => log.warn({ err }, "the ledger's server"));
      resolve();
    });
  });
  return {
    url: `http://${listen.host}:${(server.address() as AddressInfo).port}/`,
    close: () =>
      new Promise((resolve) => {
        server.close(() => resolve());
        server.closeAllConnections();
      }),
  };
};
