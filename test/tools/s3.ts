import { mkdirSync, mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { freePort, openServerProcess, type ServerProcess } from "@curfew/deploy/dev/server-process.ts";
import { type AwsCredentials, signedHeaders } from "@curfew/ledger/aws-signature.ts";
import { createAuthority, issueCertificate } from "@curfew/rpc/identity-authority.ts";
import { systemClock } from "@curfew/runtime/clock.ts";
import { openOutbound } from "@curfew/runtime/outbound.ts";
import { builtTools } from "./tools.ts";

/**
 * Versity's S3 gateway over a folder: of the S3 servers that can be built here the one that has conditional writes and Object Lock. It
 * keeps an object's attributes in those of its file.
 */
export interface S3Server {
  readonly port: number;
  /** `https://localhost:<port>` */
  readonly url: string;
  readonly caPem: string;
  readonly region: string;
  readonly credentials: AwsCredentials;
  /** Makes a bucket, with Object Lock or without; answers its URL. */
  makeBucket(name: string, options?: { readonly lock: boolean }): Promise<string>;
  /** SIGKILL. */
  kill(): Promise<void>;
  restart(): Promise<void>;
  stop(): Promise<void>;
}

const region = "us-east-1";
const credentials: AwsCredentials = { accessKeyId: "test-key", secretAccessKey: "test-secret" };

export const startS3 = async (): Promise<S3Server> => {
  const program = join(await builtTools("versitygw"), "versitygw");
  const dir = mkdtempSync(join(tmpdir(), "curfew-s3-"));
  const file = (name: string, text: string) => {
    writeFileSync(join(dir, name), text, { mode: 0o600 });
    return join(dir, name);
  };
  for (const name of ["data", "versions"]) mkdirSync(join(dir, name));
  const authority = await createAuthority({ trustDomain: "test.example", clock: systemClock });
  const request = { spiffePath: "/service/s3", commonName: "s3", validMs: 3_600_000, dnsNames: ["localhost"] };
  const { certPem, keyPem } = await issueCertificate(authority, request);
  const port = await freePort();
  const tls = ["--cert", file("cert.pem", certPem), "--key", file("key.pem", keyPem)];
  const keys = [
    `ROOT_ACCESS_KEY=${credentials.accessKeyId}`,
    `ROOT_SECRET_KEY=${credentials.secretAccessKey}`,
    `VGW_REGION=${region}`,
  ];
  const folders = ["--versioning-dir", join(dir, "versions"), join(dir, "data")];
  const command = ["env", ...keys, program, "--port", `127.0.0.1:${port}`, "--quiet", ...tls, "posix", ...folders];
  const open = () => openServerProcess({ command, port, logFile: join(dir, "log"), goodCodes: [0] });
  let server: ServerProcess = await open();
  const url = `https://localhost:${port}`;
  const outbound = openOutbound({ allow: [`localhost:${port}`], clock: systemClock, ca: [authority.certPem] });
  return {
    port,
    url,
    caPem: authority.certPem,
    region,
    credentials,
    async makeBucket(name, { lock } = { lock: true }) {
      const given = { "x-amz-bucket-object-lock-enabled": String(lock) };
      const target = { method: "PUT", url: `${url}/${name}`, headers: given, body: Buffer.alloc(0) };
      const headers = signedHeaders(credentials, region, { ...target, nowMs: systemClock.now() });
      const answer = await outbound.call("PUT", target.url, { headers, body: target.body });
      if (!answer.ok) throw new Error(`no bucket ${name}: ${answer.status} ${answer.body.toString()}`);
      return target.url;
    },
    kill: () => server.kill(),
    async restart() {
      await server.kill();
      server = await open();
    },
    async stop() {
      await server.stop();
      rmSync(dir, { recursive: true, force: true });
    },
  };
};
