import { createServer } from "node:net";
import { connect as connectTls } from "node:tls";
import { type Clock, systemClock } from "@curfew/runtime/clock.ts";
import { Client, credentials, Metadata, status } from "@grpc/grpc-js";
import { afterEach, describe, expect, test } from "vitest";
import { createIdentitySource } from "./credentials.ts";
import { parseRpcError } from "./errors.ts";
import type { Caller } from "./identity.ts";
import { bindService } from "./service-definition.ts";
import { EchoMessageSchema, EchoService } from "./testing/echo.ts";
import { echoHandlers, type Harness, issue, newAuthority, openHarness, trustDomain } from "./testing/harness.ts";
import { shiftedClock } from "./testing/shifted-clock.ts";

let harness: Harness;
let callers: Caller[];

const open = async (options: Parameters<typeof openHarness>[1] = {}) => {
  callers = [];
  harness = await openHarness(
    {
      echo: (request, { caller }) => {
        callers.push(caller);
        return request;
      },
    },
    options,
  );
};
afterEach(() => harness.close());

const failure = (call: Promise<unknown>) => call.then(() => expect.unreachable("the call succeeded"), parseRpcError);

describe("who is let in", () => {
  test("a caller of the trust domain that the table names, under the name in its certificate", async () => {
    await open();
    const echo = await harness.client();
    expect((await echo.echo({ text: "hi" })).text).toBe("hi");
    expect(callers).toEqual([{ kind: "workload", name: "billing", uri: `spiffe://${trustDomain}/workload/billing` }]);
  });

  test("nobody whose certificate another CA signed, even for the same trust domain", async () => {
    await open();
    const stranger = await newAuthority();
    const identity = createIdentitySource(await issue(stranger, "/workload/billing"));
    const echo = harness.connect({ ...(await harness.channelOptions()), identity });
    expect((await failure(echo.echo({}))).status).toBe("UNAVAILABLE");
    expect(callers).toEqual([]);
  });

  test("nobody whose certificate has expired", async () => {
    await open();
    const past = { ...harness.authority, clock: { ...systemClock, now: () => Date.now() - 7_200_000 } };
    const identity = createIdentitySource(await issue(past, "/workload/billing", 3_600_000));
    const echo = harness.connect({ ...(await harness.channelOptions()), identity });
    expect((await failure(echo.echo({}))).status).toBe("UNAVAILABLE");
    expect(callers).toEqual([]);
  });

  test("nobody without a certificate, nor in plain text", async () => {
    await open();
    const pick = [credentials.createSsl(Buffer.from(harness.authority.certPem)), credentials.createInsecure()];
    for (const each of pick) {
      const client = new Client(`localhost:${harness.server.port}`, each);
      const code = await new Promise<number | undefined>((resolve) => {
        const bytes = (b: Buffer) => b;
        const path = `/${EchoService.typeName}/Echo`;
        client.makeUnaryRequest(path, bytes, bytes, Buffer.alloc(0), (error) => resolve(error?.code));
      });
      client.close();
      expect(code).toBe(status.UNAVAILABLE);
    }
    expect(callers).toEqual([]);
  });

  test("no connection below TLS 1.3", async () => {
    await open();
    const { certPem, keyPem } = await issue(harness.authority, "/workload/billing");
    const outcome = await new Promise<string>((resolve) => {
      const socket = connectTls({
        port: harness.server.port,
        host: "localhost",
        ca: harness.authority.certPem,
        cert: certPem,
        key: keyPem,
        maxVersion: "TLSv1.2",
        ALPNProtocols: ["h2"],
      });
      socket.once("secureConnect", () => resolve("connected"));
      socket.once("error", (error) => resolve((error as NodeJS.ErrnoException).code ?? "failed"));
    });
    expect(outcome).toBe("ERR_SSL_TLSV1_ALERT_PROTOCOL_VERSION");
  });

  test("a certificate that expires while its connection is open no longer gets answers", async () => {
    let skewMs = 0;
    await open({ clock: { ...systemClock, now: () => Date.now() + skewMs } });
    const echo = await harness.client();
    await echo.echo({});
    skewMs = 7_200_000;
    expect((await failure(echo.echo({}))).status).toBe("UNAUTHENTICATED");
    expect(callers).toHaveLength(1);
  });
});

