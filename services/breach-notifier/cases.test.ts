import { hash } from "node:crypto";
import { writeFileSync } from "node:fs";
import { join } from "node:path";
import { create } from "@bufbuild/protobuf";
import { timestampFromMs } from "@bufbuild/protobuf/wkt";
import type { Case } from "@curfew/contracts/gen/curfew/breach/v1/breach_pb.ts";
import { EvidenceGapFoundSchema, GapCause } from "@curfew/contracts/gen/curfew/events/v1/evidence_pb.ts";
import {
  RevocationReason,
  TokenRevokedSchema,
  UseReportingGapSchema,
} from "@curfew/contracts/gen/curfew/events/v1/revocations_pb.ts";
import { topicNames } from "@curfew/event-log/event-types.ts";
import { eventually } from "@curfew/rpc/testing/suite.ts";
import { describe, expect, it } from "vitest";
import {
  caseId,
  caseOf,
  hourMs,
  mailTo,
  milestones,
  millis,
  opened,
  published,
  reasonOf,
  rigged,
  tokenId,
} from "./testing/cases.ts";
import { openHooks, openMailbox } from "./testing/receivers.ts";
import { tokenIdOf } from "./testing/rig.ts";

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
    const used = [
      await rig.use(tokenId, "u1", { people: ["ann", "bob"], atMs: startMs - 9_000 }),
      await rig.use(tokenId, "u2", { people: ["bob", "cem"], records: 5, atMs: startMs - 5_000 }),
      await rig.use(tokenId, "u3", { people: ["dee"], address: "far", atMs: startMs - 4_000 }),
      await rig.use(tokenId, "u4", { atMs: startMs - 3_000 }),
    ];
    const { leak, revoked } = await rig.reportLeak(tokenId, { exposedSinceMs: startMs - 6_000 });
    const effective = await rig.takeEffect(tokenId, revoked?.id ?? "", startMs);
    const { case: found } = await eventually(() =>
      notifier.dora.getCase({ caseId, atLeast: [effective, leak, ...used].map(({ position }) => position) }),
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
    await caseOf(notifier, caseId, ({ blastRadius }) => {
      const reasons = blastRadius?.incompleteBecause.join("\n") ?? "";
      expect(blastRadius?.complete).toBe(false);
      expect(reasons).toContain("invoices may not have reported all its uses");
      expect(reasons).toContain("A gap was found in the evidence (hole, curfew.uses.v1)");
      expect(reasons).toContain("The window is still open");
    });
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
    await caseOf(notifier, caseId, ({ blastRadius }) =>
      expect(blastRadius).toMatchObject({
        window: { to: expect.anything() },
        complete: true,
        incompleteBecause: [],
        people: { lower: 0n, best: 0n },
      }),
    );
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
