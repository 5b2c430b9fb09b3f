import { ok } from "node:assert";
import { once } from "node:events";
import { connect, constants } from "node:http2";
import { Rejection } from "@curfew/decider/decider.ts";
import { type Clock, systemClock } from "@curfew/runtime/clock.ts";
import { afterEach, describe, expect, test } from "vitest";
import { parseRpcError } from "./errors.ts";
import type { CallContext } from "./service-definition.ts";
import { EchoService } from "./testing/echo.ts";
import { type Harness, issue, openHarness } from "./testing/harness.ts";

let harness: Harness;
afterEach(() => harness.close());

const failure = (call: Promise<unknown>) => call.then(() => expect.unreachable("the call succeeded"), parseRpcError);
const aborted = (ctx: CallContext) =>
  new Promise<never>((_resolve, reject) => {
    const stop = () => reject(ctx.signal.reason as Error);
    if (ctx.signal.aborted) stop();
    else ctx.signal.addEventListener("abort", stop);
  });

describe("the four kinds of call", () => {
  test("answer one, many, one for many, and many for many", async () => {
    harness = await openHarness({
      echo: ({ text }) => ({ text: `${text}.` }),
      async *count({ count }) {
        for (let i = 0n; i < count; i += 1n) yield { count: i };
      },
      async join(requests) {
        return { text: (await Array.fromAsync(requests)).map((r) => r.text).join("") };
      },
      async *talk(requests) {
        for await (const { text } of requests) yield { text: text.toUpperCase() };
      },
    });
    const echo = await harness.client();
    expect((await echo.echo({ text: "a" })).text).toBe("a.");
    expect((await Array.fromAsync(echo.count({ count: 3n }))).map((m) => m.count)).toEqual([0n, 1n, 2n]);
    expect((await echo.join([{ text: "a" }, { text: "b" }])).text).toBe("ab");
    const talk = echo.talk();
    await talk.send({ text: "a" });
    await talk.send({ text: "b" });
    talk.end();
    expect((await Array.fromAsync(talk.responses)).map((m) => m.text)).toEqual(["A", "B"]);
  });

  test("know the caller, the thumbprint of its certificate, the method and the deadline", async () => {
    let seen: CallContext | undefined;
    harness = await openHarness({
      echo: (request, ctx) => {
        seen = ctx;
        return request;
      },
    });
    await (await harness.client()).echo({}, { deadlineMs: 5000 });
    expect(seen).toMatchObject({ method: `${EchoService.typeName}/Echo`, caller: { name: "billing" } });
    expect(seen?.peerThumbprint).toMatch(/^[A-Za-z0-9_-]{43}$/);
    expect(seen?.deadlineMs).toBeGreaterThan(Date.now());
    expect(seen?.deadlineMs).toBeLessThanOrEqual(Date.now() + 5000);
  });

  test("a reader that stops taking stops the handler", async () => {
    let made = 0;
    harness = await openHarness({
      async *count() {
        for (;;) {
          made += 1;
          yield { text: "x".repeat(100_000) };
        }
      },
    });
    const echo = await harness.client();
    const stream = echo.count({})[Symbol.asyncIterator]();
    await stream.next();
    // The handler is asked again only when something was taken: once nothing changes for many turns, it stands.
    let before = -1;
    await expect
      .poll(
        () => {
          const still = made === before;
          before = made;
          return still;
        },
        { interval: 200, timeout: 10_000 },
      )
      .toBe(true);
    expect(made).toBeLessThan(200);
    await stream.return?.();
  });
});

describe("what is refused at the edge", () => {
  test("a broken rule of the proto, by field, before the handler", async () => {
    harness = await openHarness({ echo: () => expect.unreachable() });
    const refused = await failure((await harness.client()).echo({ nested: { text: "no!" } }));
    expect(refused).toMatchObject({ status: "INVALID_ARGUMENT", reason: "INVALID_REQUEST" });
    expect(refused.fieldViolations).toMatchObject([{ field: "nested.text", reason: "STRING_NOT_CONTAINS" }]);
  });

  test("a broken rule in the middle of a stream of requests", async () => {
    harness = await openHarness({
      async join(requests) {
        return { count: BigInt((await Array.fromAsync(requests)).length) };
      },
    });
    const refused = await failure((await harness.client()).join([{ text: "fine" }, { text: "no!" }]));
    expect(refused).toMatchObject({ status: "INVALID_ARGUMENT", reason: "INVALID_REQUEST" });
  });

  test("a request that is too large", async () => {
    harness = await openHarness({ echo: () => expect.unreachable() }, { limits: { maxRequestBytes: 1000 } });
    const refused = await failure((await harness.client()).echo({ text: "x".repeat(1001) }));
    expect(refused.status).toBe("RESOURCE_EXHAUSTED");
  });

  test("more calls at once than the limit", async () => {
    const gate = Promise.withResolvers<void>();
    const started = Promise.withResolvers<void>();
    harness = await openHarness(
      {
        echo: async (request) => {
          started.resolve();
          await gate.promise;
          return request;
        },
        async *count(request, ctx) {
          yield request;
          await aborted(ctx);
        },
      },
      { limits: { maxCalls: 1, maxStreams: 1 } },
    );
    const echo = await harness.client();
    const first = echo.echo({ text: "first" });
    await started.promise;
    expect(await failure(echo.echo({}))).toMatchObject({ status: "RESOURCE_EXHAUSTED", reason: "TOO_MANY_CALLS" });
    gate.resolve();
    expect((await first).text).toBe("first");
    const stream = echo.count({})[Symbol.asyncIterator]();
    await stream.next();
    expect(await failure(Array.fromAsync(echo.count({})))).toMatchObject({ reason: "TOO_MANY_CALLS" });
    await stream.return?.();
    // The place is free again once the server has seen the cancellation.
    await expect
      .poll(() =>
        echo
          .count({})
          [Symbol.asyncIterator]()
          .next()
          .then(() => "ok", String),
      )
      .toBe("ok");
  });
});

