import { createHash } from "node:crypto";
import { once } from "node:events";
import { type AddressInfo, createServer, connect as dial } from "node:net";
import { type BatchDoc, emptyHead, type LedgerHead } from "@curfew/auditor/domain.ts";
import { publishTiles } from "@curfew/auditor/public-log/tile-log.ts";
import { openTileServer } from "@curfew/auditor/public-log/tile-server.ts";
import { clock, growBy, quiet, seal, shard, verifierKey } from "@curfew/auditor/testing/rig.ts";
import { signedHeaders } from "@curfew/ledger/aws-signature.ts";
import { type Bucket, maxBucketBytes, openBucket } from "@curfew/ledger/bucket.ts";
import { logFilesContract } from "@curfew/ledger/contract.ts";
import type { LogFiles } from "@curfew/ledger/directory.ts";
import { openOutbound } from "@curfew/runtime/outbound.ts";
import { memoryStore } from "@curfew/simulation/memory-store.ts";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { type S3Server, startS3 } from "../tools/s3.ts";
import { fsck, policyOf, tlogcheck } from "../tools/tools.ts";

/** The ledger's files in a bucket of a real S3-speaking server, over TLS. */

let s3: S3Server;
beforeAll(async () => {
  s3 = await startS3();
}, 600_000);
afterAll(async () => s3?.stop());

const retainMs = 3_600_000;
let buckets = 0;
const newBucket = (lock = true) => {
  buckets += 1;
  return s3.makeBucket(`ledger-${buckets}`, { lock });
};
const outboundTo = (port: number) =>
  openOutbound({ allow: [`localhost:${port}`], clock, ca: [s3.caPem], maxBodyBytes: maxBucketBytes });
const settings = (url: string): Bucket => ({ url, region: s3.region, credentials: s3.credentials, retainMs });
const open = (url: string, more: Partial<Bucket> = {}) =>
  openBucket({ ...settings(url), ...more }, { outbound: outboundTo(Number(new URL(url).port)), clock });
const bytes = (text: string) => Buffer.from(text);

/** A request of its own making, as an administrator of the bucket could send. */
const ask = (method: "GET" | "PUT" | "DELETE", url: string, headers: Record<string, string> = {}, body = bytes("")) =>
  outboundTo(s3.port).call(method, url, {
    headers: signedHeaders(s3.credentials, s3.region, { method, url, headers, body, nowMs: clock.now() }),
    body,
  });

logFilesContract("a bucket", async () => {
  const url = await newBucket();
  return { files: open(url), again: () => open(url) };
});
logFilesContract("a folder in a bucket", async () => {
  const url = `${await newBucket()}/ledger/2026`;
  return { files: open(url), again: () => open(url) };
});

describe("a full tile in a bucket", () => {
  const path = "tile/0/000";
  const versionsOf = async (bucket: string) => {
    const { body } = await ask("GET", `${bucket}?versions=`);
    return [...body.toString().matchAll(/<VersionId>([^<]+)<\/VersionId>/g)].map((found) => found[1] ?? "");
  };

  it("is created by one of many writers, and never replaced", async () => {
    const url = await newBucket();
    const writers = Array.from({ length: 12 }, (_, n) => open(url).write([{ path, bytes: bytes(`writer ${n}`) }]));
    const ended = await Promise.allSettled(writers);
    const winners = ended.flatMap(({ status }, n) => (status === "fulfilled" ? [n] : []));
    expect(winners).toHaveLength(1);
    for (const end of ended)
      if (end.status === "rejected") expect(String(end.reason)).toContain("it is there with other bytes");
    expect(await open(url).read(path)).toEqual(bytes(`writer ${winners[0]}`));
    expect(await versionsOf(url)).toHaveLength(1);
  });

  it("cannot be deleted by anybody before its time, nor its time be shortened", async () => {
    const url = await newBucket();
    await open(url).write([{ path, bytes: bytes("kept") }]);
    const [version = ""] = await versionsOf(url);
    const kept = `${url}/${path}?versionId=${version}`;
    for (const headers of [{}, { "x-amz-bypass-governance-retention": "true" }])
      expect((await ask("DELETE", kept, headers as Record<string, string>)).status).toBe(403);
    const keepUntil = (untilMs: number) => {
      const until = new Date(untilMs).toISOString();
      const text = `<Retention xmlns="http://s3.amazonaws.com/doc/2006-03-01/"><Mode>COMPLIANCE</Mode><RetainUntilDate>${until}</RetainUntilDate></Retention>`;
      const md5 = createHash("md5").update(text).digest("base64");
      return ask("PUT", `${url}/${path}?retention=&versionId=${version}`, { "content-md5": md5 }, bytes(text));
    };
    expect((await keepUntil(clock.now() + 1_000)).status).toBe(403);
    expect((await keepUntil(clock.now() + 2 * retainMs)).status).toBe(200);
    // What can be done is a newer version, or a mark that it is gone; the one that was sealed is still there.
    await ask("PUT", `${url}/${path}`, {}, bytes("forged"));
    await ask("DELETE", `${url}/${path}`);
    expect((await ask("GET", kept)).body).toEqual(bytes("kept"));
  });

  it("can be deleted where it was never locked: the control", async () => {
    const url = await newBucket();
    await open(url).write([{ path: "tile/0/000.p/7", bytes: bytes("partial") }]);
    const [version = ""] = await versionsOf(url);
    expect((await ask("DELETE", `${url}/tile/0/000.p/7?versionId=${version}`)).status).toBe(204);
    expect(await versionsOf(url)).toEqual([]);
  });

  it("is not written to a bucket without Object Lock, nor with a wrong key, nor to a bucket that is not there", async () => {
    const file = { path, bytes: bytes("x") };
    await expect(open(await newBucket(false)).write([file])).rejects.toThrow(
      /PUT tile\/0\/000: the store answered 400/,
    );
    const url = await newBucket();
    const credentials = { ...s3.credentials, secretAccessKey: "wrong" };
    await expect(open(url, { credentials }).write([file])).rejects.toThrow("403 SignatureDoesNotMatch");
    await expect(open(url, { credentials }).read(path)).rejects.toThrow("403 SignatureDoesNotMatch");
    await expect(open(`${s3.url}/no-such-bucket`).read(path)).rejects.toThrow("404 NoSuchBucket");
  });
});

