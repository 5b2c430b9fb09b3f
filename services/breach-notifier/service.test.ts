import { hash } from "node:crypto";
import { writeFileSync } from "node:fs";
import { join } from "node:path";
import { create } from "@bufbuild/protobuf";
import { timestampFromMs } from "@bufbuild/protobuf/wkt";
import type { Case } from "@curfew/contracts/gen/curfew/breach/v1/breach_pb.ts";
import type { NotificationDrafted, PageDue } from "@curfew/contracts/gen/curfew/events/v1/breaches_pb.ts";
import { EvidenceGapFoundSchema, GapCause } from "@curfew/contracts/gen/curfew/events/v1/evidence_pb.ts";
import {
  RevocationReason,
  TokenRevokedSchema,
  UseReportingGapSchema,
} from "@curfew/contracts/gen/curfew/events/v1/revocations_pb.ts";
import { topicNames } from "@curfew/event-log/event-types.ts";
import { parseRpcError } from "@curfew/rpc/errors.ts";
import { eventually } from "@curfew/rpc/testing/suite.ts";
import { systemRandom, uuidV7 } from "@curfew/runtime/random.ts";
import { afterEach, describe, expect, it } from "vitest";
import { retryPausesMs } from "./delivery.ts";
import { openHooks, openMailbox } from "./testing/receivers.ts";
import { type Notifier, openRig, type Rig, tokenIdOf } from "./testing/rig.ts";

const closers: (() => Promise<unknown>)[] = [];
afterEach(async () => {
  for (const close of closers.splice(0).toReversed()) await close();
});
const rigged = async (): Promise<Rig> => {
  const rig = await openRig();
  closers.push(() => rig.close());
  return rig;
};
const opened = async <T extends { close(): Promise<unknown> }>(opening: Promise<T>): Promise<T> => {
  const each = await opening;
  closers.push(() => each.close());
  return each;
};
const requestId = () => uuidV7(0, systemRandom);
const reasonOf = async (call: Promise<unknown>): Promise<string> => {
  const error = await call.then(
    () => undefined,
    (e: unknown) => e,
  );
  const { status, reason } = parseRpcError(error);
  return `${status} ${reason}`;
};

const tokenId = tokenIdOf(1);
const caseId = `case/${tokenId}/1`;
const hourMs = 3_600_000;

const mailTo = (port: number, name = "mail") => ({
  targets: [{ name, channel: "smtp", host: "localhost", port, from: "curfew@acme.example", to: "oncall@acme.example" }],
  allow: [`localhost:${port}`],
});
const caseOf = async (notifier: Notifier, id = caseId, check: (found: Case) => void = () => undefined): Promise<Case> =>
  await eventually(async () => {
    const found = (await notifier.dora.getCase({ caseId: id })).case;
    if (!found) throw new Error("no case");
    check(found);
    return found;
  });
/** Own events of a type, each once (delivery is at least once), when everything committed is on the topic. */
const published = async (rig: Rig, type: string, atLeast: number) =>
  await eventually(async () => {
    const open = await (await rig.suite.store("breach-notifier")).collection("commits", { indexes: ["unpublished"] });
    expect(await open.find({ where: { unpublished: true }, limit: 10 })).toEqual([]);
    const events = await rig.suite.events(topicNames.breaches);
    const found = [...new Map(events.map((event) => [event.id, event])).values()].filter((e) => e.type === type);
    expect(found.length).toBeGreaterThanOrEqual(atLeast);
    return found;
  });
const millis = (at: { seconds: bigint; nanos: number } | undefined) =>
  at ? Number(at.seconds) * 1_000 + at.nanos / 1e6 : Number.NaN;
const milestones = (mails: readonly { headers: ReadonlyMap<string, string> }[]) =>
  mails.map((mail) => mail.headers.get("x-curfew-page")?.slice(caseId.length + 1));

