import { AsyncLocalStorage } from "node:async_hooks";
import {
  type Attributes,
  context,
  INVALID_SPAN_CONTEXT,
  isSpanContextValid,
  metrics,
  ProxyTracerProvider,
  ROOT_CONTEXT,
  type Span,
  type SpanContext,
  SpanKind,
  SpanStatusCode,
  type Tracer,
  trace,
} from "@opentelemetry/api";
import type { Random } from "./random.ts";

/**
 * Every span, attribute and metric name of Curfew, after the OpenTelemetry semantic conventions 1.45 (`rpc.*`, `messaging.*`, `kafka.*`,
 * `db.*`, `http.*`); what they do not cover is `curfew.*`. No attribute may carry a secret, a person or a record's content.
 */
export const attribute = {
  rpcSystem: "rpc.system.name",
  rpcMethod: "rpc.method",
  rpcStatus: "rpc.response.status_code",
  errorType: "error.type",
  dbSystem: "db.system.name",
  dbCollection: "db.collection.name",
  dbOperation: "db.operation.name",
  messagingSystem: "messaging.system.name",
  messagingOperation: "messaging.operation.name",
  messagingOperationType: "messaging.operation.type",
  messagingDestination: "messaging.destination.name",
  messagingPartition: "messaging.destination.partition.id",
  messagingGroup: "messaging.consumer.group.name",
  messagingBatch: "messaging.batch.message_count",
  kafkaOffset: "kafka.offset",
  httpMethod: "http.request.method",
  httpStatus: "http.response.status_code",
  serverAddress: "server.address",
  serverPort: "server.port",
  command: "curfew.command",
  stream: "curfew.stream",
  version: "curfew.stream.version",
  conflicts: "curfew.append.conflicts",
  eventId: "curfew.event.id",
  eventType: "curfew.event.type",
  reaction: "curfew.reaction",
  channel: "curfew.page.channel",
  caseId: "curfew.case.id",
  tokenId: "curfew.token.id",
  decision: "curfew.decision.reason",
} as const;

export interface SpanName {
  readonly name: string;
  readonly kind: SpanKind;
}

/** The seven spans of the main path. Names are few: methods, topics and kinds, never ids. */
export const span = {
  /** `method` as "curfew.issuer.v1.IssuerService/CreateToken". */
  rpc: (method: string): SpanName => ({ name: method, kind: SpanKind.SERVER }),
  command: (type: string): SpanName => ({ name: `command ${type}`, kind: SpanKind.INTERNAL }),
  append: (collection: string): SpanName => ({ name: `insert ${collection}`, kind: SpanKind.CLIENT }),
  publish: (topic: string): SpanName => ({ name: `send ${topic}`, kind: SpanKind.PRODUCER }),
  consume: (topic: string): SpanName => ({ name: `process ${topic}`, kind: SpanKind.CONSUMER }),
  reaction: (name: string): SpanName => ({ name: `react ${name}`, kind: SpanKind.INTERNAL }),
  page: (channel: string): SpanName => ({ name: `page ${channel}`, kind: SpanKind.CLIENT }),
} as const;

/** What the auditor measures of the evidence, once a second. */
export const gauge = {
  /** By `verdict`: 1 holds, 0 broken; nothing while unknown. */
  verdict: () => metrics.getMeter("curfew").createGauge("curfew.evidence.verdict"),
  /** Records on the topics that are not sealed yet. */
  unsealedRecords: () => metrics.getMeter("curfew").createGauge("curfew.evidence.unsealed_records"),
  /** 99th percentile, from append to sealing. */
  mergeDelayMs: () => metrics.getMeter("curfew").createGauge("curfew.evidence.merge_delay", { unit: "ms" }),
} as const;

export const tracer = (): Tracer => trace.getTracer("curfew");

const fail = (active: Span, error: unknown): never => {
  // Only the class: a message may quote what the caller sent.
  active.setAttribute(attribute.errorType, error instanceof Error ? error.name : "unknown");
  active.setStatus({ code: SpanStatusCode.ERROR });
  active.end();
  throw error;
};

const noSpan = trace.wrapSpanContext(INVALID_SPAN_CONTEXT);
/** Whether an SDK is installed. Without one, spans that nobody sees took a fiftieth of a call. */
const isObserved = (): boolean => {
  const provider = trace.getTracerProvider();
  return !(provider instanceof ProxyTracerProvider) || provider.getDelegateTracer("curfew") !== undefined;
};

/** Runs `fn` in a span that ends with it (or with its promise) and carries the class of an error. */
export const withSpan = <T>(name: SpanName, attributes: Attributes, fn: (active: Span) => T): T => {
  if (!isObserved()) return fn(noSpan);
  return tracer().startActiveSpan(name.name, { kind: name.kind, attributes }, (active) => {
    let result: T;
    try {
      result = fn(active);
    } catch (error) {
      return fail(active, error);
    }
    if (!(result instanceof Promise)) {
      active.end();
      return result;
    }
    return result.then(
      (value) => {
        active.end();
        return value;
      },
      (error) => fail(active, error),
    ) as T;
  });
};

/**
 * The trace of the request being handled, where no SDK is installed: the API alone keeps no context. Made when first asked for, unless it
 * was received.
 */
const handled = new AsyncLocalStorage<{ traceparent: string | undefined }>();
const traceparentForm = /^(?!ff)[0-9a-f]{2}-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(-.*)?$/;

/** The span context in a W3C traceparent, or undefined when it is not a valid one (which is then ignored, W3C §3.2). */
export const parseTraceparent = (header: string): SpanContext | undefined => {
  const m = traceparentForm.exec(header);
  if (!m?.[1] || !m[2] || !m[3] || (header.startsWith("00") && m[4] !== undefined)) return undefined;
  const found = { traceId: m[1], spanId: m[2], traceFlags: Number.parseInt(m[3], 16) & 1, isRemote: true };
  return isSpanContextValid(found) ? found : undefined;
};

const format = (c: SpanContext): string => `00-${c.traceId}-${c.spanId}-0${c.traceFlags & 1}`;

/** Runs what serves many requests in the trace of none: a loop that the first of them starts would carry that one's for ever. */
export const outsideOfRequests: <T>(fn: () => T) => T = AsyncLocalStorage.snapshot();

/** Unsampled. All zeros would be no id. */
const freshTraceparent = (random: Random): string => {
  const hex = Buffer.from(random(24)).toString("hex");
  const notZeros = (id: string) => (/[^0]/.test(id) ? id : `${id.slice(1)}1`);
  return `00-${notZeros(hex.slice(0, 32))}-${notZeros(hex.slice(32))}-00`;
};

/** W3C traceparent of the active span, else of the request being handled, else a fresh unsampled one. Always valid. */
export const currentTraceparent = (random: Random): string => {
  const active = trace.getActiveSpan()?.spanContext();
  if (active && isSpanContextValid(active)) return format(active);
  const request = handled.getStore();
  if (!request) return freshTraceparent(random);
  request.traceparent ??= freshTraceparent(random);
  return request.traceparent;
};

/** Handles a request in `fn` as a continuation of the trace in `header`; an absent or invalid one begins a trace. */
export const runWithTraceparent = <T>(header: string | undefined, fn: () => T): T => {
  const parent = header === undefined ? undefined : parseTraceparent(header);
  const within = parent ? trace.setSpanContext(ROOT_CONTEXT, parent) : ROOT_CONTEXT;
  return handled.run({ traceparent: parent && format(parent) }, () => context.with(within, fn));
};
