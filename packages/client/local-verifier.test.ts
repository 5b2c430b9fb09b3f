import { Outcome, Reason, ReasonSchema } from "@curfew/contracts/gen/curfew/events/v1/uses_pb.ts";
import { describe, expect, test } from "vitest";
import { positionsAt } from "./testing/fake-suite.ts";
import {
  denial,
  idOf,
  openLiveSdk,
  openSdk,
  read,
  request,
  revocation,
  revokedPush,
  seen,
  suite,
  time,
  until,
  verifier,
} from "./testing/sdk.ts";

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
