import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import type { AddressInfo } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { createServer, type Server, type TLSSocket } from "node:tls";
import { openMongoStore } from "@curfew/document-store/mongo.ts";
import type { DocumentStore } from "@curfew/document-store/port.ts";
import type { IssuedCertificate } from "@curfew/rpc/identity-authority.ts";
import { issue, newAuthority } from "@curfew/rpc/testing/harness.ts";
import { BSON } from "mongodb";
import { afterEach, beforeEach, expect, it } from "vitest";

/** Over real mutual TLS; of MongoDB's protocol no more than a client needs to connect and to ping: every question is answered "ok". */
const hello = { ok: 1, isWritablePrimary: true, maxWireVersion: 21, minWireVersion: 0, maxBsonObjectSize: 16_777_216 };
const opMsg = 2013;
const reply = (requestId: number): Buffer => {
  const body = BSON.serialize(hello);
  const head = Buffer.alloc(21);
  head.writeInt32LE(head.length + body.length, 0);
  head.writeInt32LE(requestId, 8);
  head.writeInt32LE(opMsg, 12);
  return Buffer.concat([head, body]);
};
const answer = (socket: TLSSocket) => {
  let waiting = Buffer.alloc(0);
  socket.on("data", (bytes) => {
    waiting = Buffer.concat([waiting, bytes]);
    while (waiting.length >= 16 && waiting.length >= waiting.readInt32LE(0)) {
      socket.write(reply(waiting.readInt32LE(4)));
      waiting = waiting.subarray(waiting.readInt32LE(0));
    }
  });
};

let dir: string;
let server: Server;
let store: DocumentStore;
let issueFor: (workload: string) => Promise<IssuedCertificate>;
const file = (name: string) => join(dir, `${name}.pem`);
const put = ({ certPem, keyPem }: IssuedCertificate) => {
  writeFileSync(file("cert"), certPem);
  writeFileSync(file("key"), keyPem);
};
const sockets = new Set<TLSSocket>();
const cutAll = () => {
  for (const socket of sockets) socket.destroy();
};
/** Who connected, by the names in their certificates. */
const connected: string[] = [];

beforeEach(async () => {
  dir = mkdtempSync(join(tmpdir(), "curfew-mongo-tls-"));
  const authority = await newAuthority();
  issueFor = (workload) => issue(authority, `/workload/${workload}`);
  const { certPem: cert, keyPem: key } = await issueFor("database");
  server = createServer({ ca: authority.certPem, cert, key, requestCert: true }, (socket) => {
    sockets.add(socket);
    socket.on("close", () => sockets.delete(socket));
    socket.on("error", () => undefined);
    connected.push(socket.getPeerCertificate().subjectaltname?.split("/").at(-1)?.split(",")[0] ?? "");
    answer(socket);
  });
  await new Promise<void>((resolve) => server.listen(0, "localhost", resolve));
  writeFileSync(file("ca"), authority.certPem);
  put(await issueFor("first"));
  const { port } = server.address() as AddressInfo;
  const tls = { ca: file("ca"), cert: file("cert"), key: file("key") };
  store = await openMongoStore({ url: `mongodb://localhost:${port}/?directConnection=true`, database: "d", tls });
});
afterEach(async () => {
  await store.close();
  cutAll();
  await new Promise((resolve) => server.close(resolve));
  rmSync(dir, { recursive: true });
  connected.length = 0;
});

/** Connects anew, whatever the driver's own connections were at. */
const reconnect = async () => {
  connected.length = 0;
  cutAll();
  await expect.poll(() => store.ping().then(() => connected.length), { timeout: 20_000 }).toBeGreaterThan(0);
  return new Set(connected);
};

it("a client that is connected takes a renewed certificate for its next connections", async () => {
  await store.ping();
  expect(new Set(connected)).toEqual(new Set(["first"]));
  put(await issueFor("second"));
  expect(await reconnect()).toEqual(new Set(["second"]));
});

it("while only half of the pair is renewed the one before stays in use", async () => {
  await store.ping();
  const second = await issueFor("second");
  writeFileSync(file("key"), second.keyPem);
  expect(await reconnect()).toEqual(new Set(["first"]));
  writeFileSync(file("key"), "");
  expect(await reconnect()).toEqual(new Set(["first"]));
  put(second);
  expect(await reconnect()).toEqual(new Set(["second"]));
});
