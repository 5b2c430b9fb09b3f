import { hash, X509Certificate } from "node:crypto";
import { once } from "node:events";
import { Outcome, Reason } from "@curfew/contracts/gen/curfew/events/v1/uses_pb.ts";
import { openChannel } from "@curfew/rpc/channel.ts";
import { MutualTlsServerCredentials } from "@curfew/rpc/credentials.ts";
import { parseRpcError } from "@curfew/rpc/errors.ts";
import { systemClock } from "@curfew/runtime/clock.ts";
import { Metadata, Server, type ServerWritableStream, status, type UntypedServiceImplementation } from "@grpc/grpc-js";
import { afterEach, beforeEach, describe, expect, test } from "vitest";
import { type AccessOf, currentUse, tokenInterceptor } from "./interceptor.ts";
import { openLocalVerifier } from "./local-verifier.ts";
import { type FakeSuite, openFakeRevocation, openFakeSuite, openJumpyClock } from "./testing/fake-suite.ts";
import { type FakeVerifier, openFakeVerifier } from "./testing/fake-verifier.ts";

let suite: FakeSuite;
let verifier: FakeVerifier;
let stopVerifier: () => Promise<void>;
/** Of handlers that ran. */
let ran: string[];
let accessOf: AccessOf;

const same = (bytes: Buffer) => bytes;
const codecs = { requestSerialize: same, requestDeserialize: same, responseSerialize: same, responseDeserialize: same };
const definition = {
  once: { path: "/s/once", requestStream: false, responseStream: false, ...codecs },
  many: { path: "/s/many", requestStream: false, responseStream: true, ...codecs },
  open: { path: "/s/open", requestStream: false, responseStream: false, ...codecs },
};
type Answer = (error: { code: number; details: string } | null, bytes?: Buffer) => void;

beforeEach(async () => {
  suite = await openFakeSuite();
  const { clock } = openJumpyClock();
  verifier = openFakeVerifier(clock);
  ran = [];
  accessOf = (path) =>
    path === "/s/open"
      ? undefined
      : {
          scope: "invoices:read",
          resource: "invoices/7",
          purpose: "billing",
          controller: "acme",
          maxPeople: 1,
          maxRecords: 1,
        };
});
afterEach(() => suite.close());

const handlers: UntypedServiceImplementation = {
  once: async (call: { request: Buffer; metadata: Metadata }, answer: Answer) => {
    ran.push(`once ${call.metadata.get("authorization").length}`);
    await Promise.resolve();
    currentUse().touched({ records: 2 });
    if (call.request.toString() === "fail") answer({ code: status.NOT_FOUND, details: "no such invoice" });
    else answer(null, Buffer.from(currentUse().tokenId));
  },
  many: async (call: ServerWritableStream<Buffer, Buffer>) => {
    ran.push("many");
    currentUse().touched({ records: 3 });
    call.write(Buffer.from("first"));
    if (call.request.toString() === "wait") await once(call, "cancelled");
    call.end();
  },
  open: (_call: unknown, answer: Answer) => {
    ran.push("open");
    expect(currentUse).toThrow("no access was authorized");
    answer(null, Buffer.from("open"));
  },
};

const openService = async () => {
  const { caPem, trustDomain } = suite;
  const asked = await suite.serve("verifier", verifier.service());
  const watched = await suite.serve("revocation", openFakeRevocation().service());
  stopVerifier = asked.stop;
  const own = await suite.identity("/workload/crm");
  const sdk = openLocalVerifier({
    verifier: [asked.address],
    revocation: [watched.address],
    identity: own,
    caPem,
    trustDomain,
  });
  const server = new Server({
    interceptors: [tokenInterceptor({ verifier: sdk, accessOf: (p, m) => accessOf(p, m) })],
  });
  server.addService(definition, handlers);
  const identity = await suite.identity("/service/crm");
  const credentials = new MutualTlsServerCredentials(identity, caPem);
  const port = await new Promise<number>((resolve, reject) =>
    server.bindAsync("localhost:0", credentials, (error, bound) => (error ? reject(error) : resolve(bound))),
  );
  suite.closers.push(
    () => sdk.close(),
    () => server.forceShutdown(),
  );
  const bearer = await suite.identity("/workload/billing");
  const channel = openChannel({
    address: `localhost:${port}`,
    identity: bearer,
    caPem,
    trustDomain,
    expectService: "crm",
    clock: systemClock,
  });
  suite.closers.push(() => channel.close());
  const metadataOf = (authorization?: string) => {
    const metadata = new Metadata();
    if (authorization !== undefined) metadata.set("authorization", authorization);
    return metadata;
  };
  return {
    thumbprint: hash("sha256", new X509Certificate(bearer.current().certPem).raw, "base64url"),
    call: (method: keyof typeof definition, authorization?: string, body = "") =>
      new Promise<string>((resolve, reject) =>
        channel.client.makeUnaryRequest(
          definition[method].path,
          same,
          same,
          Buffer.from(body),
          metadataOf(authorization),
          (error, bytes) => (error ? reject(error) : resolve(String(bytes))),
        ),
      ),
    stream: (authorization: string, body: string) =>
      channel.client.makeServerStreamRequest(
        definition.many.path,
        same,
        same,
        Buffer.from(body),
        metadataOf(authorization),
      ),
  };
};

