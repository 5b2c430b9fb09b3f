import { timestampMs } from "@bufbuild/protobuf/wkt";
import { Outcome } from "@curfew/contracts/gen/curfew/events/v1/uses_pb.ts";
import { describe, expect, test } from "vitest";
import type { AccessRequest } from "./access-request.ts";
import type { LocalVerifier } from "./local-verifier.ts";
import type { FakeToken } from "./testing/fake-verifier.ts";
import { denial, idOf, openLiveSdk, read, request, revocation, seen, time, until, verifier } from "./testing/sdk.ts";

describe("reports", () => {
  test("an answer that is lost is asked for again with the same ids and sequences", async () => {
    const sdk = await openLiveSdk();
    const token = await seen(sdk);
    verifier.loseAnswers = 2;
    for (let i = 0; i < 600; i += 1) await read(sdk, token);
    await until(() => verifier.cached.size).toBe(601);
    const sequences = [...verifier.cached.values()].map(({ instanceSequence }) => Number(instanceSequence));
    expect(sequences.sort((a, b) => a - b)).toEqual(Array.from({ length: 601 }, (_, i) => i + 1));
    await until(() => revocation.pings().at(-1)).toMatchObject({ reportedSequence: 601n, allReported: true });
    expect(verifier.forged).toEqual([]);
  });

  test("an access that is over travels with its decision, one that goes on follows by itself, under the same id", async () => {
    const sdk = await openLiveSdk();
    const token = await seen(sdk);
    await until(() => verifier.completed.size).toBe(2);
    const { records } = verifier;
    const goOn = Promise.withResolvers<void>();
    const long = sdk.authorize(token.secret, request, async (use) => {
      use.touched({ records: 1 });
      await goOn.promise;
      use.touched({ records: 2, people: [{ identifierType: "customer-id", value: "1" }] });
      return use.useId;
    });
    const short = await sdk.authorize(token.secret, request, (use) => {
      use.touched({ records: 4, people: [{ identifierType: "customer-id", value: "2" }], unnamedPeople: 1 });
      return use.useId;
    });
    await until(() => verifier.cached.size).toBe(3);
    expect(verifier.records).toBe(records + 2);
    expect(verifier.completedOf(short)).toMatchObject([
      { outcome: Outcome.COMPLETED, records: 4n, people: [{ controller: "acme", value: "2" }], unnamedPeople: 1n },
    ]);
    goOn.resolve();
    const useId = await long;
    await until(() => verifier.completedOf(useId)).toMatchObject([{ records: 3n, people: [{ value: "1" }], parts: 1 }]);
    expect(verifier.records).toBe(records + 3);
    await until(() => revocation.pings().at(-1)).toMatchObject({ allReported: true, reportedSequence: 3n });
  });

  test("an access in parts is complete only with all of them, its decision beside them", async () => {
    const sdk = await openLiveSdk();
    const token = await seen(sdk);
    const people = Array.from({ length: 1_500 }, (_, i) => ({ identifierType: "customer-id", value: `${i}` }));
    const useId = await sdk.authorize(token.secret, { ...request, maxPeople: 2_000 }, (use) => {
      use.touched({ records: 9, people });
      return use.useId;
    });
    await until(() => verifier.completedOf(useId).length).toBe(2);
    expect(verifier.completedOf(useId).map(({ part, parts }) => [part, parts])).toEqual([
      [1, 0],
      [2, 2],
    ]);
  });

  test("pings say when the oldest use was decided that is not reported, however many are", async () => {
    const sdk = await openLiveSdk();
    const token = await seen(sdk);
    await until(() => revocation.pings().at(-1)).toMatchObject({ allReported: true, reportedSequence: 1n });
    const idle = revocation.pings().at(-1);
    expect(idle?.reportedUntil).toEqual(idle?.sentAt);
    verifier.reportFailure = { status: "UNAVAILABLE", reason: "DOWN", message: "down" };
    const fromMs = time.clock.now();
    await read(sdk, token);
    const toMs = time.clock.now();
    // More than a report holds, so that some are in flight and some wait; decided later, and the clock was set back meanwhile.
    time.setWall(5);
    for (let i = 0; i < 2_000; i += 1) await read(sdk, token);
    const pings = revocation.pings().length;
    await until(() => revocation.pings().length).toBeGreaterThan(pings + 1);
    const open = revocation.pings().at(-1);
    const openMs = open?.reportedUntil ? timestampMs(open.reportedUntil) : 0;
    expect(openMs).toBeGreaterThanOrEqual(fromMs);
    expect(openMs).toBeLessThanOrEqual(toMs);
    expect(open?.allReported).toBe(false);
    verifier.reportFailure = undefined;
    await until(() => revocation.pings().at(-1)).toMatchObject({ allReported: true, reportedSequence: 2_002n });
  });

  test("a full buffer makes callers wait, then denies; room again lets them in", async () => {
    const sdk = await openLiveSdk({ maxBufferedUses: 4 });
    const token = await seen(sdk);
    await until(() => verifier.completed.size).toBe(2);
    verifier.reportFailure = { status: "UNAVAILABLE", reason: "DOWN", message: "down" };
    // Each waits as one record; the next would need a place for its decision and one for its completion.
    for (let i = 0; i < 3; i += 1) await read(sdk, token);
    expect(await denial(sdk, token, {}, { deadlineMs: 50 })).toBe("EVIDENCE_BACKLOG");
    const waiting = sdk.authorize(token.secret, request, idOf, { deadlineMs: 30_000 });
    verifier.reportFailure = undefined;
    expect(await waiting).toMatch(/^[0-9a-f-]{36}$/);
  });

  test("reports that are late let nobody in, however much room there is; once they are through, everybody", async () => {
    const sdk = await openLiveSdk();
    const token = await seen(sdk);
    verifier.reportFailure = { status: "UNAVAILABLE", reason: "DOWN", message: "down" };
    await read(sdk, token);
    time.stopFor(2_000);
    await sdk.whenLive(AbortSignal.timeout(10_000));
    expect(await denial(sdk, token, {}, { deadlineMs: 50 })).toBe("EVIDENCE_BACKLOG");
    const waiting = sdk.authorize(token.secret, request, idOf, { deadlineMs: 30_000 });
    verifier.reportFailure = undefined;
    const useId = await waiting;
    await until(() => verifier.cached.has(useId)).toBe(true);
  });

  test("a use that the verifier refuses to record takes no other with it, and the log is never called whole again", async () => {
    const sdk = await openLiveSdk();
    const token = await seen(sdk);
    verifier.poison = "poison:read";
    for (let i = 0; i < 9; i += 1) await read(sdk, token);
    const lostMs = time.clock.now();
    expect(await denial(sdk, token, { scope: "poison:read" })).toBe("SCOPE_MISSING");
    const afterMs = time.clock.now();
    for (let i = 0; i < 9; i += 1) await read(sdk, token);
    await until(() => verifier.cached.size).toBe(19);
    await until(() => revocation.pings().at(-1)?.allReported).toBe(false);
    expect(await sdk.close()).toBe(false);
    const last = revocation.pings().at(-1);
    expect(last).toMatchObject({ goodbye: true, allReported: false });
    const untilMs = last?.reportedUntil ? timestampMs(last.reportedUntil) : 0;
    expect(untilMs).toBeGreaterThanOrEqual(lostMs);
    expect(untilMs).toBeLessThanOrEqual(afterMs);
  });

  const touching = (sdk: LocalVerifier, token: FakeToken, value: string, more: Partial<AccessRequest> = {}) =>
    sdk.authorize(token.secret, { ...request, ...more }, (use) => {
      use.touched({ people: [{ identifierType: "customer-id", value }] });
      return use.useId;
    });

  test("what an access touched may be refused: its decision is recorded all the same, and the log is never called whole", async () => {
    const sdk = await openLiveSdk();
    const token = await seen(sdk);
    verifier.poisonedPerson = "nobody";
    const touch = (value: string) => touching(sdk, token, value);
    const [fine, refused, after] = [await touch("1"), await touch("nobody"), await touch("2")];
    await until(() => [fine, refused, after].every((useId) => verifier.cached.has(useId))).toBe(true);
    expect([fine, refused, after].map((useId) => verifier.completedOf(useId).length)).toEqual([1, 0, 1]);
    expect(verifier.forged).toEqual([]);
    expect(await sdk.close()).toBe(false);
  });

  test("a decision may be refused: what its access touched is recorded all the same", async () => {
    const sdk = await openLiveSdk();
    const token = await seen(sdk);
    verifier.poison = "invoices:read";
    const useId = await touching(sdk, token, "1");
    await until(() => verifier.completedOf(useId)).toMatchObject([{ people: [{ value: "1" }], part: 1, parts: 1 }]);
    expect(verifier.cached.has(useId)).toBe(false);
    expect(await sdk.close()).toBe(false);
  });

  test("people are counted in and out: many with a thousand each are all reported, in reports that a server takes", async () => {
    const sdk = await openLiveSdk();
    const token = await seen(sdk);
    const people = Array.from({ length: 1_000 }, (_, i) => ({
      identifierType: "email",
      value: `${"x".repeat(80)}${i}`,
    }));
    // In all more than may wait at once.
    for (let i = 0; i < 300; i += 1)
      await sdk.authorize(token.secret, { ...request, maxPeople: 1_000 }, (use) => use.touched({ people }));
    await until(() => verifier.cached.size).toBe(301);
    expect(verifier.completed.size).toBe(302);
    await until(() => revocation.pings().at(-1)).toMatchObject({ allReported: true });
  });

  test("a place that an access gives back when it ends is the next one's, with no report acknowledged meanwhile", async () => {
    const sdk = await openLiveSdk({ maxBufferedUses: 5 });
    const token = await seen(sdk);
    await until(() => revocation.pings().at(-1)).toMatchObject({ allReported: true, reportedSequence: 1n });
    verifier.reportFailure = { status: "UNAVAILABLE", reason: "DOWN", message: "down" };
    const goOn = Promise.withResolvers<void>();
    const running = [1, 2].map(() => sdk.authorize(token.secret, request, () => goOn.promise));
    const waiting = sdk.authorize(token.secret, request, idOf, { deadlineMs: 30_000 });
    goOn.resolve();
    await Promise.all(running);
    expect(await waiting).toMatch(/^[0-9a-f-]{36}$/);
    expect(verifier.cached.size).toBe(1);
    verifier.reportFailure = undefined;
  });

  test("closing denies, reports what is left, waits for accesses under way, and says that all is reported", async () => {
    const sdk = await openLiveSdk();
    const token = await seen(sdk);
    const touching = Promise.withResolvers<void>();
    const running = sdk.authorize(token.secret, request, async (use) => {
      await touching.promise;
      use.touched({ records: 1 });
      return use.useId;
    });
    const closing = sdk.close();
    expect(await denial(sdk, token)).toBe("CLOSED");
    touching.resolve();
    const useId = await running;
    expect(await closing).toBe(true);
    expect(verifier.completedOf(useId)).toMatchObject([{ records: 1n }]);
    expect(revocation.pings().at(-1)).toMatchObject({ goodbye: true, allReported: true, reportedSequence: 2n });
  });
});
