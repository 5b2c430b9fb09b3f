import "reflect-metadata";
import { webcrypto } from "node:crypto";
import { once } from "node:events";
import http from "node:http";
import https from "node:https";
import type { AddressInfo } from "node:net";
import * as x509 from "@peculiar/x509";
import { afterEach, beforeAll, expect, test } from "vitest";
import { systemClock } from "./clock.ts";
import { OutboundFailed, OutboundRefused, openOutbound, type Resolve } from "./outbound.ts";

const servers: http.Server[] = [];
afterEach(() => {
  for (const server of servers.splice(0)) {
    server.closeAllConnections();
    server.close();
  }
});

/** A real server on loopback; answers its port and the requests it has seen. */
const serve = async (handler: http.RequestListener, tls?: { key: string; cert: string }) => {
  const seen: { path: string; host: string; body: string }[] = [];
  const listener: http.RequestListener = async (request, response) => {
    const chunks: Buffer[] = [];
    for await (const chunk of request) chunks.push(chunk as Buffer);
    seen.push({ path: request.url ?? "", host: request.headers.host ?? "", body: Buffer.concat(chunks).toString() });
    handler(request, response);
  };
  const server = tls ? https.createServer(tls, listener) : http.createServer(listener);
  servers.push(server);
  server.listen(0, "127.0.0.1");
  await once(server, "listening");
  return { port: (server.address() as AddressInfo).port, seen };
};

const outbound = (allow: string[] = [], more: { resolve?: Resolve; ca?: string[]; maxBodyBytes?: number } = {}) =>
  openOutbound({ allow, clock: systemClock, ...more });
const hello = { headers: { "content-type": "text/plain" }, body: "hello" };
const ok: http.RequestListener = (_request, response) => response.writeHead(204, { "x-answer": "yes" }).end();
const refused = (fn: Promise<unknown>) => expect(fn).rejects.toThrow(OutboundRefused);

let tls = { key: "", cert: "" };
beforeAll(async () => {
  const algorithm = { name: "ECDSA", namedCurve: "P-256", hash: "SHA-256" };
  const keys = (await webcrypto.subtle.generateKey(algorithm, true, ["sign", "verify"])) as webcrypto.CryptoKeyPair;
  const cert = await x509.X509CertificateGenerator.createSelfSigned({
    name: "CN=hooks.example",
    keys,
    signingAlgorithm: algorithm,
    notBefore: new Date(Date.now() - 60_000),
    notAfter: new Date(Date.now() + 3_600_000),
    extensions: [new x509.SubjectAlternativeNameExtension([{ type: "dns", value: "hooks.example" }])],
  });
  const pkcs8 = await webcrypto.subtle.exportKey("pkcs8", keys.privateKey);
  tls = { key: x509.PemConverter.encode(pkcs8, "PRIVATE KEY"), cert: cert.toString("pem") };
});

test("a listed loopback host is reached over http, with headers, body and answer intact", async () => {
  const { port, seen } = await serve((_request, response) =>
    response.writeHead(200, { "x-answer": "yes" }).end("done"),
  );
  const result = await outbound([`localhost:${port}`]).post(`http://localhost:${port}/hook?a=1`, hello);
  expect(result).toMatchObject({ ok: true, status: 200 });
  expect(result.headers["x-answer"]).toBe("yes");
  expect(result.body.toString()).toBe("done");
  expect(seen).toEqual([{ path: "/hook?a=1", host: `localhost:${port}`, body: "hello" }]);
});

test("other methods are called alike, and answers may be larger where that was asked for", async () => {
  const large = 2 * 1024 * 1024;
  const methods: unknown[] = [];
  const { port, seen } = await serve((request, response) => {
    methods.push(request.method);
    response.end(Buffer.alloc(large));
  });
  const client = outbound([`localhost:${port}`], { maxBodyBytes: large });
  const body = "x".repeat(large);
  for (const method of ["GET", "PUT", "DELETE"] as const) {
    const answer = await client.call(method, `http://localhost:${port}/`, {
      headers: {},
      body: method === "PUT" ? body : "",
    });
    expect(answer.body.length).toBe(large);
  }
  expect(methods).toEqual(["GET", "PUT", "DELETE"]);
  expect(seen.map((each) => each.body.length)).toEqual([0, large, 0]);
  await refused(client.call("PUT", `http://localhost:${port}/`, { headers: {}, body: `${body}x` }));
  const smaller = outbound([`localhost:${port}`], { maxBodyBytes: large - 1 });
  await expect(smaller.call("GET", `http://localhost:${port}/`, { headers: {}, body: "" })).rejects.toThrow(
    /larger than/,
  );
});

