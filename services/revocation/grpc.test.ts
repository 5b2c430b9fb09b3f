import { isMessage } from "@bufbuild/protobuf";
import { timestampFromMs, timestampMs } from "@bufbuild/protobuf/wkt";
import {
  LeakReportedSchema,
  RevocationReason,
  SecretIdentifiedSchema,
  TokenRevokedSchema,
} from "@curfew/contracts/gen/curfew/events/v1/revocations_pb.ts";
import { topicNames } from "@curfew/event-log/event-types.ts";
import { eventually } from "@curfew/rpc/testing/suite.ts";
import { systemRandom } from "@curfew/runtime/random.ts";
import { secretHash } from "@curfew/token-format/digest.ts";
import { mintSecret } from "@curfew/token-format/secret.ts";
import { afterEach, beforeEach, describe, expect, it } from "vitest";
import { openRevocation } from "./service.ts";
import {
  failureOf,
  newTokenId,
  openRevocationSuite,
  RawWatcher,
  type RevocationSuite,
  requestId,
  revokeRequest,
} from "./testing/revocation-suite.ts";

let suite: RevocationSuite;
beforeEach(async () => {
  suite = await openRevocationSuite();
});
afterEach(() => suite.close());

const sighting = { kind: "git", location: "git://shop.example/repo@abc:config.yaml", public: true };
const strangerSecret = () => mintSecret("s", systemRandom);
/** What stands on the topic, without the facts that reactions add in their own time. */
const events = async () =>
  (await suite.events(topicNames.revocations)).filter(({ type }) => type !== "curfew.revocation.effective.v1");
const types = async () => (await events()).map(({ type }) => type.slice("curfew.".length, -".v1".length));

