import type { Readable } from "node:stream";
import type { DescMethod } from "@bufbuild/protobuf";
import type { Clock } from "@curfew/runtime/clock.ts";
import type { Random } from "@curfew/runtime/random.ts";
import { attribute, runWithTraceparent, span, withSpan } from "@curfew/runtime/telemetry.ts";
import type {
  Metadata,
  ServerDuplexStream,
  ServerReadableStream,
  ServerUnaryCall,
  ServerWritableStream,
  sendUnaryData,
  UntypedHandleCall,
} from "@grpc/grpc-js";
import { ActiveCall, type CallSet, cancelled, type SurfaceCall, shuttingDown } from "./active-call.ts";
import { encodeFailure, type RpcFailure } from "./errors.ts";
import { failureOf, type RpcLog } from "./failure-of.ts";
import type { PassedCall } from "./gate.ts";
import { encodeResponse, parseRequest } from "./request.ts";
import { type AnyHandler, type BoundService, type CallContext, methodName } from "./service-definition.ts";

/** What all calls of one server share. */
export interface CallEnvironment {
  readonly clock: Clock;
  readonly log: RpcLog;
  readonly random: Random;
  /** What the gate let through, by its metadata object. */
  readonly passed: WeakMap<Metadata, PassedCall>;
  readonly unary: CallSet;
  readonly streams: CallSet;
  readonly limits: { readonly maxDeadlineMs: number };
  stopping: boolean;
}

type Call = SurfaceCall & { readonly metadata: Metadata };

/** A method and what is the same for all its calls. */
interface Method {
  readonly bound: BoundService;
  readonly desc: DescMethod;
  readonly env: CallEnvironment;
  readonly name: string;
  readonly spanName: ReturnType<typeof span.rpc>;
  readonly attributes: Readonly<Record<string, string>>;
}
type WritableCall = ServerWritableStream<Buffer, Buffer> | ServerDuplexStream<Buffer, Buffer>;

const admit = (call: Call, { bound, desc, env, name }: Method): ActiveCall => {
  const passed = env.passed.get(call.metadata);
  if (!passed) throw new Error("a call passed without an identity");
  // Nobody will be told, and grpc-js says nothing of it any more.
  if (passed.isOver()) throw cancelled();
  const { peer } = passed;
  if (env.stopping) throw shuttingDown();
  const streams = desc.methodKind === "server_streaming" || desc.methodKind === "bidi_streaming";
  const calls = streams ? env.streams : env.unary;
  calls.assertRoomFor(peer.caller.uri);
  const capMs = bound.deadlineCapsMs[desc.localName] ?? (streams ? Number.POSITIVE_INFINITY : env.limits.maxDeadlineMs);
  return new ActiveCall({
    call,
    peer,
    method: name,
    capMs,
    untilExpiry: streams,
    clock: env.clock,
    calls,
  });
};

const failureIn = ({ bound, env, name }: Method, error: unknown): RpcFailure =>
  failureOf(error, { method: name, rejections: bound.rejections, ...env });

const traced = <T>(call: Call, { spanName, attributes }: Method, work: () => Promise<T>): Promise<T> => {
  const [traceparent] = call.metadata.get("traceparent");
  return runWithTraceparent(typeof traceparent === "string" ? traceparent : undefined, () =>
    withSpan(spanName, attributes, work),
  );
};

async function* decoded(call: Readable, method: DescMethod) {
  // Leaving the loop early must not destroy the call: the answer is still to be written.
  for await (const bytes of call.iterator({ destroyOnReturn: false }))
    yield parseRequest(method.input, bytes as Buffer);
}

/**
 * Turns of the event loop that grpc-js takes for an answer: its bytes leave, its end is asked for, its end leaves. Requests wait as long
 * before they are handled: handled as they are read, all that came in one turn held up answers already given, and these callers idled.
 */
const turnsOfAnAnswer = 3;
let answersLeave: Promise<void> | undefined;

