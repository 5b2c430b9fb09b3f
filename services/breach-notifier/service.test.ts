import type { Case } from "@curfew/contracts/gen/curfew/breach/v1/breach_pb.ts";
import { topicNames } from "@curfew/event-log/event-types.ts";
import { eventually } from "@curfew/rpc/testing/suite.ts";
import { describe, expect, it } from "vitest";
import {
  caseId,
  caseOf,
  closers,
  hourMs,
  mailTo,
  milestones,
  opened,
  published,
  reasonOf,
  rigged,
  tokenId,
} from "./testing/cases.ts";
import { openMailbox } from "./testing/receivers.ts";
import { tokenIdOf } from "./testing/rig.ts";

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

describe("what was read", () => {
  it("is the same for two replicas, and for one that goes on from stored positions", async () => {
    const rig = await rigged();
    const [one, two] = [await rig.start(), await rig.start()];
    await rig.issue(tokenId, { atMs: rig.clock.now() - 60_000 });
    const uses = Array.from({ length: 25 }, (_, i) => rig.use(tokenId, `u${i}`, { people: [`p${i}`, `p${i + 1}`] }));
    await Promise.all(uses);
    await rig.reportLeak(tokenId, { exposedSinceMs: rig.clock.now() - 50_000 });
    // All are people of two uses: there are 26 before everything is read.
    const counted = ({ blastRadius }: Case) =>
      expect(blastRadius).toMatchObject({ people: { best: 26n }, uses: 25n, completedUses: 25n });
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
