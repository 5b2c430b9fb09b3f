import { create } from "@bufbuild/protobuf";
import { timestampFromMs } from "@bufbuild/protobuf/wkt";
import {
  LeakReportedSchema,
  LeakSightingSchema,
  RevocationEffectiveSchema,
  RevocationReason,
  TokenRevokedSchema,
} from "@curfew/contracts/gen/curfew/events/v1/revocations_pb.ts";
import { fold } from "@curfew/decider/decider.ts";
import { specFor } from "@curfew/decider/spec.ts";
import { mintSecret } from "@curfew/token-format/secret.ts";
import { describe, expect, it } from "vitest";
import { acknowledgements, reportingGaps } from "./domain/watcher.ts";
import { pastRequest, type RejectionCode, type RevocationCommand, type RevocationEvent, revocation } from "./domain.ts";

const tokenId = "tok_00000000-0000-8000-8000-000000000001";
const by = "spiffe://test.example/person/ada";
const nowMs = Date.UTC(2026, 10, 24, 12);
const request = { key: "aa", hash: "01" };
const sighting = create(LeakSightingSchema, {
  kind: "git",
  location: "git://shop.example/repo@abc:config.yaml",
  public: true,
});

const revoke = (over: Partial<Extract<RevocationCommand, { type: "Revoke" }>> = {}): RevocationCommand => ({
  type: "Revoke",
  tokenId,
  by,
  nowMs,
  request,
  reason: RevocationReason.COMPROMISED,
  ...over,
});
const report = (over: Partial<Extract<RevocationCommand, { type: "ReportLeak" }>> = {}): RevocationCommand => ({
  type: "ReportLeak",
  tokenId,
  by,
  nowMs,
  request: { key: "bb", hash: "02" },
  generation: 3,
  generationLive: true,
  sighting,
  ...over,
});
const takeEffect: RevocationCommand = {
  type: "TakeEffect",
  tokenId,
  revocationEventId: "e1",
  effectiveAtMs: nowMs + 40,
  acknowledged: 2,
  lapsed: [{ instance: "sdk-1", name: "workload/shop", endedAtMs: nowMs + 40 }],
  largestClockOffsetMs: 7,
};
const revoked = create(TokenRevokedSchema, {
  tokenId,
  reason: RevocationReason.COMPROMISED,
  revokedBy: { spiffeId: by },
  revokedAt: timestampFromMs(nowMs),
  requestKey: "aa",
  requestHash: "01",
});
const leaked = create(TokenRevokedSchema, {
  tokenId,
  reason: RevocationReason.LEAKED,
  revokedBy: { spiffeId: by },
  revokedAt: timestampFromMs(nowMs),
});
const reported = (generationLive: boolean) =>
  create(LeakReportedSchema, {
    tokenId,
    generation: 3,
    generationLive,
    sighting,
    reportedBy: { spiffeId: by },
    reportedAt: timestampFromMs(nowMs),
    requestKey: "bb",
    requestHash: "02",
  });
const effective = create(RevocationEffectiveSchema, {
  tokenId,
  revocationEventId: "e1",
  effectiveAt: timestampFromMs(nowMs + 40),
  acknowledged: 2,
  lapsed: 1,
  largestClockOffset: { seconds: 0n, nanos: 7_000_000 },
  lapsedInstances: [{ instance: "sdk-1", name: "workload/shop", leaseEndedAt: timestampFromMs(nowMs + 40) }],
});
const leakReported = "curfew.events.v1.LeakReported";
const given = specFor(revocation);

describe("the end of a token", () => {
  it("is recorded with who, why and when, for an id nobody has heard of too", () => {
    given([]).when(revoke()).then([revoked]);
  });

  it("comes once: revoking again, for whatever reason, changes nothing", () => {
    const other = { request: { key: "cc", hash: "03" }, reason: RevocationReason.POLICY };
    given([revoked]).when(revoke(other)).then([]);
    given([revoked, effective]).when(revoke(other)).then([]);
    expect(fold(revocation, [revoked, leaked])).toMatchObject({ reason: RevocationReason.COMPROMISED });
  });

  it("follows the report of a leak in the same commit when the generation was live", () => {
    given([])
      .when(report())
      .then([reported(true), leaked]);
  });

  it("does not follow the leak of a dead generation", () => {
    given([])
      .when(report({ generationLive: false }))
      .then([reported(false)]);
  });

  it("makes every generation dead: a later leak is recorded as one of a dead generation", () => {
    given([revoked])
      .when(report())
      .then([reported(false)]);
  });

  it("lets everyone's report of a leak be recorded, and the same request only once", () => {
    given([reported(true), leaked])
      .when(report())
      .then([]);
    const second = { request: { key: "dd", hash: "02" } };
    const isRecorded = (over: object, count = 1) =>
      given([reported(true), leaked])
        .when(report({ ...second, ...over }))
        .thenEvents((events) => expect(events.map((e) => e.$typeName)).toEqual(Array(count).fill(leakReported)));
    isRecorded({ by: "spiffe://test.example/person/dora" });
    isRecorded({ generation: 2 });
    isRecorded({ sighting: create(LeakSightingSchema, { ...sighting, kind: "paste" }) });
    isRecorded({ sighting: create(LeakSightingSchema, { ...sighting, exposedSince: timestampFromMs(nowMs - 1_000) }) });
    isRecorded({}, 0);
  });

  it("follows a report of a live generation though that place is on record", () => {
    given([reported(false)])
      .when(report({ request: { key: "dd", hash: "02" } }))
      .thenEvents((events) => expect(events).toHaveLength(2));
  });

  it("answers a repeated report as the first time", () => {
    const state = fold(revocation, [reported(true), leaked]);
    expect(pastRequest(state, { key: "bb", hash: "02" })).toMatchObject({ generation: 3, wasLive: true });
  });

  it("remembers the last hundred requests", () => {
    const many = Array.from({ length: 150 }, (_, i) =>
      create(LeakReportedSchema, { ...reported(false), requestKey: `k${i}` }),
    );
    const state = fold(revocation, many);
    expect(state.requests).toHaveLength(100);
    expect(pastRequest(state, { key: "k149", hash: "02" })).toBeDefined();
  });

  it("takes effect once, with the instances that vanished", () => {
    given([revoked]).when(takeEffect).then([effective]);
    given([revoked, effective]).when(takeEffect).then([]);
  });

  it("records who asked whose a secret is", () => {
    const command: RevocationCommand = { type: "Identify", tokenId, generation: 2, by };
    given([])
      .when(command)
      .thenEvents((events) =>
        expect(events[0]).toMatchObject({ tokenId, generation: 2, identifiedBy: { spiffeId: by } }),
      );
    expect(fold(revocation, revocation.decide(revocation.initial, command) as RevocationEvent[])).toEqual(
      revocation.initial,
    );
  });
});

