import { timestampMs } from "@bufbuild/protobuf/wkt";
import { Outcome, Reason, ReasonSchema } from "@curfew/contracts/gen/curfew/events/v1/uses_pb.ts";
import { afterEach, beforeEach, describe, expect, test } from "vitest";
import { type AccessRequest, InvalidRequest } from "./access-request.ts";
import { Denied } from "./denied.ts";
import { type LocalVerifier, type LocalVerifierOptions, openLocalVerifier } from "./local-verifier.ts";
import type { Use } from "./open-use.ts";
import {
  type FakeRevocation,
  type FakeSuite,
  type FakeToken,
  type FakeVerifier,
  openFakeRevocation,
  openFakeSuite,
  openFakeVerifier,
  openJumpyClock,
  positionsAt,
} from "./testing/fake-suite.ts";

let suite: FakeSuite;
let revocation: FakeRevocation;
let verifier: FakeVerifier;
let time: ReturnType<typeof openJumpyClock>;
let addresses: { verifier: string; revocation: string };
let stopVerifier: () => Promise<void>;

beforeEach(async () => {
  suite = await openFakeSuite();
  time = openJumpyClock();
  revocation = openFakeRevocation();
  verifier = openFakeVerifier(time.clock);
  const watched = await suite.serve("revocation", revocation.service());
  const asked = await suite.serve("verifier", verifier.service());
  stopVerifier = asked.stop;
  addresses = { verifier: asked.address, revocation: watched.address };
});
afterEach(() => suite.close());

const until = (what: () => unknown) => expect.poll(what, { timeout: 10_000, interval: 10 });

const openSdk = async (options: Partial<LocalVerifierOptions> = {}): Promise<LocalVerifier> => {
  const { caPem, trustDomain } = suite;
  const sdk = openLocalVerifier({
    verifier: [addresses.verifier],
    revocation: [addresses.revocation],
    identity: await suite.identity("/workload/crm"),
    caPem,
    trustDomain,
    clock: time.clock,
    ...options,
  });
  suite.closers.push(() => sdk.close());
  return sdk;
};

const openLiveSdk = async (options: Partial<LocalVerifierOptions> = {}): Promise<LocalVerifier> => {
  const sdk = await openSdk(options);
  await sdk.whenLive(AbortSignal.timeout(10_000));
  return sdk;
};

const request: AccessRequest = {
  scope: "invoices:read",
  resource: "invoices/7",
  purpose: "billing",
  dataCategories: ["contact"],
  controller: "acme",
  maxPeople: 1,
  maxRecords: 10,
};
const idOf = (use: Use) => use.useId;
const read = (sdk: LocalVerifier, token: FakeToken, more: Partial<AccessRequest> = {}) =>
  sdk.authorize(token.secret, { ...request, ...more }, idOf);
/** The reason why, having checked that the access did not run. */
const denial = async (sdk: LocalVerifier, token: FakeToken, more: Partial<AccessRequest> = {}, options = {}) => {
  const denied = await sdk
    .authorize(token.secret, { ...request, ...more }, () => expect.unreachable("the access ran"), options)
    .then(
      () => expect.unreachable("it was allowed"),
      (error: unknown) => error,
    );
  expect(denied).toBeInstanceOf(Denied);
  return (denied as Denied).reason;
};
/** In the cache from here on. */
const seen = async (sdk: LocalVerifier, options: Partial<FakeToken> = {}): Promise<FakeToken> => {
  const token = verifier.token(options);
  await read(sdk, token);
  const { asked } = verifier;
  await read(sdk, token);
  expect(verifier.asked).toBe(asked);
  return token;
};
const revokedPush = ({ tokenId }: { tokenId: string }) => ({ tokenId, revocationEventId: `revocation of ${tokenId}` });