describe("RevokeToken", () => {
  it("ends a token for good, whether or not anybody has heard of it, and names the place on the topic", async () => {
    const sam = await suite.as("person/sam", await suite.start());
    const tokenId = newTokenId();
    const answer = await sam.revokeToken(revokeRequest(tokenId));
    expect(answer).toMatchObject({ published: true, position: { topic: topicNames.revocations } });
    const record = (await events())[Number(answer.position?.offset)];
    expect(record).toMatchObject({
      subject: `revocations/${tokenId}`,
      message: {
        tokenId,
        reason: RevocationReason.COMPROMISED,
        revokedAt: answer.revokedAt,
        revokedBy: { spiffeId: "spiffe://test.example/person/sam" },
      },
    });
  });

  it("answers a second request as the first, writes nothing, and refuses a used request id", async () => {
    const one = await suite.start();
    const [sam, elsewhere] = [await suite.as("person/sam", one), await suite.as("person/sam", await suite.start())];
    const request = revokeRequest(newTokenId());
    const first = await sam.revokeToken(request);
    const again = () =>
      Promise.all([
        elsewhere.revokeToken(request),
        elsewhere.revokeToken({ ...request, requestId: requestId(), reason: RevocationReason.POLICY }),
      ]);
    const answers = await eventually(async () => {
      const found = await again();
      expect(found[0].position).toEqual(first.position);
      return found;
    });
    for (const answer of answers) expect(answer).toEqual(first);
    expect(await failureOf(sam.revokeToken({ ...request, reason: RevocationReason.POLICY }))).toMatchObject({
      status: "INVALID_ARGUMENT",
      reason: "REQUEST_ID_REUSED",
    });
    expect(await types()).toEqual(["token.revoked"]);
  });

  it("refuses a request id that was used for another token, revoked already or not, at every replica", async () => {
    const [sam, elsewhere] = [
      await suite.as("person/sam", await suite.start()),
      await suite.as("person/sam", await suite.start()),
    ];
    const [first, other] = [revokeRequest(newTokenId()), revokeRequest(newTokenId())];
    await sam.revokeToken(first);
    await sam.revokeToken(other);
    for (const tokenId of [newTokenId(), other.tokenId])
      for (const client of [sam, elsewhere])
        expect(await failureOf(client.revokeToken({ ...first, tokenId }))).toMatchObject({
          status: "INVALID_ARGUMENT",
          reason: "REQUEST_ID_REUSED",
        });
    const [known, unused] = [await suite.issue(), await suite.issue()];
    const report = { requestId: requestId(), secretSha256: known.sha256, sighting };
    expect(await sam.reportLeak(report)).toMatchObject({ wasLive: true });
    const again = elsewhere.reportLeak({ ...report, secretSha256: unused.sha256 });
    expect(await failureOf(again)).toMatchObject({ reason: "REQUEST_ID_REUSED" });
    expect((await types()).toSorted()).toEqual(["leak.reported", "token.revoked", "token.revoked", "token.revoked"]);
  });

  it("lets racing requests at two replicas end in one revocation", async () => {
    const replicas = [await suite.start(), await suite.start()];
    const clients = await Promise.all(replicas.map((replica) => suite.as("person/sam", replica)));
    const tokenId = newTokenId();
    const answers = await Promise.all(
      Array.from({ length: 20 }, (_, i) => (clients[i % 2] as (typeof clients)[0]).revokeToken(revokeRequest(tokenId))),
    );
    expect(new Set(answers.map(({ revokedAt }) => revokedAt && timestampMs(revokedAt))).size).toBe(1);
    expect(await types()).toEqual(["token.revoked"]);
  });

  it("is accepted while the bus is away, pushed to those who watch here at once, and published when it is back", async () => {
    const service = await suite.start();
    const sam = await suite.as("person/sam", service);
    const watcher = new RawWatcher(await suite.as("service/verifier", service));
    await watcher.hello("v-1");
    await watcher.mark();
    suite.setBusDown(true);
    const tokenId = newTokenId();
    const answering = sam.revokeToken(revokeRequest(tokenId));
    expect(await watcher.endOf(tokenId)).toMatchObject({ upToGeneration: 0 });
    expect(await answering).toMatchObject({ published: false });
    suite.setBusDown(false);
    await eventually(async () => expect(await types()).toContain("token.revoked"));
  });

  it("works right after a restart while the bus cannot be asked; everything else is unavailable until it can", async () => {
    const { secret, sha256, tokenId } = await suite.issue();
    await suite.start().then((service) => service.close());
    suite.setBusDown(true);
    const service = await openRevocation(await suite.parts("revocation"));
    try {
      const sam = await suite.as("person/sam", service);
      expect(await sam.revokeToken(revokeRequest(tokenId))).toMatchObject({ published: false });
      const watcher = new RawWatcher(await suite.as("service/verifier", service));
      const others = [
        sam.revokeBySecret({ requestId: requestId(), secret }, { deadlineMs: 2_000 }),
        sam.reportLeak({ requestId: requestId(), secretSha256: sha256, sighting }, { deadlineMs: 2_000 }),
        sam.identifySecret({ secretSha256: sha256 }, { deadlineMs: 2_000 }),
        sam.getRevocation({ tokenId }, { deadlineMs: 2_000 }),
      ];
      // Looked at together: one that fails while another is waited for would be nobody's.
      for (const failure of await Promise.all(others.map(failureOf)))
        expect(failure).toMatchObject({ status: "UNAVAILABLE" });
      await eventually(() => expect(watcher.end).toMatchObject({ status: "UNAVAILABLE", reason: "NOT_READY" }));
      suite.setBusDown(false);
      await service.ready;
      await eventually(async () => expect(await types()).toEqual(["token.revoked"]));
      expect(await sam.getRevocation({ tokenId })).toMatchObject({ tokenId });
    } finally {
      suite.setBusDown(false);
      await service.close();
    }
  });

  it("is unavailable while the store is away, and forgets nothing over a restart", async () => {
    const first = await suite.start();
    const sam = await suite.as("person/sam", first);
    const request = revokeRequest(newTokenId());
    const answer = await sam.revokeToken(request);
    suite.setStoreDown("revocation", "before");
    expect(await failureOf(sam.revokeToken(revokeRequest(newTokenId()), { deadlineMs: 300 }))).toMatchObject({
      status: expect.stringMatching(/UNAVAILABLE|DEADLINE_EXCEEDED/),
    });
    suite.setStoreDown("revocation", false);
    await first.close();
    const again = await suite.as("person/sam", await suite.start());
    expect(await again.revokeToken({ ...request, requestId: requestId() })).toEqual(answer);
    const subject = `revocations/${request.tokenId}`;
    expect((await events()).filter((event) => event.subject === subject)).toHaveLength(1);
  });
});

