import { createHmac } from "node:crypto";
import { createAuthority, issueCertificate } from "@curfew/rpc/identity-authority.ts";
import { systemClock } from "@curfew/runtime/clock.ts";
import { afterEach, describe, expect, it } from "vitest";
import { readClock } from "../article-clock.ts";
import type { PagingConfig, SmtpTarget, WebhookTarget } from "../paging.ts";
import { openHooks, openMailbox } from "../testing/receivers.ts";
import { openChannels } from "./open.ts";
import { ChannelFailed, type PageContent, PageRefused, textOf } from "./page.ts";
import { signature } from "./webhook.ts";

const closers: (() => Promise<unknown>)[] = [];
afterEach(async () => {
  for (const close of closers.splice(0)) await close();
});
const keep = async <T extends { close(): Promise<unknown> }>(opening: Promise<T>): Promise<T> => {
  const opened = await opening;
  closers.push(() => opened.close());
  return opened;
};

const nowMs = Date.UTC(2026, 10, 24, 14, 17, 42);
const caseId = "case/tok_00000000-0000-8000-8000-000000000001/1";
const page: PageContent = {
  pageId: `${caseId}/deadline-48h/oncall/1`,
  caseId,
  milestone: "deadline-48h",
  round: 1,
  tokenId: "tok_00000000-0000-8000-8000-000000000001",
  noPersonalData: false,
  clock: readClock(nowMs - 3_600_000, undefined, nowMs),
  numbers: { people: { lower: 3, best: 12, upper: undefined }, records: { lower: 4, best: 40, upper: 900 } },
  degraded: ["oncall-hook could not be reached: the webhook answered 500."],
  nowMs,
};
const authority = await createAuthority({ trustDomain: "test.example", clock: systemClock });
const certificate = await issueCertificate(authority, {
  spiffePath: "/workload/mail",
  validMs: 3_600_000,
  dnsNames: ["localhost"],
  commonName: "mail",
});
const secret = Buffer.alloc(32, 7);

const mailTarget = (port: number, more: Partial<SmtpTarget> = {}): SmtpTarget => ({
  name: "mail",
  channel: "smtp",
  host: "localhost",
  port,
  from: "curfew@acme.example",
  to: "oncall@acme.example",
  caPem: authority.certPem,
  login: undefined,
  ...more,
});
const hookTarget = (port: number): WebhookTarget => ({
  name: "hook",
  channel: "webhook",
  url: `http://127.0.0.1:${port}/curfew/very-secret-path`,
  secret,
  caPem: undefined,
});
const send = async (target: SmtpTarget | WebhookTarget, allow: readonly string[] = [], content = page) => {
  const config: PagingConfig = { targets: [target], allow, repeatMs: 900_000 };
  const channel = openChannels(config, "curfew.example", systemClock).get(target.name);
  if (!channel) throw new Error("no channel");
  return await channel.send(content);
};
const failureOf = async (sending: Promise<string>): Promise<Error> => {
  const failure = await sending.then(
    () => new Error("it was sent"),
    (error: Error) => error,
  );
  for (const address of ["acme.example", "127.0.0.1", "localhost", "very-secret-path"])
    expect(failure.message).not.toContain(address);
  return failure;
};

