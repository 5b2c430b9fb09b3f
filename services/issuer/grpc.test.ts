import { timestampMs } from "@bufbuild/protobuf/wkt";
import type { Delivery } from "@curfew/contracts/gen/curfew/events/v1/common_pb.ts";
import type { TokenIssued, TokenRotated } from "@curfew/contracts/gen/curfew/events/v1/tokens_pb.ts";
import { Health, HealthCheckResponse_ServingStatus as Status } from "@curfew/contracts/gen/grpc/health/v1/health_pb.ts";
import { topicNames } from "@curfew/event-log/event-types.ts";
import { parseRpcError } from "@curfew/rpc/errors.ts";
import { eventually } from "@curfew/rpc/testing/suite.ts";
import { digest, secretHash } from "@curfew/token-format/digest.ts";
import { parseSecret } from "@curfew/token-format/secret.ts";
import { afterEach, describe, expect, test } from "vitest";
import {
  collect,
  direct,
  grant,
  minutes,
  openIssuerSuite,
  policyDocument,
  registerKey,
  requestId,
  uriOf,
} from "./testing/issuer-suite.ts";

let suite: Awaited<ReturnType<typeof openIssuerSuite>>;
afterEach(() => suite.close());
const failure = (call: Promise<unknown>) => call.then(() => expect.unreachable("the call succeeded"), parseRpcError);
const eventsOf = async (type: string) =>
  (await suite.events(topicNames.tokens)).filter((event) => event.type === `curfew.${type}.v1`);

/** In hex, of the generations that events of a type made. */
const storedDigests = async (type: "token.issued" | "token.rotated") =>
  (await eventsOf(type)).map(({ message }) =>
    Buffer.from((message as TokenIssued).generation?.digest?.value ?? []).toString("hex"),
  );
const digestOf = async (secret: string) =>
  Buffer.from(digest((await suite.parts("issuer")).keyring.peppers().current.key, secretHash(secret))).toString("hex");

describe("a token delivered directly", () => {
  test("shows its secret once, is live at once, and is on the topic where the answer says", async () => {
    suite = await openIssuerSuite();
    const { token, secret, published, position, secretAlreadyShown } = await direct(suite.billing);
    expect(parseSecret(secret)).toEqual({ ok: true, kind: "s" });
    expect({ published, secretAlreadyShown }).toEqual({ published: true, secretAlreadyShown: false });
    expect(token).toMatchObject({
      subject: uriOf("workload/billing"),
      generation: 1,
      state: "live",
      policy: "tokens",
      policyVersion: 1,
      grant: { certificateThumbprint: expect.stringMatching(/^[\w-]{43}$/) },
    });
    const tokenId = token?.tokenId ?? "";
    expect((await suite.billing.getToken({ tokenId })).token).toEqual(token);
    expect((await suite.billing.listTokens({})).tokens.map((t) => t.tokenId)).toEqual([tokenId]);
    const [event] = await eventsOf("token.issued");
    expect(event?.subject).toBe(`tokens/${tokenId}`);
    expect(BigInt(event?.record.offset ?? -1)).toBe(position?.offset);
    expect(await storedDigests("token.issued")).toEqual([await digestOf(secret)]);
    expect(
      await collect(suite.billing, "workload/billing", tokenId, await registerKey(suite.billing, "workload/billing")),
    ).toBeUndefined();
  });
});

