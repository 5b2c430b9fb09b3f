import { isMessage } from "@bufbuild/protobuf";
import { durationMs, timestampFromMs, timestampMs } from "@bufbuild/protobuf/wkt";
import {
  RevocationAcknowledgedSchema,
  RevocationEffectiveSchema,
  UseReportingGapSchema,
} from "@curfew/contracts/gen/curfew/events/v1/revocations_pb.ts";
import type { GetRevocationResponse } from "@curfew/contracts/gen/curfew/revocation/v1/revocation_pb.ts";
import type { Collection, Doc, DocumentStore } from "@curfew/document-store/port.ts";
import type { Bus } from "@curfew/event-log/bus.ts";
import { topicNames } from "@curfew/event-log/event-types.ts";
import { restoreStore } from "@curfew/event-log/restore.ts";
import type { RunningService } from "@curfew/rpc/replica.ts";
import { eventually } from "@curfew/rpc/testing/suite.ts";
import { systemClock } from "@curfew/runtime/clock.ts";
import { unwatchedHoldMs } from "@curfew/token-format/answer-life.ts";
import { afterEach, beforeEach, describe, expect, it } from "vitest";
import type { LeaseRow } from "./lease-book.ts";
import {
  type Client,
  failureOf,
  newTokenId,
  openRevocationSuite,
  RawWatcher,
  type RevocationSuite,
  revokeRequest,
  shortLimits,
} from "./testing/revocation-suite.ts";

const leaseMs = 600;
const standingMs = 3_000;
/** A lease is counted this much longer, for the clocks' error. */
const marginMs = (ofLeaseMs: number) => ofLeaseMs / 100;
/** For what has to happen while a lease stands, on a busy machine too. */
const longLeases = { ...shortLimits, leaseMs: 60_000 };
/** The same, where its end is waited for. */
const standingLeases = { ...shortLimits, leaseMs: standingMs };

let suite: RevocationSuite;
beforeEach(async () => {
  suite = await openRevocationSuite();
});
afterEach(() => suite.close());

const watch = async (service: RunningService, instance: string, path = "service/verifier", reportsUses = false) => {
  const watcher = new RawWatcher(await suite.as(path, service));
  await watcher.hello(instance, reportsUses);
  return watcher;
};
/** A watcher that holds a lease. */
const leased = async (...args: Parameters<typeof watch>) => {
  const watcher = await watch(...args);
  expect((await watcher.mark()).lease).toBeDefined();
  return watcher;
};
const proofFrom = (client: Client, tokenId: string) => client.getRevocation({ tokenId });
const effective = (client: Client, tokenId: string): Promise<GetRevocationResponse & { atMs: number }> =>
  eventually(async () => {
    const answer = await proofFrom(client, tokenId);
    if (!answer.effectiveAt) throw new Error("not effective yet");
    return { ...answer, atMs: timestampMs(answer.effectiveAt) };
  });
const messages = async () => (await suite.events(topicNames.revocations)).map(({ message }) => message);
const leaseRows = async () => (await suite.store("revocation")).collection<LeaseRow>("watchers");
const newestLease = async (instance: string) => {
  const rows = await leaseRows();
  const [row] = await rows.find({ from: `${instance}@`, below: `${instance}A`, order: -1, limit: 1 });
  return row as LeaseRow;
};

/** `store`, where `before` and `after` are asked around each operation. */
const scripted = (
  store: DocumentStore,
  script: { before?: (what: string) => Promise<void> | void; after?: (what: string) => Promise<void> | void },
): DocumentStore => ({
  collection: async <D extends Doc>(name: string, options?: Parameters<DocumentStore["collection"]>[1]) =>
    new Proxy(await store.collection<D>(name, options), {
      get: (inner, method) => {
        const operation = inner[method as keyof Collection<D>] as
          | ((...args: unknown[]) => Promise<unknown>)
          | undefined;
        if (!operation) return undefined;
        return async (...args: unknown[]) => {
          await script.before?.(`${name}.${String(method)}`);
          const answer = await operation.apply(inner, args);
          await script.after?.(`${name}.${String(method)}`);
          return answer;
        };
      },
    }),
  ping: () => store.ping(),
  close: () => store.close(),
});

const openGate = () => {
  let gate = Promise.withResolvers<void>();
  gate.resolve();
  return {
    passed: () => gate.promise,
    shut: () => {
      gate = Promise.withResolvers();
    },
    open: () => gate.resolve(),
  };
};