describe("ReportLeak", () => {
  const report = (sha256: Uint8Array) => ({ requestId: requestId(), secretSha256: sha256, sighting });

  it("of a live generation records the leak and ends the token in one commit", async () => {
    const service = await suite.start();
    const sam = await suite.as("person/sam", service);
    const { tokenId, sha256 } = await suite.issue();
    const request = report(sha256);
    const answer = await sam.reportLeak(request);
    expect(answer).toMatchObject({ tokenId, generation: 1, wasLive: true, published: true });
    expect(await types()).toEqual(["leak.reported", "token.revoked"]);
    expect((await events())[1]?.message).toMatchObject({ tokenId, reason: RevocationReason.LEAKED });
    expect(await sam.reportLeak(request)).toMatchObject({ tokenId, generation: 1, wasLive: true, published: true });
    const elsewhere = { ...report(sha256), sighting: { ...sighting, location: "https://paste.example/7" } };
    expect(await sam.reportLeak(elsewhere)).toMatchObject({ tokenId, wasLive: false });
    expect(await types()).toEqual(["leak.reported", "token.revoked", "leak.reported"]);
  });

  it("of a dead generation at the same place by the same reporter is recorded once, and answered as the first", async () => {
    const sam = await suite.as("person/sam", await suite.start());
    const { tokenId, sha256 } = await suite.issue();
    expect(await sam.reportLeak(report(sha256))).toMatchObject({ wasLive: true });
    const first = { tokenId, generation: 1, wasLive: false, published: true };
    for (let i = 0; i < 5; i += 1) expect(await sam.reportLeak(report(sha256))).toMatchObject(first);
    expect(await types()).toEqual(["leak.reported", "token.revoked"]);
    const known = timestampFromMs(Date.UTC(2026, 0, 1));
    const older = { ...sighting, exposedSince: known };
    for (let i = 0; i < 2; i += 1) await sam.reportLeak({ ...report(sha256), sighting: older });
    expect(await types()).toEqual(["leak.reported", "token.revoked", "leak.reported"]);
  });

  it("of a dead generation, superseded or expired, records the leak of that generation and ends nothing", async () => {
    const sam = await suite.as("person/sam", await suite.start());
    const superseded = await suite.issue();
    await suite.rotate(superseded.tokenId, 2, 0);
    const expired = await suite.issue(0);
    for (const { sha256, tokenId } of [superseded, expired])
      expect(await sam.reportLeak(report(sha256))).toMatchObject({ tokenId, generation: 1, wasLive: false });
    expect(await types()).toEqual(["leak.reported", "leak.reported"]);
    expect(
      (await events()).every(({ message }) => isMessage(message, LeakReportedSchema) && !message.generationLive),
    ).toBe(true);
  });

  it("of a secret that is not ours records nothing, and says so", async () => {
    const sam = await suite.as("person/sam", await suite.start());
    expect(await sam.reportLeak(report(secretHash(strangerSecret())))).toMatchObject({ tokenId: "", published: false });
    expect(await types()).toEqual([]);
  });

  it("refuses a location that holds the secret, and writes it nowhere", async () => {
    const sam = await suite.as("person/sam", await suite.start());
    const { secret, sha256 } = await suite.issue();
    const request = { ...report(sha256), sighting: { ...sighting, location: `https://paste.example/${secret}` } };
    const failure = await failureOf(sam.reportLeak(request));
    expect(failure).toMatchObject({ status: "INVALID_ARGUMENT", reason: "SECRET_IN_FIELD" });
    expect(JSON.stringify(failure)).not.toContain(secret);
    expect(suite.logged.join("")).not.toContain(secret);
    expect(await types()).toEqual([]);
  });
});