describe("mail", () => {
  it("goes over STARTTLS, in the case's thread, as what nobody answers", async () => {
    const mailbox = await keep(openMailbox({ certificate }));
    const id = await send(mailTarget(mailbox.port));
    const [mail] = mailbox.mails;
    expect(mail).toMatchObject({ from: "curfew@acme.example", to: ["oncall@acme.example"], secure: true });
    expect(mail?.headers.get("message-id")).toBe(id);
    expect(id).toMatch(/^<[0-9a-f]{32}@curfew\.example>$/);
    expect(mail?.headers.get("auto-submitted")).toBe("auto-generated");
    expect(mail?.headers.get("subject")).toBe(
      `[Curfew] Suspected personal data breach: 48 h or less until the 72-hour deadline (${caseId})`,
    );
    const again = await send(mailTarget(mailbox.port));
    const other = await send(mailTarget(mailbox.port), [], { ...page, pageId: `${caseId}/deadline-48h/oncall/2` });
    expect(again).toBe(id);
    expect(other).not.toBe(id);
    expect(new Set(mailbox.mails.map((m) => m.headers.get("references"))).size).toBe(1);
  });

  it("says what, how severe, how long, how many, and how to acknowledge", async () => {
    const mailbox = await keep(openMailbox({ certificate }));
    await send(mailTarget(mailbox.port));
    const text = mailbox.mails[0]?.text ?? "";
    for (const part of [
      caseId,
      "Severity: not yet assessed",
      "2026-11-27T13:17:42.000Z (71 h 0 min left)",
      "People so far: at least 3, best 12, at most unknown",
      "Records so far: at least 4, best 40, at most 900",
      "oncall-hook could not be reached",
      `curfew ack ${caseId} deadline-48h`,
    ])
      expect(text).toContain(part);
  });

  it("is not sent where the server offers no TLS, or shows another's certificate", async () => {
    const plain = await keep(openMailbox());
    expect(await failureOf(send(mailTarget(plain.port)))).toBeInstanceOf(ChannelFailed);
    const stranger = await keep(openMailbox({ certificate }));
    expect(await failureOf(send(mailTarget(stranger.port, { caPem: undefined })))).toBeInstanceOf(ChannelFailed);
    expect([plain.mails, stranger.mails]).toEqual([[], []]);
  });

  it("goes in the clear to a host on loopback that is listed, and to no other", async () => {
    const plain = await keep(openMailbox());
    await send(mailTarget(plain.port), [`localhost:${plain.port}`]);
    expect(plain.mails).toMatchObject([{ secure: false }]);
    expect(await failureOf(send(mailTarget(plain.port), [`127.0.0.1:${plain.port}`]))).toBeInstanceOf(ChannelFailed);
  });

  it("is refused for good by a 5xx and may be tried again after a 4xx or no answer", async () => {
    const mailbox = await keep(openMailbox({ certificate, refuse: (n) => (n === 1 ? 550 : 451) }));
    expect(await failureOf(send(mailTarget(mailbox.port)))).toBeInstanceOf(PageRefused);
    const temporary = await failureOf(send(mailTarget(mailbox.port)));
    expect(temporary).toBeInstanceOf(ChannelFailed);
    expect(temporary.message).toContain("451");
    await mailbox.close();
    closers.length = 0;
    expect(await failureOf(send(mailTarget(mailbox.port)))).toBeInstanceOf(ChannelFailed);
  });
});

describe("a webhook", () => {
  it("is signed as Standard Webhooks says, by its published example", () => {
    const key = Buffer.from("MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw", "base64");
    expect(signature(key, "msg_p5jXN8AQM9LWM0D4loKWxJek", 1_614_265_330, '{"test": 2432232314}')).toBe(
      "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=",
    );
  });

  it("arrives signed, under an id that stays when it is sent again", async () => {
    const hooks = await keep(openHooks());
    const allow = [`127.0.0.1:${hooks.port}`];
    const id = await send(hookTarget(hooks.port), allow);
    expect(await send(hookTarget(hooks.port), allow)).toBe(id);
    const [hook] = hooks.hooks;
    const { headers, body } = hook ?? { headers: {}, body: "" };
    const timestamp = headers["webhook-timestamp"];
    expect(headers["webhook-id"]).toBe(id);
    expect(timestamp).toBe(String(nowMs / 1_000));
    const expected = createHmac("sha256", secret).update(`${id}.${timestamp}.${body}`).digest("base64");
    expect(headers["webhook-signature"]).toBe(`v1,${expected}`);
    expect(JSON.parse(body)).toMatchObject({
      type: "curfew.page.due",
      data: {
        page_id: page.pageId,
        severity: "not yet assessed",
        people: { lower: 3, best: 12, upper: null },
        clock: { conservative: "2026-11-27T13:17:42.000Z", time_left_seconds: 71 * 3_600 },
      },
    });
  });

  it("fails on a redirect, which is not followed, and on everything else but success", async () => {
    const hooks = await keep(openHooks((n) => [302, 500, 429, 404][n - 1] ?? 204));
    const allow = [`127.0.0.1:${hooks.port}`];
    for (const status of [302, 500, 429, 404]) {
      const failure = await failureOf(send(hookTarget(hooks.port), allow));
      expect(failure).toBeInstanceOf(ChannelFailed);
      expect(failure.message).toContain(String(status));
    }
    expect(hooks.hooks).toHaveLength(4);
  });

  it("is refused, and not tried again, where the rules for outbound calls forbid it", async () => {
    const hooks = await keep(openHooks());
    expect(await failureOf(send(hookTarget(hooks.port)))).toBeInstanceOf(PageRefused);
    expect(hooks.hooks).toEqual([]);
    await hooks.close();
    closers.length = 0;
    expect(await failureOf(send(hookTarget(hooks.port), [`127.0.0.1:${hooks.port}`]))).toBeInstanceOf(ChannelFailed);
  });
});

describe("the text of a page", () => {
  it("says how late it is, that no clock runs, and that nothing is counted yet", () => {
    const late = { ...page, milestone: "overdue", clock: readClock(nowMs - 73 * 3_600_000, undefined, nowMs) };
    expect(textOf(late)).toContain("(1 h 0 min late)");
    const harmless = textOf({ ...page, noPersonalData: true, clock: undefined, numbers: undefined });
    expect(harmless).toContain("No 72-hour clock runs");
    expect(harmless).toContain("People so far: not counted yet");
  });
});