describe("first sight and cache", () => {
  test("the first check asks the verifier, by the SHA-256 of the secret; later ones are decided here and reported", async () => {
    const sdk = await openLiveSdk();
    const token = verifier.token();
    const remote = await read(sdk, token);
    const local = await read(sdk, token);
    expect(verifier.asked).toBe(1);
    await until(() => verifier.cached.size).toBe(1);
    const use = verifier.cached.get(local);
    expect(use).toMatchObject({ instanceSequence: 1n, tokenId: token.tokenId, generation: 1, reason: Reason.OK });
    expect(use?.use).toMatchObject({ scope: "invoices:read", controller: "acme", maxPeople: 1n, maxRecords: 10n });
    await until(() => new Set(verifier.completed.keys())).toEqual(new Set([`${remote}/1`, `${local}/1`]));
  });

  test("questions of one turn travel together, at most 256", async () => {
    const sdk = await openLiveSdk();
    const tokens = Array.from({ length: 300 }, () => verifier.token({ cacheable: false }));
    await Promise.all(tokens.map((token) => read(sdk, token)));
    expect(new Set(verifier.batches)).toEqual(new Set([256, 44]));
  });

  test("what the verifier does not let be cached is asked every time: before-use", async () => {
    const sdk = await openLiveSdk();
    const token = verifier.token({ cacheable: false });
    for (let i = 0; i < 3; i += 1) await read(sdk, token);
    expect(verifier.asked).toBe(3);
    expect(verifier.cached.size).toBe(0);
  });

  test("the grant is checked here too, and the refusal is a use as well", async () => {
    const sdk = await openLiveSdk();
    const token = await seen(sdk);
    expect(await denial(sdk, token, { scope: "invoices:write" })).toBe("SCOPE_MISSING");
    expect(await denial(sdk, token, { resource: "payroll/1" })).toBe("RESOURCE_NOT_GRANTED");
    expect(await denial(sdk, token, { purpose: "marketing" })).toBe("PURPOSE_NOT_GRANTED");
    expect(await denial(sdk, token, { dataCategories: ["health"] })).toBe("DATA_CATEGORY_NOT_GRANTED");
    expect(verifier.asked).toBe(1);
    await until(() => new Set([...verifier.cached.values()].map(({ reason }) => reason))).toEqual(
      new Set([
        Reason.OK,
        Reason.SCOPE_MISSING,
        Reason.RESOURCE_NOT_GRANTED,
        Reason.PURPOSE_NOT_GRANTED,
        Reason.DATA_CATEGORY_NOT_GRANTED,
      ]),
    );
  });

  test("a controller that the verifier has not accepted yet is asked about, cached token or not", async () => {
    const sdk = await openLiveSdk();
    const token = await seen(sdk);
    await read(sdk, token, { controller: "globex" });
    expect(verifier.asked).toBe(2);
    await read(sdk, token, { controller: "globex" });
    expect(verifier.asked).toBe(2);
  });

  test("with a clock that is wrong nothing is decided here", async () => {
    const sdk = await openLiveSdk();
    const token = await seen(sdk);
    for (const [clockOffsetMs, more] of [
      [61_000, 1],
      [-61_000, 1],
      [0, 0],
    ] as const) {
      revocation.clockOffsetMs = clockOffsetMs;
      const pings = revocation.pings().length;
      await until(() => revocation.pings().length).toBeGreaterThan(pings + 2);
      const { asked } = verifier;
      await read(sdk, token);
      expect(verifier.asked).toBe(asked + more);
    }
  });

  test("an entry that has run out is asked about again", async () => {
    const sdk = await openLiveSdk();
    const token = await seen(sdk, { expiresAtMs: time.clock.now() + 60_000 });
    token.reason = Reason.EXPIRED;
    time.stopFor(60_000);
    await sdk.whenLive(AbortSignal.timeout(10_000));
    expect(await denial(sdk, token)).toBe("EXPIRED");
  });

  test("the cache is bounded: the oldest makes room", async () => {
    const sdk = await openLiveSdk({ cacheEntries: 2 });
    const first = await seen(sdk);
    await seen(sdk);
    const third = await seen(sdk);
    const { asked } = verifier;
    await read(sdk, third);
    expect(verifier.asked).toBe(asked);
    await read(sdk, first);
    expect(verifier.asked).toBe(asked + 1);
  });

  test("an answer of a verifier that has read less than the stream began with is used, not kept", async () => {
    const sdk = await openLiveSdk();
    const token = verifier.token({ asOf: positionsAt(9) });
    await read(sdk, token);
    await read(sdk, token);
    expect(verifier.asked).toBe(2);
    token.asOf = positionsAt(10);
    await read(sdk, token);
    await read(sdk, token);
    expect(verifier.asked).toBe(3);
  });

  test("positions that must have been read are the verifier's to judge", async () => {
    const sdk = await openLiveSdk();
    const token = await seen(sdk);
    await sdk.authorize(token.secret, request, idOf, { atLeast: [] });
    expect(verifier.asked).toBe(1);
  });
});