test("https checks the certificate against the name while connecting to the checked address", async () => {
  const { port, seen } = await serve(ok, tls);
  const resolve: Resolve = async () => ["127.0.0.1"];
  const allow = [`hooks.example:${port}`, `other.example:${port}`];
  const client = outbound(allow, { resolve, ca: [tls.cert] });
  expect((await client.post(`https://hooks.example:${port}/`, hello)).status).toBe(204);
  await expect(client.post(`https://other.example:${port}/`, hello)).rejects.toThrow(/ERR_TLS_CERT_ALTNAME_INVALID/);
  await expect(outbound(allow, { resolve }).post(`https://hooks.example:${port}/`, hello)).rejects.toThrow(
    OutboundFailed,
  );
  expect(seen).toHaveLength(1);
});

test("http, other schemes, users and passwords, and malformed URLs are refused before anything is sent", async () => {
  const { port, seen } = await serve(ok);
  const client = outbound([`localhost:${port}`], { resolve: async () => ["127.0.0.1"] });
  for (const url of [
    `http://127.0.0.1:${port}/`,
    "http://example.com/",
    `ftp://localhost:${port}/`,
    "file:///etc/passwd",
    "nonsense",
    "",
    `http://localhost:${port}/${"a".repeat(2048)}`,
  ])
    await refused(client.post(url, hello));
  const withUser = client.post(`http://root:hunter2@localhost:${port}/`, hello);
  await refused(withUser);
  await expect(withUser).rejects.not.toThrow(/hunter2/);
  expect(seen).toEqual([]);
});

test.each([
  "127.0.0.1",
  "127.1",
  "2130706433",
  "0x7f000001",
  "0x7f.1",
  "017700000001",
  "0177.0.0.1",
  "①②⑦.0.0.1",
  "0.0.0.0",
  "10.0.0.1",
  "172.16.0.1",
  "192.168.1.1",
  "169.254.169.254",
  "100.64.0.1",
  "224.0.0.1",
  "255.255.255.255",
  "198.18.0.1",
  "192.88.99.1",
  "[::]",
  "[::1]",
  "[::127.0.0.1]",
  "[::ffff:127.0.0.1]",
  "[::ffff:8.8.8.8]",
  "[fe80::1]",
  "[fc00::1]",
  "[fec0::1]",
  "[ff02::1]",
  "[64:ff9b::7f00:1]",
  "[64:ff9b:1::7f00:1]",
  "[2002:7f00:1::]",
  "[2001:0:1::1]",
  "[4000::1]",
])("the address %s is refused", async (host) => {
  const client = openOutbound({ allow: [], clock: systemClock, resolve: async () => ["93.184.215.14"] });
  await refused(client.post(`https://${host}/`, hello));
});

test.each([
  ["a private one beside a public one", ["93.184.215.14", "10.0.0.1"]],
  ["a mapped one", ["::ffff:10.0.0.1"]],
  ["one that is no address", ["localhost"]],
  ["one with a zone", ["fe80::1%eth0"]],
])("a name with %s is refused", async (_what, addresses) => {
  await refused(outbound([], { resolve: async () => addresses }).post("https://hooks.example/", hello));
});

test("a listing opens private addresses, but http only on loopback, and link-local addresses never", async () => {
  const at = (address: string) =>
    outbound(["hooks.example:80", "hooks.example:443"], { resolve: async () => [address] });
  await refused(at("10.0.0.1").post("http://hooks.example/", hello));
  await refused(at("93.184.215.14").post("http://hooks.example/", hello));
  await refused(at("169.254.169.254").post("https://hooks.example/", hello));
  await refused(at("::ffff:127.0.0.1").post("http://hooks.example/", hello));
  await refused(at("10.0.0.1").post("https://hooks.example:8443/", hello));
  const { port, seen } = await serve(ok, tls);
  const listed = outbound([`HOOKS.example:${port}`], { resolve: async () => ["127.0.0.1"], ca: [tls.cert] });
  expect((await listed.post(`https://Hooks.Example:${port}/`, hello)).ok).toBe(true);
  expect(seen).toHaveLength(1);
});