describe("a leak becomes a case", () => {
  it("with window, people, records, clock, and pages over real mail and a real webhook", async () => {
    const rig = await rigged();
    const mailbox = await opened(openMailbox());
    const hooks = await opened(openHooks());
    const secretFile = join(rig.suite.dir, "hook-secret");
    writeFileSync(secretFile, `whsec_${Buffer.alloc(32, 5).toString("base64")}`, { mode: 0o600 });
    const paging = mailTo(mailbox.port);
    const notifier = await rig.start({
      targets: [
        ...paging.targets,
        { name: "hook", channel: "webhook", url: `http://localhost:${hooks.port}/x`, secret_file: secretFile },
      ],
      allow: [...paging.allow, `localhost:${hooks.port}`],
    });
    const startMs = rig.clock.now();
    await rig.issue(tokenId, { atMs: startMs - 10_000 });
    await rig.use(tokenId, "u1", { people: ["ann", "bob"], atMs: startMs - 9_000 });
    await rig.use(tokenId, "u2", { people: ["bob", "cem"], records: 5, atMs: startMs - 5_000 });
    await rig.use(tokenId, "u3", { people: ["dee"], address: "far", atMs: startMs - 4_000 });
    await rig.use(tokenId, "u4", { atMs: startMs - 3_000 });
    const { leak, revoked } = await rig.reportLeak(tokenId, { exposedSinceMs: startMs - 6_000 });
    const effective = await rig.takeEffect(tokenId, revoked?.id ?? "", startMs);
    const { case: found } = await eventually(() =>
      notifier.dora.getCase({ caseId, atLeast: [effective.position, leak.position] }),
    );
    expect(found).toMatchObject({ tokenId, noPersonalData: false });
    const { blastRadius, clock } = found as Case;
    expect(blastRadius).toMatchObject({
      people: { lower: 1n, best: 3n, upper: 4n + 10n + 12_000n },
      records: { lower: 1n, best: 6n, upper: 8n + 20n + 30_000n },
      uses: 4n,
      completedUses: 3n,
      kinds: ["confidentiality"],
    });
    expect([
      millis(blastRadius?.window?.fromUpper),
      millis(blastRadius?.window?.fromBest),
      millis(blastRadius?.window?.to),
    ]).toEqual([startMs - 10_000, startMs - 6_000, startMs]);
    expect(blastRadius?.incompleteBecause.join()).toContain("1 allowed use has not been reported");
    expect(clock).toMatchObject({ provisional: true, late: false });
    expect(millis(clock?.conservative)).toBe(millis(found?.firstSignalAt) + 72 * hourMs);

    const paged = await caseOf(notifier, caseId, ({ pages }) =>
      expect(pages.map((p) => p.state)).toEqual(["sent", "sent"]),
    );
    expect(paged.pages.map((p) => p.pageId)).toEqual([`${caseId}/opened/mail/1`, `${caseId}/opened/hook/1`]);
    expect(milestones(mailbox.mails)).toEqual(["opened/mail/1"]);
    expect(JSON.parse(hooks.hooks[0]?.body ?? "").data.case_id).toBe(caseId);
    expect(paged.degraded).toEqual([]);
    const joined = await caseOf(notifier, caseId, ({ signals }) => expect(signals).toHaveLength(2));
    expect(joined.signals.map((signal) => signal.eventId)).toEqual([leak.id, revoked?.id]);
    const listed = await notifier.dora.listCases({});
    expect(listed.cases).toMatchObject([
      { caseId, signals: [], pages: [], blastRadius: { slices: [], people: { best: 3n } } },
    ]);
    // Nobody who was touched, nobody who is paged, and no secret, where it does not belong.
    const said = [mailbox.mails.map((m) => m.raw).join(), hooks.hooks.map((h) => h.body).join()];
    for (const text of said)
      for (const person of ["ann", "bob", "cem", "git.example", "whsec_"])
        expect(text).not.toMatch(new RegExp(`\\b${person}\\b`));
    for (const secret of ["oncall@acme.example", "whsec_", "git.example"])
      expect(rig.suite.logged.join()).not.toContain(secret);
  });

  it("once, reported twice at the same time before two notifiers", async () => {
    const rig = await rigged();
    const [one, two] = [await rig.start(), await rig.start()];
    await rig.issue(tokenId);
    await Promise.all([rig.reportLeak(tokenId), rig.reportLeak(tokenId, { live: false })]);
    for (const notifier of [one, two]) await caseOf(notifier, caseId, ({ signals }) => expect(signals).toHaveLength(3));
    expect(await published(rig, "curfew.signal.joined.v1", 2)).toHaveLength(2);
    expect(await published(rig, "curfew.case.opened.v1", 1)).toHaveLength(1);
  });

  it("also when it was revoked as compromised by hand, and not for any other reason", async () => {
    const rig = await rigged();
    const notifier = await rig.start();
    const revoke = async (n: number, reason: RevocationReason) => {
      await rig.issue(tokenIdOf(n));
      await rig.publish(
        create(TokenRevokedSchema, { tokenId: tokenIdOf(n), reason, requestKey: "k" }),
        `revocations/${tokenIdOf(n)}`,
      );
    };
    await revoke(2, RevocationReason.OFFBOARDED);
    await revoke(3, RevocationReason.REQUESTED);
    await revoke(4, RevocationReason.COMPROMISED);
    await caseOf(notifier, `case/${tokenIdOf(4)}/1`);
    const { cases } = await eventually(async () => {
      const listed = await notifier.dora.listCases({});
      expect(listed.cases).toHaveLength(1);
      return listed;
    });
    expect(cases[0]?.tokenId).toBe(tokenIdOf(4));
  });

  it("without a clock, and with one notice, where the grant reaches no personal data", async () => {
    const rig = await rigged();
    const mailbox = await opened(openMailbox());
    const notifier = await rig.start(mailTo(mailbox.port));
    await rig.issue(tokenId, { dataCategories: [] });
    await rig.reportLeak(tokenId);
    const found = await caseOf(notifier, caseId, ({ pages }) => expect(pages).toMatchObject([{ state: "sent" }]));
    expect(found.noPersonalData).toBe(true);
    expect(found.clock).toBeUndefined();
    expect(mailbox.mails[0]?.text).toContain("No 72-hour clock runs");
  });

  it("by what the grant says, also where the leak is read before the token it is about", async () => {
    const rig = await rigged();
    const notifier = await rig.start();
    const release = rig.hold(topicNames.tokens);
    await rig.issue(tokenId, { dataCategories: [] });
    const { leak } = await rig.reportLeak(tokenId);
    const call = eventually(async () => {
      const reason = await reasonOf(notifier.dora.getCase({ caseId, atLeast: [leak.position] }));
      expect(reason).toBe("NOT_FOUND CASE_NOT_FOUND");
    });
    await call.finally(release);
    expect((await caseOf(notifier)).noPersonalData).toBe(true);
  });

  it("for missing evidence too: one case per producer, and the numbers say that they may be incomplete", async () => {
    const rig = await rigged();
    const notifier = await rig.start();
    await rig.issue(tokenId);
    const gap = (producer: string, n: number) =>
      rig.publish(
        create(EvidenceGapFoundSchema, {
          producer,
          cause: GapCause.HOLE,
          position: { topic: topicNames.uses, partition: 3, offset: BigInt(n) },
        }),
        `gaps/${hash("sha256", `${producer}${n}`)}`,
      );
    await gap("verifier/a/1", 1);
    await gap("verifier/a/1", 2);
    await gap("verifier/b/1", 1);
    await rig.publish(
      create(UseReportingGapSchema, {
        instance: "i",
        resourceService: "invoices",
        from: timestampFromMs(rig.clock.now() - 1_000),
        to: timestampFromMs(rig.clock.now() + 1_000),
      }),
      "watchers/i",
    );
    await rig.reportLeak(tokenId);
    const found = await caseOf(notifier, caseId, (c) =>
      expect(c.blastRadius?.incompleteBecause.length).toBeGreaterThan(2),
    );
    const reasons = found.blastRadius?.incompleteBecause.join("\n") ?? "";
    expect(found.blastRadius?.complete).toBe(false);
    expect(reasons).toContain("invoices may not have reported all its uses");
    expect(reasons).toContain("A gap was found in the evidence (hole, curfew.uses.v1)");
    expect(reasons).toContain("The window is still open");
    await eventually(async () => {
      const { cases } = await notifier.dora.listCases({});
      const about = cases.filter((c) => c.tokenId === "").map((c) => `${c.producer} ${c.caseId}`);
      expect(new Set(about)).toEqual(
        new Set(["verifier/a/1", "verifier/b/1"].map((name) => `${name} case/${hash("sha256", name).slice(0, 32)}/1`)),
      );
      expect(about).toHaveLength(2);
    });
  });

  it("is complete where all is known: dead everywhere for a while, everything reported, nothing missing", async () => {
    const rig = await rigged();
    const notifier = await rig.start();
    const startMs = rig.clock.now() - 60_000;
    await rig.issue(tokenId, { atMs: startMs });
    await rig.use(tokenId, "u1", { people: ["ann"], atMs: startMs + 1 });
    const { revoked } = await rig.reportLeak(tokenId);
    await rig.takeEffect(tokenId, revoked?.id ?? "");
    rig.clock.advance(30_000);
    const found = await caseOf(notifier, caseId, (c) => expect(c.blastRadius?.window?.to).toBeDefined());
    expect(found.blastRadius).toMatchObject({ complete: true, incompleteBecause: [], people: { lower: 0n, best: 0n } });
    // A gap that stands on its topic and is not read yet: not known is not complete.
    const release = rig.hold(topicNames.revocations);
    const gap = { instance: "i", resourceService: "invoices", from: timestampFromMs(startMs), to: timestampFromMs(0) };
    await rig.publish(create(UseReportingGapSchema, gap), "watchers/i");
    const reasons = async () => (await caseOf(notifier)).blastRadius?.incompleteBecause;
    const unread = reasons();
    await expect(unread.finally(release)).resolves.toEqual(["Not everything on the log has been read yet."]);
    await eventually(async () => expect((await reasons())?.join()).toContain("invoices may not have reported"));
  });
});

