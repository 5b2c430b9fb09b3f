import { once } from "node:events";
import { connect } from "node:net";
import type { LogFiles } from "@curfew/ledger/directory.ts";
import { parseTilePath } from "@curfew/ledger/tile.ts";
import { afterEach, beforeEach, expect, it } from "vitest";
import { quiet } from "../testing/rig.ts";
import { openTileServer, type TileServer } from "./tile-server.ts";

const held = new Map<string, string>([
  ["checkpoint", "origin\n0\n"],
  ["tile/0/000", "full"],
  ["tile/0/001.p/3", "partial"],
]);
let failing: boolean = false;
let reads: () => Promise<void> = async () => undefined;
const files: Pick<LogFiles, "read"> = {
  async read(path) {
    await reads();
    if (failing) throw new Error("disk /secret/place");
    if (path !== "checkpoint") parseTilePath(path);
    const text = held.get(path);
    return text === undefined ? undefined : Buffer.from(text);
  },
};
let server: TileServer;
beforeEach(async () => {
  failing = false;
  reads = async () => undefined;
  const none: LogFiles = { read: async () => undefined, write: async () => undefined };
  const of = (year: number): LogFiles => (year === 2026 ? { ...none, ...files } : none);
  server = await openTileServer(of, { host: "localhost", port: 0 }, quiet);
});
afterEach(() => server.close());

const get = async (path: string, init: RequestInit = {}) => {
  const response = await fetch(new URL(path, `${server.url}2026/`), init);
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

it.each([
  "",
  "/",
  "/checkpoint",
  "/2027/checkpoint",
  "/20260/checkpoint",
  "/2026",
  "tile/0/002",
  "tile/0/1",
  "checkpoint?x",
  "seal/0000000001",
  "..%2f..%2fetc/passwd",
])("%j is not there", async (path) => expect(await get(path)).toMatchObject({ status: 404, caching: "no-store" }));

it.each(["POST", "PUT", "DELETE", "OPTIONS"])("%s is refused", async (method) => {
  expect(await get("checkpoint", { method })).toMatchObject({ status: 405, body: "this log is read with GET\n" });
});

const raw = async (request: string): Promise<string> => {
  const socket = connect(Number(new URL(server.url).port), "localhost");
  socket.write(request);
  const chunks: Buffer[] = [];
  socket.on("data", (chunk: Buffer) => chunks.push(chunk));
  await once(socket, "close");
  return Buffer.concat(chunks).toString();
};

it("a page of a foreign name that leads here gets nothing", async () => {
  const answer = await raw("GET /2026/checkpoint HTTP/1.1\r\nhost: evil.example\r\nconnection: close\r\n\r\n");
  expect(answer).toMatch(/^HTTP\/1\.1 421 /);
  expect(answer).not.toContain("origin");
});

it("few files are read at once, however many are asked for, and all are answered", async () => {
  let reading = 0;
  let most = 0;
  reads = async () => {
    reading += 1;
    most = Math.max(most, reading);
    await new Promise((resolve) => setTimeout(resolve, 2));
    reading -= 1;
  };
  const one = "GET /2026/tile/0/000 HTTP/1.1\r\nhost: localhost\r\n";
  const answer = await raw(`${`${one}\r\n`.repeat(299)}${one}connection: close\r\n\r\n`);
  expect(answer.match(/HTTP\/1\.1 200 /g)).toHaveLength(300);
  expect(most).toBeLessThanOrEqual(8);
});

it("more than may wait are told to come again", async () => {
  const held = Promise.withResolvers<void>();
  reads = () => held.promise;
  const one = "GET /2026/tile/0/000 HTTP/1.1\r\nhost: localhost\r\n";
  const answered = raw(`${`${one}\r\n`.repeat(2_099)}${one}connection: close\r\n\r\n`);
  await new Promise((resolve) => setTimeout(resolve, 500));
  held.resolve();
  const answer = await answered;
  expect(answer.match(/HTTP\/1\.1 200 /g)?.length).toBeGreaterThanOrEqual(8);
  expect(answer.match(/HTTP\/1\.1 (200|503) /g)).toHaveLength(2_100);
});

it("a path outside of the log is not there, however it is written", async () => {
  const answer = await raw(
    "GET /2026/tile/../../../etc/passwd HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n",
  );
  expect(answer).toMatch(/^HTTP\/1\.1 404 /);
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
  await expect(
    openTileServer(() => ({ ...files, write: async () => undefined }), { host: "localhost", port }, quiet),
  ).rejects.toMatchObject({
    name: "AddressUnavailable",
    message: `cannot listen on localhost:${port}: the port is taken`,
  });
});