describe("the same request id", () => {
  test("twice has one effect: the same token, its secret shown to the first only", async () => {
    suite = await openIssuerSuite();
    const id = requestId();
    const first = await direct(suite.billing, {}, id);
    const again = await direct(suite.billing, {}, id);
    expect(again).toMatchObject({
      token: { tokenId: first.token?.tokenId },
      secret: "",
      secretAlreadyShown: true,
      published: true,
    });
    expect(again.position?.offset).toBe(first.position?.offset);
    expect(await eventsOf("token.issued")).toHaveLength(1);
  });

  test("at once, to two replicas, makes one token and shows one secret, which is the one that counts", async () => {
    suite = await openIssuerSuite();
    const other = await suite.as("workload/billing", await suite.start());
    const id = requestId();
    const answers = await Promise.all(
      Array.from({ length: 16 }, (_, i) => direct(i % 2 ? other : suite.billing, {}, id)),
    );
    expect(new Set(answers.map((a) => a.token?.tokenId)).size).toBe(1);
    const shown = answers.filter((a) => a.secret !== "");
    expect(shown).toHaveLength(1);
    expect(answers.filter((a) => a.secretAlreadyShown)).toHaveLength(15);
    const events = await eventsOf("token.issued");
    expect(new Set(events.map((e) => e.id)).size).toBe(1);
    expect(new Set(await storedDigests("token.issued"))).toEqual(new Set([await digestOf(shown[0]?.secret ?? "")]));
  });

  test("by another caller is another token", async () => {
    suite = await openIssuerSuite();
    const id = requestId();
    const mine = await direct(suite.billing, {}, id);
    const theirs = await direct(await suite.as("workload/reports"), {}, id);
    expect(theirs.secret).not.toBe("");
    expect(theirs.token?.tokenId).not.toBe(mine.token?.tokenId);
  });

  test("for another request is refused, also for rotations, policies and keys", async () => {
    suite = await openIssuerSuite();
    const id = requestId();
    const { token } = await direct(suite.billing, {}, id);
    const reused = { status: "INVALID_ARGUMENT", reason: "REQUEST_ID_REUSED" };
    expect(await failure(direct(suite.billing, { resources: ["invoices/1"] }, id))).toMatchObject(reused);

    const rotate = (overlap: number) =>
      suite.billing.rotateToken({ requestId: id, tokenId: token?.tokenId ?? "", overlap: minutes(overlap) });
    const rotated = await rotate(5);
    expect(rotated).toMatchObject({ token: { generation: 2 }, secretAlreadyShown: false });
    expect(await rotate(5)).toMatchObject({ token: { generation: 2 }, secret: "", secretAlreadyShown: true });
    expect(await failure(rotate(4))).toMatchObject(reused);
    const { token: other } = await direct(suite.billing);
    const elsewhere = { requestId: id, tokenId: other?.tokenId ?? "", overlap: minutes(5) };
    expect(await failure(suite.billing.rotateToken(elsewhere))).toMatchObject(reused);
    expect(await eventsOf("token.rotated")).toHaveLength(1);

    const publish = (document: string) => suite.admin.publishPolicy({ requestId: id, policy: "more", document });
    expect(await publish(policyDocument)).toMatchObject({ version: 1 });
    expect(await publish(policyDocument)).toMatchObject({ version: 1, published: true });
    expect(await failure(publish("rules: []"))).toMatchObject(reused);
    const another = { requestId: id, policy: "another", document: policyDocument };
    expect(await failure(suite.admin.publishPolicy(another))).toMatchObject(reused);
  });
});

describe("policy", () => {
  test("refuses with the closest rule and all that it does not allow", async () => {
    suite = await openIssuerSuite();
    const refused = await failure(direct(suite.billing, { scopes: ["invoices:write"], resources: ["invoices/**"] }));
    expect(refused).toMatchObject({
      status: "PERMISSION_DENIED",
      reason: "POLICY_REFUSED",
      metadata: { policy: "tokens", version: "1", rule: "read-invoices" },
    });
    expect(refused.message).toBe(
      "rule read-invoices of policy tokens (version 1): scope invoices:write is not allowed; resource invoices/** is not allowed",
    );
    const stranger = await suite.as("workload/stranger");
    expect(await failure(direct(stranger))).toMatchObject({
      status: "PERMISSION_DENIED",
      metadata: { rule: "" },
      message: "no rule of any policy names workload/stranger",
    });
    expect(await eventsOf("token.issued")).toHaveLength(0);
  });

  test("with mistakes is refused with all of them at once, and nothing changes", async () => {
    suite = await openIssuerSuite();
    const document =
      "rules:\n  - { name: X, subjects: [workload/*], scopes: [a], resources: [a], audiences: [a], purposes: [a], secret: 1 }";
    const refused = await failure(suite.admin.publishPolicy({ requestId: requestId(), policy: "tokens", document }));
    expect(refused).toMatchObject({ status: "INVALID_ARGUMENT", reason: "INVALID_POLICY" });
    expect(refused.fieldViolations?.map((v) => v.field)).toEqual([
      "rules[0].name",
      "rules[0].subjects[0]",
      "rules[0].scopes[0]",
      "rules[0].secret",
    ]);
    expect(await eventsOf("policy.published")).toHaveLength(1);
  });

  test("published through one replica is at once in force in the other, for what it allows and what it takes away", async () => {
    suite = await openIssuerSuite();
    const other = await suite.as("workload/billing", await suite.start());
    const admin = suite.admin;
    await direct(other);
    const publish = (policy: string, document: string) =>
      admin.publishPolicy({ requestId: requestId(), policy, document });
    await publish("tokens", policyDocument.replace("workload/billing, ", ""));
    expect(await failure(direct(other))).toMatchObject({ reason: "POLICY_REFUSED" });
    await publish("another", policyDocument);
    expect((await direct(other)).token).toMatchObject({ policy: "another", policyVersion: 1 });
  });

  test("asks for a well-formed grant first, naming each field that is not", async () => {
    suite = await openIssuerSuite();
    const refused = await failure(
      direct(suite.billing, { scopes: [], resources: ["a/**/b"], ttl: { seconds: -1n }, evidenceMode: 9 as never }),
    );
    expect(refused).toMatchObject({ status: "INVALID_ARGUMENT", reason: "INVALID_GRANT" });
    expect(refused.fieldViolations?.map((v) => v.field)).toEqual([
      "grant.scopes",
      "grant.resources[0]",
      "grant.ttl",
      "grant.evidence_mode",
    ]);
  });
});