describe("while something is down", () => {
  it("a leak during an outage of the bus opens its case afterwards, and timers go on meanwhile", async () => {
    const rig = await rigged();
    const mailbox = await opened(openMailbox());
    const notifier = await rig.start(mailTo(mailbox.port));
    await rig.issue(tokenId);
    await rig.issue(tokenIdOf(2));
    await rig.reportLeak(tokenIdOf(2));
    await eventually(() => expect(mailbox.mails).toHaveLength(1));
    rig.suite.setBusDown(true);
    const reported = rig.reportLeak(tokenId);
    rig.clock.advance(hourMs);
    await eventually(() =>
      expect(mailbox.mails.map((m) => m.headers.get("x-curfew-page"))).toContain(
        `case/${tokenIdOf(2)}/1/awareness-undecided/mail/1`,
      ),
    );
    expect(await reasonOf(notifier.dora.getCase({ caseId }))).toBe("NOT_FOUND CASE_NOT_FOUND");
    const degraded = (await notifier.dora.getCase({ caseId: `case/${tokenIdOf(2)}/1` })).case?.degraded ?? [];
    expect(degraded.join()).toContain("The log cannot be reached");
    rig.suite.setBusDown(false);
    await reported;
    await caseOf(notifier);
  });

  it("a notifier that starts while the bus is down still pages what is due, and answers that it is not ready", async () => {
    const rig = await rigged();
    const first = await rig.start();
    await rig.issue(tokenId);
    await rig.reportLeak(tokenId);
    await caseOf(first);
    await first.close();
    const mailbox = await opened(openMailbox());
    rig.suite.setBusDown(true);
    const second = await rig.start(mailTo(mailbox.port), { waitUntilReady: false });
    closers.push(() => second.close());
    await eventually(() => expect(milestones(mailbox.mails)).toEqual(["opened/mail/1"]));
    expect(await reasonOf(second.dora.listCases({}, { deadlineMs: 500 }))).toMatch(/UNAVAILABLE|DEADLINE/);
    rig.suite.setBusDown(false);
    await second.service.ready;
    await caseOf(second);
  });

  it("uses read while the database was away are counted once it is back", async () => {
    const rig = await rigged();
    const notifier = await rig.start();
    await rig.issue(tokenId, { atMs: rig.clock.now() - 1_000 });
    notifier.setStoreDown("before");
    const last = await rig.use(tokenId, "u1", { people: ["ann", "bob"] });
    await rig.reportLeak(tokenId, { exposedSinceMs: rig.clock.now() - 900 });
    notifier.setStoreDown(false);
    await caseOf(notifier, caseId, (c) => expect(c.blastRadius?.people?.best).toBe(2n));
    expect(last.position.topic).toBe(topicNames.uses);
  });
});

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

