import { randomUUID } from "node:crypto";
import { connect, type Socket } from "node:net";
import { connect as connectTls, type TLSSocket } from "node:tls";
import { create, fromBinary, type MessageInitShape, toBinary } from "@bufbuild/protobuf";
import { timestampFromMs } from "@bufbuild/protobuf/wkt";
import { Delivery } from "@curfew/contracts/gen/curfew/events/v1/common_pb.ts";
import { IssuerService } from "@curfew/contracts/gen/curfew/issuer/v1/issuer_pb.ts";
import {
  RevocationService,
  WatchRevocationsRequestSchema,
  WatchRevocationsResponseSchema,
} from "@curfew/contracts/gen/curfew/revocation/v1/revocation_pb.ts";
import { VerifierService } from "@curfew/contracts/gen/curfew/verifier/v1/verifier_pb.ts";
import { parseRpcError } from "@curfew/rpc/errors.ts";
import { methodDefinition } from "@curfew/rpc/service-definition.ts";
import { type Client, type ClientDuplexStream, Metadata } from "@grpc/grpc-js";
import { afterAll, afterEach, beforeAll, describe, expect, test } from "vitest";
import { seeded } from "./mutations.ts";
import { type Answer, call } from "./raw-call.ts";
import { grant, openRig, type Rig, serviceNames, until } from "./rig.ts";
import { sampleOf } from "./samples.ts";

/** Callers who are who they say and call what they may: too much of it, another's things, half a sentence, or nothing at all. */
const watch = RevocationService.method.watchRevocations;
const same = (bytes: Buffer) => bytes;

let rig: Rig;
const sockets: (Socket | TLSSocket)[] = [];
beforeAll(async () => {
  rig = await openRig();
}, 60_000);
afterEach(() => {
  for (const socket of sockets.splice(0)) socket.destroy();
});
afterAll(() => rig.close());

const message = (kind: MessageInitShape<typeof WatchRevocationsRequestSchema>["kind"]): Buffer =>
  Buffer.from(toBinary(WatchRevocationsRequestSchema, create(WatchRevocationsRequestSchema, { kind: kind as never })));
const hello = (instance = `sdk-${randomUUID()}`) => message({ case: "hello", value: { instance, reportsUses: false } });
const ping = (sequence: bigint) => message({ case: "ping", value: { sequence, sentAt: timestampFromMs(Date.now()) } });
const acknowledge = (...revocationEventIds: string[]) =>
  message({ case: "acknowledge", value: { revocationEventIds } });
const ask = (...requests: Uint8Array[]): Promise<Answer> =>
  call(rig.client("revocation", "workload/invoices"), watch, requests, { take: 1_000 });
const marks = ({ messages }: Answer) =>
  messages
    .map((bytes) => fromBinary(WatchRevocationsResponseSchema, bytes).kind)
    .flatMap((kind) => (kind.case === "mark" ? [Number(kind.value.sequence)] : []));

const expectAtWork = async () => {
  await rig.atWork();
  expect(rig.logLines.filter((line) => line.includes('"level":"error"'))).toEqual([]);
};

describe("another's things", () => {
  test("are as if they were not", async () => {
    const { tokenId } = await rig.token("crm");
    const billing = rig.cast.client(IssuerService, "issuer", "workload/billing");
    const failure = (answer: Promise<unknown>) => answer.then(() => expect.unreachable("answered"), parseRpcError);
    const before = await rig.written();
    for (const id of [tokenId, "tok_00000000-0000-8000-8000-000000000000"])
      for (const answer of [
        billing.getToken({ tokenId: id }),
        billing.collectSecret({ tokenId: id }),
        billing.confirmSecret({ tokenId: id, generation: 1 }),
        billing.rotateToken({ requestId: randomUUID(), tokenId: id }),
      ])
        expect(await failure(answer)).toEqual({
          status: "NOT_FOUND",
          reason: "TOKEN_NOT_FOUND",
          message: "there is no such token",
          metadata: {},
        });
    expect((await billing.listTokens({})).tokens.map((t) => t.tokenId)).not.toContain(tokenId);
    expect(await rig.written()).toEqual(before);
  });

  test("under another's request id are not one's own", async () => {
    const requestId = randomUUID();
    const create = (workload: string) =>
      rig.cast
        .client(IssuerService, "issuer", `workload/${workload}`)
        .createToken({ requestId, grant, delivery: Delivery.DIRECT });
    const [one, other] = [await create("billing"), await create("crm")];
    expect(one.token?.tokenId).not.toBe(other.token?.tokenId);
    expect(other.token?.subject).toMatch(/workload\/crm$/);
  });
});