describe("a sealed secret", () => {
  const path = "workload/billing";
  const sealed = (id = requestId()) => suite.billing.createToken({ requestId: id, grant: grant() });

  test("needs a registered key, is opened by its holder alone, and is gone once confirmed", async () => {
    suite = await openIssuerSuite();
    expect(await failure(sealed())).toMatchObject({ status: "FAILED_PRECONDITION", reason: "NO_KEY_REGISTERED" });
    const pair = await registerKey(suite.billing, path);
    const { token, secret } = await sealed();
    const tokenId = token?.tokenId ?? "";
    expect(secret).toBe("");
    const collected = await collect(suite.billing, path, tokenId, pair);
    expect(parseSecret(collected?.secret).ok).toBe(true);
    expect(await collect(suite.billing, path, tokenId, pair)).toEqual(collected);
    expect((await suite.billing.collectSecret({ tokenId, aboveGeneration: 1 })).generation).toBe(0);
    const reports = await suite.as("workload/reports");
    expect(await failure(reports.collectSecret({ tokenId }))).toMatchObject({ status: "NOT_FOUND" });

    expect((await suite.billing.confirmSecret({ tokenId, generation: 1 })).published).toBe(true);
    expect((await suite.billing.confirmSecret({ tokenId, generation: 1 })).published).toBe(true);
    expect(await collect(suite.billing, path, tokenId, pair)).toBeUndefined();
    expect(await eventsOf("secret.collected")).toHaveLength(1);
    const commits = await (await suite.store("issuer")).collection("commits");
    const commit = await commits.get(`tokens/${tokenId}@0000000001`);
    expect(commit).toBeDefined();
    expect(Object.keys(commit ?? {})).not.toContain("attached");
    expect(await failure(suite.billing.confirmSecret({ tokenId, generation: 2 }))).toMatchObject({
      reason: "NO_SUCH_GENERATION",
    });
  });

  test("survives its request being repeated, and a restart", async () => {
    suite = await openIssuerSuite();
    const pair = await registerKey(suite.billing, path);
    const id = requestId();
    const { token } = await sealed(id);
    const tokenId = token?.tokenId ?? "";
    const before = await collect(suite.billing, path, tokenId, pair);
    expect((await sealed(id)).token?.tokenId).toBe(tokenId);
    expect(await collect(suite.billing, path, tokenId, pair)).toEqual(before);

    await suite.issuer.close();
    const restarted = await suite.as(path, await suite.start());
    expect(await collect(restarted, path, tokenId, pair)).toEqual(before);
    expect((await restarted.listTokens({})).tokens.map((t) => t.tokenId)).toEqual([tokenId]);
    expect((await direct(restarted)).token?.policyVersion).toBe(1);
  });

  test("is not given for a key that was not proved, nor for another's proof", async () => {
    suite = await openIssuerSuite();
    const publicKey = Buffer.alloc(32, 9);
    const wrong = { requestId: requestId(), publicKey, proof: Buffer.alloc(32) };
    expect(await failure(suite.billing.registerKey(wrong))).toMatchObject({
      status: "INVALID_ARGUMENT",
      reason: "WRONG_PROOF",
    });
    const lowOrder = { requestId: requestId(), publicKey: Buffer.alloc(32) };
    expect(await failure(suite.billing.registerKey(lowOrder))).toMatchObject({
      status: "INVALID_ARGUMENT",
      reason: "INVALID_KEY",
    });
    expect(await eventsOf("key.registered")).toHaveLength(0);
  });
});