describe("people decide", () => {
  const withCase = async () => {
    const rig = await rigged();
    const notifier = await rig.start();
    await rig.issue(tokenId, { audiences: ["invoices"], atMs: rig.clock.now() - 5_000 });
    await rig.use(tokenId, "u1", { people: ["ann", "bob"], address: "far" });
    const { leak } = await rig.reportLeak(tokenId, { exposedSinceMs: rig.clock.now() - 4_000 });
    const found = await caseOf(notifier, caseId, (c) => expect(c.blastRadius?.people?.best).toBe(2n));
    return { rig, notifier, leak, firstMs: millis(found.firstSignalAt) };
  };

  it("awareness: with a reason after the first signal, superseding, each request once", async () => {
    const { rig, notifier, firstMs } = await withCase();
    const decide = (awareMs: number, more: object = {}) =>
      notifier.dora.decideAwareness({ requestId: requestId(), caseId, awareAt: timestampFromMs(awareMs), ...more });
    await expect(reasonOf(decide(firstMs + 1))).resolves.toBe("INVALID_ARGUMENT REASON_REQUIRED");
    await expect(reasonOf(decide(rig.clock.now() + 60_000, { reason: "soon" }))).resolves.toBe(
      "INVALID_ARGUMENT AWARE_IN_FUTURE",
    );
    const request = { requestId: requestId(), caseId, awareAt: timestampFromMs(firstMs - 1_000) };
    const first = await notifier.dora.decideAwareness(request);
    expect(first).toMatchObject({ published: true, clock: { provisional: false, late: false } });
    expect(millis(first.clock?.conservative)).toBe(firstMs - 1_000 + 72 * hourMs);
    await decide(firstMs + 1, { reason: "the log was read" });
    const again = await eventually(async () => {
      const repeated = await notifier.dora.decideAwareness(request);
      expect(repeated.published).toBe(true);
      return repeated;
    });
    expect(again.clock).toMatchObject({ awareAt: request.awareAt });
    const other = { ...request, awareAt: timestampFromMs(firstMs) };
    const elsewhere = { ...request, caseId: caseId.replace(/\d+$/, "99") };
    for (const reused of [other, elsewhere])
      await expect(reasonOf(notifier.dora.decideAwareness(reused))).resolves.toBe("INVALID_ARGUMENT REQUEST_ID_REUSED");
    const dana = await notifier.client("person/dana");
    await dana.decideAwareness(request); // another caller's request id is another request
    const found = await caseOf(notifier);
    expect(found).toMatchObject({
      state: 2,
      awareness: { decidedBy: { spiffeId: "spiffe://test.example/person/dana" } },
    });
    const decided = await published(rig, "curfew.awareness.decided.v1", 3);
    expect(decided).toHaveLength(3);
  });

  it("of the same request twice at once, to two replicas, one decision comes", async () => {
    const { rig, notifier, firstMs } = await withCase();
    const second = await rig.start();
    const request = { requestId: requestId(), caseId, awareAt: timestampFromMs(firstMs) };
    await Promise.all([notifier, second, notifier, second].map((each) => each.dora.decideAwareness(request)));
    const decided = await published(rig, "curfew.awareness.decided.v1", 1);
    expect(decided).toHaveLength(1);
  });

  it("a draft: what the log knows with its events, the rest named; the same request the same draft", async () => {
    const { rig, notifier, leak, firstMs } = await withCase();
    const request = { requestId: requestId(), caseId };
    const draft = await notifier.dora.draftNotification(request);
    expect(draft).toMatchObject({ controller: "acme", published: true });
    const field = (key: string) => draft.fields.find((f) => f.key === key);
    expect(field("internal_reference")?.value).toBe(caseId);
    expect(field("controller_name")).toMatchObject({ source: "profile", value: "Acme GmbH" });
    expect(field("aware_at")).toMatchObject({ value: new Date(firstMs).toISOString(), eventIds: [leak.id] });
    expect(field("data_subject_count")).toMatchObject({ value: "2", eventIds: ["u1/completed/1", "u1/decided"] });
    expect(field("data_types")?.value).toBe("b,s");
    expect(field("confidentiality_extent")?.value).toBe("a");
    expect(field("occurrence")?.value).toBe("c");
    expect(field("breach_ended_at")).toBeUndefined();
    expect(field("notification_subtype")?.value).toBe("b");
    expect(field("non_eea_controller")).toBeUndefined();
    expect(draft.missing).toContain("cause");
    expect(draft.missing).not.toContain("aware_at");
    expect(draft.readyPercent).toBeGreaterThan(30);
    expect(draft.readyPercent).toBeLessThan(100);
    expect(JSON.parse(draft.json)).toMatchObject({
      caseId,
      controller: "acme",
      missing: draft.missing,
      readyPercent: draft.readyPercent,
    });
    expect(draft.json).toContain("CC BY 4.0");
    for (const person of ["ann", "bob"]) expect(draft.json).not.toMatch(new RegExp(`\\b${person}\\b`));

    await rig.use(tokenId, "u2", { people: ["cem"] });
    await caseOf(notifier, caseId, (c) => expect(c.blastRadius?.people?.best).toBe(3n));
    const second = await rig.start();
    const again = await second.dora.draftNotification(request);
    expect(again.json).toBe(draft.json);
    const newer = await notifier.dora.draftNotification({ requestId: requestId(), caseId });
    expect(newer.json).not.toBe(draft.json);
    await expect(reasonOf(second.dora.draftNotification({ ...request, controller: "acme" }))).resolves.toBe(
      "INVALID_ARGUMENT REQUEST_ID_REUSED",
    );
    const drafted = await published(rig, "curfew.notification.drafted.v1", 2);
    const [event] = drafted.map((e) => e.message as NotificationDrafted);
    expect(drafted).toHaveLength(2);
    expect(Buffer.from(event?.draftSha256 ?? []).toString("hex")).toBe(hash("sha256", draft.json));
    // What is listed is the newest whose event was read, with where it stands.
    const listed = async () => (await second.dora.listDrafts({ caseId })).drafts;
    await expect.poll(async () => (await listed()).map(({ json }) => json), { timeout: 20_000 }).toEqual([newer.json]);
    const offset = BigInt(drafted[1]?.record.offset ?? -1);
    expect(await listed()).toMatchObject([{ controller: "acme", position: { topic: "curfew.breaches.v1", offset } }]);
    await expect(reasonOf(second.dora.listDrafts({ caseId: "case/none/1" }))).resolves.toBe("NOT_FOUND CASE_NOT_FOUND");
  });

  it("a draft for each controller that was touched, with its own numbers only", async () => {
    const rig = await rigged();
    const notifier = await rig.start();
    const startMs = rig.clock.now();
    await rig.issue(tokenId, { audiences: ["shop"], atMs: startMs - 5_000 });
    await rig.use(tokenId, "u1", { people: ["ann", "bob"], service: "shop" });
    await rig.use(tokenId, "u2", { people: ["cem"], service: "shop", controller: "other" });
    await rig.reportLeak(tokenId, { exposedSinceMs: startMs - 4_000 });
    await caseOf(notifier, caseId, (c) => expect(c.blastRadius?.people).toMatchObject({ best: 3n }));
    const draft = (controller: string) =>
      notifier.dora.draftNotification({ requestId: requestId(), caseId, controller });
    await expect(reasonOf(draft(""))).resolves.toBe("INVALID_ARGUMENT CONTROLLER_REQUIRED");
    await expect(reasonOf(draft("nobody"))).resolves.toBe("INVALID_ARGUMENT CONTROLLER_UNKNOWN");
    const count = async (controller: string) =>
      (await draft(controller)).fields.find((f) => f.key === "data_subject_count");
    expect(await count("acme")).toMatchObject({ value: "2" });
    expect(await count("other")).toMatchObject({ value: "1", eventIds: ["u2/completed/1", "u2/decided"] });
  });

  it("and nobody else: cases that are not there, pages that were not sent, roles that may not", async () => {
    const { notifier, firstMs } = await withCase();
    for (const id of ["case/tok_x/1", "nonsense", "leases/relay/1", `${caseId}/1`, "case/ü/1"])
      await expect(reasonOf(notifier.dora.getCase({ caseId: id }))).resolves.toBe("NOT_FOUND CASE_NOT_FOUND");
    const unknown = { requestId: requestId(), caseId: "case/tok_x/1" };
    await expect(reasonOf(notifier.dora.draftNotification(unknown))).resolves.toBe("NOT_FOUND CASE_NOT_FOUND");
    await expect(
      reasonOf(notifier.dora.decideAwareness({ ...unknown, awareAt: timestampFromMs(firstMs) })),
    ).resolves.toBe("NOT_FOUND CASE_NOT_FOUND");
    await expect(reasonOf(notifier.dora.acknowledgePage({ ...unknown, milestone: "opened" }))).resolves.toBe(
      "NOT_FOUND CASE_NOT_FOUND",
    );
    const ack = (milestone: string) => notifier.dora.acknowledgePage({ requestId: requestId(), caseId, milestone });
    await expect(reasonOf(ack("opened"))).resolves.toBe("FAILED_PRECONDITION NOT_PAGED");
    await expect(reasonOf(ack("tomorrow"))).resolves.toBe("INVALID_ARGUMENT MILESTONE_UNKNOWN");
    const beyond = { topic: topicNames.tokens, partition: 0, offset: 9_999n };
    await expect(reasonOf(notifier.dora.getCase({ caseId, atLeast: [beyond] }))).resolves.toBe(
      "UNAVAILABLE NOT_CAUGHT_UP",
    );
    await expect(reasonOf(notifier.dora.listCases({ pageToken: "x" }))).resolves.toBe(
      "INVALID_ARGUMENT PAGE_TOKEN_INVALID",
    );
    const otto = await notifier.client("person/otto");
    await otto.getCase({ caseId });
    const awareAt = timestampFromMs(firstMs);
    await expect(reasonOf(otto.decideAwareness({ requestId: requestId(), caseId, awareAt }))).resolves.toMatch(
      /^PERMISSION_DENIED/,
    );
    const aude = await notifier.client("person/aude");
    await expect(reasonOf(aude.getCase({ caseId }))).resolves.toMatch(/^PERMISSION_DENIED/);
  });
});