describe("errors of handlers", () => {
  test("a rejection becomes the status of the service's table, in unary calls and in streams", async () => {
    const refuse = () => {
      throw new Rejection("NO_SUCH", "there is no such thing", { id: "7" });
    };
    harness = await openHarness(
      {
        echo: refuse,
        async *count(request) {
          yield request;
          refuse();
        },
      },
      { rejections: { NO_SUCH: "NOT_FOUND" } },
    );
    const echo = await harness.client();
    const expected = {
      status: "NOT_FOUND",
      reason: "NO_SUCH",
      message: "there is no such thing",
      metadata: { id: "7" },
    };
    expect(await failure(echo.echo({}))).toMatchObject(expected);
    const stream = echo.count({ text: "first" })[Symbol.asyncIterator]();
    expect((await stream.next()).value).toMatchObject({ text: "first" });
    expect(await failure(stream.next())).toMatchObject(expected);
  });

  test.each([
    ["a broken invariant", () => ok(false, "s3cr3t")],
    ["an unknown error", () => expect.unreachable("s3cr3t")],
  ])("%s is INTERNAL and shows nothing; the log has it under the id that the caller got", async (_name, fail) => {
    harness = await openHarness({
      echo: (request) => {
        fail();
        return request;
      },
    });
    const hidden = await failure((await harness.client()).echo({}));
    expect(hidden).toMatchObject({ status: "INTERNAL", reason: "INTERNAL", message: "internal error" });
    expect(JSON.stringify(hidden)).not.toContain("s3cr3t");
    expect(harness.logged).toHaveLength(1);
    expect(harness.logged[0]?.fields).toMatchObject({
      errorId: hidden.metadata?.errorId,
      method: `${EchoService.typeName}/Echo`,
      err: expect.any(Error) as Error,
    });
  });

  test("an answer that does not fit the proto is INTERNAL and logged", async () => {
    harness = await openHarness({ echo: () => ({ count: "not a number" as unknown as bigint }) });
    expect(await failure((await harness.client()).echo({}))).toMatchObject({ status: "INTERNAL" });
    expect(harness.logged).toHaveLength(1);
  });
});