describe("rotation", () => {
  test("makes the next generation and ends the one before with the overlap, which the rule caps", async () => {
    suite = await openIssuerSuite();
    const { token } = await direct(suite.billing);
    const tokenId = token?.tokenId ?? "";
    const rotate = (overlap?: number) =>
      suite.billing.rotateToken({
        requestId: requestId(),
        tokenId,
        ...(overlap !== undefined && { overlap: minutes(overlap) }),
      });
    const refused = await failure(rotate(11));
    expect(refused).toMatchObject({
      status: "PERMISSION_DENIED",
      metadata: { rule: "read-invoices", why: "overlap is over 600 s" },
    });
    expect(await rotate(10)).toMatchObject({ token: { tokenId, generation: 2, state: "live" } });
    const emergency = await rotate(0);
    expect(parseSecret(emergency.secret).ok).toBe(true);
    const [overlap, none] = (await eventsOf("token.rotated")).map(({ message, timeMs }) => {
      const { previousEndsAt } = message as TokenRotated;
      return Math.round((previousEndsAt ? timestampMs(previousEndsAt) : 0) - timeMs);
    });
    // Decided a moment before the commit's own time.
    expect(overlap).toBeLessThanOrEqual(600_000);
    expect(overlap).toBeGreaterThan(590_000);
    expect(none).toBeLessThanOrEqual(0);
  });

  test("asks the policy of today: what it no longer allows is not renewed", async () => {
    suite = await openIssuerSuite();
    const { token } = await direct(suite.billing);
    await suite.admin.publishPolicy({ requestId: requestId(), policy: "tokens", document: "rules: []" });
    const call = suite.billing.rotateToken({ requestId: requestId(), tokenId: token?.tokenId ?? "" });
    expect(await failure(call)).toMatchObject({ status: "PERMISSION_DENIED", reason: "POLICY_REFUSED" });
  });
});

describe("who sees what", () => {
  test("another's token, an unknown one and no token id at all are alike NOT_FOUND", async () => {
    suite = await openIssuerSuite();
    const { token } = await direct(suite.billing);
    const reports = await suite.as("workload/reports");
    const unknown = "tok_00000000-0000-8000-8000-000000000000";
    for (const tokenId of [token?.tokenId ?? "", unknown, "../x", ""]) {
      const answers = await Promise.all([
        failure(reports.getToken({ tokenId })),
        failure(reports.rotateToken({ requestId: requestId(), tokenId })),
        failure(reports.confirmSecret({ tokenId, generation: 1 })),
      ]);
      for (const answer of answers) expect(answer).toMatchObject({ status: "NOT_FOUND", reason: "TOKEN_NOT_FOUND" });
    }
    expect((await reports.listTokens({})).tokens).toEqual([]);
  });

  test("role security reads all tokens, in pages that belong to the one who asked", async () => {
    suite = await openIssuerSuite();
    const reports = await suite.as("workload/reports");
    for (const client of [suite.billing, reports, suite.billing, reports, suite.billing]) await direct(client);
    const sam = await suite.as("person/sam");
    const seen: string[] = [];
    for (let pageToken = ""; ; ) {
      const page = await sam.listTokens({ pageSize: 2, pageToken });
      expect(page.tokens.length).toBeLessThanOrEqual(2);
      seen.push(...page.tokens.map((t) => t.tokenId));
      pageToken = page.nextPageToken;
      if (pageToken === "") break;
    }
    expect(seen).toHaveLength(5);
    expect(seen).toEqual(seen.toSorted((a, b) => (a < b ? -1 : 1)));
    expect((await sam.listTokens({ pageSize: 2_000_000_000 })).tokens).toHaveLength(5);
    expect((await sam.getToken({ tokenId: seen[0] ?? "" })).token?.tokenId).toBe(seen[0]);
    expect((await suite.billing.listTokens({})).tokens).toHaveLength(3);

    const { nextPageToken } = await sam.listTokens({ pageSize: 1 });
    for (const pageToken of [nextPageToken, "x"])
      expect(await failure(suite.billing.listTokens({ pageToken }))).toMatchObject({ reason: "BAD_PAGE_TOKEN" });
    expect(await failure(sam.listTokens({ pageSize: -1 }))).toMatchObject({ status: "INVALID_ARGUMENT" });
  });
});

