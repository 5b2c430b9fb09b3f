import type { UseCompleted, UseDecided } from "@curfew/contracts/gen/curfew/events/v1/uses_pb.ts";
import { Outcome, Reason } from "@curfew/contracts/gen/curfew/events/v1/uses_pb.ts";
import { RemoteError } from "@curfew/rpc/errors.ts";
import { secretVariants } from "@curfew/token-format/variants.ts";
import { afterEach, beforeEach, expect, it, vi } from "vitest";
import { issued, tokenIdOf } from "./testing/histories.ts";
import { openVerifierSuite, useOf, type VerifierSuite } from "./testing/suite.ts";

const hourMs = 3_600_000;
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
  await suite.publish(issued("a", { notBeforeMs: nowMs - hourMs, expiresAtMs: nowMs + hourMs, digest: minted.digest }));
  service = await suite.start();
  await service.ready;
  port = service.port;
});
afterEach(() => suite.close());

const ask = (value: string, use: object = {}) => ({ credential: { case: "secret" as const, value }, use: useOf(use) });
const cachedUse = (instanceSequence: bigint, more: object = {}) => ({
  useId: suite.newId(),
  instanceSequence,
  decidedAt: { seconds: 1_800_000_000n, nanos: 5 },
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

it("a use of a token that nobody heard of is recorded all the same", async () => {
  const client = await suite.client(port);
  await client.reportUses({ cachedUses: [cachedUse(1n, { tokenId: tokenIdOf("nobody's") })] });
  const [fact] = await factsOf(1);
  expect(fact?.message).toMatchObject({ tokenId: tokenIdOf("nobody's"), subject: "", reason: Reason.OK });
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
    cachedUses: [cachedUse(1n, { use: useOf({ sourceAddress }) })],
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
