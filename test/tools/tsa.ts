import { execFile } from "node:child_process";
import { once } from "node:events";
import { mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { createServer } from "node:http";
import type { AddressInfo } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { promisify } from "node:util";

/** A time-stamp authority by `openssl ts`, and OpenSSL's own verdict on what it or another answered. */
export interface Tsa {
  /** PEM of the authority to which its certificate leads. */
  readonly caPem: string;
  readonly caFile: string;
  /** The DER of its answer to the DER of a query. */
  reply(query: Uint8Array): Promise<Buffer>;
  /** Whether OpenSSL accepts an answer to a query, and over data. */
  accepts(response: Uint8Array, over: { query: Uint8Array } | { data: Uint8Array }): Promise<boolean>;
  close(): void;
}

const run = promisify(execFile);

const settings = (more: string) => `[tsa]
default_tsa = tsa1
[tsa1]
serial = ./serial
signer_cert = ./tsa.pem
certs = ./ca.pem
signer_key = ./tsa.key
signer_digest = sha256
default_policy = 1.3.6.1.4.1.99999.1
digests = sha256, sha384, sha512
accuracy = secs:1
ordering = yes
tsa_name = yes
ess_cert_id_alg = sha256
${more}
`;

const ca = "basicConstraints=critical,CA:TRUE -addext keyUsage=critical,keyCertSign,cRLSign".split(" ");
const ec = "-newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes".split(" ");
const timestamps =
  "basicConstraints=critical,CA:FALSE\nkeyUsage=critical,digitalSignature\nextendedKeyUsage=critical,timeStamping\n";

/** `rsa`: of this kind of key; `config`: more of openssl's. */
export const openTsa = async (options: { rsa?: true; config?: string } = {}): Promise<Tsa> => {
  const dir = mkdtempSync(join(tmpdir(), "curfew-tsa-"));
  const file = (name: string) => join(dir, name);
  const openssl = (...args: string[]) => run("openssl", args, { cwd: dir });
  const key = options.rsa ? ["-newkey", "rsa:2048", "-nodes"] : ec;
  writeFileSync(file("tsa.cnf"), settings(options.config ?? ""));
  writeFileSync(file("ext"), timestamps);
  const subject = (name: string) => ["-subj", `/CN=${name}`];
  const addext = ["-addext", ...ca];
  await openssl(
    "req",
    "-x509",
    ...ec,
    "-keyout",
    "ca.key",
    "-out",
    "ca.pem",
    "-days",
    "3650",
    ...subject("Test CA"),
    ...addext,
  );
  await openssl("req", ...key, "-keyout", "tsa.key", "-out", "tsa.csr", ...subject("Test TSA"));
  const signed = ["-req", "-in", "tsa.csr", "-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial", "-days", "825"];
  await openssl("x509", ...signed, "-extfile", "ext", "-out", "tsa.pem");
  writeFileSync(file("serial"), "01\n");
  let calls = 0;
  const scratch = () => {
    calls += 1;
    const path = file(`call-${calls}`);
    mkdirSync(path);
    return (name: string, bytes?: Uint8Array) => {
      if (bytes) writeFileSync(join(path, name), bytes);
      return join(path, name);
    };
  };
  /** One at a time: openssl does not lock the file of its serial number. */
  let tail: Promise<unknown> = Promise.resolve();
  const inTurn = <T>(work: () => Promise<T>): Promise<T> => {
    const turn = tail.then(work);
    tail = turn.catch(() => undefined);
    return turn;
  };
  return {
    caPem: readFileSync(file("ca.pem"), "utf8"),
    caFile: file("ca.pem"),
    reply: (query) =>
      inTurn(async () => {
        const at = scratch();
        const config = ["-config", "tsa.cnf", "-section", "tsa1"];
        await openssl("ts", "-reply", ...config, "-queryfile", at("query", query), "-out", at("reply"));
        return readFileSync(at("reply"));
      }),
    async accepts(response, over) {
      const at = scratch();
      const what = "query" in over ? ["-queryfile", at("query", over.query)] : ["-data", at("data", over.data)];
      return openssl("ts", "-verify", ...what, "-in", at("reply", response), "-CAfile", "ca.pem").then(
        () => true,
        () => false,
      );
    },
    close: () => rmSync(dir, { recursive: true, force: true }),
  };
};

/** It over HTTP on loopback; `answer` may put something else in place of its answer. */
export const serveTsa = async (tsa: Tsa, answer: (reply: Buffer) => Buffer = (reply) => reply) => {
  let isUp = true;
  let asked = 0;
  const server = createServer(async (request, response) => {
    asked += 1;
    const parts: Buffer[] = [];
    for await (const part of request) parts.push(part as Buffer);
    if (!isUp) return void response.writeHead(503).end();
    if (request.method !== "POST" || request.headers["content-type"] !== "application/timestamp-query")
      return void response.writeHead(415).end();
    const reply = await tsa.reply(Buffer.concat(parts));
    response.writeHead(200, { "content-type": "application/timestamp-reply" }).end(answer(reply));
  });
  await once(server.listen(0, "127.0.0.1"), "listening");
  const host = `127.0.0.1:${(server.address() as AddressInfo).port}`;
  return {
    host,
    url: `http://${host}/`,
    asked: () => asked,
    down: () => {
      isUp = false;
    },
    up: () => {
      isUp = true;
    },
    close() {
      server.close();
      server.closeAllConnections();
    },
  };
};