/** A bus whose producers, and one whose deliveries, wait while their gate is shut; everything else goes on. */
const gated = (bus: Bus) => {
  const [sending, delivering] = [openGate(), openGate()];
  const wrapped: Bus = {
    openProducer: async (options) => {
      const producer = await bus.openProducer(options);
      const send: typeof producer.send = async (records) => {
        await sending.passed();
        return await producer.send(records);
      };
      return { send, reachable: true, close: () => producer.close() };
    },
    subscribe: (options) =>
      bus.subscribe({
        ...options,
        onRecords: async (records) => {
          await delivering.passed();
          await options.onRecords(records);
        },
      }),
    ends: (topic) => bus.ends(topic),
    describe: (topic) => bus.describe(topic),
    ping: () => bus.ping(),
    close: () => bus.close(),
  };
  return { bus: wrapped, sending, delivering };
};

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

describe("marks", () => {
  it("name the ends of both topics and the lease, and renew the lease when it is time", async () => {
    const service = await suite.start({ ...shortLimits, renewAfterMs: 200 });
    const sam = await suite.as("person/sam", service);
    const { position } = await sam.revokeToken(revokeRequest(newTokenId()));
    const watcher = await watch(service, "v-1");
    const first = await watcher.mark();
    const offsets = new Map(first.positions.map(({ topic, offset }) => [topic, offset]));
    expect(offsets.get(topicNames.revocations)).toBeGreaterThan(position?.offset ?? 0n);
    expect(offsets.get(topicNames.tokens)).toBe(0n);
    expect(first.lease && durationMs(first.lease)).toBe(leaseMs);
    expect(first.clockOffset && durationMs(first.clockOffset)).toBeLessThanOrEqual(0);
    await eventually(async () => expect((await watcher.mark()).lease).toBeUndefined());
    const { number } = await newestLease("v-1");
    await eventually(async () => expect((await watcher.mark()).lease).toBeDefined());
    expect((await newestLease("v-1")).number).toBe(number + 1);
  });

  it("stop while a commit waits to be published, and go on after", async () => {
    const gate = gated((await suite.parts("revocation")).bus);
    const service = await suite.start({ ...shortLimits, markTimeoutMs: 150 }, { bus: gate.bus });
    const sam = await suite.as("person/sam", service);
    const watcher = await leased(service, "v-1");
    gate.sending.shut();
    const tokenId = newTokenId();
    const revoking = sam.revokeToken(revokeRequest(tokenId));
    await watcher.endOf(tokenId);
    const before = watcher.marks.length;
    for (let i = 0; i < 3; i += 1) await watcher.ping();
    expect(await revoking).toMatchObject({ published: false });
    expect(watcher.marks).toHaveLength(before);
    gate.sending.open();
    const mark = await eventually(() => watcher.mark());
    const offset = mark.positions.find(({ topic }) => topic === topicNames.revocations)?.offset;
    expect(offset).toBeGreaterThanOrEqual(1n);
    expect(suite.logged.join("")).toContain("no freshness mark");
  });

  it("wait for our own feed: what is on the topic and not pushed yet is not covered", async () => {
    const gate = gated((await suite.parts("revocation")).bus);
    const [one, behind] = [
      await suite.start(),
      await suite.start({ ...shortLimits, markTimeoutMs: 5_000 }, { bus: gate.bus }),
    ];
    const sam = await suite.as("person/sam", one);
    const watcher = await leased(behind, "v-1");
    gate.delivering.shut();
    const tokenId = newTokenId();
    expect(await sam.revokeToken(revokeRequest(tokenId))).toMatchObject({ published: true });
    const before = watcher.received.length;
    await watcher.ping();
    const sentMs = systemClock.monotonicMs();
    await eventually(() => expect(systemClock.monotonicMs() - sentMs).toBeGreaterThan(200));
    gate.delivering.open();
    await eventually(() => expect(watcher.received.length).toBe(before + 2));
    expect(watcher.received.slice(before)).toMatchObject([{ tokenId }, { sequence: 2n }]);
  });

  it("stop while the bus or the store is away, and go on after", async () => {
    const service = await suite.start({ ...shortLimits, markTimeoutMs: 300 });
    const watcher = await leased(service, "v-1");
    for (const set of [
      (down: boolean) => suite.setBusDown(down),
      (down: boolean) => suite.setStoreDown("revocation", down && "before"),
    ]) {
      set(true);
      const sentMs = systemClock.monotonicMs();
      const unanswered = await watcher.ping();
      await eventually(() => expect(systemClock.monotonicMs() - sentMs).toBeGreaterThan(400));
      expect(watcher.marks.some(({ sequence }) => Number(sequence) === unanswered)).toBe(false);
      set(false);
      await watcher.mark();
    }
  });

  it("come after everything they cover: ends pushed while pings fly, at two replicas", async () => {
    const [one, other] = [await suite.start(), await suite.start()];
    const sam = await suite.as("person/sam", one);
    const watchers = [await leased(one, "v-1"), await leased(other, "v-2")];
    const answers = await Promise.all(
      Array.from({ length: 40 }, async () => {
        const tokenId = newTokenId();
        const { position } = await sam.revokeToken(revokeRequest(tokenId));
        await Promise.all(watchers.map((watcher) => watcher.ping()));
        return { tokenId, offset: position?.offset ?? -1n };
      }),
    );
    for (const watcher of watchers) {
      await watcher.mark();
      const pushed = new Set<string>();
      for (const message of watcher.received) {
        if (message.$typeName === "curfew.revocation.v1.EndedToken") pushed.add(message.tokenId);
        else {
          const below = message.positions.find(({ topic }) => topic === topicNames.revocations)?.offset ?? 0n;
          for (const { tokenId, offset } of answers) if (offset < below) expect(pushed).toContain(tokenId);
        }
      }
      expect(pushed.size).toBe(40);
      expect(watcher.ended).toHaveLength(40);
    }
  });

  it("of a hundred watchers who ask at once come from a few reads, and their leases from a few writes", async () => {
    let [reads, writes] = [0, 0];
    const { bus, store } = await suite.parts("revocation");
    const counted: Bus = {
      openProducer: (options) => bus.openProducer(options),
      subscribe: (options) => bus.subscribe(options),
      ends: (topic) => {
        reads += 1;
        return bus.ends(topic);
      },
      describe: (topic) => bus.describe(topic),
      ping: () => bus.ping(),
      close: () => bus.close(),
    };
    const counting = scripted(store, {
      before: (what) => {
        if (what === "watchers.insertMany") writes += 1;
      },
    });
    const service = await suite.start({ ...shortLimits, markEveryMs: 50 }, { bus: counted, store: counting });
    const client = await suite.as("service/verifier", service);
    const watchers = Array.from({ length: 100 }, () => new RawWatcher(client));
    await Promise.all(watchers.map((watcher, i) => watcher.hello(`v-${i}`)));
    [reads, writes] = [0, 0];
    const marks = await Promise.all(watchers.map((watcher) => watcher.mark()));
    expect(marks.every(({ lease }) => lease !== undefined)).toBe(true);
    expect([reads, writes].every((n) => n >= 1 && n <= 40)).toBe(true);
  });
});