describe("metadata", () => {
  test("that is nonsense changes nothing and is not recorded", async () => {
    const method = IssuerService.method.createToken;
    const random = seeded(7);
    const noise = Array.from({ length: 4_000 }, () => String.fromCharCode(33 + random(94))).join("");
    for (const traceparent of ["garbage", noise, "00-00000000000000000000000000000000-0000000000000000-01"]) {
      const metadata = {
        traceparent,
        authorization: "Bearer $ne",
        "x-forwarded-client-cert": "URI=spiffe://curfew.example/person/ada",
      };
      const answer = await call(rig.client("issuer", "workload/billing"), method, [sampleOf(method)], { metadata });
      expect(answer.status).toBe("OK");
      const { token } = fromBinary(method.output, answer.messages[0] as Buffer);
      expect(token?.subject).toBe("spiffe://curfew.example/workload/billing");
    }
    for (const text of ["garbage", noise.slice(0, 100), "0000000000000000-01"]) {
      expect(rig.logLines.some((line) => line.includes(text))).toBe(false);
      expect(rig.recordsWith(text)).toBe(0);
    }
    expect(rig.recordsWith("workload/billing")).toBeGreaterThan(0);
    await expectAtWork();
  });
});

describe("a watcher", () => {
  test("that does not begin with a hello, or says it twice, is told so", async () => {
    const garbage = Buffer.from("0affffffff", "hex");
    const refused = [
      [[garbage], "MALFORMED_REQUEST"],
      [[new Uint8Array()], "INVALID_REQUEST"],
      [[ping(1n)], "HELLO_MISSING"],
      [[acknowledge("a")], "HELLO_MISSING"],
      [[hello(), hello()], "HELLO_TWICE"],
      [[hello(), garbage], "MALFORMED_REQUEST"],
      [[hello(), ping(-1n)], "INVALID_REQUEST"],
      [[hello(), acknowledge()], "INVALID_REQUEST"],
      [[hello(), acknowledge(...Array<string>(1_001).fill("a"))], "INVALID_REQUEST"],
    ] as const;
    for (const [requests, reason] of refused)
      expect(await ask(...requests), reason).toMatchObject({ status: "INVALID_ARGUMENT", reason, domain: "curfew" });
    expect(await ask()).toMatchObject({ status: "OK", messages: [] });
  });

  test("does not get another's instance, the suite's own verifier's neither", async () => {
    const instance = `sdk-${randomUUID()}`;
    expect((await ask(hello(instance), ping(1n))).status).toBe("OK");
    const crm = rig.client("revocation", "workload/crm");
    const taken = { status: "PERMISSION_DENIED", reason: "INSTANCE_TAKEN", domain: "curfew" };
    expect(await call(crm, watch, [hello(instance), ping(1n)])).toMatchObject(taken);
  });

  test("whose pings go backwards is answered by the newest, and acknowledges what is no revocation in vain", async () => {
    const before = rig.records();
    const backwards = await ask(hello(), ping(9n), ping(3n), ping(3n), ping(2n ** 63n - 1n), ping(1n));
    expect(backwards.status).toBe("OK");
    expect(marks(backwards).at(-1)).toBe(1);
    const ids = Array.from({ length: 1_000 }, (_, i) => `no-revocation-${i}`);
    const many = Array.from({ length: 10 }, () => acknowledge(...ids));
    const one = Array.from({ length: 10_000 }, (_, i) => acknowledge(`no-revocation-${i}`));
    expect(marks(await ask(hello(), ...many, ...one, ping(2n)))).toEqual([2]);
    expect(rig.records()).toEqual(before);
    await expectAtWork();
  });

  test("that never reads is no burden to the others", async () => {
    const client = rig.channel("revocation", "workload/crm");
    const lazy = Array.from({ length: 20 }, () => {
      const stream = client.makeBidiStreamRequest(methodDefinition(watch).path, same, same, new Metadata());
      stream.on("error", () => undefined);
      stream.pause();
      stream.write(hello());
      for (let n = 1n; n <= 1_000n; n += 1n) stream.write(ping(n));
      return stream;
    });
    const sam = rig.cast.client(RevocationService, "revocation", "person/sam");
    for (let n = 0; n < 50; n += 1) {
      const { tokenId } = await rig.token("billing");
      expect((await sam.revokeToken({ requestId: randomUUID(), tokenId, reason: 6 })).published).toBe(true);
    }
    await expectAtWork();
    for (const stream of lazy) stream.cancel();
  });

  test("with thousands of streams, silent ones too, gets some, and everybody else goes on", async () => {
    const streams: ClientDuplexStream<Buffer, Buffer>[] = [];
    const reasons = new Map<string, number>();
    const open = (client: Client, first: Buffer | undefined) => {
      const stream = client.makeBidiStreamRequest(methodDefinition(watch).path, same, same, new Metadata());
      stream.on("data", () => undefined);
      stream.on("error", (error) => {
        const { reason } = parseRpcError(error);
        reasons.set(reason, (reasons.get(reason) ?? 0) + 1);
      });
      if (first) stream.write(first);
      streams.push(stream);
    };
    const clients = Array.from({ length: 3 }, () => rig.channel("revocation", "workload/invoices"));
    for (let n = 0; n < 2_100; n += 1) open(clients[n % 3] as Client, n % 2 === 0 ? hello() : undefined);
    await until("the rest is refused", () => (reasons.get("TOO_MANY_CALLS") ?? 0) >= 2_100 - 512 || undefined);
    expect([...reasons.keys()]).toEqual(["TOO_MANY_CALLS"]);
    // Another resource service watches all the same.
    const crm = await call(rig.client("revocation", "workload/crm"), watch, [hello(), ping(1n)], { take: 1_000 });
    expect(marks(crm)).toEqual([1]);
    await expectAtWork();
    for (const stream of streams) stream.cancel();
    await until("its places are free again", async () => (await ask(hello(), ping(1n))).status === "OK" || undefined);
  }, 60_000);
});

