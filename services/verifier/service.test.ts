import { EvidenceMode } from "@curfew/contracts/gen/curfew/events/v1/common_pb.ts";
import type {
  UnknownAttemptsDenied,
  UseCompleted,
  UseDecided,
} from "@curfew/contracts/gen/curfew/events/v1/uses_pb.ts";
import { Outcome, Reason } from "@curfew/contracts/gen/curfew/events/v1/uses_pb.ts";
import { RemoteError } from "@curfew/rpc/errors.ts";
import { systemRandom } from "@curfew/runtime/random.ts";
import { secretHash } from "@curfew/token-format/digest.ts";
import { mintSecret } from "@curfew/token-format/secret.ts";
import { afterEach, beforeEach, describe, expect, it, vi } from "vitest";
import { digestOf, issued, revoked, rotated, tokenIdOf } from "./testing/histories.ts";
import { openVerifierSuite, useOf, type VerifierSuite } from "./testing/suite.ts";

const hourMs = 3_600_000;
const bound = { timeout: 15_000, interval: 10 };
let suite: VerifierSuite;
let nowMs = 0;

beforeEach(async () => {
  suite = await openVerifierSuite();
  nowMs = Date.now();
});
afterEach(() => suite.close());

const ready = async () => {
  const service = await suite.start();
  await service.ready;
  return service;
};
const live = () => ({ notBeforeMs: nowMs - hourMs, expiresAtMs: nowMs + hourMs });
/** A token on the log; answers its secret. */
const give = async (name: string, more: { times?: object; grant?: object; ancestors?: string[] } = {}) => {
  const { secret, digest } = suite.mint();
  const { times, ...rest } = more;
  await suite.publish(issued(name, { ...live(), ...times, digest }, rest));
  return secret;
};
const ask = (secret: string, use: object = {}) => ({
  credential: { case: "secret" as const, value: secret },
  use: useOf(use),
});
const failureOf = async (call: Promise<unknown>) => {
  const error = await call.then(
    () => undefined,
    (e: unknown) => e,
  );
  expect(error).toBeInstanceOf(RemoteError);
  return (error as RemoteError).failure;
};
const decided = () =>
  suite.facts().flatMap(({ message }) => (message.$typeName.endsWith("UseDecided") ? [message as UseDecided] : []));
const completed = () =>
  suite.facts().flatMap(({ message }) => (message.$typeName.endsWith("UseCompleted") ? [message as UseCompleted] : []));

type Row = { secret: () => Promise<string>; use?: object; named: boolean };
const reasons: Record<Exclude<keyof typeof Reason, "UNSPECIFIED" | "STALE_VERIFIER">, Row> = {
  OK: { secret: () => give("a"), named: true },
  MALFORMED: { secret: async () => "cfws_0000", named: false },
  UNKNOWN: { secret: async () => suite.mint().secret, named: false },
  EXPIRED: { secret: () => give("a", { times: { expiresAtMs: nowMs - 1000 } }), named: true },
  NOT_YET_VALID: { secret: () => give("a", { times: { notBeforeMs: nowMs + 60_000 } }), named: true },
  REVOKED: {
    secret: async () => {
      await suite.publish(revoked("a", nowMs));
      return give("a", { times: { expiresAtMs: nowMs - 1000 } });
    },
    named: true,
  },
  SUPERSEDED: {
    secret: async () => {
      const secret = await give("a");
      await suite.publish(rotated("a", 2, { ...live(), previousEndsAtMs: nowMs - 1000 }));
      return secret;
    },
    named: true,
  },
  WRONG_AUDIENCE: { secret: () => give("a", { grant: { audiences: ["shop"] } }), named: true },
  SCOPE_MISSING: { secret: () => give("a"), use: { scope: "invoices:write" }, named: true },
  RESOURCE_NOT_GRANTED: { secret: () => give("a"), use: { resource: "contacts/7" }, named: true },
  PURPOSE_NOT_GRANTED: { secret: () => give("a"), use: { purpose: "marketing" }, named: true },
  DATA_CATEGORY_NOT_GRANTED: { secret: () => give("a"), use: { dataCategories: ["health"] }, named: true },
  BINDING_MISMATCH: {
    secret: () => give("a", { grant: { certificateThumbprint: "m".repeat(43) } }),
    use: { presenterThumbprint: "t".repeat(43) },
    named: true,
  },
};

