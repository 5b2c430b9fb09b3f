import { createServer } from "node:http";
import type { AddressInfo } from "node:net";
import type { IssuedCertificate } from "@curfew/rpc/identity-authority.ts";
import { SMTPServer } from "smtp-server";

/** A mail as it came over the wire. */
export interface Mail {
  readonly from: string;
  readonly to: readonly string[];
  readonly secure: boolean;
  /** Unfolded, by lower-case name. */
  readonly headers: ReadonlyMap<string, string>;
  readonly text: string;
  readonly raw: string;
}

const listening = async (server: { listen: (port: number, host: string, done: () => void) => unknown }) =>
  await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve));

const parseMail = (raw: string): Pick<Mail, "headers" | "text"> => {
  const end = raw.indexOf("\r\n\r\n");
  const lines = raw
    .slice(0, end)
    .replace(/\r\n[ \t]+/g, " ")
    .split("\r\n");
  const headers = new Map(
    lines.map((line) => [line.slice(0, line.indexOf(":")).toLowerCase(), line.slice(line.indexOf(":") + 2)]),
  );
  // Quoted-printable (RFC 2045): soft line breaks, and ASCII by its number.
  const text = raw
    .slice(end + 4)
    .replace(/=\r\n/g, "")
    .replace(/=([0-9A-F]{2})/g, (_, hex: string) => String.fromCharCode(Number.parseInt(hex, 16)));
  return { headers, text };
};

/**
 * A real SMTP server on loopback, with STARTTLS where a certificate is given. `refuse` answers a status for the nth mail (from 1);
 * `beforeReply` is waited for between taking the nth mail and saying so.
 */
export const openMailbox = async (
  o: {
    certificate?: IssuedCertificate;
    refuse?: (n: number) => number | undefined;
    beforeReply?: (n: number) => Promise<void>;
  } = {},
) => {
  const mails: Mail[] = [];
  let tries = 0;
  let refuse = o.refuse ?? (() => undefined);
  const { certificate } = o;
  const server = new SMTPServer({
    ...(certificate && { key: certificate.keyPem, cert: certificate.certPem }),
    authOptional: true,
    disabledCommands: certificate ? ["AUTH"] : ["AUTH", "STARTTLS"],
    logger: false,
    onData(stream, session, done) {
      const chunks: Buffer[] = [];
      stream.on("data", (chunk: Buffer) => chunks.push(chunk));
      stream.on("end", () => {
        tries += 1;
        const responseCode = refuse(tries);
        if (responseCode !== undefined)
          return done(Object.assign(new Error("not for oncall@acme.example"), { responseCode }));
        const raw = Buffer.concat(chunks).toString();
        const { mailFrom, rcptTo } = session.envelope;
        mails.push({
          from: mailFrom ? mailFrom.address : "",
          to: rcptTo.map(({ address }) => address),
          secure: session.secure,
          raw,
          ...parseMail(raw),
        });
        void (o.beforeReply?.(tries) ?? Promise.resolve()).then(() => done());
      });
    },
  });
  server.on("error", () => undefined); // a client that turns away from our certificate
  await listening(server);
  return {
    port: (server.server.address() as AddressInfo).port,
    mails,
    tries: () => tries,
    setRefuse: (next: typeof refuse) => {
      refuse = next;
    },
    close: () => new Promise<void>((resolve) => server.close(resolve)),
  };
};
export type Mailbox = Awaited<ReturnType<typeof openMailbox>>;

export interface Hook {
  readonly headers: Readonly<Record<string, string>>;
  readonly body: string;
}

/** A real HTTP server that takes webhooks; `answer` gives the status of the nth (from 1), default 204. */
export const openHooks = async (answer: (n: number) => number = () => 204) => {
  const hooks: Hook[] = [];
  let status = answer;
  const server = createServer((request, response) => {
    const chunks: Buffer[] = [];
    request.on("data", (chunk: Buffer) => chunks.push(chunk));
    request.on("end", () => {
      hooks.push({
        headers: Object.fromEntries(Object.entries(request.headers).map(([name, value]) => [name, String(value)])),
        body: Buffer.concat(chunks).toString(),
      });
      const code = status(hooks.length);
      response.writeHead(code, code === 302 ? { location: "/elsewhere" } : {}).end();
    });
  });
  await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve));
  return {
    port: (server.address() as AddressInfo).port,
    hooks,
    setAnswer: (next: typeof answer) => {
      status = next;
    },
    close: async () => {
      server.closeAllConnections();
      await new Promise((resolve) => server.close(resolve));
    },
  };
};
export type Hooks = Awaited<ReturnType<typeof openHooks>>;
