import { SpanStatusCode, trace } from "@opentelemetry/api";
import { afterEach, expect, test } from "vitest";
import { systemRandom } from "./random.ts";
import { currentTraceparent, parseTraceparent, runWithTraceparent, span, withSpan } from "./telemetry.ts";

const header = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";

afterEach(() => trace.disable());

test("without an SDK there is always a valid traceparent, a fresh one each time", () => {
  const a = currentTraceparent(systemRandom);
  expect(parseTraceparent(a)).toBeDefined();
  expect(currentTraceparent(systemRandom)).not.toBe(a);
  expect(parseTraceparent(currentTraceparent((n) => new Uint8Array(n)))).toBeDefined();
});

test("all of one request without a trace has the same new one, another request another", async () => {
  const ofRequest = () =>
    runWithTraceparent(undefined, async () => {
      const first = currentTraceparent(systemRandom);
      await new Promise(setImmediate);
      expect(currentTraceparent(systemRandom)).toBe(first);
      return first;
    });
  expect(await ofRequest()).not.toBe(await ofRequest());
});

test("a received traceparent holds across awaits, nested spans and timers, and ends with its callback", async () => {
  await runWithTraceparent(header, async () => {
    await new Promise((resolve) => setImmediate(resolve));
    expect(currentTraceparent(systemRandom)).toBe(header);
    await withSpan(span.command("RevokeToken"), {}, async () => {
      expect(currentTraceparent(systemRandom)).toBe(header);
    });
    runWithTraceparent(undefined, () => expect(currentTraceparent(systemRandom)).not.toBe(header));
  });
  expect(currentTraceparent(systemRandom)).not.toBe(header);
});

test.each([
  "",
  "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331",
  "00-0AF7651916CD43DD8448EB211C80319C-b7ad6b7169203331-01",
  "00-00000000000000000000000000000000-b7ad6b7169203331-01",
  "00-0af7651916cd43dd8448eb211c80319c-0000000000000000-01",
  "ff-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
  `${header}-more`,
  `${header}\n`,
])("%j is not a traceparent and starts no continuation", (bad) => {
  expect(parseTraceparent(bad)).toBeUndefined();
  runWithTraceparent(bad, () => expect(parseTraceparent(currentTraceparent(systemRandom))).toBeDefined());
});

test("a later version may carry more fields", () => {
  expect(parseTraceparent("01-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01-more")?.traceFlags).toBe(1);
});

test("a span ends once with its promise, and an error leaves its class but not its message", async () => {
  const seen: unknown[] = [];
  const recorded = {
    setAttribute: (k: string, v: unknown) => seen.push([k, v]),
    setStatus: (s: unknown) => seen.push(s),
    end: () => seen.push("end"),
  };
  trace.setGlobalTracerProvider({
    getTracer: () => ({
      startSpan: () => recorded as never,
      startActiveSpan: ((name: string, options: unknown, fn: (s: unknown) => unknown) => {
        seen.push([name, options]);
        return fn(recorded);
      }) as never,
    }),
  });
  expect(await withSpan(span.publish("curfew.tokens.v1"), { a: 1 }, async () => 7)).toBe(7);
  await expect(
    withSpan(span.page("webhook"), {}, async () => Promise.reject(new TypeError("quoted"))),
  ).rejects.toThrow();
  expect(() =>
    withSpan(span.append("tokens"), {}, () => {
      throw new RangeError("quoted");
    }),
  ).toThrow(RangeError);
  expect(seen.filter((s) => s === "end")).toHaveLength(3);
  expect(seen).toContainEqual(["send curfew.tokens.v1", { kind: 3, attributes: { a: 1 } }]);
  expect(seen).toContainEqual(["error.type", "TypeError"]);
  expect(seen).toContainEqual({ code: SpanStatusCode.ERROR });
  expect(JSON.stringify(seen)).not.toContain("quoted");
});
