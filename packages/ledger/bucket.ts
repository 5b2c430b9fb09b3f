import { createHash } from "node:crypto";
import { type Outbound, OutboundFailed, type OutboundResult } from "@curfew/runtime/outbound.ts";
import { type AwsCredentials, signedHeaders } from "./aws-signature.ts";
import { CHECKPOINT_PATH, type LogFiles } from "./directory.ts";
import { MAX_ENTRY_BYTES } from "./hash.ts";
import { parseTilePath, TILE_WIDTH } from "./tile.ts";
import type { TileFile } from "./tile-writer.ts";

/**
 * The files in a bucket of an S3-compatible store. Full tiles and bundles never change: each is created once (`If-None-Match: *`) and kept
 * under Object Lock in COMPLIANCE mode, so that nobody can remove that version before its time. The checkpoint and partial tiles are
 * replaced, each version whole. The bucket must have been made with Object Lock; the store must know both headers.
 */

export interface Bucket {
  /** https://host[:port]/bucket[/prefix]: the bucket in the path, without a slash at the end. */
  readonly url: string;
  readonly region: string;
  readonly credentials: AwsCredentials;
  /** How long full tiles and bundles cannot be deleted, from when they are written. */
  readonly retainMs: number;
}

/** The largest entry bundle, and what else an answer may be. */
export const maxBucketBytes = TILE_WIDTH * (MAX_ENTRY_BYTES + 2) + 4096;
const maxListed = 1_000;

const errorCode = ({ body }: OutboundResult) => /<Code>([A-Za-z]{1,64})<\/Code>/.exec(body.toString())?.[1] ?? "";

/** The store answered, and did not do what was asked. */
export class BucketRefused extends Error {
  override name = "BucketRefused";
}

const assertDone = (what: string, answer: OutboundResult): void => {
  if (answer.ok) return;
  const said = `${what}: the store answered ${answer.status} ${errorCode(answer)}`;
  throw answer.status >= 500 ? new OutboundFailed(said) : new BucketRefused(said);
};

const isFull = (path: string) => path !== CHECKPOINT_PATH && parseTilePath(path).width === TILE_WIDTH;

export const openBucket = (
  { url, region, credentials, retainMs }: Bucket,
  { outbound, clock }: { readonly outbound: Outbound; readonly clock: { now(): number } },
): LogFiles => {
  const { pathname, origin } = new URL(url);
  if (!/^(\/[A-Za-z0-9._-]+)+$/.test(pathname))
    throw new RangeError(
      "the URL of a bucket names it in its path, and has no other characters than A-Z a-z 0-9 . _ - /",
    );
  const [, bucket = "", ...prefix] = pathname.split("/");

  const call = (method: "GET" | "PUT" | "DELETE", target: string, headers = {}, body: Uint8Array = Buffer.alloc(0)) =>
    outbound.call(method, target, {
      headers: signedHeaders(credentials, region, { method, url: target, headers, body, nowMs: clock.now() }),
      body,
    });

  const read = async (path: string): Promise<Uint8Array | undefined> => {
    if (path !== CHECKPOINT_PATH) parseTilePath(path);
    const answer = await call("GET", `${url}/${path}`);
    if (answer.status === 404 && errorCode(answer) === "NoSuchKey") return undefined;
    assertDone(`GET ${path}`, answer);
    return answer.body;
  };

  const put = async ({ path, bytes }: TileFile): Promise<void> => {
    const checksum = {
      "x-amz-sdk-checksum-algorithm": "SHA256",
      "x-amz-checksum-sha256": createHash("sha256").update(bytes).digest("base64"),
    };
    if (!isFull(path)) return assertDone(`PUT ${path}`, await call("PUT", `${url}/${path}`, checksum, bytes));
    const until = new Date(clock.now() + retainMs).toISOString();
    const lock = { "x-amz-object-lock-mode": "COMPLIANCE", "x-amz-object-lock-retain-until-date": until };
    const answer = await call("PUT", `${url}/${path}`, { ...checksum, ...lock, "if-none-match": "*" }, bytes);
    if (answer.status !== 412) return assertDone(`PUT ${path}`, answer);
    // There already: by a writer like this one, or by this one, whose answer was lost.
    const there = await read(path);
    if (!there || Buffer.compare(there, bytes) !== 0)
      throw new BucketRefused(`PUT ${path}: it is there with other bytes, and never changes`);
  };

  /** A tile has 255 at most, so one answer lists them all. */
  const removePartials = async (path: string): Promise<void> => {
    const folder = [...prefix, `${path}.p/`].join("/");
    const query = new URLSearchParams({ "list-type": "2", "max-keys": String(maxListed), prefix: folder });
    const answer = await call("GET", `${origin}/${bucket}?${query}`);
    assertDone(`GET ${path}.p/`, answer);
    for (const [, key = ""] of answer.body.toString().matchAll(/<Key>([A-Za-z0-9._/-]{1,1024})<\/Key>/g))
      if (key.startsWith(folder)) assertDone(`DELETE ${key}`, await call("DELETE", `${origin}/${bucket}/${key}`));
  };

  return {
    read,
    async write(files) {
      for (const file of files) await put(file);
      for (const { path } of files) if (isFull(path)) await removePartials(path);
    },
  };
};
