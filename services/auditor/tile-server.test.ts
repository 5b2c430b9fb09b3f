import { once } from "node:events";
import { connect } from "node:net";
import type { LogFiles } from "@curfew/ledger/directory.ts";
import { parseTilePath } from "@curfew/ledger/tile.ts";
import { afterEach, beforeEach, expect, it } from "vitest";
import { quiet } from "./testing/rig.ts";
import { openTileServer, type TileServer } from "./tile-server.ts";

const held = new Map<string, string>([
  ["checkpoint", "origin\n0\n"],
  ["tile/0/000", "full"],
  ["tile/0/001.p/3", "partial"],
]);
let failing: boolean = false;
const files: Pick<LogFiles, "read"> = {
  async read(path) {
    if (failing) throw new Error("disk /secret/place");
    if (path !== "checkpoint") parseTilePath(path);
    const text = held.get(path);
    return text === undefined ? undefined : Buffer.from(text);
  },
};
let server: TileServer;
beforeEach(async () => {
  failing = false;
  server = await openTileServer(files, { host: "localhost", port: 0 }, quiet);
});
afterEach(() => server.close());

const get = async (path: string, init: RequestInit = {}) => {
  const response = await fetch(new URL(path, server.url), init);
  return { status: response.status, caching: response.headers.get("cache-control"), body: await response.text() };
};

it("serves checkpoint and tiles, each with the caching that it allows", async () => {
  expect(await get("checkpoint")).toEqual({ status: 200, caching: "no-store", body: "origin\n0\n" });
  expect(await get("tile/0/000")).toEqual({
    status: 200,
    caching: "public, max-age=31536000, immutable",
    body: "full",
  });
  expect(await get("tile/0/001.p/3")).toEqual({ status: 200, caching: "no-cache", body: "partial" });
  expect(await get("tile/0/000", { method: "HEAD" })).toMatchObject({ status: 200, body: "" });
});

it.each(["", "tile/0/002", "tile/0/1", "checkpoint?x", "seal/0000000001", "..%2f..%2fetc/passwd"])(
  "%j is not there",
  async (path) => expect(await get(path)).toMatchObject({ status: 404, caching: "no-store" }),
);

it.each(["POST", "PUT", "DELETE", "OPTIONS"])("%s is refused", async (method) => {
  expect(await get("checkpoint", { method })).toMatchObject({ status: 405, body: "this log is read with GET\n" });
});

it("a path outside of the log is not there, however it is written", async () => {
  const socket = connect(Number(new URL(server.url).port), "localhost");
  socket.write("GET /tile/../../../etc/passwd HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n");
  const chunks: Buffer[] = [];
  socket.on("data", (chunk: Buffer) => chunks.push(chunk));
  await once(socket, "close");
  expect(Buffer.concat(chunks).toString()).toMatch(/^HTTP\/1\.1 404 /);
});

it("what cannot be read now is 503, without a word of why", async () => {
  failing = true;
  expect(await get("checkpoint")).toEqual({
    status: 503,
    caching: "no-store",
    body: "cannot be read now; try again\n",
  });
});

it("does not open on a port that is taken", async () => {
  const port = Number(new URL(server.url).port);
  await expect(openTileServer(files, { host: "localhost", port }, quiet)).rejects.toMatchObject({
    name: "AddressUnavailable",
    message: `cannot listen on localhost:${port}: the port is taken`,
  });
});
