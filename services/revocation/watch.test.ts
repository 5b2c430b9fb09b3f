import { durationMs, timestampFromMs } from "@bufbuild/protobuf/wkt";
import type { Bus } from "@curfew/event-log/bus.ts";
import { topicNames } from "@curfew/event-log/event-types.ts";
import { eventually } from "@curfew/rpc/testing/suite.ts";
import { systemClock } from "@curfew/runtime/clock.ts";
import { describe, expect, it } from "vitest";
import { failureOf, newTokenId, RawWatcher, revokeRequest, shortLimits } from "./testing/revocation-suite.ts";
import {
  effective,
  gated,
  leased,
  leaseMs,
  longLeases,
  newestLease,
  proofFrom,
  scripted,
  suite,
  watch,
} from "./testing/watching.ts";

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
