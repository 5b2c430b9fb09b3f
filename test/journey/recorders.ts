import { randomBytes } from "node:crypto";
import { inspect } from "node:util";
import type { Log } from "@curfew/runtime/log.ts";
import { type Span, type Tracer, type TracerProvider, trace } from "@opentelemetry/api";

/** What would go to a log file or a tracing backend, kept in memory and before any mask, for the canary. */

/** Bytes as hex, errors with everything on them: nothing is shortened. */
const textOf = (value: unknown): string => {
  const plain = function (this: Record<string, unknown>, key: string, encoded: unknown): unknown {
    const original = this[key];
    if (original instanceof Uint8Array) return Buffer.from(original).toString("hex");
    if (typeof original === "bigint") return String(original);
    if (!(original instanceof Error)) return encoded;
    const own = Object.getOwnPropertyNames(original).map((name) => [name, Reflect.get(original, name)]);
    return { name: original.name, ...Object.fromEntries(own) };
  };
  try {
    return JSON.stringify(value, plain) ?? String(value);
  } catch {
    return inspect(value, { depth: 20, maxStringLength: null, maxArrayLength: null }); // it refers to itself
  }
};

/** Every level, one entry of `lines` per call. */
export const recordingLog = (lines: string[], bound: Readonly<Record<string, unknown>> = {}): Log => {
  const write = (fields: Readonly<Record<string, unknown>> | string, message?: string) =>
    void lines.push(textOf([bound, fields, message]));
  return {
    debug: write,
    info: write,
    warn: write,
    error: write,
    child: (fields) => recordingLog(lines, { ...bound, ...fields }),
  };
};

const recordingSpan = (spans: string[], name: string, options: unknown): Span => {
  const context = { traceId: randomBytes(16).toString("hex"), spanId: randomBytes(8).toString("hex"), traceFlags: 1 };
  const keep = (...what: unknown[]): Span => {
    spans.push(`${name} ${textOf(what)}`);
    return span;
  };
  const span: Span = {
    spanContext: () => context,
    setAttribute: keep,
    setAttributes: keep,
    addEvent: keep,
    addLink: keep,
    addLinks: keep,
    setStatus: keep,
    updateName: keep,
    recordException: (exception) => void keep(exception),
    isRecording: () => true,
    end: () => undefined,
  };
  return keep(options);
};

/** Takes every span of this process into `spans` until the answer is called. */
export const recordSpans = (spans: string[]): (() => void) => {
  const tracer: Tracer = {
    startSpan: (name, options) => recordingSpan(spans, name, options),
    startActiveSpan: (name: string, ...rest: unknown[]) =>
      (rest.at(-1) as (span: Span) => never)(recordingSpan(spans, name, rest[0])),
  };
  const provider: TracerProvider = { getTracer: () => tracer };
  if (!trace.setGlobalTracerProvider(provider)) throw new Error("somebody else records the spans of this process");
  return () => trace.disable();
};
