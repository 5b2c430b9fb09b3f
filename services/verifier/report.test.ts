import { timestampFromMs } from "@bufbuild/protobuf/wkt";
import { EvidenceMode } from "@curfew/contracts/gen/curfew/events/v1/common_pb.ts";
import type { UseCompleted, UseDecided } from "@curfew/contracts/gen/curfew/events/v1/uses_pb.ts";
import { Outcome, Reason } from "@curfew/contracts/gen/curfew/events/v1/uses_pb.ts";
import { RemoteError } from "@curfew/rpc/errors.ts";
import { systemRandom, uuidV7 } from "@curfew/runtime/random.ts";
import { secretVariants } from "@curfew/token-format/variants.ts";
import { afterEach, beforeEach, expect, it, vi } from "vitest";
import { issued, revoked, rotated, tokenIdOf } from "./testing/histories.ts";
import { openVerifierSuite, useOf, type VerifierSuite } from "./testing/suite.ts";

const hourMs = 3_600_000;
const batched = { evidenceMode: EvidenceMode.BATCHED, audiences: ["crm", "shop"] };
const ago = (ms: number) => timestampFromMs(Date.now() - ms);
const bound = { timeout: 15_000, interval: 10 };
let suite: VerifierSuite;
let secret = "";
let port = 0;
let service: Awaited<ReturnType<VerifierSuite["start"]>>;

beforeEach(async () => {
  suite = await openVerifierSuite();
  const minted = suite.mint();
  secret = minted.secret;
  const nowMs = Date.now();
  const times = { notBeforeMs: nowMs - hourMs, expiresAtMs: nowMs + hourMs };
  await suite.publish(issued("a", { ...times, digest: minted.digest }, { grant: batched }));
  await suite.publish(issued("before use", times));
  await suite.publish(
    issued("past", { notBeforeMs: nowMs - 3 * hourMs, expiresAtMs: nowMs - 2 * hourMs }, { grant: batched }),
  );
  service = await suite.start();
  await service.ready;
  port = service.port;
});
afterEach(() => suite.close());

const ask = (value: string, use: object = {}) => ({ credential: { case: "secret" as const, value }, use: useOf(use) });
const cachedUse = (instanceSequence: bigint, more: object = {}) => ({
  useId: suite.newId(),
  instanceSequence,
  decidedAt: ago(1_000),
  tokenId: tokenIdOf("a"),
  generation: 1,
  reason: Reason.OK,
  use: useOf(),
  ...more,
});
const completedUse = (more: object = {}) => ({
  useId: suite.newId(),
  tokenId: tokenIdOf("a"),
  outcome: Outcome.COMPLETED,
  records: 3n,
  people: [] as { controller: string; identifierType: string; value: string }[],
  part: 1,
  parts: 1,
  ...more,
});
const touching = (people: (typeof anna)[], more: object = {}, outcome: Outcome = Outcome.COMPLETED) => ({
  cachedUses: [cachedUse(1n, { ended: { outcome, records: 1n, people }, ...more })],
});
const anna = { controller: "acme", identifierType: "email", value: "anna.muster@example.test" };
const failureOf = async (call: Promise<unknown>) => {
  const error = await call.catch((e: unknown) => e);
  expect(error).toBeInstanceOf(RemoteError);
  return (error as RemoteError).failure;
};
const factsOf = async (count: number) => {
  await vi.waitFor(() => expect(suite.facts()).toHaveLength(count), bound);
  return suite.facts();
};

it("uses from a cache are recorded as reported, in the caller's name, and acknowledged by their highest number", async () => {
  const client = await suite.client(port);
  const uses = [cachedUse(8n), cachedUse(7n, { reason: Reason.REVOKED })];
  const { acknowledgedSequence } = await client.reportUses({ instance: "sdk-1", cachedUses: uses });
  expect(acknowledgedSequence).toBe(8n);
  expect(await suite.usesEnd()).toBe(2);
  const facts = (await factsOf(2)).map(({ message }) => message as UseDecided);
  expect(facts).toMatchObject(
    uses.map(({ useId, instanceSequence, reason, decidedAt }) => ({
      useId,
      instanceSequence,
      reason,
      decidedAt,
      instance: "sdk-1",
      resourceService: "crm",
      subject: "spiffe://test.example/workload/a",
    })),
  );
});

