import { isMessage } from "@bufbuild/protobuf";
import { timestampFromMs, timestampMs } from "@bufbuild/protobuf/wkt";
import {
  RevocationAcknowledgedSchema,
  RevocationEffectiveSchema,
} from "@curfew/contracts/gen/curfew/events/v1/revocations_pb.ts";
import { topicNames } from "@curfew/event-log/event-types.ts";
import { restoreStore } from "@curfew/event-log/restore.ts";
import { eventually } from "@curfew/rpc/testing/suite.ts";
import { systemClock } from "@curfew/runtime/clock.ts";
import { unwatchedHoldMs } from "@curfew/token-format/answer-life.ts";
import { describe, expect, it } from "vitest";
import { newTokenId, revokeRequest, shortLimits } from "./testing/revocation-suite.ts";
import {
  effective,
  gated,
  leased,
  longLeases,
  marginMs,
  messages,
  newestLease,
  proofFrom,
  scripted,
  standingLeases,
  standingMs,
  suite,
  watch,
} from "./testing/watching.ts";

describe("the effective time", () => {
  it("is the commit when nobody watches", async () => {
    const sam = await suite.as("person/sam", await suite.start());
    const tokenId = newTokenId();
    const { revokedAt } = await sam.revokeToken(revokeRequest(tokenId));
    expect(await effective(sam, tokenId)).toMatchObject({ effectiveAt: revokedAt, instances: [] });
  });

  it("is the receipt of the last acknowledgement, of watchers at every replica", async () => {
    const [one, other] = [await suite.start(longLeases), await suite.start(longLeases)];
    const sam = await suite.as("person/sam", one);
    const near = await leased(one, "v-1");
    const far = await leased(other, "sdk-1", "workload/invoices", true);
    const tokenId = newTokenId();
    await sam.revokeToken(revokeRequest(tokenId));
    const { revocationEventId } = await near.endOf(tokenId);
    await near.acknowledge(revocationEventId);
    await eventually(async () =>
      expect((await proofFrom(sam, tokenId)).instances).toMatchObject([
        { instance: "sdk-1", name: "workload/invoices" },
        { instance: "v-1", name: "service/verifier", acknowledgedAt: expect.anything() },
      ]),
    );
    expect((await proofFrom(sam, tokenId)).effectiveAt).toBeUndefined();
    expect((await far.endOf(tokenId)).revocationEventId).toBe(revocationEventId);
    const beforeMs = systemClock.now();
    await far.acknowledge(revocationEventId, "unknown-id");
    const { atMs, instances } = await effective(sam, tokenId);
    expect(atMs).toBeGreaterThanOrEqual(beforeMs);
    expect(instances.map(({ acknowledgedAt }) => acknowledgedAt && timestampMs(acknowledgedAt))).toContain(atMs);
    await eventually(async () => {
      const effects = (await messages()).filter((m) => isMessage(m, RevocationEffectiveSchema));
      expect(effects).toMatchObject([{ tokenId, revocationEventId, acknowledged: 2, lapsed: 0 }]);
    });
    const facts = (await messages()).filter((m) => isMessage(m, RevocationAcknowledgedSchema));
    expect(facts.flatMap((fact) => fact.revocationEventIds)).toEqual([revocationEventId, revocationEventId]);
  });

  it("is the end of its lease with the clocks' error for a silent watcher, and never known before", async () => {
    const service = await suite.start(standingLeases);
    const sam = await suite.as("person/sam", service);
    await leased(service, "v-1");
    const tokenId = newTokenId();
    await sam.revokeToken(revokeRequest(tokenId));
    const endMs = (await newestLease("v-1")).untilMs + marginMs(standingMs) + unwatchedHoldMs;
    const { atMs, instances } = await eventually(async () => {
      const answer = await proofFrom(sam, tokenId);
      if (answer.effectiveAt) expect(systemClock.now()).toBeGreaterThanOrEqual(endMs);
      else throw new Error("not effective yet");
      return { atMs: timestampMs(answer.effectiveAt), instances: answer.instances };
    });
    expect(atMs).toBe(endMs);
    expect(instances).toMatchObject([{ instance: "v-1", leaseEndedAt: timestampFromMs(endMs) }]);
    await eventually(async () => {
      const effects = (await messages()).filter((m) => isMessage(m, RevocationEffectiveSchema));
      expect(effects).toMatchObject([{ lapsed: 1, lapsedInstances: [{ instance: "v-1", name: "service/verifier" }] }]);
    });
  });

  it("waits for a watcher that renews its lease and does not acknowledge yet", async () => {
    const service = await suite.start(longLeases);
    const sam = await suite.as("person/sam", service);
    const watcher = await leased(service, "v-1");
    const tokenId = newTokenId();
    await sam.revokeToken(revokeRequest(tokenId));
    const { number } = await newestLease("v-1");
    await eventually(async () => {
      await watcher.mark();
      expect((await newestLease("v-1")).number).toBeGreaterThan(number + 1);
    });
    expect((await proofFrom(sam, tokenId)).effectiveAt).toBeUndefined();
    const beforeMs = systemClock.now();
    await watcher.acknowledge((await watcher.endOf(tokenId)).revocationEventId);
    expect((await effective(sam, tokenId)).atMs).toBeGreaterThanOrEqual(beforeMs);
  });

  it("is bounded for one that pings and never acknowledges, on new streams too; leases come again once nothing is owed", async () => {
    const service = await suite.start(standingLeases);
    const sam = await suite.as("person/sam", service);
    let rogue = await leased(service, "v-1");
    const tokenId = newTokenId();
    await sam.revokeToken(revokeRequest(tokenId));
    const { atMs, instances } = await eventually(async () => {
      await rogue.mark();
      if (rogue.marks.length > 20) {
        rogue.cut();
        rogue = await watch(service, "v-1");
      }
      const answer = await proofFrom(sam, tokenId);
      if (!answer.effectiveAt) throw new Error("not effective yet");
      return { atMs: timestampMs(answer.effectiveAt), instances: answer.instances };
    });
    expect(instances).toMatchObject([{ instance: "v-1", leaseEndedAt: timestampFromMs(atMs) }]);
    // Nothing is owed once it is effective, and what is pushed then is acknowledged.
    await eventually(async () => expect((await rogue.mark()).lease).toBeDefined());
    const later = newTokenId();
    await sam.revokeToken(revokeRequest(later));
    await rogue.acknowledge((await rogue.endOf(later)).revocationEventId);
    await effective(sam, later);
  });

  it("waits for a lease that the clock of the replica which revoked calls ended already", async () => {
    const aheadMs = 30_000;
    const clock = { ...systemClock, now: () => systemClock.now() + aheadMs };
    const [one, ahead] = [await suite.start(standingLeases), await suite.start(standingLeases, { clock })];
    const sam = await suite.as("person/sam", ahead);
    const askedMs = systemClock.monotonicMs();
    await leased(one, "v-1");
    const tokenId = newTokenId();
    const { revokedAt } = await sam.revokeToken(revokeRequest(tokenId));
    const stoodMs = askedMs + standingMs + marginMs(standingMs) - systemClock.monotonicMs();
    const { atMs, instances } = await effective(sam, tokenId);
    expect(systemClock.monotonicMs() - askedMs).toBeGreaterThanOrEqual(standingMs + marginMs(standingMs));
    expect(instances).toMatchObject([{ instance: "v-1", leaseEndedAt: expect.anything() }]);
    expect(atMs - (revokedAt ? timestampMs(revokedAt) : 0)).toBeGreaterThanOrEqual(stoodMs);
  });

  it("is when it said goodbye for a watcher that left in order", async () => {
    const service = await suite.start({ ...shortLimits, leaseMs: 600_000 });
    const sam = await suite.as("person/sam", service);
    const watcher = await leased(service, "v-1");
    const tokenId = newTokenId();
    const { revokedAt } = await sam.revokeToken(revokeRequest(tokenId));
    await watcher.ping({ goodbye: true });
    watcher.finish();
    await eventually(() => expect(watcher.end).toBeNull());
    const { atMs } = await effective(sam, tokenId);
    expect(atMs).toBe((await newestLease("v-1")).untilMs + unwatchedHoldMs);
    expect(atMs).toBeGreaterThanOrEqual(revokedAt ? timestampMs(revokedAt) : 0);
  });

  it("comes after a restart from what is durable: acknowledgements before it, leases that ended during it", async () => {
    const first = await suite.start(standingLeases);
    const sam = await suite.as("person/sam", first);
    const [prompt] = [await leased(first, "v-1"), await leased(first, "sdk-1", "workload/invoices")];
    const tokenId = newTokenId();
    await sam.revokeToken(revokeRequest(tokenId));
    await prompt.acknowledge((await prompt.endOf(tokenId)).revocationEventId);
    await eventually(async () =>
      expect((await messages()).some((m) => isMessage(m, RevocationAcknowledgedSchema))).toBe(true),
    );
    const endMs = (await newestLease("sdk-1")).untilMs + marginMs(standingMs);
    await first.close();
    const again = await suite.as("person/sam", await suite.start());
    const { atMs, instances } = await effective(again, tokenId);
    // That it ended while nobody looked is proven a whole lease after somebody looks again.
    expect(atMs).toBeGreaterThanOrEqual(endMs);
    expect(instances).toMatchObject([
      { instance: "sdk-1", leaseEndedAt: timestampFromMs(atMs) },
      { instance: "v-1", acknowledgedAt: expect.anything() },
    ]);
  });

  it("counts a lease that stood at commit although its watcher had not heard of it yet", async () => {
    const answering = Promise.withResolvers<void>();
    const inserted = Promise.withResolvers<void>();
    const { store } = await suite.parts("revocation");
    const slow = scripted(store, {
      after: async (what) => {
        if (what !== "watchers.insertMany") return;
        inserted.resolve();
        await answering.promise;
      },
    });
    const service = await suite.start({ ...standingLeases, markTimeoutMs: 5_000 }, { store: slow });
    const sam = await suite.as("person/sam", service);
    const watcher = await watch(service, "v-1");
    await watcher.ping();
    await inserted.promise;
    const tokenId = newTokenId();
    await sam.revokeToken(revokeRequest(tokenId));
    expect(await proofFrom(sam, tokenId)).toMatchObject({ instances: [{ instance: "v-1" }] });
    expect(watcher.marks).toEqual([]);
    answering.resolve();
    await eventually(() => expect(watcher.marks).toHaveLength(1));
    const endMs = (await newestLease("v-1")).untilMs + marginMs(standingMs) + unwatchedHoldMs;
    expect((await effective(sam, tokenId)).atMs).toBe(endMs);
  });

  it("does not count a lease granted after it, because its watcher gets no second mark before the revocation", async () => {
    const gate = gated((await suite.parts("revocation")).bus);
    const granting = Promise.withResolvers<void>();
    const asked = Promise.withResolvers<void>();
    let scanned = Promise.withResolvers<void>();
    const one = await suite.start(shortLimits, { bus: gate.bus });
    const { store } = await suite.parts("revocation");
    const slow = scripted(store, {
      before: async (what) => {
        if (what === "commits.find") scanned.resolve();
        if (what !== "watchers.insertMany") return;
        asked.resolve();
        await granting.promise;
      },
    });
    const other = await suite.start({ ...shortLimits, leaseMs: 600_000, markTimeoutMs: 5_000 }, { store: slow });
    const watcher = await watch(other, "v-1");
    await watcher.ping();
    await asked.promise;
    // Committed at the other replica, and not published: this one cannot have heard of it.
    gate.sending.shut();
    const sam = await suite.as("person/sam", one);
    const tokenId = newTokenId();
    const { revokedAt } = await sam.revokeToken(revokeRequest(tokenId), { deadlineMs: 5_000 });
    expect((await effective(sam, tokenId)).effectiveAt).toEqual(revokedAt);
    granting.resolve();
    await eventually(() => expect(watcher.marks).toHaveLength(1));
    expect(watcher.marks[0]?.lease).toBeDefined();
    expect(watcher.ended).toEqual([]);
    // The watcher may answer only with the mark of a ping it sends now.
    scanned = Promise.withResolvers();
    await watcher.ping();
    await scanned.promise;
    gate.sending.open();
    await eventually(() => expect(watcher.marks).toHaveLength(2));
    expect(watcher.received.map((m) => m.$typeName.split(".").at(-1))).toEqual([
      "FreshnessMark",
      "EndedToken",
      "FreshnessMark",
    ]);
  });
});

