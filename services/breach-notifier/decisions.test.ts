import { hash } from "node:crypto";
import { timestampFromMs } from "@bufbuild/protobuf/wkt";
import type { NotificationDrafted } from "@curfew/contracts/gen/curfew/events/v1/breaches_pb.ts";
import { topicNames } from "@curfew/event-log/event-types.ts";
import { eventually } from "@curfew/rpc/testing/suite.ts";
import { describe, expect, it } from "vitest";
import { caseId, caseOf, hourMs, millis, published, reasonOf, requestId, rigged, tokenId } from "./testing/cases.ts";

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
