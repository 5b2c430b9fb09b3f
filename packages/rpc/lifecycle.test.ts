import { Health, HealthCheckResponse_ServingStatus as Status } from "@curfew/contracts/gen/grpc/health/v1/health_pb.ts";
import { systemClock } from "@curfew/runtime/clock.ts";
import { afterEach, describe, expect, test } from "vitest";
import { openChannel, type RpcChannel } from "./channel.ts";
import { createClient } from "./client.ts";
import { parseRpcError } from "./errors.ts";
import { EchoService } from "./testing/echo.ts";
import { type Harness, openHarness } from "./testing/harness.ts";

let harness: Harness;
let channel: RpcChannel | undefined;
afterEach(async () => {
  channel?.close();
  channel = undefined;
  await harness.close();
});

const failure = (call: Promise<unknown>) => call.then(() => expect.unreachable("the call succeeded"), parseRpcError);

describe("closing a server", () => {
  test("lets calls that answer once finish, ends streams at once, and refuses new connections", async () => {
    const gate = Promise.withResolvers<void>();
    const started = Promise.withResolvers<void>();
    const streamEnded = Promise.withResolvers<unknown>();
    harness = await openHarness({
      echo: async (request) => {
        started.resolve();
        await gate.promise;
        return request;
      },
      async *count(request, ctx) {
        yield request;
        await new Promise((resolve) => ctx.signal.addEventListener("abort", resolve));
        streamEnded.resolve(ctx.signal.reason);
      },
    });
    const echo = await harness.client();
    const stream = echo.count({})[Symbol.asyncIterator]();
    await stream.next();
    const unary = echo.echo({ text: "finished" });
    await started.promise;

    const closed = harness.server.close(10_000);
    const shuttingDown = { status: "UNAVAILABLE", reason: "SHUTTING_DOWN" };
    expect(await failure(stream.next())).toMatchObject(shuttingDown);
    expect(parseRpcError(await streamEnded.promise)).toMatchObject(shuttingDown);
    const late = await harness.client();
    expect((await failure(late.echo({}))).status).toBe("UNAVAILABLE");
    gate.resolve();
    expect((await unary).text).toBe("finished");
    await closed;
  });

  test("aborts what has not finished when the grace time is over, and resolves", async () => {
    let signal: AbortSignal | undefined;
    const started = Promise.withResolvers<void>();
    harness = await openHarness({
      echo: (_request, ctx) => {
        signal = ctx.signal;
        started.resolve();
        return new Promise<never>(() => undefined);
      },
    });
    const stuck = failure((await harness.client()).echo({}));
    await started.promise;
    await harness.server.close(0);
    // Destroying the connection may overtake the status: then the client sees it break.
    expect(["UNAVAILABLE", "CANCELLED"]).toContain((await stuck).status);
    expect(signal?.aborted).toBe(true);
  });

  test("twice is closing once", async () => {
    harness = await openHarness();
    expect(harness.server.close(0)).toBe(harness.server.close(10_000));
  });
});

describe("closing a channel", () => {
  test("ends the calls that are under way", async () => {
    const started = Promise.withResolvers<void>();
    harness = await openHarness({
      echo: () => {
        started.resolve();
        return new Promise<never>(() => undefined);
      },
    });
    channel = openChannel(await harness.channelOptions());
    const call = failure(createClient(EchoService, channel).echo({}));
    await started.promise;
    channel.close();
    expect((await call).status).toBe("CANCELLED");
  });
});

describe("health", () => {
  const clients = async () => {
    harness = await openHarness({}, { clock: systemClock });
    channel = openChannel(await harness.channelOptions("/person/anyone"));
    return createClient(Health, channel);
  };

  test("begins NOT_SERVING for the server and each service, and is NOT_FOUND for others", async () => {
    const health = await clients();
    expect((await health.check({})).status).toBe(Status.NOT_SERVING);
    expect((await health.check({ service: EchoService.typeName })).status).toBe(Status.NOT_SERVING);
    expect((await failure(health.check({ service: "no.Such" }))).status).toBe("NOT_FOUND");
    harness.server.health.set(EchoService.typeName, "SERVING");
    const { statuses } = await health.list({});
    expect(statuses[EchoService.typeName]?.status).toBe(Status.SERVING);
    expect(statuses[""]?.status).toBe(Status.NOT_SERVING);
    expect(() => harness.server.health.set("no.Such", "SERVING")).toThrow();
  });

  test("is watched: the status now, then each change, and NOT_SERVING before the server goes", async () => {
    const health = await clients();
    const service = EchoService.typeName;
    const watch = health.watch({ service })[Symbol.asyncIterator]();
    const next = async () => ((await watch.next()).value as { status: Status } | undefined)?.status;
    expect(await next()).toBe(Status.NOT_SERVING);
    harness.server.health.set(service, "SERVING");
    expect(await next()).toBe(Status.SERVING);
    harness.server.health.set("", "SERVING");
    harness.server.health.set(service, "NOT_SERVING");
    expect(await next()).toBe(Status.NOT_SERVING);
    await watch.return?.();
  });

  test("of an unknown service is watched as SERVICE_UNKNOWN without ending", async () => {
    const health = await clients();
    const watch = health.watch({ service: "no.Such" })[Symbol.asyncIterator]();
    expect((await watch.next()).value).toMatchObject({ status: Status.SERVICE_UNKNOWN });
    await watch.return?.();
  });
});