describe("an answer", () => {
  it.each(Object.entries(reasons))(
    "%s is given, recorded with its token, and durable before it arrives",
    async (name, row) => {
      const reason = Reason[name as keyof typeof reasons];
      const secret = await row.secret();
      const { port } = await ready();
      const before = await suite.usesEnd();
      const response = await (await suite.client(port)).verifyToken(ask(secret, row.use));
      expect(response).toMatchObject({ reason, allowed: reason === Reason.OK });
      const subject = row.named ? "spiffe://test.example/workload/a" : "";
      expect(response).toMatchObject({ tokenId: row.named ? tokenIdOf("a") : "", subject });
      expect(response.expiresAt !== undefined).toBe(reason === Reason.OK);
      // Attempts that name no token are merged, and recorded later.
      expect((await suite.usesEnd()) - before).toBe(row.named ? 1 : 0);
      if (!row.named) return;
      await vi.waitFor(() => expect(decided()).toHaveLength(1), bound);
      expect(decided()[0]).toMatchObject({
        useId: response.useId,
        tokenId: tokenIdOf("a"),
        generation: 1,
        subject,
        resourceService: "crm",
        instance: "verifier-1",
        reason,
        details: { scope: row.use && "scope" in row.use ? row.use.scope : "invoices:read", controller: "acme" },
      });
      expect(suite.uses[0]?.key).toBe(tokenIdOf("a"));
    },
  );

  it("by the SHA-256 of a secret is the same, and a bound token is good for its own certificate", async () => {
    const { secret, digest } = suite.mint();
    await suite.publish(issued("a", { ...live(), digest }, { grant: { certificateThumbprint: "m".repeat(43) } }));
    const { port } = await ready();
    const response = await (await suite.client(port)).verifyToken({
      credential: { case: "secretSha256", value: secretHash(secret) },
      use: useOf({ presenterThumbprint: "m".repeat(43) }),
    });
    expect(response.reason).toBe(Reason.OK);
  });

  it("finds a token whose digest was made with a pepper before the newest", async () => {
    const secret = await give("a");
    suite.keyring.rotatePepper();
    const { key } = suite.keyring.rotatePepper();
    const newest = suite.mint().secret;
    await suite.publish(issued("b", { ...live(), digest: digestOf(key, newest) }));
    const { port } = await ready();
    const client = await suite.client(port);
    expect((await client.verifyToken(ask(secret))).reason).toBe(Reason.OK);
    expect((await client.verifyToken(ask(newest))).tokenId).toBe(tokenIdOf("b"));
  });

  it("may be cached only where the grant says so, and says what it rests on", async () => {
    const strict = await give("a");
    const batched = await give("b", { grant: { evidenceMode: EvidenceMode.BATCHED }, ancestors: ["p"] });
    const { port } = await ready();
    const client = await suite.client(port);
    expect((await client.verifyToken(ask(strict))).cacheable).toBeUndefined();
    const { cacheable } = await client.verifyToken(ask(batched));
    expect(cacheable).toMatchObject({ tokenId: tokenIdOf("b"), generation: 1, ancestors: [tokenIdOf("p")] });
    expect(cacheable?.asOf).toContainEqual(expect.objectContaining({ topic: "curfew.tokens.v1", offset: 2n }));
    expect((await client.verifyToken(ask(batched, { purpose: "marketing" }))).cacheable).toBeUndefined();
  });

  it("waits for what the request says must have been read, but not for ever", async () => {
    const { port } = await ready();
    const client = await suite.client(port);
    const { secret, digest } = suite.mint();
    const position = await suite.publish(issued("a", { ...live(), digest }));
    const { reason } = await client.verifyToken({ ...ask(secret), atLeast: [position] });
    expect(reason).toBe(Reason.OK);
    const future = { ...position, offset: position.offset + 1000n };
    expect((await client.verifyToken({ ...ask(secret), atLeast: [future] })).reason).toBe(Reason.STALE_VERIFIER);
  });

  it("for a controller that the caller is not listed for is refused, and nothing is recorded", async () => {
    const secret = await give("a");
    const { port } = await ready();
    const client = await suite.client(port);
    const failure = await failureOf(client.verifyToken(ask(secret, { controller: "other" })));
    expect(failure).toMatchObject({ status: "INVALID_ARGUMENT", reason: "CONTROLLER_NOT_LISTED" });
    expect(failure.fieldViolations?.[0]?.field).toBe("use.controller");
    const odd = await failureOf(client.verifyToken(ask(secret, { sourceAddress: "anna@example.test" })));
    expect(odd).toMatchObject({ status: "INVALID_ARGUMENT", reason: "NOT_AN_ADDRESS" });
    expect(JSON.stringify(odd)).not.toContain("anna");
    const batch = { requests: [ask(secret), ask(secret, { controller: "other" })] };
    expect((await failureOf(client.batchVerifyTokens(batch))).fieldViolations?.[0]?.field).toBe(
      "requests[1].use.controller",
    );
    expect(await suite.usesEnd()).toBe(0);
  });

  it("comes to 256 uses at once from one group on the bus, each on its own", async () => {
    const good = await give("a");
    const { port } = await ready();
    const client = await suite.client(port);
    const requests = Array.from({ length: 256 }, (_, i) => ask(good, { purpose: i % 2 ? "billing" : "marketing" }));
    const sends = suite.gate.sends();
    const { responses } = await client.batchVerifyTokens({ requests });
    expect(suite.gate.sends() - sends).toBe(1);
    expect(await suite.usesEnd()).toBe(256);
    expect(responses.map((r) => r.allowed)).toEqual(requests.map((_, i) => i % 2 === 1));
    expect(new Set(responses.map((r) => r.useId)).size).toBe(256);
  });
});