it("an access that was over when its decision was reported is one record, its people pseudonyms, each once", async () => {
  const client = await suite.client(port);
  const ended = { outcome: Outcome.FAILED, records: 3n, people: [anna, anna], unnamedPeople: 2n };
  const use = cachedUse(1n, { ended });
  const report = { instance: "sdk-1", cachedUses: [use], completedUses: [completedUse({ people: [anna] })] };
  await client.reportUses(report);
  await client.reportUses(report);
  const facts = await factsOf(4);
  expect(facts[2]?.id).toBe(facts[0]?.id);
  const [own, other] = [facts[0]?.message as UseDecided, facts[1]?.message as UseCompleted];
  expect(own).toMatchObject({ useId: use.useId, reason: Reason.OK });
  expect(own.ended).toMatchObject({ outcome: Outcome.FAILED, records: 3n, people: other.people, unnamedPeople: 2n });
  expect(other.people).toHaveLength(1);
  expect(facts[2]?.message).toEqual(own);
});

it.each([
  ["of a token that never was", { tokenId: tokenIdOf("nobody's") }, "token_id", "TOKEN_UNKNOWN"],
  ["of a token that is no SDK's to decide", { tokenId: tokenIdOf("before use") }, "token_id", "EVIDENCE_BEFORE_USE"],
  ["of a generation that never was", { generation: 2 }, "generation", "GENERATION_UNKNOWN"],
  ["in the future", { decidedAt: ago(-hourMs) }, "decided_at", "TIME_OUT_OF_RANGE"],
  ["of the day before yesterday", { decidedAt: ago(48 * hourMs) }, "decided_at", "TIME_OUT_OF_RANGE"],
  ["denied in the future", { decidedAt: ago(-hourMs), reason: Reason.EXPIRED }, "decided_at", "TIME_OUT_OF_RANGE"],
  ["before the token was issued", { decidedAt: ago(2 * hourMs) }, "decided_at", "NOT_VALID_THEN"],
  ["after the token expired", { tokenId: tokenIdOf("past") }, "decided_at", "NOT_VALID_THEN"],
  ["of a scope that was not granted", { use: useOf({ scope: "payroll:write" }) }, "use", "SCOPE_MISSING"],
  ["of data not granted", { use: useOf({ dataCategories: ["health"] }) }, "use", "DATA_CATEGORY_NOT_GRANTED"],
])(
  "an allowed use %s is impossible: it is refused, and nothing of its report is recorded",
  async (_what, more, at, why) => {
    const client = await suite.client(port);
    const failure = await failureOf(client.reportUses({ cachedUses: [cachedUse(1n), cachedUse(2n, more)] }));
    expect(failure).toMatchObject({ status: "INVALID_ARGUMENT", reason: why });
    expect(failure.fieldViolations).toMatchObject([{ field: `cached_uses[1].${at}`, reason: why }]);
    expect(await suite.usesEnd()).toBe(0);
  },
);

it("an allowed use by a resource service that the token is not for is refused", async () => {
  await suite.publish(
    issued(
      "crm only",
      { notBeforeMs: Date.now() - hourMs, expiresAtMs: Date.now() + hourMs },
      {
        grant: { ...batched, audiences: ["crm"] },
      },
    ),
  );
  const report = { cachedUses: [cachedUse(1n, { tokenId: tokenIdOf("crm only") })] };
  expect(await failureOf((await suite.client(port, "shop")).reportUses(report))).toMatchObject({
    status: "INVALID_ARGUMENT",
    reason: "WRONG_AUDIENCE",
  });
  await (await suite.client(port)).reportUses(report);
  expect(await suite.usesEnd()).toBe(1);
});

