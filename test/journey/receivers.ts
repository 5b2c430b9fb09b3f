import { createHmac, timingSafeEqual } from "node:crypto";
import { once } from "node:events";
import { createServer, type IncomingMessage } from "node:http";
import type { AddressInfo } from "node:net";
import type { IssuedCertificate } from "@curfew/rpc/identity-authority.ts";
import { SMTPServer } from "smtp-server";

/** Where pages arrive in a journey: a real SMTP server (STARTTLS) and a real HTTP server that checks Standard Webhooks signatures. */
export interface Receivers {
  readonly smtpPort: number;
  readonly webhookUrl: string;
  readonly webhookAddress: string;
  /** Whole messages, as they came. */
  readonly mails: string[];
  readonly webhooks: { id: string; body: string }[];
  close(): Promise<void>;
}

const readBody = async (request: IncomingMessage): Promise<string> => {
  const chunks: Buffer[] = [];
  for await (const chunk of request) chunks.push(chunk as Buffer);
  return Buffer.concat(chunks).toString("utf8");
};

/** `secret`: base64, without the `whsec_` prefix. */
const signed = (secret: string, request: IncomingMessage, body: string): boolean => {
  const [id, timestamp, signatures] = ["webhook-id", "webhook-timestamp", "webhook-signature"].map((n) =>
    String(request.headers[n]),
  );
  const wanted = createHmac("sha256", Buffer.from(secret, "base64")).update(`${id}.${timestamp}.${body}`).digest();
  return (signatures ?? "").split(" ").some((each) => {
    const given = Buffer.from(each.replace(/^v1,/, ""), "base64");
    return given.length === wanted.length && timingSafeEqual(given, wanted);
  });
};

export const openReceivers = async (certificate: IssuedCertificate, webhookSecret: string): Promise<Receivers> => {
  const mails: string[] = [];
  const webhooks: { id: string; body: string }[] = [];
  const smtp = new SMTPServer({
    key: certificate.keyPem,
    cert: certificate.certPem,
    authOptional: true,
    disabledCommands: ["AUTH"],
    logger: false,
    onData(stream, _session, done) {
      const chunks: Buffer[] = [];
      stream.on("data", (chunk: Buffer) => chunks.push(chunk));
      stream.on("end", () => {
        mails.push(Buffer.concat(chunks).toString("utf8"));
        done();
      });
    },
  });
  smtp.on("error", () => undefined); // a client that breaks off is the client's matter
  const smtpServer = smtp.listen(0, "127.0.0.1");
  await once(smtpServer, "listening");
  const http = createServer((request, response) => {
    void readBody(request).then((body) => {
      const good = signed(webhookSecret, request, body);
      if (good) webhooks.push({ id: String(request.headers["webhook-id"]), body });
      response.writeHead(good ? 204 : 401).end();
    });
  });
  http.listen(0, "127.0.0.1");
  await once(http, "listening");
  const webhookAddress = `127.0.0.1:${(http.address() as AddressInfo).port}`;
  return {
    smtpPort: (smtpServer.address() as AddressInfo).port,
    webhookUrl: `http://${webhookAddress}/page`,
    webhookAddress,
    mails,
    webhooks,
    async close() {
      http.closeAllConnections();
      http.close();
      await new Promise<void>((resolve) => smtp.close(() => resolve()));
    },
  };
};