test("a second DNS answer changes nothing: the checked address is the one connected to, and it is asked for once", async () => {
  const { port, seen } = await serve(ok);
  let asked = 0;
  const resolve: Resolve = async () => (asked++ === 0 ? ["127.0.0.1"] : ["169.254.169.254"]);
  const client = outbound([`rebind.example:${port}`], { resolve });
  expect((await client.post(`http://rebind.example:${port}/`, hello)).status).toBe(204);
  expect(asked).toBe(1);
  await refused(client.post(`http://rebind.example:${port}/`, hello));
  expect(seen).toHaveLength(1);
});

test("a redirect is a failure and is not followed", async () => {
  const there = await serve(ok);
  const here = await serve((_q, r) => r.writeHead(307, { location: `http://localhost:${there.port}/` }).end());
  const client = outbound([`localhost:${here.port}`, `localhost:${there.port}`]);
  expect(await client.post(`http://localhost:${here.port}/`, hello)).toMatchObject({ ok: false, status: 307 });
  expect(there.seen).toEqual([]);
});

test("an answer over 1 MB, one without end, and one that never comes are failures", async () => {
  const large = await serve((_q, r) => r.end(Buffer.alloc(1024 * 1024 + 1)));
  const endless = await serve((_q, r) => {
    const more = () => {
      while (r.write(Buffer.alloc(65_536)));
    };
    r.on("drain", more);
    more();
  });
  const exact = await serve((_q, r) => r.end(Buffer.alloc(1024 * 1024)));
  const silent = await serve(() => {});
  const trickle = await serve((_q, r) => r.writeHead(200).write("x"));
  const url = (s: { port: number }) => `http://localhost:${s.port}/services/hunter2`;
  const client = outbound([large, endless, exact, silent, trickle].map((s) => `localhost:${s.port}`));
  await expect(client.post(url(large), hello)).rejects.toThrow(/larger than/);
  await expect(client.post(url(endless), hello)).rejects.toThrow(/larger than/);
  expect((await client.post(url(exact), hello)).body.length).toBe(1024 * 1024);
  for (const slow of [silent, trickle]) {
    const call = client.post(url(slow), { ...hello, timeoutMs: 100 });
    await expect(call).rejects.toThrow(OutboundFailed);
    await expect(call).rejects.toThrow(/within 100 ms/);
    await expect(call).rejects.not.toThrow(/hunter2/);
  }
});

test("the limit of time holds for the resolver too, and a dead port is a failure", async () => {
  const hanging = outbound([], { resolve: () => new Promise(() => {}) });
  await expect(hanging.post("https://hooks.example/", { ...hello, timeoutMs: 20 })).rejects.toThrow(/within 20 ms/);
  const failing = outbound([], {
    resolve: async () => Promise.reject(Object.assign(new Error(), { code: "ENOTFOUND" })),
  });
  await expect(failing.post("https://hooks.example/", hello)).rejects.toThrow(/hooks.example:443: ENOTFOUND/);
  await expect(outbound([], { resolve: async () => [] }).post("https://hooks.example/", hello)).rejects.toThrow(
    OutboundFailed,
  );
  const { port } = await serve(ok);
  const [server] = servers.splice(0);
  await new Promise((resolve) => server?.close(resolve));
  await expect(outbound([`localhost:${port}`]).post(`http://localhost:${port}/`, hello)).rejects.toThrow(
    /ECONNREFUSED/,
  );
});

test("headers that would change the request's shape and bodies over 1 MB are refused", async () => {
  const { port, seen } = await serve(ok);
  const client = outbound([`localhost:${port}`]);
  const url = `http://localhost:${port}/`;
  for (const headers of [{ Host: "evil" }, { "transfer-encoding": "chunked" }, { x: "a\r\nb: c" }, { "a b": "c" }])
    await refused(client.post(url, { headers: headers as Record<string, string>, body: "" }));
  await refused(client.post(url, { headers: {}, body: Buffer.alloc(1024 * 1024 + 1) }));
  expect(seen).toEqual([]);
});
