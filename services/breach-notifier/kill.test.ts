import { type ChildProcess, fork } from "node:child_process";
import { once } from "node:events";
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { create, type Message } from "@bufbuild/protobuf";
import { timestampFromMs } from "@bufbuild/protobuf/wkt";
import type { PageDue, PageSent } from "@curfew/contracts/gen/curfew/events/v1/breaches_pb.ts";
import { LeakReportedSchema } from "@curfew/contracts/gen/curfew/events/v1/revocations_pb.ts";
import { TokenIssuedSchema } from "@curfew/contracts/gen/curfew/events/v1/tokens_pb.ts";
import { encodeEvent } from "@curfew/event-log/envelope.ts";
import { eventTypeOf } from "@curfew/event-log/event-types.ts";
import { openEventStreams } from "@curfew/event-log/streams.ts";
import { eventually } from "@curfew/rpc/testing/suite.ts";
import { systemClock } from "@curfew/runtime/clock.ts";
import { systemRandom } from "@curfew/runtime/random.ts";
import { afterEach, describe, expect, it } from "vitest";
import { type Orders, openFiles, type Passed } from "./testing/notifier-process.ts";
import { type Mailbox, openMailbox } from "./testing/receivers.ts";

const tokenId = "tok_00000000-0000-8000-8000-000000000001";
const caseId = `case/${tokenId}/1`;
const pageDue = "curfew.page.due.v1";
const pageSent = "curfew.page.sent.v1";
/** A start, the wait for the killed one's lease, and a send, on a machine that does much else. */
const waitMs = 60_000;

const children: ChildProcess[] = [];
const closers: (() => Promise<unknown>)[] = [];
const kill = async (child: ChildProcess): Promise<void> => {
  if (child.exitCode !== null || child.signalCode !== null) return;
  const ended = once(child, "exit");
  child.kill("SIGKILL");
  await ended;
  if (child.signalCode !== "SIGKILL") throw new Error(`it ended otherwise: ${child.exitCode} ${child.signalCode}`);
};
afterEach(async () => {
  for (const child of children.splice(0)) await kill(child);
  for (const close of closers.splice(0).toReversed()) await close();
});

/** Files on which a token was issued and reported as leaked, and nobody has looked yet. */
const leaked = async (): Promise<string> => {
  const dir = mkdtempSync(join(tmpdir(), "curfew-kill-"));
  closers.push(async () => rmSync(dir, { recursive: true }));
  const files = await openFiles(dir);
  const nowMs = systemClock.now();
  const publish = async (message: Message, subject: string) => {
    const { topic } = eventTypeOf(message);
    const producer = await files.bus.openProducer({ topic, name: `${topic.split(".")[1]}/test` });
    const traceparent = `00-${"1".repeat(32)}-${"2".repeat(16)}-00`;
    const about = { source: "/test", subject, nowMs, random: systemRandom, traceparent, sequence: 1 };
    await producer.send([{ partition: 0, key: subject, ...encodeEvent(message, about) }]);
  };
  const generation = { number: 1, expiresAt: timestampFromMs(nowMs + 3_600_000) };
  const grant = { audiences: ["invoices"], dataCategories: ["contact"] };
  await publish(create(TokenIssuedSchema, { tokenId, grant, generation }), `tokens/${tokenId}`);
  const reportedAt = timestampFromMs(nowMs);
  await publish(create(LeakReportedSchema, { tokenId, generation: 1, reportedAt }), `revocations/${tokenId}`);
  await files.close();
  return dir;
};

/** A notifier process, and what it has passed so far. */
const start = (dir: string, mailbox: Mailbox, stopAt?: Passed) => {
  const { port } = mailbox;
  const target = {
    name: "mail",
    channel: "smtp",
    host: "localhost",
    port,
    from: "c@acme.example",
    to: "o@acme.example",
  };
  const orders: Orders = {
    ...{ dir, paging: { targets: [target], allow: [`localhost:${port}`] } },
    ...(stopAt && { stopAt }),
  };
  const file = fileURLToPath(new URL("./testing/notifier-process.ts", import.meta.url));
  const child = fork(file, [JSON.stringify(orders)], { execArgv: ["--disable-warning=ExperimentalWarning"] });
  children.push(child);
  const passed: Passed[] = [];
  child.on("message", (message) => void passed.push(message as Passed));
  const reached = (wanted: Passed) =>
    eventually(() => {
      if (child.exitCode !== null) throw new Error(`the notifier ended by itself: exit ${child.exitCode}`);
      expect(passed).toContainEqual(wanted);
    }, waitMs);
  return { reached, kill: () => kill(child) };
};

/** What stands in the stream of the case, with no process at work. */
const pagesOf = async (dir: string) => {
  const { store, close } = await openFiles(dir);
  const streams = await openEventStreams({ store, source: "/test", clock: systemClock, random: systemRandom });
  const events: Message[] = [];
  for (let version = 1; ; version += 1) {
    const commit = await streams.read(caseId, version);
    if (!commit) break;
    events.push(...commit.events);
  }
  await close();
  const ids = (name: string) =>
    events.filter((e) => e.$typeName.endsWith(name)).map((event) => (event as PageDue | PageSent).pageId);
  return { due: ids(".PageDue"), sent: ids(".PageSent") };
};

const pageId = `${caseId}/opened/mail/1`;

describe("a notifier killed with SIGKILL leaves a page to the next one, which sends it under the same id", () => {
  const finish = async (dir: string, mailbox: Mailbox, mails: number) => {
    expect(await pagesOf(dir)).toEqual({ due: [pageId], sent: [] });
    const second = start(dir, mailbox);
    await second.reached({ when: "after", type: pageSent });
    await second.kill();
    expect(await pagesOf(dir)).toEqual({ due: [pageId], sent: [pageId] });
    const ids = mailbox.mails.map(({ headers }) => `${headers.get("message-id")} ${headers.get("x-curfew-page")}`);
    expect(ids).toHaveLength(mails);
    expect(new Set(ids).size).toBe(1);
    expect(ids[0]).toContain(pageId);
  };
  const opened = async (beforeReply?: (n: number) => Promise<void>): Promise<Mailbox> => {
    const mailbox = await openMailbox(beforeReply ? { beforeReply } : {});
    closers.push(() => mailbox.close());
    return mailbox;
  };

  it(
    "after the page is committed as due and before anything is sent",
    async () => {
      const dir = await leaked();
      const mailbox = await opened();
      const first = start(dir, mailbox, { when: "after", type: pageDue });
      await first.reached({ when: "after", type: pageDue });
      await first.kill();
      expect(mailbox.tries()).toBe(0);
      await finish(dir, mailbox, 1);
    },
    2 * waitMs,
  );

  it(
    "while the mail is taken and the reply is not given yet",
    async () => {
      const dir = await leaked();
      const reply = Promise.withResolvers<void>();
      const mailbox = await opened((n) => (n === 1 ? reply.promise : Promise.resolve()));
      const first = start(dir, mailbox);
      await eventually(() => expect(mailbox.mails).toHaveLength(1), waitMs);
      await first.kill();
      reply.resolve();
      await finish(dir, mailbox, 2);
    },
    2 * waitMs,
  );

  it(
    "after the reply and before the page is recorded as sent",
    async () => {
      const dir = await leaked();
      const mailbox = await opened();
      const first = start(dir, mailbox, { when: "before", type: pageSent });
      await first.reached({ when: "before", type: pageSent });
      await first.kill();
      expect(mailbox.mails).toHaveLength(1);
      await finish(dir, mailbox, 2);
    },
    2 * waitMs,
  );
});