describe("IdentifySecret", () => {
  it("tells whose a secret is and whether it is good now, and is recorded", async () => {
    const sam = await suite.as("person/sam", await suite.start());
    const { tokenId, sha256 } = await suite.issue();
    const subject = "spiffe://test.example/workload/billing";
    expect(await sam.identifySecret({ secretSha256: sha256 })).toMatchObject({ tokenId, subject, live: true });
    await sam.revokeToken(revokeRequest(tokenId));
    expect(await sam.identifySecret({ secretSha256: sha256 })).toMatchObject({ tokenId, generation: 1, live: false });
    await eventually(async () =>
      expect((await events()).filter(({ message }) => isMessage(message, SecretIdentifiedSchema))).toHaveLength(2),
    );
    expect(await sam.identifySecret({ secretSha256: secretHash(strangerSecret()) })).toMatchObject({ tokenId: "" });
  });
});

describe("RevokeBySecret", () => {
  it("answers alike for known, unknown and dead secrets; ends what lives, records what leaked", async () => {
    const billing = await suite.as("workload/billing", await suite.start());
    const [live, dead] = [await suite.issue(), await suite.issue(0)];
    const answers = [];
    for (const secret of [live.secret, dead.secret, strangerSecret(), "no secret at all", live.secret])
      answers.push(await billing.revokeBySecret({ requestId: requestId(), secret }));
    expect(new Set(answers.map((answer) => JSON.stringify(answer))).size).toBe(1);
    await eventually(async () => expect(await types()).toEqual(["token.revoked", "leak.reported"]));
    const [revoked, leaked] = (await events()).map(({ message }) => message);
    expect(isMessage(revoked, TokenRevokedSchema) && revoked.reason).toBe(RevocationReason.REQUESTED);
    expect(leaked).toMatchObject({ tokenId: dead.tokenId, generation: 1, generationLive: false });
    expect(suite.logged.join("")).not.toContain(live.secret);
  });

  it("refuses a caller after a hundred secrets that are not ours, and nobody else; live ones do not count", async () => {
    const service = await suite.start();
    const [billing, reports] = [
      await suite.as("workload/billing", service),
      await suite.as("workload/reports", service),
    ];
    const { secret } = await suite.issue();
    const call = (secretOf: string) => billing.revokeBySecret({ requestId: requestId(), secret: secretOf });
    await Promise.all([
      ...Array.from({ length: 100 }, () => call(strangerSecret())),
      reports.revokeBySecret({ requestId: requestId(), secret }),
    ]);
    expect(await failureOf(call(secret))).toMatchObject({
      status: "RESOURCE_EXHAUSTED",
      reason: "TOO_MANY_FAILED_LOOKUPS",
      retryDelayMs: expect.any(Number),
    });
    const live = () => Promise.all(Array.from({ length: 40 }, () => suite.issue()));
    const presented = (token: { secret: string }) =>
      reports.revokeBySecret({ requestId: requestId(), secret: token.secret });
    for (let i = 0; i < 3; i += 1) await Promise.all((await live()).map(presented));
  });

  it("counts dead secrets as those that are not ours, and records each once", async () => {
    const billing = await suite.as("workload/billing", await suite.start());
    const [revoked, expired] = [await suite.issue(), await suite.issue(0)];
    const call = (secret: string) => billing.revokeBySecret({ requestId: requestId(), secret });
    await call(revoked.secret);
    await Promise.all(Array.from({ length: 50 }, () => [call(revoked.secret), call(expired.secret)]).flat());
    expect(await failureOf(call(expired.secret))).toMatchObject({ reason: "TOO_MANY_FAILED_LOOKUPS" });
    await eventually(async () => expect((await types()).toSorted()).toEqual(["leak.reported", "token.revoked"]));
  });

  it("ends the token during an outage of the bus, and answers as for an unknown secret", async () => {
    const service = await suite.start();
    const billing = await suite.as("workload/billing", service);
    const { secret, sha256 } = await suite.issue();
    const sam = await suite.as("person/sam", service);
    await eventually(async () =>
      expect(await sam.identifySecret({ secretSha256: sha256 })).toMatchObject({ live: true }),
    );
    suite.setBusDown(true);
    const call = (secretOf: string) =>
      failureOf(billing.revokeBySecret({ requestId: requestId(), secret: secretOf }, { deadlineMs: 5_000 }));
    const failures = await Promise.all([call(secret), call(strangerSecret())]);
    for (const failure of failures) expect(failure).toMatchObject({ status: "UNAVAILABLE", reason: "NOT_CAUGHT_UP" });
    suite.setBusDown(false);
    await eventually(async () => expect(await types()).toContain("token.revoked"));
  });
});

