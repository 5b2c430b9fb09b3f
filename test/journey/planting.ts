import { createHash, createHmac, randomUUID } from "node:crypto";
import { writeFileSync } from "node:fs";
import { join } from "node:path";
import { deflateSync, gzipSync, zstdCompressSync } from "node:zlib";
import { IssuerService } from "@curfew/contracts/gen/curfew/issuer/v1/issuer_pb.ts";
import { span, withSpan } from "@curfew/runtime/telemetry.ts";
import { createTransport } from "nodemailer";
import type { Finding } from "./canary.ts";
import type { Stage } from "./stage.ts";

/** The control run of the canary: a secret, in one form or another, in each place that it claims to look at. */

const policyWith = (text: string) => `
# ${text}
rules:
  - name: nobody
    subjects: [workload/nobody]
    scopes: [nothing:read]
    resources: [nothing]
    audiences: [invoices]
    purposes: [none]
`;

const sendMail = async ({ receivers, cast }: Stage, text: string) => {
  const transport = createTransport({ host: "localhost", port: receivers.smtpPort, tls: { ca: cast.caPem() } });
  await transport.sendMail({ from: "a@acme.example", to: "b@acme.example", subject: "control", text });
  transport.close();
};

const sendWebhook = async ({ receivers, webhookSecret }: Stage, body: string) => {
  const [id, at] = ["msg_control", String(Math.floor(Date.now() / 1000))];
  const mac = createHmac("sha256", Buffer.from(webhookSecret, "base64")).update(`${id}.${at}.${body}`).digest("base64");
  const headers = { "webhook-id": id, "webhook-timestamp": at, "webhook-signature": `v1,${mac}` };
  const response = await fetch(receivers.webhookUrl, { method: "POST", headers, body });
  if (!response.ok) throw new Error(`the receiver answered ${response.status}`);
};

/**
 * A policy's comment is published and stored as it was written, so the secret comes to the topic and the database as anything does; in
 * base64, since requests that hold a secret itself are refused.
 */
export const plantEverywhere = async (stage: Stage, secret: string, options: { readonly spans: boolean }) => {
  const sha256 = createHash("sha256").update(secret).digest();
  const admin = stage.cast.client(IssuerService, "issuer", "person/ada");
  await admin.publishPolicy({
    requestId: randomUUID(),
    policy: "control",
    document: policyWith(Buffer.from(secret).toString("base64")),
  });
  const stray = (name: string, content: string | Uint8Array) => writeFileSync(join(stage.dataDir, name), content);
  stray("stray.txt", `password=${secret}\n`);
  stray("stray.bin", Buffer.concat([Buffer.alloc(100, 7), sha256]));
  const padding = "x".repeat(10_000);
  for (const [name, compress] of Object.entries({ gz: gzipSync, zz: deflateSync, zst: zstdCompressSync }))
    stray(`stray.${name}`, Buffer.concat([Buffer.from("batch"), compress(padding + secret), Buffer.from(padding)]));
  stray("stray.nested", gzipSync(zstdCompressSync(padding + secret)));
  stage.log.debug({ note: { deep: secret } }, "control");
  stage.log.error({ err: new Error(Buffer.from(secret).toString("base64")) }, "control");
  if (options.spans) withSpan(span.command("Control"), { "curfew.control": sha256.toString("hex") }, () => undefined);
  await sendMail(stage, `look: ${secret}`);
  await sendWebhook(stage, JSON.stringify({ secret }));
  await stage.curfew(sha256.toString("hex")); // which answers that there is no such command
};

/** Where the canary must have found it: the kind, and what the place must be called. */
export const plantedPlaces = (found: readonly Finding[]) => {
  const has = (kind: string, where: RegExp) => found.some((one) => one.kind === kind && where.test(one.where));
  const stray = ["txt", "bin", "gz", "zz", "zst", "nested"];
  return {
    topic: has("record", /^curfew\.tokens\.v1\/0@\d+$/),
    document: has("row", /issuer/),
    files: stray.filter((name) => has("file", RegExp(`/stray\\.${name}$`))),
    "log lines": new Set(found.flatMap(({ kind, where }) => (kind === "log line" ? [where] : []))).size,
    span: has("span", /./),
    mail: has("mail", /./),
    webhook: has("webhook", /./),
    printed: has("printed", /./),
  };
};
export const everyPlace = {
  topic: true,
  document: true,
  files: ["txt", "bin", "gz", "zz", "zst", "nested"],
  "log lines": 2,
  span: true,
  mail: true,
  webhook: true,
  printed: true,
};