describe("a token ends", () => {
  test("a pushed revocation kills the cached answer before it is acknowledged; the token is refused at once, without a question", async () => {
    const sdk = await openLiveSdk();
    const token = await seen(sdk);
    token.reason = Reason.REVOKED;
    revocation.push(revokedPush(token));
    await until(() => revocation.acknowledged()).toEqual([`revocation of ${token.tokenId}`]);
    const { asked } = verifier;
    expect(await denial(sdk, token)).toBe("REVOKED");
    expect(verifier.asked).toBe(asked);
    // And the refusal is reported as what it was.
    await until(() => [...verifier.cached.values()].map(({ reason }) => reason)).toContain(Reason.REVOKED);
  });

  test("so does that of a token it was derived from", async () => {
    const sdk = await openLiveSdk();
    const parent = verifier.token();
    const child = await seen(sdk, { ancestors: [parent.tokenId] });
    child.reason = Reason.REVOKED;
    revocation.push(revokedPush(parent));
    await until(() => revocation.acknowledged().length).toBe(1);
    expect(await denial(sdk, child)).toBe("REVOKED");
  });

  test("an allowed answer that a push overtook is not used, and the log is told so", async () => {
    const sdk = await openLiveSdk();
    const token = verifier.token();
    verifier.beforeAnswer = async () => {
      revocation.push(revokedPush(token));
      await until(() => revocation.acknowledged().length).toBe(1);
    };
    expect(await denial(sdk, token)).toBe("REVOKED");
    await until(() => [...verifier.completed.values()].map(({ outcome }) => outcome)).toEqual([Outcome.UNANSWERED]);
  });

  test("a verifier that has not heard of a revocation yet is not believed any more once we have", async () => {
    const sdk = await openLiveSdk();
    const token = await seen(sdk);
    revocation.push(revokedPush(token));
    await until(() => revocation.acknowledged().length).toBe(1);
    expect(await denial(sdk, token)).toBe("REVOKED");
    expect(await denial(sdk, token)).toBe("REVOKED");
  });

  test("a rotation ends the generation before at its time, not sooner", async () => {
    const sdk = await openLiveSdk();
    const token = await seen(sdk);
    const seconds = BigInt(Math.floor(time.clock.now() / 1000) + 60);
    revocation.push(
      { tokenId: token.tokenId, upToGeneration: 1, endsAt: { seconds, nanos: 0 } },
      revokedPush({ tokenId: "tok_other" }),
    );
    await until(() => revocation.acknowledged().length).toBe(1);
    await read(sdk, token);
    expect(verifier.asked).toBe(1);
    token.reason = Reason.SUPERSEDED;
    time.stopFor(61_000);
    await sdk.whenLive(AbortSignal.timeout(10_000));
    expect(await denial(sdk, token)).toBe("SUPERSEDED");
  });

  test.for(Object.keys(Reason).filter((name) => name !== "UNSPECIFIED" && name !== "OK"))(
    "%s of the verifier is passed on",
    async (name) => {
      const sdk = await openSdk();
      const reason = ReasonSchema.values.find(({ localName }) => localName === name)?.number as Reason;
      expect(await denial(sdk, verifier.token({ reason }))).toBe(name);
    },
  );

  test("an unknown secret, or something that is no secret, is UNKNOWN", async () => {
    const sdk = await openSdk();
    for (const secret of ["", "not a secret", "x".repeat(100_000), "\ud800"])
      await expect(sdk.authorize(secret, request, idOf)).rejects.toMatchObject({ reason: "UNKNOWN" });
  });
});

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