describe("what has ended", () => {
  it("stays ended over a restart, and is known to a replica that never heard the push", async () => {
    const secret = await give("a");
    const first = await ready();
    expect((await (await suite.client(first.port)).verifyToken(ask(secret))).reason).toBe(Reason.OK);
    const position = await suite.publish(revoked("a", nowMs));
    const request = { ...ask(secret), atLeast: [position] };
    expect((await (await suite.client(first.port)).verifyToken(request)).reason).toBe(Reason.REVOKED);
    await first.close();
    const second = await ready();
    expect((await (await suite.client(second.port)).verifyToken(ask(secret))).reason).toBe(Reason.REVOKED);
  });

  it("while its use is made durable is denied, acknowledged, and the log says that nobody was answered", async () => {
    const secret = await give("a");
    const { port } = await ready();
    const client = await suite.client(port);
    suite.gate.hold();
    const answer = client.verifyToken(ask(secret));
    await vi.waitFor(() => expect(suite.gate.held()).toBe(1), bound);
    suite.revocation().push([{ tokenId: tokenIdOf("a"), revocationEventId: "event-1" }]);
    await vi.waitFor(() => expect(suite.revocation().acknowledged).toEqual(["event-1"]), bound);
    suite.gate.release();
    const response = await answer;
    expect(response).toMatchObject({ allowed: false, reason: Reason.REVOKED, tokenId: tokenIdOf("a") });
    await vi.waitFor(() => expect(completed()).toHaveLength(1), bound);
    expect(decided()).toMatchObject([{ useId: response.useId, reason: Reason.OK }]);
    expect(completed()).toMatchObject([
      { useId: response.useId, tokenId: tokenIdOf("a"), outcome: Outcome.UNANSWERED, resourceService: "crm" },
    ]);
  });

  it("after an answer that somebody may still act on is denied at once, and acknowledged when nobody may", async () => {
    const secret = await give("a");
    const { port } = await ready();
    const client = await suite.client(port);
    expect((await client.verifyToken(ask(secret))).allowed).toBe(true);
    const askedMs = performance.now();
    expect((await client.verifyToken(ask(secret))).allowed).toBe(true);
    suite.revocation().push([{ tokenId: tokenIdOf("a"), revocationEventId: "event-1" }]);
    await vi.waitFor(async () => expect((await client.verifyToken(ask(secret))).reason).toBe(Reason.REVOKED), bound);
    await vi.waitFor(() => expect(suite.revocation().acknowledged).toEqual(["event-1"]), bound);
    expect(performance.now() - askedMs).toBeGreaterThanOrEqual(250);
  });

  it("by a rotation that was pushed is superseded, the new generation is not", async () => {
    const secret = await give("a");
    const { port } = await ready();
    const client = await suite.client(port);
    const endsAt = { seconds: BigInt(Math.floor(nowMs / 1000) - 1), nanos: 0 };
    suite.revocation().push([{ tokenId: tokenIdOf("a"), upToGeneration: 1, endsAt } as never]);
    await vi.waitFor(async () => expect((await client.verifyToken(ask(secret))).reason).toBe(Reason.SUPERSEDED), bound);
    const second = suite.mint();
    const fact = rotated("a", 2, { ...live(), previousEndsAtMs: nowMs - 1000, digest: second.digest });
    const position = await suite.publish(fact);
    const response = await client.verifyToken({ ...ask(second.secret), atLeast: [position] });
    expect(response.reason).toBe(Reason.OK);
  });
});