describe("GetRevocation", () => {
  it("waits for the position asked for, and knows nothing of tokens that were not revoked", async () => {
    const [one, other] = [await suite.start(), await suite.start()];
    const sam = await suite.as("person/sam", one);
    const dora = await suite.as("person/dora", other);
    const tokenId = newTokenId();
    const { position, revokedAt } = await sam.revokeToken(revokeRequest(tokenId));
    const atLeast = position ? [position] : [];
    expect(await dora.getRevocation({ tokenId, atLeast })).toMatchObject({
      tokenId,
      reason: RevocationReason.COMPROMISED,
      revokedAt,
    });
    const ahead = [{ topic: topicNames.revocations, partition: 0, offset: 1_000n }];
    const late = await failureOf(dora.getRevocation({ tokenId, atLeast: ahead }, { deadlineMs: 2_000 }));
    expect(late).toMatchObject({ status: "UNAVAILABLE", reason: "NOT_CAUGHT_UP" });
    for (const unknown of [newTokenId(), "", "../x"])
      expect(await failureOf(dora.getRevocation({ tokenId: unknown }))).toMatchObject({ status: "NOT_FOUND" });
  });
});

describe("hostile input", () => {
  it("gets a clear status, no stack and nothing written", async () => {
    const service = await suite.start();
    const sam = await suite.as("person/sam", service);
    const good = revokeRequest(newTokenId());
    const bad = [
      sam.revokeToken({ ...good, tokenId: "tok_1" }),
      sam.revokeToken({ ...good, requestId: "x" }),
      sam.revokeToken({ ...good, reason: 0 }),
      sam.revokeToken({ ...good, reason: 99 as RevocationReason }),
      sam.reportLeak({ requestId: requestId(), secretSha256: new Uint8Array(31), sighting }),
      sam.reportLeak({ requestId: requestId(), secretSha256: new Uint8Array(32) }),
      sam.identifySecret({ secretSha256: new Uint8Array(0) }),
      sam.revokeBySecret({ requestId: requestId(), secret: "" }),
      sam.revokeBySecret({ requestId: requestId(), secret: "x".repeat(513) }),
      sam.getRevocation({ tokenId: "x".repeat(65) }),
    ];
    for (const call of bad) {
      const failure = await failureOf(call);
      expect(failure.status).toBe("INVALID_ARGUMENT");
      expect(failure.message).not.toMatch(/\bat .*\.ts/);
    }
    const stranger = await suite.as("workload/billing", service);
    for (const call of [
      stranger.revokeToken(good),
      stranger.reportLeak({ requestId: requestId(), secretSha256: new Uint8Array(32), sighting }),
      stranger.identifySecret({ secretSha256: new Uint8Array(32) }),
      stranger.getRevocation({ tokenId: good.tokenId }),
    ])
      expect(await failureOf(call)).toMatchObject({ status: "PERMISSION_DENIED" });
    expect(await types()).toEqual([]);
  });
});
