import { Outcome, Reason } from "@curfew/contracts/gen/curfew/events/v1/uses_pb.ts";
import { describe, expect, test } from "vitest";
import { positionsAt } from "./testing/fake-suite.ts";
import {
  addresses,
  denial,
  idOf,
  openLiveSdk,
  openSdk,
  read,
  request,
  revocation,
  seen,
  stopVerifier,
  suite,
  time,
  until,
  verifier,
} from "./testing/sdk.ts";

describe("not live", () => {
  test("every check goes to the verifier; that one unreachable, it is denied", async () => {
    const sdk = await openLiveSdk();
    const token = await seen(sdk);
    revocation.marks = false;
    time.stopFor(2_000);
    const { asked } = verifier;
    await read(sdk, token);
    expect(verifier.asked).toBeGreaterThan(asked);
    await stopVerifier();
    expect(await denial(sdk, token)).toBe("VERIFIER_UNREACHABLE");
  });

  test("stopped and resumed, the cache is not trusted: SIGSTOP", async () => {
    const sdk = await openLiveSdk();
    const token = await seen(sdk);
    // With something to report it would wait for that first, and may be live again by then.
    await until(() => revocation.pings().at(-1)).toMatchObject({ allReported: true, reportedSequence: 1n });
    token.reason = Reason.REVOKED;
    time.stopFor(10_000);
    expect(await denial(sdk, token)).toBe("REVOKED");
  });

  test("an answer that arrives after a stop is too old to use, each time it is asked for again", async () => {
    const sdk = await openLiveSdk();
    verifier.beforeAnswer = async () => time.stopFor(2_000);
    expect(await denial(sdk, verifier.token())).toBe("STALE_VERIFIER");
    expect(verifier.asked).toBe(4);
    const outcomes = () => [...verifier.completed.values()].map(({ outcome }) => outcome);
    await until(outcomes).toEqual(Array.from({ length: 4 }, () => Outcome.UNANSWERED));
  });

  test("an answer older than 250 ms is asked for again, for nobody waits for who does not watch; it may be revoked by then", async () => {
    revocation.marks = false;
    const sdk = await openSdk();
    const token = verifier.token();
    verifier.beforeAnswer = async () => {
      verifier.beforeAnswer = async () => undefined;
      token.reason = Reason.REVOKED;
      time.stopFor(250);
    };
    expect(await denial(sdk, token)).toBe("REVOKED");
    expect(verifier.asked).toBeGreaterThan(1);
    await until(() => [...verifier.completed.values()].map(({ outcome }) => outcome)).toContain(Outcome.UNANSWERED);
  });

  test("one who watches may use such an answer: revocation waits for him", async () => {
    const sdk = await openLiveSdk();
    verifier.beforeAnswer = async () => time.stopFor(250);
    await read(sdk, verifier.token());
    expect(verifier.asked).toBe(1);
  });

  test("after a gap too long to be caught up with, what was kept before is asked about again", async () => {
    const sdk = await openLiveSdk();
    const token = await seen(sdk);
    revocation.positions = positionsAt(30);
    time.stopFor(60_000);
    revocation.breakStreams();
    await until(() => revocation.hellos().length).toBe(2);
    await sdk.whenLive(AbortSignal.timeout(10_000));
    const { asked } = verifier;
    await read(sdk, token);
    expect(verifier.asked).toBe(asked + 1);
  });

  test("another verifier is asked when one is gone", async () => {
    const second = await suite.serve("verifier", verifier.service());
    const sdk = await openSdk({ verifier: [addresses.verifier, second.address] });
    await stopVerifier();
    await read(sdk, verifier.token());
  });

  test("a question that the verifier refuses takes no other with it", async () => {
    const sdk = await openSdk();
    verifier.poison = "poison:read";
    const [good, bad] = [verifier.token(), verifier.token()];
    const [use, reason] = await Promise.all([read(sdk, good), denial(sdk, bad, { scope: "poison:read" })]);
    expect([typeof use, reason]).toEqual(["string", "QUESTION_REFUSED"]);
  });

  test("a caller who gives up does not get in, and an answer that comes then is reported as not given", async () => {
    const sdk = await openSdk();
    const gaveUp = new AbortController();
    verifier.beforeAnswer = async () => gaveUp.abort(new Error("no more"));
    const asked = sdk.authorize(verifier.token().secret, request, () => expect.unreachable(), {
      signal: gaveUp.signal,
    });
    // The answer is on its way when the caller gives up.
    await expect(asked).rejects.toThrow("no more");
    await until(() => [...verifier.completed.values()].map(({ outcome }) => outcome)).toEqual([Outcome.UNANSWERED]);
    await expect(
      sdk.authorize(verifier.token().secret, request, idOf, { signal: AbortSignal.abort(new Error("before")) }),
    ).rejects.toThrow("before");
  });

  test("the deadline ends the waiting", async () => {
    const sdk = await openSdk();
    const never = Promise.withResolvers<void>();
    verifier.beforeAnswer = () => never.promise;
    expect(await denial(sdk, verifier.token(), {}, { deadlineMs: 50 })).toBe("VERIFIER_UNREACHABLE");
    never.resolve();
  });
});