describe("a verifier", () => {
  it("serves nobody before it has read the log", async () => {
    const secret = await give("a");
    await suite.publish(revoked("a", nowMs));
    suite.gate.holdReading();
    const service = await suite.start();
    const client = await suite.client(service.port);
    expect(await suite.serving(service.port)).toBe(false);
    const failure = await failureOf(client.verifyToken(ask(secret)));
    expect(failure).toMatchObject({ status: "UNAVAILABLE", reason: "NOT_READY" });
    suite.gate.releaseReading();
    await service.ready;
    expect(await suite.serving(service.port)).toBe(true);
    expect((await client.verifyToken(ask(secret))).reason).toBe(Reason.REVOKED);
  });

  it("cut off from revocation denies what it cannot know, says so in its health, and recovers by itself", async () => {
    const secret = await give("a");
    const dead = await give("b");
    await suite.publish(revoked("b", nowMs));
    const { port } = await ready();
    const client = await suite.client(port);
    await suite.stopRevocation();
    await vi.waitFor(async () => {
      expect((await client.verifyToken(ask(secret))).reason).toBe(Reason.STALE_VERIFIER);
    }, bound);
    expect((await client.verifyToken(ask(suite.mint().secret))).reason).toBe(Reason.STALE_VERIFIER);
    expect((await client.verifyToken(ask(dead))).reason).toBe(Reason.REVOKED);
    await vi.waitFor(async () => expect(await suite.serving(port)).toBe(false), bound);
    await vi.waitFor(() => expect(decided().some((d) => d.reason === Reason.STALE_VERIFIER)).toBe(true), bound);
    await suite.restartRevocation();
    await vi.waitFor(async () => expect(await suite.serving(port)).toBe(true), bound);
    expect((await client.verifyToken(ask(secret))).reason).toBe(Reason.OK);
  });

  it("whose bus takes nothing answers UNAVAILABLE, is not serving, and goes on when it is back", async () => {
    const secret = await give("a");
    const { port } = await ready();
    const client = await suite.client(port);
    suite.gate.hold();
    const stuck = failureOf(client.verifyToken(ask(secret)));
    await vi.waitFor(() => expect(suite.gate.held()).toBe(1), bound);
    const waiting = failureOf(client.verifyToken(ask(secret)));
    expect(await stuck).toMatchObject({ status: "UNAVAILABLE", reason: "BUS_UNAVAILABLE" });
    expect(await waiting).toMatchObject({ status: "UNAVAILABLE", reason: "BUS_UNAVAILABLE" });
    expect(await failureOf(client.verifyToken(ask(secret)))).toMatchObject({ status: "UNAVAILABLE" });
    await vi.waitFor(async () => expect(await suite.serving(port)).toBe(false), bound);
    suite.gate.release();
    await vi.waitFor(async () => expect(await suite.serving(port)).toBe(true), bound);
    const { useId, reason } = await client.verifyToken(ask(secret));
    expect(reason).toBe(Reason.OK);
    // Only the use that was in the open send came to the log, with the word that its answer was never given.
    await vi.waitFor(() => expect(decided().map((d) => d.useId)).toContain(useId), bound);
    await vi.waitFor(() => expect(completed()).toHaveLength(1), bound);
    expect(decided()).toHaveLength(2);
    expect(completed()).toMatchObject([{ useId: decided()[0]?.useId, outcome: Outcome.UNANSWERED }]);
  });

  it("that cannot ask its bus is not serving until it can", async () => {
    const { port } = await ready();
    suite.gate.setOut(true);
    await vi.waitFor(async () => expect(await suite.serving(port)).toBe(false), bound);
    suite.gate.setOut(false);
    await vi.waitFor(async () => expect(await suite.serving(port)).toBe(true), bound);
  });

  it("drops the use of a caller who left before it was sent, and completes one who left after", async () => {
    const secret = await give("a");
    const { port } = await ready();
    const client = await suite.client(port);
    suite.gate.hold();
    const leaving = new AbortController();
    const sent = failureOf(client.verifyToken(ask(secret), { signal: leaving.signal }));
    await vi.waitFor(() => expect(suite.gate.held()).toBe(1), bound);
    const queued = failureOf(client.verifyToken(ask(secret), { signal: leaving.signal }));
    // On the same connection, so that the one before has arrived when this one has been answered.
    await client.verifyToken(ask("cfws_malformed"));
    leaving.abort();
    expect(await sent).toMatchObject({ status: "CANCELLED" });
    expect(await queued).toMatchObject({ status: "CANCELLED" });
    await client.verifyToken(ask("cfws_malformed"));
    suite.gate.release();
    await vi.waitFor(() => expect(completed()).toHaveLength(1), bound);
    const { useId } = await client.verifyToken(ask(secret));
    await vi.waitFor(() => expect(decided().map((d) => d.useId)).toContain(useId), bound);
    expect(decided()).toHaveLength(2);
    expect(completed()[0]).toMatchObject({ useId: decided()[0]?.useId, outcome: Outcome.UNANSWERED });
  });

  it("merges attempts that name no token, and records them when it closes", async () => {
    const service = await ready();
    const client = await suite.client(service.port);
    for (const sourceAddress of ["192.0.2.1", "192.0.2.77", "::ffff:192.0.2.5", "198.51.100.1", ""])
      await client.verifyToken(ask("nothing of ours", { sourceAddress }));
    await client.verifyToken(ask(mintSecret("s", systemRandom), { sourceAddress: "192.0.2.1" }));
    expect(await suite.usesEnd()).toBe(0);
    await service.close();
    await vi.waitFor(() => expect(suite.facts()).toHaveLength(4), bound);
    const merged = suite.facts().map(({ message }) => message as UnknownAttemptsDenied);
    expect(merged.map((m) => [m.reason, m.count])).toEqual(
      expect.arrayContaining([
        [Reason.MALFORMED, 3n],
        [Reason.MALFORMED, 1n],
        [Reason.MALFORMED, 1n],
        [Reason.UNKNOWN, 1n],
      ]),
    );
    const networks = merged.map((m) => m.networkPseudonym).filter((n) => n !== "");
    expect(networks.every((n) => n.startsWith("psn_"))).toBe(true);
    expect(new Set(networks).size).toBe(2);
  });
});