describe("what was read", () => {
  it("is the same for two replicas, and for one that goes on from stored positions", async () => {
    const rig = await rigged();
    const [one, two] = [await rig.start(), await rig.start()];
    await rig.issue(tokenId, { atMs: rig.clock.now() - 60_000 });
    const uses = Array.from({ length: 25 }, (_, i) => rig.use(tokenId, `u${i}`, { people: [`p${i}`, `p${i + 1}`] }));
    await Promise.all(uses);
    await rig.reportLeak(tokenId, { exposedSinceMs: rig.clock.now() - 50_000 });
    const counted = (c: Case) => expect(c.blastRadius?.people?.best).toBe(26n);
    const [a, b] = [await caseOf(one, caseId, counted), await caseOf(two, caseId, counted)];
    expect(a.blastRadius?.folded).toEqual(b.blastRadius?.folded);
    expect(a.blastRadius?.slices).toEqual(b.blastRadius?.slices);
    await one.close();
    await two.close();
    const rows = await (await rig.suite.store("breach-notifier")).collection("uses");
    expect(await rows.find({ limit: 100 })).toHaveLength(50);
    const three = await rig.start();
    await rig.use(tokenId, "late", { people: ["zoe"] });
    const c = await caseOf(three, caseId, (found) => expect(found.blastRadius?.people?.best).toBe(27n));
    expect(c.blastRadius?.uses).toBe(26n);
    expect(await rows.find({ limit: 100 })).toHaveLength(52);
  });

  it("is listed page by page, newest first, and by token", async () => {
    const rig = await rigged();
    const notifier = await rig.start();
    for (const n of [1, 2, 3]) {
      await rig.issue(tokenIdOf(n));
      await rig.reportLeak(tokenIdOf(n), { live: false });
      await caseOf(notifier, `case/${tokenIdOf(n)}/1`);
    }
    await eventually(async () => expect((await notifier.dora.listCases({})).cases).toHaveLength(3));
    const first = await notifier.dora.listCases({ pageSize: 2 });
    const second = await notifier.dora.listCases({ pageSize: 2, pageToken: first.nextPageToken });
    expect([...first.cases, ...second.cases].map((c) => c.tokenId)).toEqual([3, 2, 1].map(tokenIdOf));
    expect(second.nextPageToken).toBe("");
    expect((await notifier.dora.listCases({ tokenId: tokenIdOf(2) })).cases).toMatchObject([{ tokenId: tokenIdOf(2) }]);
    expect(await published(rig, "curfew.case.opened.v1", 3)).toHaveLength(3);
  });
});
