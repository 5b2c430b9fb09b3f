import { spawn } from "node:child_process";
import { randomUUID, X509Certificate } from "node:crypto";
import { once } from "node:events";
import { readFileSync } from "node:fs";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { inspect } from "node:util";
import { timestampMs } from "@bufbuild/protobuf/wkt";
import { readInvoice } from "@curfew/client/examples/authorize.ts";
import { createInvoicesServer, getInvoice } from "@curfew/client/examples/interceptor.ts";
import { openBillingToken } from "@curfew/client/examples/token-source.ts";
import { type LocalVerifier, openLocalVerifier } from "@curfew/client/local-verifier.ts";
import { silentLog } from "@curfew/client/silent-log.ts";
import { openTokenSource, type TokenSource } from "@curfew/client/token-source.ts";
import { openWatcher } from "@curfew/client/watch.ts";
import { RevocationReason, type UseReportingGap } from "@curfew/contracts/gen/curfew/events/v1/revocations_pb.ts";
import { Outcome, Reason, type UseCompleted, type UseDecided } from "@curfew/contracts/gen/curfew/events/v1/uses_pb.ts";
import { IssuerService } from "@curfew/contracts/gen/curfew/issuer/v1/issuer_pb.ts";
import { RevocationService } from "@curfew/contracts/gen/curfew/revocation/v1/revocation_pb.ts";
import { openSqliteStore } from "@curfew/document-store/sqlite.ts";
import { topicNames } from "@curfew/event-log/event-types.ts";
import { openIssuer } from "@curfew/issuer/service.ts";
import { generateKeyPair } from "@curfew/keyring/hpke.ts";
import { openPersonalStore } from "@curfew/personal-data/personal-store.ts";
import { openRevocation } from "@curfew/revocation/service.ts";
import type { WatchLimits } from "@curfew/revocation/watch-limits.ts";
import { openChannel } from "@curfew/rpc/channel.ts";
import type { IdentitySource } from "@curfew/rpc/credentials.ts";
import type { RunningService } from "@curfew/rpc/replica.ts";
import { eventually, openTestSuite, type TestSuite, trustDomain } from "@curfew/rpc/testing/suite.ts";
import { systemClock } from "@curfew/runtime/clock.ts";
import { systemRandom } from "@curfew/runtime/random.ts";
import { openVerifier } from "@curfew/verifier/service.ts";
import { Client, credentials, ServerCredentials } from "@grpc/grpc-js";
import { afterEach, describe, expect, test } from "vitest";

/** The SDK and its README against the real issuer, verifier and revocation, over mutual TLS, on SQLite. */

const policyWith = (more: string) => `
rules:
  - name: read-invoices
    subjects: [workload/billing]
    scopes: [invoices:read]
    resources: [invoices/*]
    audiences: [invoices]
    purposes: [billing]
    data_categories: [contact]
    ${more}
`;

let suite: TestSuite;
let services: { issuer: RunningService; revocation: RunningService; verifier: RunningService };
let closers: (() => unknown)[] = [];

const at = (service: RunningService) => `localhost:${service.port}`;

const open = async (policy = "evidence: batched", limits: Partial<WatchLimits> = {}) => {
  suite = await openTestSuite();
  const store = await openSqliteStore({ file: ":memory:" });
  closers.push(
    () => store.close(),
    () => suite.close(),
  );
  const issuer = await suite.use(openIssuer(await suite.parts("issuer")));
  const revocation = await suite.use(openRevocation(await suite.parts("revocation"), { limits }));
  const parts = await suite.parts("verifier");
  const personal = await openPersonalStore({ ...parts, store, keysDir: join(suite.dir, "keys") });
  const verifier = await suite.use(openVerifier({ ...parts, personal, revocationAddresses: [at(revocation)] }));
  services = { issuer, revocation, verifier };
  const admin = await suite.client(IssuerService, issuer, "person/ada");
  await admin.publishPolicy({ requestId: randomUUID(), policy: "tokens", document: policyWith(policy) });
};
afterEach(async () => {
  for (const close of closers.reverse()) await close();
  closers = [];
});

const connectionOf = async (identity: IdentitySource) => ({
  identity,
  caPem: (await suite.parts("none")).caPem,
  trustDomain,
});