const bytes = (n: number) => Uint8Array.from({ length: n }, (_, i) => i);
const seen = (over: Partial<typeof sighting>) => report({ sighting: { ...sighting, ...over } });

const refused = {
  REQUEST_ID_REUSED: [
    [revoked, revoke({ request: { key: "aa", hash: "09" } })],
    [reported(true), report({ request: { key: "bb", hash: "09" } })],
  ],
  SIGHTING_INVALID: [
    [undefined, seen({ kind: "rumour" })],
    [undefined, seen({ location: " " })],
    [undefined, seen({ location: "x".repeat(2_049) })],
    [undefined, seen({ location: "two\nlines" })],
    [undefined, seen({ exposedSince: timestampFromMs(0) })],
  ],
  SIGHTING_HOLDS_SECRET: [[undefined, seen({ location: `https://x.example/?t=${mintSecret("s", bytes)}` })]],
  EXPOSED_IN_FUTURE: [
    [undefined, seen({ exposedSince: timestampFromMs(nowMs + 3_600_000) })],
    [undefined, seen({ exposedSince: { ...timestampFromMs(0), seconds: 2n ** 62n } })],
  ],
  NOT_REVOKED: [[undefined, takeEffect]],
} satisfies Record<RejectionCode, (readonly [RevocationEvent | undefined, RevocationCommand])[]>;

describe("a refusal says which rule refused", () => {
  for (const [code, cases] of Object.entries(refused))
    it(code, () => {
      for (const [event, command] of cases)
        given(event ? [event] : [])
          .when(command)
          .thenRejected(code);
    });
});

describe("what a watcher proves", () => {
  it("is written down for each instance, never dated earlier than it came", () => {
    const receipt = { eventIds: ["a", "b"], receivedAtMs: nowMs + 0.5, clockOffsetMs: -3 };
    const receipts = ["v-1", "v-2"].map((instance) => ({ instance, ...receipt }));
    expect(acknowledgements.decide(null, { receipts })).toMatchObject([
      { instance: "v-1", revocationEventIds: ["a", "b"], receivedAt: timestampFromMs(nowMs + 1) },
      { instance: "v-2", clockOffset: { seconds: 0n, nanos: -3_000_000 } },
    ]);
  });

  const gap = (fromMs: number, toMs: number) => ({
    instance: "sdk-1",
    resourceService: "shop",
    fromMs,
    toMs,
    live: false,
  });

  it("leaves a gap from its last complete report to the end of its lease, told once", () => {
    const [event] = reportingGaps.decide(reportingGaps.initial, gap(nowMs, nowMs + 5_050));
    expect(event).toMatchObject({
      instance: "sdk-1",
      resourceService: "shop",
      from: timestampFromMs(nowMs),
      to: timestampFromMs(nowMs + 5_050),
    });
    const state = fold(reportingGaps, event ? [event] : []);
    expect(reportingGaps.decide(state, gap(nowMs, nowMs + 5_050))).toEqual([]);
    const [later] = reportingGaps.decide(state, gap(nowMs, nowMs + 9_000));
    expect(later).toMatchObject({ from: timestampFromMs(nowMs + 5_050) });
  });

  it("of an instance that lives is told again only once it has doubled, and the rest when it ends", () => {
    const live = (toMs: number) => ({ ...gap(nowMs, toMs), live: true });
    const state = fold(reportingGaps, reportingGaps.decide(reportingGaps.initial, live(nowMs + 10_000)));
    expect(reportingGaps.decide(state, live(nowMs + 19_999))).toEqual([]);
    expect(reportingGaps.decide(state, gap(nowMs, nowMs + 10_001))).toHaveLength(1);
    expect(reportingGaps.decide(state, live(nowMs + 20_000))).toMatchObject([
      { from: timestampFromMs(nowMs + 10_000), to: timestampFromMs(nowMs + 20_000) },
    ]);
  });
});
