import type { PageDue } from "@curfew/contracts/gen/curfew/events/v1/breaches_pb.ts";
import { eventually } from "@curfew/rpc/testing/suite.ts";
import { describe, expect, it } from "vitest";
import { retryPausesMs } from "./delivery.ts";
import {
  caseId,
  caseOf,
  hourMs,
  mailTo,
  milestones,
  opened,
  published,
  requestId,
  rigged,
  tokenId,
} from "./testing/cases.ts";
import { openMailbox } from "./testing/receivers.ts";

describe("a page arrives at least once, under one id", () => {
  const withCase = async () => {
    const rig = await rigged();
    const mailbox = await opened(openMailbox());
    await rig.issue(tokenId);
    return { rig, mailbox };
  };

  it.each([
    ["before it was taken", 451],
    ["after it was taken and before that was recorded", undefined],
  ])("when the notifier is killed %s", async (_when, status) => {
    const { rig, mailbox } = await withCase();
    const first = await rig.start(mailTo(mailbox.port));
    mailbox.setRefuse((n) => {
      if (n > 1) return undefined;
      first.kill();
      return status;
    });
    await rig.reportLeak(tokenId);
    await eventually(() => expect(mailbox.tries()).toBe(1));
    const second = await rig.start(mailTo(mailbox.port));
    const found = await caseOf(second, caseId, ({ pages }) => expect(pages).toMatchObject([{ state: "sent" }]));
    expect(found.pages).toHaveLength(1);
    const ids = mailbox.mails.map((m) => m.headers.get("message-id"));
    expect(ids).toHaveLength(status === undefined ? 2 : 1);
    expect(new Set(ids).size).toBe(1);
    await first.close();
    const due = await published(rig, "curfew.page.due.v1", 1);
    expect(due.map((event) => (event.message as PageDue).pageId)).toEqual([`${caseId}/opened/mail/1`]);
  });

  it("and not again where that was recorded", async () => {
    const { rig, mailbox } = await withCase();
    const first = await rig.start(mailTo(mailbox.port));
    await rig.reportLeak(tokenId);
    await caseOf(first, caseId, ({ pages }) => expect(pages).toMatchObject([{ state: "sent" }]));
    first.kill();
    rig.clock.advance(hourMs);
    await rig.start(mailTo(mailbox.port));
    await eventually(() => expect(milestones(mailbox.mails)).toEqual(["opened/mail/1", "awareness-undecided/mail/1"]));
    await first.close();
  });

  it("while the database cannot take down what became of it, it is not sent again by the one who knows", async () => {
    const { rig, mailbox } = await withCase();
    const notifier = await rig.start(mailTo(mailbox.port));
    mailbox.setRefuse(() => {
      notifier.setStoreDown("before");
      return undefined;
    });
    await rig.reportLeak(tokenId);
    await eventually(() => expect(mailbox.mails).toHaveLength(1));
    rig.clock.advance(1_000);
    notifier.setStoreDown(false);
    await caseOf(notifier, caseId, ({ pages }) => expect(pages).toMatchObject([{ state: "sent" }]));
    expect(mailbox.mails).toHaveLength(1);
  });
});

describe("time", () => {
  it("survives a restart: what became overdue meanwhile is paged at once, of the deadline only the most urgent", async () => {
    const rig = await rigged();
    const mailbox = await opened(openMailbox());
    const first = await rig.start(mailTo(mailbox.port));
    await rig.issue(tokenId);
    await rig.reportLeak(tokenId);
    await caseOf(first, caseId, ({ pages }) => expect(pages).toMatchObject([{ state: "sent" }]));
    await first.close();
    rig.clock.advance(61 * hourMs);
    await rig.start(mailTo(mailbox.port));
    await eventually(() => expect(mailbox.mails).toHaveLength(4));
    expect(milestones(mailbox.mails).sort()).toEqual([
      "awareness-undecided/mail/1",
      "deadline-12h/mail/1",
      "investigation-24h/mail/1",
      "opened/mail/1",
    ]);
  });

  it("repeats an unacknowledged page as the next round, and is quiet after an acknowledgement", async () => {
    const rig = await rigged();
    const mailbox = await opened(openMailbox());
    const notifier = await rig.start(mailTo(mailbox.port));
    const otto = await notifier.client("person/otto");
    await rig.issue(tokenId);
    await rig.reportLeak(tokenId);
    await eventually(() => expect(milestones(mailbox.mails)).toEqual(["opened/mail/1"]));
    await caseOf(notifier, caseId, ({ pages }) => expect(pages).toMatchObject([{ state: "sent" }]));
    rig.clock.advance(15 * 60_000 + 1_000);
    await eventually(() => expect(milestones(mailbox.mails)).toEqual(["opened/mail/1", "opened/mail/2"]));
    const request = { requestId: requestId(), caseId, milestone: "opened" };
    const answer = await otto.acknowledgePage(request);
    expect(answer.published).toBe(true);
    const again = await eventually(async () => {
      const repeated = await otto.acknowledgePage(request);
      expect(repeated.published).toBe(true);
      return repeated;
    });
    expect(again.position).toEqual(answer.position);
    rig.clock.advance(40 * 60_000);
    rig.clock.advance(10 * 60_000);
    await eventually(() => expect(milestones(mailbox.mails).slice(2)).toEqual(["awareness-undecided/mail/1"]));
    const found = await caseOf(notifier);
    expect(found.acknowledgements).toMatchObject([
      { milestone: "opened", acknowledgedBy: { spiffeId: "spiffe://test.example/person/otto" } },
    ]);
  });

  it("gives a channel up after some tries within minutes, tells the next target, and says so in the case", async () => {
    const rig = await rigged();
    const mailbox = await opened(openMailbox());
    const dead = await openMailbox();
    await dead.close();
    const paging = mailTo(mailbox.port);
    const notifier = await rig.start({
      targets: [...mailTo(dead.port, "dead").targets, ...paging.targets],
      allow: [...paging.allow, `localhost:${dead.port}`],
    });
    await rig.issue(tokenId);
    await rig.reportLeak(tokenId);
    await caseOf(notifier, caseId, ({ pages }) => expect(pages.map((p) => p.state)).toEqual(["due", "sent"]));
    // In steps that the lease survives: one who takes over begins its tries anew.
    let found = await caseOf(notifier);
    for (let steps = 0; steps < 800 && found.pages[0]?.state === "due"; steps += 1) {
      rig.clock.advance(1_000);
      found = await caseOf(notifier);
    }
    found = await caseOf(notifier, caseId, ({ pages }) =>
      expect(pages.map((p) => `${p.target} ${p.state}`)).toEqual(["dead failed", "mail sent", "mail sent"]),
    );
    const failures = rig.suite.logged.filter((line) => line.includes("a page could not be sent"));
    expect(failures.length).toBeGreaterThan(retryPausesMs.length);
    expect(found.degraded).toEqual([`dead could not be reached: ESOCKET.`]);
    expect(milestones(mailbox.mails)).toEqual(["opened/mail/1", "opened/mail/2"]);
    expect(mailbox.mails[1]?.text).toContain("Attention: dead could not be reached: ESOCKET.");
  });

  it("says in the log and in the case that nobody is paged", async () => {
    const rig = await rigged();
    const notifier = await rig.start();
    await rig.issue(tokenId);
    await rig.reportLeak(tokenId);
    expect((await caseOf(notifier)).degraded).toEqual(["Nobody is configured to be paged."]);
    expect(rig.suite.logged.join()).toContain("nobody is paged");
  });
});