describe("a stream", () => {
  const openStreams = new Set<string>();
  const openCount = (clock: Clock) =>
    openHarness(
      {
        async *count(request, ctx) {
          openStreams.add(request.text);
          ctx.signal.addEventListener("abort", () => openStreams.delete(request.text));
          yield request;
          await new Promise((resolve) => ctx.signal.addEventListener("abort", resolve));
        },
      },
      { clock },
    );

  test("ends with the certificate of its caller, who is let in again with a new one", async () => {
    const clock = shiftedClock();
    harness = await openCount(clock);
    const options = await harness.channelOptions();
    const echo = harness.connect(options);
    const stream = echo.count({ text: "a" })[Symbol.asyncIterator]();
    expect((await stream.next()).value).toMatchObject({ text: "a" });
    const long = harness.connect({
      ...options,
      identity: createIdentitySource(await issue(harness.authority, "/workload/billing", 30 * 86_400_000)),
    });
    const other = long.count({ text: "b" })[Symbol.asyncIterator]();
    await other.next();
    clock.advance(3_600_000);
    const expired = { status: "UNAUTHENTICATED", reason: "CERTIFICATE_EXPIRED" };
    expect(await failure(stream.next())).toMatchObject(expired);
    expect(await failure(echo.echo({}))).toMatchObject(expired);
    options.identity.replace(await issue(harness.authority, "/workload/billing", 7_200_000));
    await expect
      .poll(() => echo.echo({ text: "again" }).catch(parseRpcError), { timeout: 10_000 })
      .toMatchObject({
        text: "again",
      });
    // One whose certificate lasts longer than Node's longest timer was not ended.
    expect((await long.echo({ text: "c" })).text).toBe("c");
    expect([...openStreams]).toEqual(["b"]);
  });

  test("of a certificate of seconds ends within them", async () => {
    harness = await openCount(systemClock);
    const identity = createIdentitySource(await issue(harness.authority, "/workload/billing", 4_000));
    const echo = harness.connect({ ...(await harness.channelOptions()), identity });
    const stream = echo.count({})[Symbol.asyncIterator]();
    await stream.next();
    expect(await failure(stream.next())).toMatchObject({ status: "UNAUTHENTICATED", reason: "CERTIFICATE_EXPIRED" });
  });
});

describe("the table", () => {
  test("refuses a caller that no rule of the method names, and says so in the details", async () => {
    await open();
    const echo = await harness.client("/person/p1");
    expect(await failure(echo.echo({}))).toMatchObject({
      status: "PERMISSION_DENIED",
      reason: "CALLER_NOT_ALLOWED",
      metadata: { method: `${EchoService.typeName}/Echo` },
    });
    expect(callers).toEqual([]);
  });

  test("refuses everybody for a method without a row, in each kind of call", async () => {
    await open({ authorize: {} });
    const echo = await harness.client();
    const denied = { status: "PERMISSION_DENIED", message: expect.stringMatching(/ is for nobody$/) };
    expect(await failure(echo.echo({}))).toMatchObject(denied);
    expect(await failure(echo.join([{}]))).toMatchObject(denied);
    expect(await failure(Array.fromAsync(echo.count({})))).toMatchObject(denied);
    expect(await failure(Array.fromAsync(echo.talk().responses))).toMatchObject(denied);
  });

  test("is asked with names from the certificate, whatever the metadata claims", async () => {
    await open();
    const { address, identity, caPem } = await harness.channelOptions();
    const { certPem, keyPem } = identity.current();
    const pem = [caPem, keyPem, certPem].map((text) => Buffer.from(text));
    const tls = credentials.createSsl(pem[0], pem[1], pem[2], { checkServerIdentity: () => undefined });
    const client = new Client(address, tls);
    const forged = new Metadata();
    for (const key of ["caller", "x-caller", "peer"]) forged.set(key, `spiffe://${trustDomain}/person/root`);
    await new Promise<void>((resolve, reject) => {
      const bytes = (b: Buffer) => b;
      const path = `/${EchoService.typeName}/Echo`;
      client.makeUnaryRequest(path, bytes, bytes, Buffer.alloc(0), forged, (e) => (e ? reject(e) : resolve()));
    });
    client.close();
    expect(callers.map((caller) => caller.name)).toEqual(["billing"]);
  });

  test("two connections of different callers are told apart on one server", async () => {
    await open();
    const [one, two] = [await harness.client("/workload/one"), await harness.client("/workload/two")];
    for (const echo of [one, two, one]) await echo.echo({});
    expect(callers.map((caller) => caller.name)).toEqual(["one", "two", "one"]);
  });
});