const openBilling = async () => {
  const identity = await suite.identity("workload/billing");
  const source = openBillingToken(at(services.issuer), await connectionOf(identity));
  closers.push(() => source.close());
  const certificateThumbprint = Buffer.from(
    new X509Certificate(identity.current().certPem).fingerprint256.replaceAll(":", ""),
    "hex",
  ).toString("base64url");
  return { identity, source, certificateThumbprint };
};

const openInvoices = async (): Promise<LocalVerifier> => {
  const sdk = openLocalVerifier({
    verifier: [at(services.verifier)],
    revocation: [at(services.revocation)],
    ...(await connectionOf(await suite.identity("workload/invoices"))),
  });
  closers.push(() => sdk.close());
  await sdk.whenLive(AbortSignal.timeout(10_000));
  return sdk;
};

const load = async (id: string) => ({ id, customer: `customer-${id}` });
const read = async (sdk: LocalVerifier, source: TokenSource, certificateThumbprint: string, id = "7") =>
  readInvoice(sdk, { secret: await source.current(), certificateThumbprint }, load, id);

const usesOf = async () => {
  const events = await suite.events(topicNames.uses);
  const of = <T>(type: string) => events.filter((e) => e.type === type).map((e) => e.message as unknown as T);
  const decided = of<UseDecided>("curfew.use.decided.v1");
  const own = decided.flatMap(({ useId, ended }) => (ended ? [{ ...ended, useId }] : []));
  return { decided, ended: [...own, ...of<UseCompleted>("curfew.use.completed.v1")] };
};
const revoke = async (tokenId: string) => {
  const security = await suite.client(RevocationService, services.revocation, "person/sam");
  await security.revokeToken({ requestId: randomUUID(), tokenId, reason: RevocationReason.LEAKED });
  return security;
};

