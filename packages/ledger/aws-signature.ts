import { createHash, createHmac } from "node:crypto";

/** AWS Signature Version 4 in headers, as S3 and servers like it want it (Amazon S3 API reference, "Authenticating Requests"). Pure. */

export interface AwsCredentials {
  readonly accessKeyId: string;
  readonly secretAccessKey: string;
}

const sha256 = (data: string | Uint8Array) => createHash("sha256").update(data).digest("hex");
const hmac = (key: string | Uint8Array, data: string) => createHmac("sha256", key).update(data).digest();

/** A query whose parameters are in order and encoded as the signature wants them. */
const canonicalQuery = (url: URL) =>
  [...url.searchParams]
    .map(([name, value]) => `${encodeURIComponent(name)}=${encodeURIComponent(value)}`)
    .sort()
    .join("&");

/**
 * Headers to be sent: those given, and with them date, body hash and signature; `host` is signed as the URL has it and not among them.
 * Names are lower-case. The path has only characters that need no encoding.
 */
export const signedHeaders = (
  credentials: AwsCredentials,
  region: string,
  request: {
    readonly method: string;
    readonly url: string;
    readonly headers: Readonly<Record<string, string>>;
    readonly body: Uint8Array;
    readonly nowMs: number;
  },
): Record<string, string> => {
  const url = new URL(request.url);
  const date = `${new Date(request.nowMs).toISOString().slice(0, 19).replaceAll(/[-:]/g, "")}Z`;
  const bodyHash = sha256(request.body);
  const headers = { ...request.headers, "x-amz-content-sha256": bodyHash, "x-amz-date": date };
  const signed = Object.entries({ ...headers, host: url.host }).sort(([a], [b]) => (a < b ? -1 : 1));
  const names = signed.map(([name]) => name).join(";");
  const lines = signed.map(([name, value]) => `${name}:${value}\n`).join("");
  const canonical = [request.method, url.pathname, canonicalQuery(url), lines, names, bodyHash].join("\n");
  const scope = `${date.slice(0, 8)}/${region}/s3/aws4_request`;
  const text = ["AWS4-HMAC-SHA256", date, scope, sha256(canonical)].join("\n");
  const key = scope.split("/").reduce<string | Buffer>(hmac, `AWS4${credentials.secretAccessKey}`);
  const signature = hmac(key, text).toString("hex");
  const authorization = `AWS4-HMAC-SHA256 Credential=${credentials.accessKeyId}/${scope},SignedHeaders=${names},Signature=${signature}`;
  return { ...headers, authorization };
};