describe("the client", () => {
  test("does not talk to another service of the same trust domain", async () => {
    await open();
    const echo = harness.connect({ ...(await harness.channelOptions()), expectService: "issuer" });
    expect((await failure(echo.echo({}))).status).toBe("UNAVAILABLE");
    expect(callers).toEqual([]);
  });

  test("reaches the server by IP address as well as by name", async () => {
    await open({ address: "127.0.0.1:0" });
    const address = `127.0.0.1:${harness.server.port}`;
    const echo = harness.connect({ ...(await harness.channelOptions()), address });
    expect((await echo.echo({ text: "hi" })).text).toBe("hi");
  });
});

describe("certificates", () => {
  test("replaced while running are used by new connections; open ones go on", async () => {
    await open();
    const seen: string[] = [];
    const serialOf = async () => {
      const { certPem, keyPem } = await issue(harness.authority, "/workload/billing");
      return new Promise<string>((resolve, reject) => {
        const ca = harness.authority.certPem;
        const options = { port: harness.server.port, host: "localhost", ca, cert: certPem, key: keyPem };
        const socket = connectTls({ ...options, ALPNProtocols: ["h2"] }, () => {
          resolve(socket.getPeerCertificate().serialNumber);
          socket.destroy();
        });
        socket.once("error", reject);
      });
    };
    const echo = await harness.client();
    await echo.echo({});
    seen.push(await serialOf());
    harness.identity.replace(await issue(harness.authority, "/service/echo"));
    seen.push(await serialOf());
    expect(seen[0]).not.toBe(seen[1]);
    await echo.echo({});
    expect(callers).toHaveLength(2);
  });

  test("of a client can be replaced too", async () => {
    await open();
    const channel = await harness.channelOptions();
    const old = { ...harness.authority, clock: { ...systemClock, now: () => Date.now() - 7_200_000 } };
    const identity = createIdentitySource(await issue(old, "/workload/billing", 3_600_000));
    const echo = harness.connect({ ...channel, identity });
    expect((await failure(echo.echo({}))).status).toBe("UNAVAILABLE");
    identity.replace(await issue(harness.authority, "/workload/billing"));
    await expect.poll(() => echo.echoAgain({}).then(() => "ok", String), { timeout: 10_000 }).toBe("ok");
  });

  test("are not replaced by a pair that does not belong together", async () => {
    await open();
    const [one, two] = [
      await issue(harness.authority, "/service/echo"),
      await issue(harness.authority, "/service/echo"),
    ];
    expect(() => harness.identity.replace({ certPem: one.certPem, keyPem: two.keyPem })).toThrow();
    const echo = await harness.client();
    expect((await echo.echo({ text: "hi" })).text).toBe("hi");
  });
});

describe("a server", () => {
  test("does not open without handlers for all methods, on a taken port, or under a certificate of nobody", async () => {
    await open();
    const { echo, ...rest } = echoHandlers;
    expect(echo).toBeDefined();
    expect(() => bindService(EchoService, rest as typeof echoHandlers)).toThrow(/no handler for .*Echo/);
    await expect(openHarness({}, { trustDomain: "other.example" })).rejects.toThrow(/names nobody/);
    const taken = createServer();
    await new Promise<void>((resolve) => void taken.listen(0, "127.0.0.1", resolve));
    const { port } = taken.address() as { port: number };
    await expect(openHarness({}, { address: `127.0.0.1:${port}` })).rejects.toThrow();
    taken.close();
  });

  test("answers UNIMPLEMENTED for a method it does not serve", async () => {
    await open({ authorize: {} });
    expect(EchoMessageSchema.typeName).toBe("curfew.testing.v1.EchoMessage");
    const { address, identity, caPem } = await harness.channelOptions();
    const { certPem, keyPem } = identity.current();
    const tls = credentials.createSsl(Buffer.from(caPem), Buffer.from(keyPem), Buffer.from(certPem), {
      checkServerIdentity: () => undefined,
    });
    const client = new Client(address, tls);
    const bytes = (b: Buffer) => b;
    const code = await new Promise((resolve) => {
      client.makeUnaryRequest("/no.Service/Method", bytes, bytes, Buffer.alloc(0), (error) => resolve(error?.code));
    });
    client.close();
    expect(code).toBe(status.UNIMPLEMENTED);
  });
});
