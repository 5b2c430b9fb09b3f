import { createServer, type ServerResponse } from "node:http";
import type { AddressInfo } from "node:net";
import { CHECKPOINT_PATH, type LogFiles } from "@curfew/ledger/directory.ts";
import { NoteError } from "@curfew/ledger/note-error.ts";
import { parseTilePath, TILE_WIDTH } from "@curfew/ledger/tile.ts";
import { AddressUnavailable } from "@curfew/rpc/server.ts";
import type { Log } from "@curfew/runtime/log.ts";

/**
 * The ledger's files over HTTP, read-only, for any client of c2sp.org/tlog-tiles. Plain HTTP and nobody is asked who he is: entries name
 * tokens, services and pseudonyms, so it listens on loopback, or stands behind a proxy that asks.
 */
export interface TileServer {
  /** `http://<host>:<port>/` */
  readonly url: string;
  close(): Promise<void>;
}

const maxConnections = 256;
const requestLimitMs = 10_000;
const idleLimitMs = 5_000;

const answer = (
  response: ServerResponse,
  status: number,
  headers: Record<string, string>,
  body?: Uint8Array | string,
) => response.writeHead(status, { "x-content-type-options": "nosniff", ...headers }).end(body);
const refuse = (response: ServerResponse, status: number, why: string, headers: Record<string, string> = {}) =>
  answer(
    response,
    status,
    { "content-type": "text/plain; charset=utf-8", "cache-control": "no-store", ...headers },
    `${why}\n`,
  );

/** A full tile is for ever; a partial one goes when it is full; the checkpoint is another one soon. */
const headersOf = (path: string): Record<string, string> => {
  if (path === CHECKPOINT_PATH) return { "content-type": "text/plain; charset=utf-8", "cache-control": "no-store" };
  const isFull = parseTilePath(path).width === TILE_WIDTH;
  const caching = isFull ? "public, max-age=31536000, immutable" : "no-cache";
  return { "content-type": "application/octet-stream", "cache-control": caching };
};

/** Rejects with AddressUnavailable when it cannot listen there. `port` 0: a free one. */
export const openTileServer = async (
  files: Pick<LogFiles, "read">,
  listen: { readonly host: string; readonly port: number },
  log: Pick<Log, "warn">,
): Promise<TileServer> => {
  const serve = async (path: string, response: ServerResponse): Promise<void> => {
    try {
      const bytes = await files.read(path);
      if (bytes) answer(response, 200, headersOf(path), bytes);
      else refuse(response, 404, "not in this log (yet)");
    } catch (error) {
      if (error instanceof NoteError) return void refuse(response, 404, error.message);
      log.warn({ err: error }, "a file of the ledger cannot be read");
      refuse(response, 503, "cannot be read now; try again", { "retry-after": "1" });
    }
  };
  const server = createServer(
    { requestTimeout: requestLimitMs, keepAliveTimeout: idleLimitMs },
    (request, response) => {
      request.resume();
      const { method = "", url = "" } = request;
      if (method !== "GET" && method !== "HEAD")
        return void refuse(response, 405, "this log is read with GET", { allow: "GET, HEAD" });
      // As it stands: a path of a log has nothing that could be written in two ways.
      void serve(url.slice(1), response);
    },
  );
  server.maxConnections = maxConnections;
  await new Promise<void>((resolve, reject) => {
    server.once("error", (error: NodeJS.ErrnoException) => {
      const why = error.code === "EADDRINUSE" ? "the port is taken" : error.code;
      reject(new AddressUnavailable(`cannot listen on ${listen.host}:${listen.port}: ${why}`, { cause: error }));
    });
    server.listen(listen.port, listen.host, resolve);
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
