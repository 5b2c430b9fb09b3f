import { createTransport } from "nodemailer";
import type { SmtpTarget } from "../paging.ts";
import { type Channel, ChannelFailed, type PageContent, PageRefused, pageKey, subjectOf, textOf } from "./page.ts";

const timeoutMs = 10_000;
const implicitTlsPort = 465;

/** What went wrong by its codes alone: the server's words often repeat the address. */
const failure = (error: unknown): Error => {
  const { code, responseCode } = error as { readonly code?: unknown; readonly responseCode?: unknown };
  const known = typeof code === "string" && /^[A-Z_]{1,40}$/.test(code) ? code : "the mail could not be handed over";
  const reason = typeof responseCode === "number" ? `${known} (${responseCode})` : known;
  // RFC 5321, 4.2.1: 5yz is permanent. Where it answers STARTTLS the server may be mended.
  const isPermanent = typeof responseCode === "number" && responseCode >= 500 && known !== "ETLS";
  return isPermanent ? new PageRefused(reason) : new ChannelFailed(reason);
};

/** Mail to one address. STARTTLS is required unless `plain`; `domain` is the right side of the ids of messages. */
export const openSmtpChannel = (target: SmtpTarget, options: { plain: boolean; domain: string }): Channel => {
  const { host, port, caPem, login } = target;
  const { plain, domain } = options;
  const transport = createTransport({
    host,
    port,
    secure: !plain && port === implicitTlsPort,
    requireTLS: !plain,
    ignoreTLS: plain,
    tls: { minVersion: "TLSv1.2", ...(caPem !== undefined && { ca: caPem }) },
    ...(login && { auth: { user: login.user, pass: login.password } }),
    connectionTimeout: timeoutMs,
    greetingTimeout: timeoutMs,
    socketTimeout: timeoutMs,
    dnsTimeout: timeoutMs,
    disableFileAccess: true,
    disableUrlAccess: true,
  });
  const send = async (page: PageContent): Promise<string> => {
    const messageId = `<${pageKey(page.pageId)}@${domain}>`;
    // One thread per case.
    const thread = `<${pageKey(page.caseId)}@${domain}>`;
    try {
      await transport.sendMail({
        from: target.from,
        to: target.to,
        subject: subjectOf(page),
        text: textOf(page),
        date: new Date(page.nowMs),
        messageId,
        references: thread,
        inReplyTo: thread,
        priority: "high",
        // RFC 3834: nothing answers it by itself.
        headers: { "Auto-Submitted": "auto-generated", "X-Curfew-Case": page.caseId, "X-Curfew-Page": page.pageId },
      });
      return messageId;
    } catch (error) {
      throw failure(error);
    }
  };
  return { send };
};