describe("a mass", () => {
  const mib = 2 ** 20;

  test("of 10,000 calls at once is served or refused, and leaves nothing behind", async () => {
    const { secret } = await rig.token("billing");
    const method = VerifierService.method.verifyToken;
    const request = sampleOf(method, { secret });
    const clients = Array.from({ length: 10 }, () => rig.channel("verifier", "workload/invoices"));
    await Promise.all(clients.map((client) => call(client, method, [request])));
    const before = process.memoryUsage().rss;
    const answers = await Promise.all(
      Array.from({ length: 10_000 }, (_, i) =>
        call(clients[i % 10] as Client, method, [request], { deadlineMs: 30_000 }),
      ),
    );
    const statuses = new Set(answers.map(({ status, reason }) => (status === "OK" ? "OK" : `${status} ${reason}`)));
    // On a machine that is busy enough the bus, too, says that it cannot keep up.
    statuses.delete("UNAVAILABLE BUS_UNAVAILABLE");
    expect([...statuses].sort()).toEqual(["OK", "RESOURCE_EXHAUSTED TOO_MANY_CALLS"]);
    expect(answers.filter(({ status }) => status === "OK").length).toBeGreaterThan(1_000);
    expect((process.memoryUsage().rss - before) / mib).toBeLessThan(1_000);
    await expectAtWork();
  }, 60_000);

  test("of calls that are cancelled as soon as they are made does no harm", async () => {
    const method = IssuerService.method.listTokens;
    const client = rig.channel("issuer", "workload/billing");
    const ended = Array.from({ length: 5_000 }, () => {
      const { promise, resolve } = Promise.withResolvers<void>();
      const limits = { deadline: Date.now() + 10_000 };
      const one = client.makeUnaryRequest(
        methodDefinition(method).path,
        same,
        same,
        Buffer.alloc(0),
        new Metadata(),
        limits,
        () => resolve(),
      );
      setImmediate(() => one.cancel());
      return promise;
    });
    await Promise.all(ended);
    await expectAtWork();
  });

  test("of connections that say nothing, half a greeting, or half a request, holds nobody up", async () => {
    for (const server of serviceNames) {
      const [host = "", port = ""] = rig.address(server).split(":");
      const { certPem, keyPem } = await rig.certificate("/workload/billing", 3_600_000);
      for (let n = 0; n < 100; n += 1) {
        const socket = connect({ host, port: Number(port) });
        socket.on("error", () => undefined);
        if (n % 2 === 0) socket.write(Buffer.from("1603010200010001fc0303", "hex"));
        sockets.push(socket);
      }
      const tls = { host, port: Number(port), ca: rig.suite.identities.caPem, cert: certPem, key: keyPem };
      for (let n = 0; n < 50; n += 1) {
        const socket = connectTls({ ...tls, ALPNProtocols: ["h2"], checkServerIdentity: () => undefined }, () => {
          // HTTP/2's preface and SETTINGS; then, for half of them, the first bytes of a frame that never ends.
          socket.write("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n");
          socket.write(Buffer.from("000000040000000000", "hex"));
          if (n % 2 === 0) socket.write(Buffer.from("ffffff01040000", "hex"));
        });
        socket.on("error", () => undefined);
        sockets.push(socket);
      }
    }
    await until("they are connected", () => sockets.filter((s) => !s.connecting).length >= 700 || undefined);
    await expectAtWork();
  });

  test("of requests whose bodies never end is bounded like any other", async () => {
    const method = VerifierService.method.verifyToken;
    const client = rig.channel("verifier", "workload/crm");
    const { path } = methodDefinition(method);
    // A unary method called as a stream that is never closed: the request never ends.
    const halves = Array.from({ length: 900 }, () => {
      const stream = client.makeClientStreamRequest(path, same, same, new Metadata(), () => undefined);
      stream.write(sampleOf(method) as Buffer);
      return stream;
    });
    await expectAtWork();
    for (const half of halves) half.cancel();
    await expectAtWork();
  });
});