describe("what accesses touch", () => {
  const person = (n: number) => ({ identifierType: "customer-id", value: `c-${n}` });

  test("adds up to one completion", async () => {
    const sdk = await openSdk();
    const useId = await sdk.authorize(verifier.token().secret, request, async (use) => {
      use.touched({ records: 2, people: [person(1)] });
      use.touched({ records: 3, people: [person(2)], unnamedPeople: 4 });
      return use.useId;
    });
    await until(() => verifier.completedOf(useId).length).toBe(1);
    expect(verifier.completedOf(useId)[0]).toMatchObject({
      outcome: Outcome.COMPLETED,
      records: 5n,
      unnamedPeople: 4n,
      part: 1,
      parts: 1,
    });
    expect(verifier.completedOf(useId)[0]?.people).toMatchObject(
      [1, 2].map((n) => ({ controller: "acme", ...person(n) })),
    );
  });

  test("counts even when the access fails, and the access's own error comes through", async () => {
    const sdk = await openSdk();
    let useId = "";
    const failing = sdk.authorize(verifier.token().secret, request, (use) => {
      ({ useId } = use);
      use.touched({ records: 2 });
      throw new RangeError("disk");
    });
    await expect(failing).rejects.toThrow(new RangeError("disk"));
    await until(() => verifier.completedOf(useId)[0]).toMatchObject({ outcome: Outcome.FAILED, records: 2n });
  });

  test("goes in parts of at most 1,000 people, the last of which names their number", async () => {
    const sdk = await openSdk();
    const useId = await sdk.authorize(verifier.token().secret, { ...request, maxPeople: 2_500 }, (use) => {
      use.touched({ records: 9, people: Array.from({ length: 2_500 }, (_, i) => person(i)) });
      return use.useId;
    });
    await until(() => verifier.completedOf(useId).length).toBe(3);
    const parts = verifier.completedOf(useId).sort((a, b) => a.part - b.part);
    expect(parts.map(({ people, part, parts }) => [people.length, part, parts])).toEqual([
      [1_000, 1, 0],
      [1_000, 2, 0],
      [500, 3, 3],
    ]);
    expect(parts.reduce((sum, { records }) => sum + records, 0n)).toBe(9n);
  });

  test("is counted only, where over 100,000 people were declared", async () => {
    const sdk = await openSdk();
    const useId = await sdk.authorize(verifier.token().secret, { ...request, maxPeople: 100_001 }, (use) => {
      use.touched({ people: [person(1), person(2)] });
      return use.useId;
    });
    await until(() => verifier.completedOf(useId)[0]).toMatchObject({ people: [], unnamedPeople: 2n });
  });

  test("must be right, and told before the access ends", async () => {
    const sdk = await openSdk();
    let kept: Use | undefined;
    await sdk.authorize(verifier.token().secret, request, (use) => {
      kept = use;
      const wrong = [
        { records: -1 },
        { records: 1.5 },
        { people: [{ identifierType: "Customer Id", value: "x" }] },
        { people: [{ identifierType: "email", value: "" }] },
        { people: [{ identifierType: "email", value: "\ud800" }] },
        { people: [{ identifierType: "email", value: "x".repeat(513) }] },
      ];
      for (const what of wrong) expect(() => use.touched({ unnamedPeople: 1, ...what })).toThrow(InvalidRequest);
    });
    expect(() => kept?.touched({ records: 1 })).toThrow("has ended");
    await until(() => [...verifier.completed.values()][0]).toMatchObject({ records: 0n, unnamedPeople: 0n });
  });
});

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

test("a request that breaks a rule is the service's own mistake: nobody is asked", async () => {
  const sdk = await openSdk();
  const token = verifier.token();
  for (const wrong of [{ scope: "Invoices" }, { resource: "a b" }, { maxPeople: -1 }, { controller: "" }])
    await expect(sdk.authorize(token.secret, { ...request, ...wrong }, idOf)).rejects.toMatchObject({
      name: "InvalidRequest",
    });
  expect(verifier.asked).toBe(0);
});

test("only a workload can be a resource service", async () => {
  const identity = await suite.identity("/person/ada");
  await expect(openSdk({ identity })).rejects.toThrow("no workload");
});