it("a revocation that was open when the store was lost waits for leases whose rows are lost too", async () => {
  const first = await suite.start(standingLeases);
  const sam = await suite.as("person/sam", first);
  const watcher = await leased(first, "v-1");
  const tokenId = newTokenId();
  await sam.revokeToken(revokeRequest(tokenId));
  await watcher.endOf(tokenId);
  await first.close();
  expect((await messages()).filter((m) => isMessage(m, RevocationEffectiveSchema))).toEqual([]);
  const store = await suite.store("revocation");
  for (const name of ["watchers", "instances", "commits"]) {
    const rows = await store.collection(name);
    await rows.delete(...(await rows.find({ limit: 1_000 })).map(({ _id }) => _id));
  }
  const { bus, log } = await suite.parts("revocation");
  const fromMs = systemClock.now();
  const own = { bus, store, topic: topicNames.revocations, service: "revocation", clock: systemClock, log };
  expect(await restoreStore(own)).toMatchObject({ replaced: 0 });
  const again = await suite.as("person/sam", await suite.start(standingLeases));
  const { atMs } = await effective(again, tokenId);
  expect(atMs).toBeGreaterThanOrEqual(fromMs + standingMs + marginMs(standingMs));
});

it("a revocation whose proof went with a store that was restored is as effective as the log says", async () => {
  const service = await suite.start(standingLeases);
  const sam = await suite.as("person/sam", service);
  await leased(service, "v-1").then((watcher) => watcher.cut());
  const tokenId = newTokenId();
  await sam.revokeToken(revokeRequest(tokenId));
  const before = await effective(sam, tokenId);
  const proofs = await (await suite.store("revocation")).collection("proofs");
  expect(await proofs.delete(before.revocationEventId)).toBe(1);
  const after = await effective(sam, tokenId);
  expect(after.effectiveAt).toEqual(before.effectiveAt);
  expect(after.instances).toMatchObject([{ instance: "v-1", name: "service/verifier" }]);
  expect(after.instances[0]?.leaseEndedAt).toEqual(before.instances[0]?.leaseEndedAt);
});