it("a use of a token that ended before the report came is recorded: it happened", async () => {
  const nowMs = Date.now();
  await suite.publish(
    rotated("a", 2, { notBeforeMs: nowMs, expiresAtMs: nowMs + hourMs, previousEndsAtMs: nowMs - 60_000 }),
  );
  await suite.publish(revoked("a", nowMs - 60_000));
  const client = await suite.client(port);
  const uses = [
    cachedUse(1n),
    cachedUse(2n, { generation: 2 }),
    cachedUse(3n, { tokenId: tokenIdOf("past"), decidedAt: ago(2.5 * hourMs) }),
  ];
  await client.reportUses({ cachedUses: uses, completedUses: [completedUse({ tokenId: tokenIdOf("past") })] });
  expect(await suite.usesEnd()).toBe(4);
  await expect.poll(() => client.verifyToken(ask(secret)), bound).toMatchObject({ reason: Reason.REVOKED });
});

it("a replica that has not read of the token yet says so, and records its use once it has", async () => {
  suite.gate.holdReading();
  const nowMs = Date.now();
  await suite.publish(issued("new", { notBeforeMs: nowMs, expiresAtMs: nowMs + hourMs }, { grant: batched }));
  const client = await suite.client(port);
  const tokenId = tokenIdOf("new");
  for (const report of [{ cachedUses: [cachedUse(1n, { tokenId })] }, { completedUses: [completedUse({ tokenId })] }]) {
    const failure = await failureOf(client.reportUses(report));
    expect(failure).toMatchObject({ status: "UNAVAILABLE", reason: "NOT_CAUGHT_UP" });
  }
  expect(await suite.usesEnd()).toBe(0);
  const both = { cachedUses: [cachedUse(1n, { tokenId })], completedUses: [completedUse({ tokenId })] };
  suite.gate.releaseReading();
  await vi.waitFor(() => client.reportUses(both), bound);
  expect(await suite.usesEnd()).toBe(2);
});

it("what an access of an unknown token touched is refused, unless it began so long ago that the token may be forgotten", async () => {
  const client = await suite.client(port);
  const of = (useId: string) => ({ completedUses: [completedUse({ useId, tokenId: tokenIdOf("nobody's") })] });
  expect(await failureOf(client.reportUses(of(suite.newId())))).toMatchObject({
    status: "INVALID_ARGUMENT",
    fieldViolations: [{ field: "completed_uses[0].token_id", reason: "TOKEN_UNKNOWN" }],
  });
  await client.reportUses(of(uuidV7(Date.now() - 25 * hourMs, systemRandom)));
  expect(await suite.usesEnd()).toBe(1);
});

it("a denial of a token that nobody heard of is recorded all the same", async () => {
  const client = await suite.client(port);
  const denial = { tokenId: tokenIdOf("nobody's"), reason: Reason.EXPIRED };
  await client.reportUses({ cachedUses: [cachedUse(1n, denial)] });
  const [fact] = await factsOf(1);
  expect(fact?.message).toMatchObject({ ...denial, subject: "" });
});

it("a report that is repeated repeats the same event ids; a use id of another service's stays that one's", async () => {
  const crm = await suite.client(port);
  const shop = await suite.client(port, "shop");
  const use = cachedUse(1n);
  const part = completedUse({ useId: use.useId, people: [anna], part: 2 });
  const report = { instance: "sdk-1", cachedUses: [use], completedUses: [part] };
  await crm.reportUses(report);
  await crm.reportUses(report);
  await shop.reportUses(report);
  const facts = await factsOf(6);
  expect(new Set(facts.map(({ id }) => id))).toEqual(new Set([`${use.useId}/decided`, `${use.useId}/completed/2`]));
  const owners = facts.map(({ message }) => (message as UseDecided | UseCompleted).resourceService);
  expect(owners.toSorted()).toEqual(["crm", "crm", "crm", "crm", "shop", "shop"]);
});