describe("the end of a call before its answer", () => {
  test("the caller's cancellation aborts the handler's signal", async () => {
    const reasons = Promise.withResolvers<unknown>();
    const controller = new AbortController();
    harness = await openHarness({
      echo: async (_request, ctx) => {
        controller.abort();
        return aborted(ctx).catch((reason: unknown) => {
          reasons.resolve(reason);
          throw reason;
        });
      },
    });
    const call = (await harness.client()).echo({}, { signal: controller.signal });
    expect((await failure(call)).status).toBe("CANCELLED");
    expect(parseRpcError(await reasons.promise).status).toBe("CANCELLED");
    expect(harness.logged).toEqual([]);
  });

  describe("that is over before its handler begins", () => {
    /** A call by hand: headers and one empty message; its end, or a reset, when it is told to. */
    const openByHand = async (method: string, headers: Record<string, string> = {}) => {
      const { certPem, keyPem } = await issue(harness.authority, "/workload/billing");
      const { port } = harness.server;
      const session = connect(`https://localhost:${port}`, {
        ca: harness.authority.certPem,
        cert: certPem,
        key: keyPem,
      });
      const stream = session.request({
        ":method": "POST",
        ":path": `/${EchoService.typeName}/${method}`,
        "content-type": "application/grpc",
        te: "trailers",
        ...headers,
      });
      stream.on("error", () => undefined);
      stream.resume();
      stream.write(Buffer.alloc(5));
      return { session, stream };
    };
    const ran: string[] = [];
    const openCounting = async () => {
      ran.length = 0;
      harness = await openHarness({
        echo: (request) => {
          ran.push("echo");
          return request;
        },
        async *count(request) {
          ran.push("count");
          yield request;
        },
      });
    };

    test.each(["Echo", "Count"])("a deadline that ends before the request does: %s", async (method) => {
      await openCounting();
      const { session, stream } = await openByHand(method, { "grpc-timeout": "30m" });
      const [answer] = (await once(stream, "response")) as [Record<string, string>];
      expect(answer["grpc-status"]).toBe("4");
      stream.end();
      await (await harness.client()).echo({});
      await (await harness.client()).echo({});
      expect(ran).toEqual(["echo", "echo"]);
      session.destroy();
    });

    test("a reset right behind the request", async () => {
      await openCounting();
      const { session, stream } = await openByHand("Echo");
      await once(session, "remoteSettings");
      stream.end();
      stream.close(constants.NGHTTP2_CANCEL);
      await once(stream, "close");
      await (await harness.client()).echo({});
      expect(ran).toEqual(["echo"]);
      session.destroy();
    });
  });

  test("leaving a stream early aborts the handler's signal and runs its finally", async () => {
    const ended = Promise.withResolvers<boolean>();
    harness = await openHarness({
      async *count(request, ctx) {
        try {
          yield request;
          await aborted(ctx);
        } finally {
          ended.resolve(ctx.signal.aborted);
        }
      },
    });
    for await (const _first of (await harness.client()).count({})) break;
    expect(await ended.promise).toBe(true);
  });

  test("the caller's deadline ends a handler that never answers", async () => {
    harness = await openHarness({ echo: (_request, ctx) => aborted(ctx) });
    const late = await failure((await harness.client()).echo({}, { deadlineMs: 100 }));
    expect(late.status).toBe("DEADLINE_EXCEEDED");
  });

  test("a longer deadline than the cap is cut to it, even when the handler ignores its signal", async () => {
    let capped: Promise<void> | undefined;
    const elapse = Promise.withResolvers<void>();
    const clock: Clock = {
      ...systemClock,
      sleep: (ms, signal) => {
        if (ms !== 30_000) return systemClock.sleep(ms, signal);
        capped = elapse.promise;
        return elapse.promise;
      },
    };
    harness = await openHarness(
      {
        echo: () => {
          elapse.resolve();
          return new Promise<never>(() => undefined);
        },
      },
      { clock },
    );
    const late = await failure((await harness.client()).echo({}, { deadlineMs: 3_600_000 }));
    expect(late).toMatchObject({ status: "DEADLINE_EXCEEDED", reason: "DEADLINE_EXCEEDED" });
    expect(capped).toBeDefined();
  });

  test("a stream has no deadline unless the caller sets one", async () => {
    let deadlineMs: number | undefined = 0;
    harness = await openHarness({
      async *count(request, ctx) {
        deadlineMs = ctx.deadlineMs;
        yield request;
      },
    });
    await Array.fromAsync((await harness.client()).count({}));
    expect(deadlineMs).toBeUndefined();
  });
});

describe("retries", () => {
  test("repeat an idempotent method that was UNAVAILABLE, and no other", async () => {
    let calls = 0;
    class StoreUnavailable extends Error {
      override name = "StoreUnavailable";
    }
    const flaky = (request: { text: string }) => {
      calls += 1;
      if (calls < 3) throw new StoreUnavailable();
      return { text: request.text };
    };
    harness = await openHarness({ echo: flaky, echoAgain: flaky });
    const echo = await harness.client();
    expect((await failure(echo.echo({}))).status).toBe("UNAVAILABLE");
    expect(calls).toBe(1);
    expect((await echo.echoAgain({ text: "hi" })).text).toBe("hi");
    expect(calls).toBe(3);
  });

  test("do not repeat what failed for another reason, and end with the deadline", async () => {
    let calls = 0;
    const refuse = (name: string) => {
      calls += 1;
      throw Object.assign(new Error("x"), { name });
    };
    harness = await openHarness({ echoAgain: ({ text }) => refuse(text) });
    const echo = await harness.client();
    expect((await failure(echo.echoAgain({ text: "TypeError" }))).status).toBe("INTERNAL");
    expect(calls).toBe(1);
    // The server asks for half a second; the deadline leaves less.
    const gaveUp = await failure(echo.echoAgain({ text: "StoreUnavailable" }, { deadlineMs: 400 }));
    expect(gaveUp.status).toBe("UNAVAILABLE");
    expect(calls).toBe(2);
  });

  test("end with the outage that the server told of, where the time runs out while it lasts", async () => {
    let calls = 0;
    const down = async () => {
      calls += 1;
      if (calls > 1) await new Promise<never>(() => undefined);
      throw Object.assign(new Error("x"), { name: "StoreUnavailable" });
    };
    harness = await openHarness({ echoAgain: down });
    const gaveUp = await failure((await harness.client()).echoAgain({}, { deadlineMs: 1_500 }));
    expect(gaveUp).toMatchObject({ status: "UNAVAILABLE", reason: "STORE_UNAVAILABLE" });
    expect(calls).toBe(2);
  });
});