describe("outages", () => {
  const health = async () => {
    const client = await suite.client(Health, suite.issuer, "person/ada", "issuer");
    const { statuses } = await client.list({});
    return [statuses["curfew.issuer.v1.IssuerService"]?.status, statuses[""]?.status];
  };

  test("of the bus: commands are accepted and follow later, and health says so", async () => {
    suite = await openIssuerSuite();
    suite.setBusDown(true);
    const answer = await direct(suite.billing);
    expect(parseSecret(answer.secret).ok).toBe(true);
    expect(answer).toMatchObject({ published: false });
    expect(answer.position).toBeUndefined();
    expect((await suite.billing.getToken({ tokenId: answer.token?.tokenId ?? "" })).token?.state).toBe("live");
    await eventually(async () => expect(await health()).toEqual([Status.SERVING, Status.NOT_SERVING]));
    suite.setBusDown(false);
    await eventually(async () => expect(await eventsOf("token.issued")).toHaveLength(1));
    await eventually(async () => expect(await health()).toEqual([Status.SERVING, Status.SERVING]));
  });

  test("of the store: UNAVAILABLE with nothing written, and the same request goes through afterwards", async () => {
    suite = await openIssuerSuite();
    suite.setStoreDown("issuer", "before");
    const id = requestId();
    expect(await failure(direct(suite.billing, {}, id))).toMatchObject({
      status: "UNAVAILABLE",
      reason: "STORE_UNAVAILABLE",
    });
    await eventually(async () => expect((await health())[0]).toBe(Status.NOT_SERVING));
    suite.setStoreDown("issuer", false);
    expect(await direct(suite.billing, {}, id)).toMatchObject({ secretAlreadyShown: false, published: true });
    expect(await eventsOf("token.issued")).toHaveLength(1);
  });

  test("that swallow the answer to the write: the secret that is shown is the one that was written", async () => {
    suite = await openIssuerSuite();
    const id = requestId();
    suite.setStoreDown("issuer", "after");
    const answer = await direct(suite.billing, {}, id);
    suite.setStoreDown("issuer", false);
    expect(await storedDigests("token.issued")).toContain(await digestOf(answer.secret));
    expect(new Set((await eventsOf("token.issued")).map((event) => event.id)).size).toBe(1);
    expect(await direct(suite.billing, {}, id)).toMatchObject({ secret: "", secretAlreadyShown: true });
  });

  test("until the log was read after a start, every method answers UNAVAILABLE", async () => {
    suite = await openIssuerSuite();
    await suite.issuer.close();
    suite.setBusDown(true);
    const { openIssuer } = await import("./service.ts");
    const service = await openIssuer(await suite.parts("issuer"));
    const billing = await suite.as("workload/billing", service);
    expect(await failure(billing.listTokens({}))).toMatchObject({ status: "UNAVAILABLE", reason: "NOT_READY" });
    expect(await failure(direct(billing))).toMatchObject({ status: "UNAVAILABLE", reason: "NOT_READY" });
    suite.setBusDown(false);
    await suite.use(Promise.resolve(service));
    expect((await direct(billing)).published).toBe(true);
  });
});

test("deliveries that do not exist are refused at the door", async () => {
  suite = await openIssuerSuite();
  const call = suite.billing.createToken({ requestId: requestId(), grant: grant(), delivery: 7 as Delivery });
  expect(await failure(call)).toMatchObject({ status: "INVALID_ARGUMENT", reason: "INVALID_REQUEST" });
});
