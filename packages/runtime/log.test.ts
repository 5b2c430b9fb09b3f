import { context, trace } from "@opentelemetry/api";
import { afterEach, expect, test } from "vitest";
import { openLog } from "./log.ts";

const secret = `cfws_${"a1B2".repeat(9)}`;
const capture = (level: "debug" | "info" = "info") => {
  const lines: string[] = [];
  return { lines, log: openLog({ service: "issuer", level, write: (line) => lines.push(line) }) };
};

afterEach(() => trace.disable());

test("a line is one JSON object with time, level, service, fields and message; child fields stay", () => {
  const { lines, log } = capture();
  log.child({ part: "relay" }).warn({ tokenId: "tok_1" }, "late");
  log.debug("not at this level");
  expect(lines).toHaveLength(1);
  expect(lines[0]?.endsWith("\n")).toBe(true);
  expect(JSON.parse(lines[0] ?? "")).toEqual({
    time: expect.stringMatching(/^\d{4}-\d\d-\d\dT.*Z$/),
    level: "warn",
    service: "issuer",
    part: "relay",
    tokenId: "tok_1",
    msg: "late",
  });
});

test("a secret is masked wherever it stands: message, field, key, error message, stack, child field", () => {
  const { lines, log } = capture();
  log.info(`leaked ${secret}.`);
  log.info({ deep: { list: [`x${secret}y`], [secret]: 1 } }, "fields");
  log.error({ err: new Error(`bad ${secret}`) }, "error");
  log.child({ at: secret }).info("child");
  expect(lines).toHaveLength(4);
  for (const line of lines) {
    expect(line).not.toContain(secret);
    expect(line).toContain("cfws_[masked]");
  }
});

test("fields with a telling name are redacted down to the third level, whatever their form", () => {
  const { lines, log } = capture();
  const fields = {
    secret: "s1",
    a: { token: "s2", b: { authorization: "s3", c: { private_key: "s4" } } },
    password: "s5",
  };
  log.info(fields, "x");
  log.child({ privateKey: "s6" }).info("y");
  expect(lines.join("")).not.toMatch(/s[1-6]"/);
  expect(fields.a.token).toBe("s2");
});

test("lines carry the ids of the active span", () => {
  const spanContext = { traceId: "0af7651916cd43dd8448eb211c80319c", spanId: "b7ad6b7169203331", traceFlags: 1 };
  const active = trace.setSpanContext(context.active(), spanContext);
  context.setGlobalContextManager({
    active: () => active,
    with: (_c, fn, self, ...args) => fn.call(self as never, ...args),
    bind: (_c, target) => target,
    enable() {
      return this;
    },
    disable() {
      return this;
    },
  });
  try {
    const { lines, log } = capture();
    log.info("traced");
    expect(JSON.parse(lines[0] ?? "")).toMatchObject({ trace_id: spanContext.traceId, span_id: spanContext.spanId });
  } finally {
    context.disable();
  }
});