describe("the README", () => {
  const readme = readFileSync(new URL("../../packages/client/README.md", import.meta.url), "utf8");

  test("shows the examples exactly as they are run below", () => {
    const shown = [...readme.matchAll(/\[`(examples\/[^`]+)`\]\([^)]+\)\n\n```ts\n(.*?)```/gs)];
    expect(shown.map(([, file]) => file)).toEqual([
      "examples/token-source.ts",
      "examples/authorize.ts",
      "examples/interceptor.ts",
    ]);
    for (const [, file, code] of shown)
      expect(code).toBe(readFileSync(new URL(`../../packages/client/${file}`, import.meta.url), "utf8"));
  });

  test("a token is held, a bearer let in, first by the verifier and then from the cache, and all of it is on the log", async () => {
    await open();
    const { source, certificateThumbprint } = await openBilling();
    const sdk = await openInvoices();
    for (const id of ["7", "8", "7"])
      expect(await read(sdk, source, certificateThumbprint, id)).toEqual(await load(id));
    await eventually(async () => expect((await usesOf()).ended).toHaveLength(3));
    const { decided, ended } = await usesOf();
    expect(decided.map(({ instanceSequence }) => Number(instanceSequence)).sort()).toEqual([0, 1, 2]);
    for (const use of decided)
      expect(use).toMatchObject({ tokenId: source.tokenId, reason: Reason.OK, resourceService: "invoices" });
    expect(ended.map(({ outcome, records }) => [outcome, records])).toEqual(Array(3).fill([Outcome.COMPLETED, 1n]));
    expect(new Set(ended.flatMap(({ people }) => people)).size).toBe(2);
    expect(new Set(ended.map(({ useId }) => useId))).toEqual(new Set(decided.map(({ useId }) => useId)));
  });

  test("the interceptor lets the token's own bearer in, and nobody else", async () => {
    await open();
    const { source, identity } = await openBilling();
    const sdk = await openInvoices();
    const server = createInvoicesServer(sdk, new Map([["7", "customer-7"]]));
    const { caPem } = await connectionOf(identity);
    const own = (await suite.identity("workload/invoices")).current();
    const pair = { cert_chain: Buffer.from(own.certPem), private_key: Buffer.from(own.keyPem) };
    const port = await new Promise<number>((resolve, reject) =>
      server.bindAsync("localhost:0", ServerCredentials.createSsl(Buffer.from(caPem), [pair], true), (error, bound) =>
        error ? reject(error) : resolve(bound),
      ),
    );
    closers.push(() => server.forceShutdown());
    const clientOf = ({ current }: IdentitySource) => {
      const { certPem, keyPem } = current();
      const tls = credentials.createSsl(Buffer.from(caPem), Buffer.from(keyPem), Buffer.from(certPem));
      const client = new Client(`localhost:${port}`, tls);
      closers.push(() => client.close());
      return client;
    };
    expect(await getInvoice(clientOf(identity), source, "7")).toEqual({ customer: "customer-7" });
    const thief = clientOf(await suite.identity("workload/thief"));
    await expect(getInvoice(thief, source, "7")).rejects.toMatchObject({ details: "access denied: BINDING_MISMATCH" });
    await eventually(async () => {
      const { decided, ended } = await usesOf();
      expect(new Set(decided.map(({ reason }) => reason))).toEqual(new Set([Reason.OK, Reason.BINDING_MISMATCH]));
      expect(ended).toMatchObject([{ outcome: Outcome.COMPLETED, records: 1n }]);
    });
  });
});

describe("a token is revoked", () => {
  test("the cached answer is dead once it is effective, the SDK is among the proof, and the holder gets another token", async () => {
    await open();
    const { source, certificateThumbprint } = await openBilling();
    const sdk = await openInvoices();
    const [tokenId, secret] = [source.tokenId, await source.current()].map(String);
    await read(sdk, source, certificateThumbprint);
    await read(sdk, source, certificateThumbprint);
    const security = await revoke(source.tokenId);
    const proof = await eventually(async () => {
      const revocation = await security.getRevocation({ tokenId: source.tokenId });
      expect(revocation.effectiveAt).toBeDefined();
      return revocation;
    });
    await expect(read(sdk, source, certificateThumbprint)).rejects.toMatchObject({ reason: "REVOKED" });
    const acknowledged = proof.instances.filter(({ acknowledgedAt }) => acknowledgedAt);
    expect(new Set(acknowledged.map(({ name }) => name))).toEqual(new Set(["service/verifier", "workload/invoices"]));
    source.refused(secret as string);
    await eventually(async () => expect(await read(sdk, source, certificateThumbprint)).toBeDefined());
    expect(source.tokenId).not.toBe(tokenId);
  });

  test("while the revocation service is away, answers come from the verifier until that is stale too", async () => {
    await open();
    const { source, certificateThumbprint } = await openBilling();
    const sdk = await openInvoices();
    await read(sdk, source, certificateThumbprint);
    await services.revocation.close();
    await eventually(() => expect(sdk.isLive()).toBe(false));
    await eventually(async () =>
      expect(read(sdk, source, certificateThumbprint)).rejects.toMatchObject({ reason: "STALE_VERIFIER" }),
    );
  });

  test("an SDK that vanishes with uses to report leaves a gap on the log", async () => {
    await open("evidence: batched", { leaseMs: 1_500, renewAfterMs: 300, gapGraceMs: 300, gapEveryMs: 50 });
    const { identity, caPem } = await connectionOf(await suite.identity("workload/invoices"));
    const channel = openChannel({
      address: at(services.revocation),
      identity,
      caPem,
      trustDomain,
      expectService: "revocation",
      clock: systemClock,
    });
    let uses = 0;
    const watcher = openWatcher({
      channels: [channel],
      instance: "killed",
      reportsUses: true,
      clock: systemClock,
      random: systemRandom,
      log: silentLog,
      onEnded: () => undefined,
      reported: () => ({ sequence: 0, allReported: uses === 0, oldestOpenMs: undefined }),
    });
    closers.push(() => watcher.close());
    await watcher.whenLive();
    uses = 1;
    channel.close();
    await eventually(async () => {
      const events = await suite.events(topicNames.revocations);
      const gaps = events.filter(({ type }) => type === "curfew.use-reporting.gap.v1");
      expect(gaps.map(({ message }) => (message as UseReportingGap).instance)).toEqual(["killed"]);
    });
  });

  test("an SDK killed under constant load leaves a gap that begins just before, not when it was last idle", async () => {
    await open("evidence: batched");
    const { source, certificateThumbprint } = await openBilling();
    const { identity, ...connection } = await connectionOf(await suite.identity("workload/invoices"));
    const child = spawn(process.execPath, [fileURLToPath(new URL("./sdk-child.ts", import.meta.url))], {
      stdio: ["pipe", "pipe", "ignore"],
    });
    const exited = once(child, "exit");
    closers.push(async () => {
      child.kill("SIGKILL");
      await exited;
    });
    const addresses = { verifier: [at(services.verifier)], revocation: [at(services.revocation)] };
    const held = { pair: identity.current(), secret: await source.current(), certificateThumbprint };
    child.stdin.end(JSON.stringify({ ...connection, ...addresses, ...held }));
    await Promise.race([once(child.stdout, "data"), exited.then(() => expect.unreachable("the child has ended"))]);
    const decidedMs = async () =>
      (await usesOf()).decided.map(({ decidedAt }) => (decidedAt ? timestampMs(decidedAt) : 0));
    await eventually(async () => {
      const times = await decidedMs();
      // Longer than any of the times that a gap may begin too early by.
      expect(Math.max(...times) - Math.min(...times)).toBeGreaterThan(4_000);
    });
    const killedMs = systemClock.now();
    child.kill("SIGKILL");
    await exited;
    const [gap] = await eventually(async () => {
      const events = await suite.events(topicNames.revocations);
      const gaps = events.filter(({ type }) => type === "curfew.use-reporting.gap.v1");
      expect(gaps).toHaveLength(1);
      return gaps.map(({ message }) => message as UseReportingGap);
    }, 20_000);
    const fromMs = gap?.from ? timestampMs(gap.from) : 0;
    expect(fromMs).toBeGreaterThan(killedMs - 1_500);
    expect(fromMs).toBeLessThanOrEqual(killedMs);
    expect(fromMs).toBeLessThanOrEqual(Math.max(...(await decidedMs())) + 50);
    expect(gap?.to ? timestampMs(gap.to) : 0).toBeGreaterThan(killedMs);
  }, 60_000);
});

describe("a token source", () => {
  test("shows its secret to nobody who prints it", async () => {
    await open();
    const { source } = await openBilling();
    const secret = await source.current();
    expect(secret).toMatch(/^cfws_/);
    expect(`${inspect(source, { depth: 9, showHidden: true })}${JSON.stringify(source)}${source}`).not.toContain(
      secret.slice(5, 30),
    );
    expect(suite.logged.join("")).not.toContain(secret.slice(5, 30));
  });

  test("has the next secret before the one it holds ends, and every one it shows is good", async () => {
    await open("ttl_max: 3s\n    overlap_max: 1s\n    evidence: batched");
    const { source, certificateThumbprint } = await openBilling();
    const sdk = await openInvoices();
    const secrets = new Set<string>();
    await eventually(async () => {
      secrets.add(await source.current());
      await read(sdk, source, certificateThumbprint);
      expect(secrets.size).toBe(3);
    }, 20_000);
    expect(new Set((await usesOf()).decided.map(({ reason }) => reason))).toEqual(new Set([Reason.OK]));
    expect(new Set((await usesOf()).decided.map(({ tokenId }) => tokenId))).toEqual(new Set([source.tokenId]));
  }, 40_000);

  test("adopts a token whose secret went with another process, by rotating it", async () => {
    await open();
    const { source, identity } = await openBilling();
    const secret = await source.current();
    const adopted = openTokenSource({
      ...(await connectionOf(identity)),
      issuer: at(services.issuer),
      keyPair: generateKeyPair(systemRandom),
      wanted: { tokenId: source.tokenId },
    });
    closers.push(() => adopted.close());
    expect(await adopted.current()).not.toBe(secret);
    expect(adopted.tokenId).toBe(source.tokenId);
  });

  test("says why there is none", async () => {
    await open();
    const source = openBillingToken(at(services.issuer), await connectionOf(await suite.identity("workload/stranger")));
    closers.push(() => source.close());
    await expect(source.current()).rejects.toThrow(/POLICY_REFUSED/);
    await expect(source.current(AbortSignal.abort(new Error("no time")))).rejects.toThrow("no time");
    await expect(
      openTokenSource({
        ...(await connectionOf(await suite.identity("workload/billing"))),
        issuer: at(services.issuer),
        keyPair: generateKeyPair(systemRandom),
        wanted: { tokenId: "tok_00000000-0000-8000-8000-000000000000" },
      }).current(),
    ).rejects.toThrow(/NOT_FOUND/);
  });
});