/** Shared by all that come meanwhile, so one to three turns. */
const afterAnswers = (): Promise<void> => {
  answersLeave ??= (async () => {
    for (let turn = 0; turn < turnsOfAnAnswer; turn += 1) await new Promise((resolve) => setImmediate(resolve));
    answersLeave = undefined;
  })();
  return answersLeave;
};

/** Calls that answer one message. */
const answerOnce = (
  call: Call,
  respond: sendUnaryData<Buffer>,
  run: (ctx: CallContext) => unknown,
  method: Method,
): void => {
  const fail = (error: unknown) => respond(encodeFailure(failureIn(method, error)));
  let active: ActiveCall;
  try {
    active = admit(call, method);
  } catch (error) {
    fail(error);
    return;
  }
  active.onAbort = (reason) => void (call.cancelled || fail(reason));
  const handle = async () => {
    await afterAnswers();
    if (active.aborted) throw active.signal.reason;
    return encodeResponse(method.desc.output, await run(active));
  };
  traced(call, method, handle).then(
    (bytes) => void (active.finish() && respond(null, bytes)),
    (error) => void (active.finish() && fail(error)),
  );
};

/** Calls that answer a stream: pulls the next message only when the last was taken, so a slow reader slows the handler. */
const answerMany = (call: WritableCall, run: (ctx: CallContext) => unknown, method: Method): void => {
  const fail = (error: unknown) => {
    const failure = encodeFailure(failureIn(method, error));
    call.emit("error", Object.assign(new Error(failure.details), failure));
  };
  let active: ActiveCall;
  try {
    active = admit(call, method);
  } catch (error) {
    fail(error);
    return;
  }
  let wake: () => void = () => undefined;
  active.onAbort = (reason) => {
    wake();
    if (!call.cancelled) fail(reason);
  };
  const taken = () =>
    new Promise<void>((resolve) => {
      wake = resolve;
      call.once("drain", resolve);
    });
  const pump = async () => {
    const messages = (run(active) as AsyncIterable<unknown>)[Symbol.asyncIterator]();
    try {
      for (;;) {
        const step = await messages.next();
        if (active.ended || step.done) return;
        if (!call.write(encodeResponse(method.desc.output, step.value))) await taken();
        if (active.ended) return;
      }
    } finally {
      // Not awaited: a handler that ignores its signal must not hold the call.
      Promise.resolve(messages.return?.()).catch(() => undefined);
    }
  };
  traced(call, method, pump).then(
    () => void (active.finish() && call.end()),
    (error) => void (active.finish() && fail(error)),
  );
};

/** The grpc-js handler of a method: decode, validate, run, encode; every error answered by `failureOf`. */
export const handleCall = (bound: BoundService, desc: DescMethod, env: CallEnvironment): UntypedHandleCall => {
  const handler = bound.handlers[desc.localName] as AnyHandler;
  const name = methodName(desc);
  const attributes = { [attribute.rpcSystem]: "grpc", [attribute.rpcMethod]: name };
  const method: Method = { bound, desc, env, name, spanName: span.rpc(name), attributes };
  switch (desc.methodKind) {
    case "unary":
      return (call: ServerUnaryCall<Buffer, Buffer>, respond: sendUnaryData<Buffer>) =>
        answerOnce(call, respond, (ctx) => handler(parseRequest(desc.input, call.request), ctx), method);
    case "client_streaming":
      return (call: ServerReadableStream<Buffer, Buffer>, respond: sendUnaryData<Buffer>) =>
        answerOnce(call, respond, (ctx) => handler(decoded(call, desc), ctx), method);
    case "server_streaming":
      return (call: ServerWritableStream<Buffer, Buffer>) =>
        answerMany(call, (ctx) => handler(parseRequest(desc.input, call.request), ctx), method);
    case "bidi_streaming":
      return (call: ServerDuplexStream<Buffer, Buffer>) =>
        answerMany(call, (ctx) => handler(decoded(call, desc), ctx), method);
  }
};