describe("pushes", () => {
  it("tell of rotations: the generations before the new one, and when they end", async () => {
    const service = await suite.start();
    const watcher = await leased(service, "v-1");
    const { tokenId } = await suite.issue();
    const { previousEndsAt } = await suite.rotate(tokenId, 2, 60_000);
    expect(await watcher.endOf(tokenId)).toMatchObject({
      tokenId,
      revocationEventId: "",
      upToGeneration: 1,
      endsAt: previousEndsAt,
    });
  });

  it("tell a watcher that comes back, at another replica too, what ended meanwhile; it is awaited until it has applied it", async () => {
    const [one, other] = [await suite.start(longLeases), await suite.start(longLeases)];
    const sam = await suite.as("person/sam", one);
    const before = await leased(one, "v-1");
    before.cut();
    const tokenId = newTokenId();
    await sam.revokeToken(revokeRequest(tokenId));
    const back = await leased(other, "v-1");
    expect((await newestLease("v-1")).number).toBe(2);
    const { revocationEventId } = await back.endOf(tokenId);
    expect((await proofFrom(sam, tokenId)).effectiveAt).toBeUndefined();
    await back.acknowledge(revocationEventId);
    expect(await effective(sam, tokenId)).toMatchObject({
      instances: [{ instance: "v-1", acknowledgedAt: expect.anything() }],
    });
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

describe("an SDK's uses", () => {
  const gaps = async () => (await messages()).filter((m) => isMessage(m, UseReportingGapSchema));

  it("that may be missing are a gap from its last complete report to the end of its lease, recorded once", async () => {
    const service = await suite.start();
    const watcher = await leased(service, "sdk-1", "workload/invoices", true);
    const fromMs = systemClock.now();
    await watcher.mark({ allReported: true, reportedSequence: 7n });
    await eventually(async () => {
      await watcher.mark({ reportedSequence: 7n });
      expect(await newestLease("sdk-1")).toMatchObject({ reportedSequence: 7 });
    });
    watcher.cut();
    const found = await eventually(async () => {
      const all = await gaps();
      expect(all).toHaveLength(1);
      return all[0];
    });
    const lease = await newestLease("sdk-1");
    expect(found).toMatchObject({
      instance: "sdk-1",
      resourceService: "invoices",
      to: timestampFromMs(lease.untilMs + marginMs(leaseMs)),
    });
    const gapFromMs = found?.from ? timestampMs(found.from) : 0;
    expect(gapFromMs).toBeGreaterThanOrEqual(fromMs - 1);
    expect(gapFromMs).toBeLessThanOrEqual(lease.allReportedAtMs);
    await service.close();
    const sam = await suite.as("person/sam", await suite.start());
    const later = newTokenId();
    await sam.revokeToken(revokeRequest(later));
    await effective(sam, later);
    expect(await gaps()).toHaveLength(1);
  });

  it("are missing from the time up to which it says that they are reported, as of its last ping", async () => {
    const service = await suite.start();
    const sdk = await leased(service, "sdk-1", "workload/invoices", true);
    const nowMs = systemClock.now();
    const reported = (ms: number) => ({ reportedUntil: timestampFromMs(ms), allReported: false });
    await sdk.mark(reported(nowMs));
    const grantedAtMs = (await newestLease("sdk-1")).allReportedAtMs;
    await eventually(() => expect(systemClock.now()).toBeGreaterThan(nowMs + 500));
    // Back is nowhere: what was reported once stays reported.
    await sdk.mark(reported(nowMs - 10_000));
    const { clockOffset } = await sdk.mark(reported(nowMs + 400));
    sdk.cut();
    const [gap] = await eventually(async () => {
      const all = await gaps();
      expect(all).toHaveLength(1);
      return all;
    });
    const fromMs = gap?.from ? timestampMs(gap.from) : 0;
    // On a busy machine a ping travels long, and seems to be of a clock that is behind.
    const behindMs = clockOffset ? -durationMs(clockOffset) : 0;
    expect(fromMs).toBeGreaterThanOrEqual(nowMs + 399);
    expect(fromMs).toBeGreaterThan(grantedAtMs);
    expect(fromMs).toBeLessThanOrEqual(nowMs + 401 + behindMs);
  });

  it("are not reported in the future, on a clock that is right or wrong", async () => {
    const service = await suite.start();
    const aheadMs = 3_600_000;
    const right = await leased(service, "sdk-1", "workload/invoices", true);
    const wrong = await watch(service, "sdk-2", "workload/invoices", true);
    const early = timestampFromMs(systemClock.now() + aheadMs - 40);
    const fromMs = systemClock.now() - 40;
    await right.mark({ reportedUntil: timestampFromMs(systemClock.now() + aheadMs) });
    await wrong.mark({ sentAt: timestampFromMs(systemClock.now() + aheadMs), reportedUntil: early });
    const toMs = systemClock.now();
    for (const watcher of [right, wrong]) watcher.cut();
    const all = await eventually(async () => {
      const found = await gaps();
      expect(found).toHaveLength(2);
      return found.filter((gap) => isMessage(gap, UseReportingGapSchema));
    });
    for (const gap of all) {
      const gapFromMs = gap.from ? timestampMs(gap.from) : 0;
      expect(gapFromMs).toBeGreaterThanOrEqual(fromMs - 5);
      expect(gapFromMs).toBeLessThanOrEqual(toMs);
    }
  });

  it("that it does not report while it lives are a gap too, told again when it has doubled; who keeps up has none", async () => {
    const service = await suite.start({ ...shortLimits, leaseMs: 30_000, renewAfterMs: 20, reportLagMs: 1_000 });
    const late = await leased(service, "sdk-1", "workload/invoices", true);
    const prompt = await leased(service, "sdk-2", "workload/invoices", true);
    const fromMs = systemClock.now();
    const found = await eventually(async () => {
      await late.mark({ reportedUntil: timestampFromMs(fromMs) });
      await prompt.mark({ reportedUntil: timestampFromMs(systemClock.now()) });
      const all = (await gaps()).filter((m) => isMessage(m, UseReportingGapSchema));
      expect(all.length).toBeGreaterThanOrEqual(2);
      return all;
    });
    const [first, second] = found.map(({ instance, from, to }) => ({
      instance,
      fromMs: from ? timestampMs(from) : 0,
      toMs: to ? timestampMs(to) : 0,
    }));
    expect([first?.instance, second?.instance]).toEqual(["sdk-1", "sdk-1"]);
    expect(Math.abs((first?.fromMs ?? 0) - fromMs)).toBeLessThanOrEqual(1_000);
    expect(second?.fromMs).toBe(first?.toMs);
    const [told, again] = [first, second].map((gap) => (gap?.toMs ?? 0) - (gap?.fromMs ?? 0));
    expect(told).toBeGreaterThanOrEqual(1_000);
    expect(again).toBeGreaterThanOrEqual((told ?? 0) - 2);
  });

  it("leave no gap when it said that all was reported, or when it is a verifier", async () => {
    const service = await suite.start();
    const sdk = await leased(service, "sdk-1", "workload/invoices", true);
    const verifier = await leased(service, "v-1");
    const killed = await leased(service, "sdk-2", "workload/invoices", true);
    await sdk.ping({ allReported: true, goodbye: true });
    sdk.finish();
    await eventually(() => expect(sdk.end).toBeNull());
    verifier.cut();
    killed.cut();
    await eventually(async () => expect((await gaps()).length).toBeGreaterThan(0));
    expect((await gaps()).map((gap) => isMessage(gap, UseReportingGapSchema) && gap.instance)).toEqual(["sdk-2"]);
  });
});

describe("who watches", () => {
  it("owns the instance id that he named first", async () => {
    const service = await suite.start();
    await leased(service, "sdk-1", "workload/invoices");
    const thief = await watch(service, "sdk-1", "workload/people");
    await eventually(() => expect(thief.end).toMatchObject({ status: "PERMISSION_DENIED", reason: "INSTANCE_TAKEN" }));
    await leased(service, "sdk-1", "workload/invoices");
  });

  it("says hello first, once, and pings as the protocol has it", async () => {
    const service = await suite.start();
    const client = await suite.as("service/verifier", service);
    const ended = async (act: (watcher: RawWatcher) => Promise<unknown>) => {
      const watcher = new RawWatcher(client);
      await act(watcher);
      await eventually(() => expect(watcher.end).toMatchObject({ status: "INVALID_ARGUMENT" }));
      return watcher.end?.reason;
    };
    expect(await ended((w) => w.ping())).toBe("HELLO_MISSING");
    expect(await ended((w) => w.hello("v-1").then(() => w.hello("v-1")))).toBe("HELLO_TWICE");
    expect(await ended((w) => w.hello("Not An Id"))).toBe("INVALID_REQUEST");
    const absurd = [{ sequence: 0n }, { sequence: -1n }, { reportedSequence: -1n }];
    for (const more of absurd)
      expect(await ended((w) => w.hello("v-1").then(() => w.ping(more)))).toBe("INVALID_REQUEST");
    expect(await ended((w) => w.hello("v-1").then(() => w.acknowledge()))).toBe("INVALID_REQUEST");
    const many = Array.from({ length: 1_001 }, (_, i) => `e${i}`);
    expect(await ended((w) => w.hello("v-1").then(() => w.acknowledge(...many)))).toBe("INVALID_REQUEST");
    await leased(service, "v-1");
  });

  it("may have a clock from another century: it gets marks, and its offset is bounded", async () => {
    const service = await suite.start();
    const watcher = await watch(service, "v-1");
    for (const seconds of [-62_135_596_800n, 253_402_300_799n]) {
      const { clockOffset } = await watcher.mark({ sentAt: { ...timestampFromMs(0), seconds } });
      expect(Math.abs(clockOffset ? durationMs(clockOffset) : 0)).toBeLessThanOrEqual(366 * 86_400_000);
    }
  });

  it("is a verifier or a resource service, nobody else", async () => {
    const service = await suite.start();
    for (const path of ["workload/billing", "person/sam", "service/issuer"]) {
      const watcher = new RawWatcher(await suite.as(path, service));
      await eventually(() => expect(watcher.end).toMatchObject({ status: "PERMISSION_DENIED" }));
    }
    expect(
      await failureOf((await suite.as("service/verifier", service)).revokeToken(revokeRequest(newTokenId()))),
    ).toMatchObject({ status: "PERMISSION_DENIED" });
  });
});
