import { mkdirSync, readdirSync, readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { create, type Message } from "@bufbuild/protobuf";
import { timestampFromMs, timestampMs } from "@bufbuild/protobuf/wkt";
import { TokenRevokedSchema } from "@curfew/contracts/gen/curfew/events/v1/revocations_pb.ts";
import type { IdentityCreated, TokenExpired, TokenRotated } from "@curfew/contracts/gen/curfew/events/v1/tokens_pb.ts";
import { Reason, UseDecidedSchema } from "@curfew/contracts/gen/curfew/events/v1/uses_pb.ts";
import { encodeEvent } from "@curfew/event-log/envelope.ts";
import { topicNames } from "@curfew/event-log/event-types.ts";
import { openIdentityFiles } from "@curfew/rpc/identity-files.ts";
import { shiftedClock } from "@curfew/rpc/testing/shifted-clock.ts";
import { eventually, trustDomain } from "@curfew/rpc/testing/suite.ts";
import { systemClock } from "@curfew/runtime/clock.ts";
import { systemRandom } from "@curfew/runtime/random.ts";
import { secretVariants } from "@curfew/token-format/variants.ts";
import { afterEach, describe, expect, test } from "vitest";
import { collect, direct, grant, openIssuerSuite, registerKey, requestId, uriOf } from "./testing/issuer-suite.ts";

const minuteMs = 60_000;
const hourMs = 60 * minuteMs;
const path = "workload/billing";

let suite: Awaited<ReturnType<typeof openIssuerSuite>>;
afterEach(() => suite.close());
const eventsOf = async (type: string) =>
  (await suite.events(topicNames.tokens)).filter((event) => event.type === `curfew.${type}.v1`);
const one = async <M extends Message>(type: string): Promise<M> =>
  await eventually(async () => {
    const events = await eventsOf(type);
    expect(events).toHaveLength(1);
    return events[0]?.message as M;
  });
/** As another service would. */
const publish = async (topic: string, subject: string, message: Message, sequence?: number) => {
  const { bus } = await suite.parts("issuer");
  const producer = await bus.openProducer({ topic, name: "other/1" });
  const { headers, value } = encodeEvent(message, {
    source: "/other",
    subject,
    nowMs: suite.clock.now(),
    random: systemRandom,
    traceparent: "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
    ...(sequence !== undefined && { sequence }),
  });
  await producer.send([{ partition: 0, key: subject, headers, value }]);
};
const revoke = (tokenId: string) =>
  publish(topicNames.revocations, `revocations/${tokenId}`, create(TokenRevokedSchema, { tokenId }), 1);
const stateOf = async (tokenId: string) => (await suite.billing.getToken({ tokenId })).token?.state;

const openSealed = async () => {
  const clock = shiftedClock();
  suite = await openIssuerSuite({ clock });
  const pair = await registerKey(suite.billing, path);
  const { token } = await suite.billing.createToken({ requestId: requestId(), grant: grant() });
  return { clock, pair, tokenId: token?.tokenId ?? "" };
};

describe("by the clock", () => {
  test("a collected token is rotated at two thirds of its life, sealed anew, and the holder finds it", async () => {
    const { clock, pair, tokenId } = await openSealed();
    const first = await collect(suite.billing, path, tokenId, pair);
    await suite.billing.confirmSecret({ tokenId, generation: 1 });
    clock.advance(41 * minuteMs);
    const rotated = await one<TokenRotated>("token.rotated");
    expect(rotated).toMatchObject({ tokenId, rotatedBy: { spiffeId: uriOf("service/issuer") }, requestKey: "" });
    const second = await collect(suite.billing, path, tokenId, pair);
    expect(second?.generation).toBe(2);
    expect(second?.secret).not.toBe(first?.secret);
    expect(await stateOf(tokenId)).toBe("live");
  });

  test("a secret that nobody collects is reported and left to expire, with the last use; then it is cleared away", async () => {
    const { clock, pair, tokenId } = await openSealed();
    const usedMs = clock.now() + 5 * minuteMs;
    const use = { tokenId, useId: "u1", decidedAt: timestampFromMs(usedMs) };
    await publish(topicNames.uses, "use/1", create(UseDecidedSchema, { ...use, reason: Reason.OK }));
    const denied = { ...use, useId: "u2", decidedAt: timestampFromMs(usedMs + 1), reason: Reason.WRONG_AUDIENCE };
    await publish(topicNames.uses, "use/2", create(UseDecidedSchema, denied));
    await eventually(async () => {
      const { token } = await suite.billing.getToken({ tokenId });
      expect(token?.lastUsedAt && timestampMs(token.lastUsedAt)).toBe(usedMs);
    });
    clock.advance(55 * minuteMs);
    expect(await one("secret.uncollected")).toMatchObject({ tokenId, generation: 1 });
    expect(await collect(suite.billing, path, tokenId, pair)).toBeDefined();
    expect(await eventsOf("token.rotated")).toHaveLength(0);
    clock.advance(6 * minuteMs);
    const expired = await one<TokenExpired>("token.expired");
    expect(expired.lastUsedAt && timestampMs(expired.lastUsedAt)).toBe(usedMs);
    expect(await stateOf(tokenId)).toBe("expired");
    expect(await collect(suite.billing, path, tokenId, pair)).toBeUndefined();

    const commits = await (await suite.store("issuer")).collection("commits");
    await eventually(async () => {
      clock.advance(minuteMs);
      expect(Object.keys((await commits.get(`tokens/${tokenId}@0000000001`)) ?? {})).not.toContain("attached");
    });
  });

  test("a revoked token is neither rotated nor expired, nor is its secret handed out", async () => {
    const { clock, pair, tokenId } = await openSealed();
    await suite.billing.confirmSecret({ tokenId, generation: 1 });
    const waiting = await suite.billing.createToken({ requestId: requestId(), grant: grant() });
    const waitingId = waiting.token?.tokenId ?? "";
    const alive = await direct(suite.billing);
    await revoke(tokenId);
    await revoke(waitingId);
    await eventually(async () =>
      expect([await stateOf(tokenId), await stateOf(waitingId)]).toEqual(["revoked", "revoked"]),
    );
    expect(await collect(suite.billing, path, waitingId, pair)).toBeUndefined();
    const rotate = suite.billing.rotateToken({ requestId: requestId(), tokenId });
    await expect(rotate).rejects.toMatchObject({ failure: { reason: "TOKEN_REVOKED" } });
    clock.advance(61 * minuteMs);
    // The one that was not revoked tells that its time has come for the others too.
    expect(await one("token.expired")).toMatchObject({ tokenId: alive.token?.tokenId });
    expect(await eventsOf("token.rotated")).toHaveLength(0);
    expect(await eventsOf("secret.uncollected")).toHaveLength(0);
  });

  test("what policy no longer allows is left to expire, and the log says so once", async () => {
    const { clock, tokenId } = await openSealed();
    await suite.billing.confirmSecret({ tokenId, generation: 1 });
    await suite.admin.publishPolicy({ requestId: requestId(), policy: "tokens", document: "rules: []" });
    clock.advance(41 * minuteMs);
    const refusals = () => suite.logged.filter((line) => line.includes("POLICY_REFUSED"));
    await eventually(() => expect(refusals()).toHaveLength(1));
    clock.advance(10 * minuteMs);
    clock.advance(10 * minuteMs);
    expect(await one("token.expired")).toMatchObject({ tokenId });
    expect(refusals()).toHaveLength(1);
    expect(await eventsOf("token.rotated")).toHaveLength(0);
  });

  test("what fell due while nobody ran happens at the next start", async () => {
    const { clock, tokenId } = await openSealed();
    await suite.issuer.close();
    clock.advance(2 * hourMs);
    await suite.start();
    expect(await one("token.expired")).toMatchObject({ tokenId });
  });

  test("of two replicas one acts; when it stops, the other does", async () => {
    const { clock } = await openSealed();
    const second = await suite.start();
    const other = await suite.as(path, second);
    clock.advance(61 * minuteMs);
    await one("token.expired");
    await direct(other);
    await suite.issuer.close();
    clock.advance(61 * minuteMs);
    await eventually(async () => {
      clock.advance(1_000);
      expect(await eventsOf("token.expired")).toHaveLength(2);
    });
    expect((await direct(other)).published).toBe(true);
  });
});

describe("identities made by the command line", () => {
  test("are recorded once, whenever they were made, and what is no note is left alone", async () => {
    suite = await openIssuerSuite();
    const files = await openIdentityFiles({
      dir: join(suite.dir, "pki"),
      trustDomain,
      clock: systemClock,
      random: systemRandom,
    });
    const identitiesDir = files.createdDir;
    mkdirSync(identitiesDir, { recursive: true });
    await files.create("workload/early", { validMs: hourMs });
    writeFileSync(join(identitiesDir, `${"x".repeat(43)}.json`), '{"spiffeId":"spiffe://evil/workload/x"}');
    await suite.issuer.close();
    const first = await suite.start({ identitiesDir });
    expect(await one("identity.created")).toMatchObject({ spiffeId: uriOf("workload/early") });
    const names = async () =>
      (await eventsOf("identity.created")).map(({ message }) => (message as IdentityCreated).spiffeId);
    const recorded = async (...paths: string[]) =>
      await eventually(async () => expect(await names()).toEqual(paths.map(uriOf)));
    await files.create("person/late", { validMs: hourMs });
    await recorded("workload/early", "person/late");
    await first.close();
    await files.create("person/later", { validMs: hourMs });
    await suite.start({ identitiesDir });
    // All three notes were read again by then.
    await recorded("workload/early", "person/late", "person/later");
  });
});

test("no secret, and no pepper, stands in any file, on any topic or in any log line of a whole run", async () => {
  const { clock, pair, tokenId } = await openSealed();
  const secrets = [(await collect(suite.billing, path, tokenId, pair))?.secret ?? ""];
  await suite.billing.confirmSecret({ tokenId, generation: 1 });
  clock.advance(41 * minuteMs);
  await one("token.rotated");
  secrets.push((await collect(suite.billing, path, tokenId, pair))?.secret ?? "");
  const shown = await direct(suite.billing);
  const rotated = await suite.billing.rotateToken({ requestId: requestId(), tokenId: shown.token?.tokenId ?? "" });
  secrets.push(shown.secret, rotated.secret);
  const pepper = (await suite.parts("issuer")).keyring.peppers().current.key.export();
  const wanted = [
    ...secrets.flatMap((secret) => secretVariants(secret).map(({ bytes }) => bytes)),
    pepper,
    ...["hex", "base64url", "base64"].map((form) => Buffer.from(pepper.toString(form as "hex").replace(/=+$/, ""))),
  ];
  const haystacks = new Map<string, Buffer>();
  for (const name of readdirSync(suite.dir))
    if (/\.db(-wal|-shm)?$/.test(name)) haystacks.set(name, readFileSync(join(suite.dir, name)));
  for (const topic of Object.values(topicNames)) {
    const records = await suite.records(topic);
    haystacks.set(
      topic,
      Buffer.concat(records.flatMap((r) => [Buffer.from(JSON.stringify([r.key, r.headers])), r.value])),
    );
  }
  haystacks.set("log", Buffer.from(suite.logged.join("\n")));
  const found = () =>
    [...haystacks].flatMap(([place, bytes]) => (wanted.some((secret) => bytes.includes(secret)) ? [place] : []));
  expect(secrets.every((secret) => secret !== "")).toBe(true);
  expect(haystacks.size).toBeGreaterThan(7);
  expect(found()).toEqual([]);
  // The control: where one is planted it is found.
  haystacks.set("planted", Buffer.from(`…${secrets[0]}…`));
  expect(found()).toEqual(["planted"]);
});