it("people become pseudonyms, the same person the same one, each once a part", async () => {
  const client = await suite.client(port);
  const bert = { ...anna, value: "bert@example.test" };
  await client.reportUses({
    completedUses: [completedUse({ people: [anna, bert, anna] }), completedUse({ people: [anna], unnamedPeople: 4n })],
  });
  const [first, second] = (await factsOf(2)).map(({ message }) => message as UseCompleted);
  expect(first?.people).toHaveLength(2);
  expect(first?.people.every((p) => /^psn_[0-9a-f]{32}$/.test(p))).toBe(true);
  expect(first?.people).toContain(second?.people[0]);
  expect(second).toMatchObject({ unnamedPeople: 4n, records: 3n, outcome: Outcome.COMPLETED, resourceService: "crm" });
});

it.each([
  ["another's controller", () => ({ cachedUses: [cachedUse(1n, { use: useOf({ controller: "other" }) })] })],
  ["another's person", () => ({ completedUses: [completedUse({ people: [anna, { ...anna, controller: "other" }] })] })],
  [
    "a person with a control character",
    () => ({ completedUses: [completedUse({ people: [{ ...anna, value: "hunter2\n" }] })] }),
  ],
  ["a stranger's person touched", () => touching([{ ...anna, controller: "other" }])],
  ["a touched person with a control character", () => touching([{ ...anna, value: "hunter2\n" }])],
  ["what a denied access touched", () => touching([], { reason: Reason.EXPIRED })],
  ["an access that ended without an answer", () => touching([], {}, Outcome.UNANSWERED)],
  ["no token id", () => ({ completedUses: [completedUse({ tokenId: "ünknown" })] })],
  ["an absurd time", () => ({ cachedUses: [cachedUse(1n, { decidedAt: { seconds: 10n ** 15n, nanos: 0 } })] })],
])("a report with %s is refused whole, with its place and without its value", async (_what, report) => {
  const client = await suite.client(port);
  const failure = await failureOf(client.reportUses({ cachedUses: [cachedUse(9n)], ...report() }));
  expect(failure.status).toBe("INVALID_ARGUMENT");
  expect(failure.fieldViolations?.[0]?.field).toMatch(/^(cached|completed)_uses\[0\]/);
  expect(JSON.stringify(failure)).not.toMatch(/hunter2|ünknown|anna/);
  expect(await suite.usesEnd()).toBe(0);
});

it("no secret, address or identifier is in a record, a file or a line of the log", async () => {
  const client = await suite.client(port);
  const unknown = suite.mint().secret;
  const sourceAddress = "203.0.113.77";
  await client.verifyToken(ask(secret, { sourceAddress }));
  await client.verifyToken(ask(unknown, { sourceAddress }));
  await client.verifyToken(ask(`${secret}x`, { sourceAddress }));
  await failureOf(client.verifyToken(ask(secret, { controller: "other", sourceAddress })));
  await client.reportUses({
    cachedUses: [
      cachedUse(1n, {
        use: useOf({ sourceAddress }),
        ended: { outcome: Outcome.COMPLETED, people: [anna] },
      }),
    ],
    completedUses: [completedUse({ people: [anna] })],
  });
  await service.close();
  await factsOf(5);
  const traces = suite.traces();
  const texts = [...suite.facts().map(({ record }) => Buffer.from(JSON.stringify([record.key, record.headers])))];
  const everywhere = [...traces, ...texts, ...suite.uses.map(({ value }) => Buffer.from(value))];
  const isThere = (bytes: Buffer) => everywhere.some((trace) => trace.includes(bytes));
  // The control: what is recorded is found this way.
  expect(isThere(Buffer.from(tokenIdOf("a")))).toBe(true);
  const forbidden = [...secretVariants(secret), ...secretVariants(unknown)];
  for (const { form, bytes } of forbidden) expect(isThere(bytes), form).toBe(false);
  for (const text of [sourceAddress, "203.0.113.0", anna.value])
    for (const encoding of ["utf8", "hex", "base64"] as const)
      expect(isThere(Buffer.from(Buffer.from(text).toString(encoding).replace(/=+$/, ""))), text).toBe(false);
});
