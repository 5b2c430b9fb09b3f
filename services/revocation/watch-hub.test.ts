import { create, fromBinary } from "@bufbuild/protobuf";
import { timestampFromMs } from "@bufbuild/protobuf/wkt";
import {
  WatcherPingSchema,
  WatchRevocationsResponseSchema,
} from "@curfew/contracts/gen/curfew/revocation/v1/revocation_pb.ts";
import { describe, expect, it } from "vitest";
import { endedByRevocation, openWatchHub } from "./watch-hub.ts";
import { defaultWatchLimits } from "./watch-limits.ts";
import { WatchSession } from "./watch-session.ts";

const rig = (limits: Partial<typeof defaultWatchLimits> = {}) => {
  const at = { nowMs: 0 };
  const clock = { now: () => at.nowMs, monotonicMs: () => at.nowMs, sleep: async () => undefined };
  return { at, hub: openWatchHub({ clock, limits: { ...defaultWatchLimits, ...limits } }) };
};
const sessionOf = (instance: string, caller = "shop", maxQueued = 100) =>
  new WatchSession({
    instance,
    caller: { kind: "workload", name: caller, uri: `spiffe://t/workload/${caller}` },
    reportsUses: true,
    last: undefined,
    nowMs: 0,
    maxQueued,
  });
const drained = async (session: WatchSession) => {
  session.end();
  const messages: Uint8Array[] = [];
  for await (const message of session.responses()) messages.push(message);
  return messages;
};
const tokens = (messages: readonly Uint8Array[]) =>
  messages
    .map((bytes) => fromBinary(WatchRevocationsResponseSchema, bytes).kind)
    .flatMap((kind) => (kind.case === "ended" ? kind.value.tokens.map(({ tokenId }) => tokenId) : []));
const push = (hub: ReturnType<typeof rig>["hub"], n: number) => hub.push(`e${n}`, endedByRevocation(`t${n}`, `e${n}`));

describe("the hub", () => {
  it("pushes each end once to each stream, and hands every stream the same bytes", async () => {
    const { hub } = rig();
    const sessions = Array.from({ length: 1_000 }, (_, i) => sessionOf(`s${i}`, `caller${i % 4}`));
    for (const session of sessions) hub.join(session, []);
    for (const n of [1, 2, 1]) push(hub, n);
    const received = await Promise.all(sessions.map(drained));
    for (const messages of received) expect(tokens(messages)).toEqual(["t1", "t2"]);
    expect(new Set(received.map(([first]) => first)).size).toBe(1);
  });

  it("tells a new stream what ended within the last minute, and what is pending, each once", async () => {
    const { at, hub } = rig();
    for (const n of [1, 2]) push(hub, n);
    at.nowMs = 60_000;
    push(hub, 3);
    const session = sessionOf("s");
    hub.join(session, [
      { id: "e3", tokenId: "t3" },
      { id: "e1", tokenId: "t1" },
    ]);
    push(hub, 3);
    expect(tokens(await drained(session))).toEqual(["t3", "t1"]);
  });

  it("keeps of a log read at start the recent past alone", async () => {
    const { hub } = rig();
    hub.recall("e1", endedByRevocation("t1", "e1"), 60_000);
    hub.recall("e2", endedByRevocation("t2", "e2"), 59_999);
    const session = sessionOf("s");
    hub.join(session, []);
    expect(tokens(await drained(session))).toEqual(["t2"]);
  });

  it("refuses a new stream as long as it had to forget something too young", () => {
    const { at, hub } = rig({ maxRecent: 2 });
    for (const n of [1, 2, 3]) push(hub, n);
    at.nowMs = 59_999;
    expect(() => hub.join(sessionOf("s"), [])).toThrow(/too many tokens ended/);
    at.nowMs = 60_000;
    hub.join(sessionOf("s"), []);
  });

  it("gives one caller a bounded number of streams, and others theirs", () => {
    const { hub } = rig({ maxStreamsPerCaller: 2 });
    const first = sessionOf("s1");
    for (const session of [first, sessionOf("s2")]) hub.join(session, []);
    expect(() => hub.join(sessionOf("s3"), [])).toThrow(/at most 2/);
    hub.join(sessionOf("s4", "other"), []);
    hub.leave(first);
    hub.join(sessionOf("s3"), []);
  });
});

describe("a stream", () => {
  it("of a watcher that does not read ends with RESOURCE_EXHAUSTED and holds nothing any more", async () => {
    const { hub } = rig();
    const session = sessionOf("s", "shop", 3);
    hub.join(session, []);
    for (const n of [1, 2, 3]) push(hub, n);
    expect(session.ended).toBe(false);
    push(hub, 4);
    expect(session.ended).toBe(true);
    await expect(session.responses().next()).rejects.toMatchObject({
      failure: { status: "RESOURCE_EXHAUSTED", reason: "SLOW_WATCHER" },
    });
  });

  const ping = (sentAtMs: number, more = {}) =>
    create(WatcherPingSchema, { sequence: 1n, sentAt: timestampFromMs(sentAtMs), ...more });

  it("takes the watcher's clock offset from the least delayed of its last pings, and bounds absurd ones", () => {
    const session = sessionOf("s");
    session.receivePing(ping(1_000), 1_050);
    session.receivePing(ping(2_000), 2_003);
    session.receivePing(ping(3_000), 3_900);
    expect(session.clockOffsetMs).toBe(-3);
    session.receivePing(create(WatcherPingSchema, { sentAt: { seconds: 253_402_300_799n, nanos: 0 } }), 4_000);
    expect(session.clockOffsetMs).toBe(366 * 86_400_000);
  });

  it("counts uses as reported up to when the ping was sent, never up to when it came", () => {
    const session = sessionOf("s");
    session.receivePing(ping(1_000), 1_002);
    session.receivePing(ping(2_000, { allReported: true }), 2_500);
    expect(session.allReportedAtMs).toBe(2_002);
    session.receivePing(ping(3_000), 3_002);
    expect(session.allReportedAtMs).toBe(2_002);
  });

  it("answers the newest ping only, and none after goodbye", () => {
    const session = sessionOf("s");
    session.receivePing(ping(1_000, { sequence: 1n }), 1_000);
    session.receivePing(ping(1_500, { sequence: 2n, goodbye: true, allReported: true }), 1_500);
    session.receivePing(ping(2_000, { sequence: 3n }), 2_000);
    expect(session.takePing()?.sequence).toBe(2n);
    expect(session.takePing()).toBeUndefined();
    expect([session.goodbye, session.complete]).toEqual([true, true]);
  });
});