const failure = (call: Promise<unknown>) => call.then(() => expect.unreachable("it was let in"), parseRpcError);
const until = (what: () => unknown) => expect.poll(what, { timeout: 10_000, interval: 10 });
const completions = () => [...verifier.completed.values()].map(({ outcome, records }) => [outcome, Number(records)]);

describe("a call", () => {
  test("with a good token reaches its handler, which has its use but not the secret; the use completes with the call", async () => {
    const { call } = await openService();
    const token = verifier.token();
    expect(await call("once", `Bearer ${token.secret}`)).toBe(token.tokenId);
    expect(await call("once", `bearer ${token.secret}`)).toBe(token.tokenId);
    expect(ran).toEqual(["once 0", "once 0"]);
    await until(completions).toEqual([
      [Outcome.COMPLETED, 2],
      [Outcome.COMPLETED, 2],
    ]);
  });

  test("says who presented the token, by the connection", async () => {
    const { call, thumbprint } = await openService();
    await call("once", `Bearer ${verifier.token().secret}`);
    const [use] = verifier.requests;
    expect(use?.presenterThumbprint).toBe(thumbprint);
    expect(use?.sourceAddress).toMatch(/^(127\.0\.0\.1|::1|::ffff:127\.0\.0\.1)$/);
  });

  test.for(["", "Bearer", "Bearer ", "Basic abc", "Bearer a b"])(
    "without a token is refused: %j",
    async (authorization) => {
      const { call } = await openService();
      const refused = await failure(call("once", authorization === "" ? undefined : authorization));
      expect(refused).toMatchObject({ status: "UNAUTHENTICATED", reason: "TOKEN_MISSING" });
      expect(ran).toEqual([]);
      expect(verifier.asked).toBe(0);
    },
  );

  test.for([
    [Reason.REVOKED, "UNAUTHENTICATED", "REVOKED"],
    [Reason.EXPIRED, "UNAUTHENTICATED", "EXPIRED"],
    [Reason.BINDING_MISMATCH, "UNAUTHENTICATED", "BINDING_MISMATCH"],
    [Reason.SCOPE_MISSING, "PERMISSION_DENIED", "SCOPE_MISSING"],
    [Reason.WRONG_AUDIENCE, "PERMISSION_DENIED", "WRONG_AUDIENCE"],
    [Reason.STALE_VERIFIER, "UNAVAILABLE", "STALE_VERIFIER"],
  ] as const)(
    "with a token that is refused with reason %i gets %s before its handler runs",
    async ([reason, code, name]) => {
      const { call } = await openService();
      const token = verifier.token({ reason });
      const refused = await failure(call("once", `Bearer ${token.secret}`));
      expect(refused).toMatchObject({ status: code, reason: name });
      expect(JSON.stringify(refused)).not.toContain(token.tokenId);
      expect(ran).toEqual([]);
    },
  );

  test("is refused while no verifier can be reached", async () => {
    const { call } = await openService();
    await stopVerifier();
    expect(await failure(call("once", `Bearer ${verifier.token().secret}`))).toMatchObject({ status: "UNAVAILABLE" });
    expect(ran).toEqual([]);
  });

  test("that fails, fails its use, which keeps what was touched", async () => {
    const { call } = await openService();
    const refused = await failure(call("once", `Bearer ${verifier.token().secret}`, "fail"));
    expect(refused).toMatchObject({ status: "NOT_FOUND", message: "no such invoice" });
    await until(completions).toEqual([[Outcome.FAILED, 2]]);
  });

  test("that answers a stream completes when that ends, and fails when the caller goes away", async () => {
    const { stream } = await openService();
    const bearer = `Bearer ${verifier.token({ cacheable: false }).secret}`;
    expect((await Array.fromAsync(stream(bearer, ""))).map(String)).toEqual(["first"]);
    await until(completions).toEqual([[Outcome.COMPLETED, 3]]);
    const left = stream(bearer, "wait");
    left.on("error", () => undefined);
    await once(left, "data");
    left.cancel();
    await until(completions).toContainEqual([Outcome.FAILED, 3]);
  });

  test("of a method that needs no token needs none", async () => {
    const { call } = await openService();
    expect(await call("open")).toBe("open");
    expect(verifier.asked).toBe(0);
  });

  test("of a method that is declared wrongly is an internal error, not an open door", async () => {
    const { call } = await openService();
    const declared = accessOf;
    accessOf = (path, metadata) => {
      const access = declared(path, metadata);
      return access && { ...access, controller: "Not A Name" };
    };
    const bearer = `Bearer ${verifier.token().secret}`;
    expect(await failure(call("once", bearer))).toMatchObject({ status: "INTERNAL", reason: "INVALID_ACCESS" });
    accessOf = () => {
      throw new Error("a bug with a secret in its message");
    };
    const broken = await failure(call("once", bearer));
    expect(broken).toMatchObject({ status: "INTERNAL", reason: "INTERNAL", message: "the access cannot be checked" });
    expect(ran).toEqual([]);
  });
});