/**
 * A link to the server that breaks connection `n` at a moment of its choosing: before anything reaches the server, or after the server has
 * answered and before the answer is passed on. Each request has a connection of its own.
 */
const openLink = async (fate: (n: number) => "pass" | "lost" | "unacknowledged") => {
  let n = 0;
  const server = createServer((client) => {
    n += 1;
    const what = fate(n);
    if (what === "lost") return client.destroy();
    const upstream = dial(s3.port, "127.0.0.1");
    let asked = 0;
    client.on("data", (chunk: Buffer) => {
      asked += chunk.length;
      upstream.write(chunk);
    });
    upstream.on("data", (chunk: Buffer) => {
      // The handshake passes; what comes once the request was sent is its answer.
      if (what === "unacknowledged" && asked > 1_500) return client.destroy();
      client.write(chunk);
    });
    for (const [one, other] of [
      [client, upstream],
      [upstream, client],
    ] as const) {
      one.on("error", () => other.destroy());
      one.on("close", () => other.destroy());
    }
    return undefined;
  });
  server.listen(0, "127.0.0.1");
  await once(server, "listening");
  return {
    port: (server.address() as AddressInfo).port,
    connections: () => n,
    async close() {
      server.close();
      await once(server, "close");
    },
  };
};

describe("the ledger in a bucket", () => {
  const bound = { timeout: 120_000, interval: 20 };
  const openBatches = () => memoryStore().collection<BatchDoc>("batches");
  let head: LedgerHead = emptyHead;
  let batches: Awaited<ReturnType<typeof openBatches>>;
  const sizeIn = async (files: LogFiles) => {
    const note = await files.read("checkpoint").catch(() => undefined);
    return note ? seal.open(shard, Buffer.from(note).toString()).size : -1;
  };
  /** Publishes everything that is staged. */
  const publish = async (to: LogFiles, seenBy = to) => {
    const stop = new AbortController();
    const latest = () => head.batch;
    const done = publishTiles({ files: () => to, batches, latest, seal, clock, log: quiet }, stop.signal);
    await expect.poll(() => sizeIn(seenBy), bound).toBe(head.size);
    stop.abort();
    await done;
  };
  const assertSound = async (files: LogFiles) => {
    const tree = { size: head.size, root: Buffer.from(head.frontier.root()).toString("base64") };
    const server = await openTileServer(() => files, { host: "localhost", port: 0 }, quiet);
    const logUrl = `${server.url}${shard.year}/`;
    try {
      expect(await fsck(logUrl, verifierKey, tree)).toMatchObject({ sound: true });
      expect(await tlogcheck.log(logUrl, policyOf(verifierKey), tree)).toMatchObject({ sound: true });
    } finally {
      await server.close();
    }
  };

  it("is a log that others accept, as it grows", async () => {
    [head, batches] = [emptyHead, await openBatches()];
    const files = open(await newBucket());
    for (const size of [1, 255, 256, 257, 700]) {
      head = await growBy(batches, head, size - head.size);
      await publish(files);
      await assertSound(files);
    }
  });

  it("is whole after any one request was lost, or done and reported lost", async () => {
    const fates = ["lost", "unacknowledged"] as const;
    for (const fate of fates)
      for (let at = 1, over = false; !over; at += 1) {
        [head, batches] = [emptyHead, await openBatches()];
        for (const size of [255, 258]) head = await growBy(batches, head, size - head.size);
        const url = await newBucket();
        const link = await openLink((n) => (n === at ? fate : "pass"));
        const through = open(url.replace(String(s3.port), String(link.port)));
        await publish(through, open(url));
        over = link.connections() < at;
        await link.close();
        if (at % 5 === 1 || over) await assertSound(open(url));
        expect(Buffer.from((await open(url).read("tile/0/000")) ?? []).length).toBe(8192);
      }
  }, 600_000);

  it("is whole after the server was killed in the middle", async () => {
    [head, batches] = [emptyHead, await openBatches()];
    head = await growBy(batches, head, 300);
    const files = open(await newBucket());
    let writes = 0;
    const killing: LogFiles = {
      read: files.read,
      async write(each) {
        writes += 1;
        if (writes !== 2) return files.write(each);
        const writing = files.write(each);
        writing.catch(() => undefined);
        await s3.restart();
        return writing;
      },
    };
    await publish(killing, files);
    await assertSound(files);
  });
});
