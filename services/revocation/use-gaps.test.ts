import { isMessage } from "@bufbuild/protobuf";
import { durationMs, timestampFromMs, timestampMs } from "@bufbuild/protobuf/wkt";
import { UseReportingGapSchema } from "@curfew/contracts/gen/curfew/events/v1/revocations_pb.ts";
import { eventually } from "@curfew/rpc/testing/suite.ts";
import { systemClock } from "@curfew/runtime/clock.ts";
import { describe, expect, it } from "vitest";
import { newTokenId, revokeRequest, shortLimits } from "./testing/revocation-suite.ts";
import { effective, leased, leaseMs, marginMs, messages, newestLease, suite, watch } from "./testing/watching.ts";

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
