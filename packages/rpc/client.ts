import type { MessageInitShape, MessageShape } from "@bufbuild/protobuf";
import { create, type DescMethod, type DescService, fromBinary, toBinary } from "@bufbuild/protobuf";
import { MethodOptions_IdempotencyLevel as Idempotency } from "@bufbuild/protobuf/wkt";
import { currentTraceparent } from "@curfew/runtime/telemetry.ts";
import { type ClientReadableStream, type ClientWritableStream, Metadata, type ServiceError } from "@grpc/grpc-js";
import { type ChannelOptions, openChannel, type RpcChannel } from "./channel.ts";
import { parseRpcError, RemoteError } from "./errors.ts";
import { bufferOf, methodDefinition } from "./service-definition.ts";

export interface CallOptions {
  /** Cancels the call. */
  readonly signal?: AbortSignal;
  /** From now, retries included. Default: the channel's for calls that answer once, none for streams. */
  readonly deadlineMs?: number;
}

/** The bytes of a request, where its caller has a faster way to them. */
export class EncodedRequest {
  readonly bytes: Buffer;
  constructor(bytes: Buffer) {
    this.bytes = bytes;
  }
}

type In<M extends DescMethod> = MessageInitShape<M["input"]>;
type Out<M extends DescMethod> = MessageShape<M["output"]>;

/** An open exchange in both directions. */
export interface Exchange<I, O> {
  /** Resolves when there is room for the next one. Rejects once the call has ended. */
  send(request: I): Promise<void>;
  /** No more requests. */
  end(): void;
  /** Leaving the loop early cancels the call. */
  readonly responses: AsyncIterable<O>;
}

export type ClientMethod<M extends DescMethod> = M extends { methodKind: "unary" }
  ? (request: In<M> | EncodedRequest, options?: CallOptions) => Promise<Out<M>>
  : M extends { methodKind: "server_streaming" }
    ? (request: In<M>, options?: CallOptions) => AsyncIterable<Out<M>>
    : M extends { methodKind: "client_streaming" }
      ? (requests: AsyncIterable<In<M>> | Iterable<In<M>>, options?: CallOptions) => Promise<Out<M>>
      : M extends { methodKind: "bidi_streaming" }
        ? (options?: CallOptions) => Exchange<In<M>, Out<M>>
        : never;

/** A service's methods by local name. Every error is a RemoteError (`errors.ts`), cancelled calls included. */
export type ServiceClient<S extends DescService> = { readonly [K in keyof S["method"]]: ClientMethod<S["method"][K]> };

const maxAttempts = 4;
const retryBaseMs = 50;
const retryCapMs = 1000;

interface Cancellable {
  cancel(): void;
}

const remoteError = (error: unknown) => new RemoteError(parseRpcError(error), { cause: error });

/** What the calls of one method have in common. */
const prepare = (channel: RpcChannel, method: DescMethod) => {
  const { path } = methodDefinition(method);
  const { input, output } = method;
  return {
    path,
    channel,
    serialize: (init: unknown) =>
      init instanceof EncodedRequest
        ? init.bytes
        : bufferOf(toBinary(input, create(input, init as Record<string, unknown>))),
    deserialize: (bytes: Buffer) => fromBinary(output, bytes),
    metadata: () => {
      const metadata = new Metadata();
      metadata.set("traceparent", currentTraceparent(channel.random));
      return metadata;
    },
    /** Cancels `call` when the caller's signal aborts or the channel closes; undo with the function returned. */
    link: (call: Cancellable, signal: AbortSignal | undefined) => {
      const cancel = () => call.cancel();
      const signals = signal ? [signal, channel.closed] : [channel.closed];
      for (const each of signals) {
        if (each.aborted) cancel();
        else each.addEventListener("abort", cancel, { once: true });
      }
      return () => {
        for (const each of signals) each.removeEventListener("abort", cancel);
      };
    },
  };
};
type Prepared = ReturnType<typeof prepare>;

const absoluteDeadline = (channel: RpcChannel, deadlineMs: number) => channel.clock.now() + deadlineMs;

/** One attempt. */
const callOnce = (method: Prepared, request: unknown, deadline: number, signal: AbortSignal | undefined) =>
  new Promise<unknown>((resolve, reject) => {
    let unlink: () => void = () => undefined;
    const settle = (error: ServiceError | null, response?: unknown) => {
      unlink();
      if (error) reject(remoteError(error));
      else resolve(response);
    };
    const { path, serialize, deserialize, metadata, channel } = method;
    unlink = method.link(
      channel.client.makeUnaryRequest(path, serialize, deserialize, request, metadata(), { deadline }, settle),
      signal,
    );
  });

/** Only UNAVAILABLE (the server did not, or may not have, handled it) and only where the proto says that twice does no harm. */
const isRetryable = (method: DescMethod, error: unknown): error is RemoteError =>
  method.idempotency !== Idempotency.IDEMPOTENCY_UNKNOWN &&
  error instanceof RemoteError &&
  error.failure.status === "UNAVAILABLE";

/** Full jitter below a doubling bound, and not before the server's own RetryInfo. */
const retryDelayMs = (attempt: number, channel: RpcChannel, error: RemoteError): number => {
  const [byte = 0] = channel.random(1);
  const jittered = (Math.min(retryCapMs, retryBaseMs * 2 ** attempt) * (byte + 1)) / 256;
  return Math.max(jittered, error.failure.retryDelayMs ?? 0);
};

const unary =
  (channel: RpcChannel, desc: DescMethod) =>
  async (request: unknown, options: CallOptions = {}): Promise<unknown> => {
    const method = prepare(channel, desc);
    const deadline = absoluteDeadline(channel, options.deadlineMs ?? channel.defaultDeadlineMs);
    let outage: RemoteError | undefined;
    for (let attempt = 0; ; attempt += 1) {
      try {
        return await callOnce(method, request, deadline, options.signal);
      } catch (error) {
        // What the server said of its outage tells more than that our time ran out while it lasted.
        if (outage && error instanceof RemoteError && error.failure.status === "DEADLINE_EXCEEDED") throw outage;
        if (!isRetryable(desc, error) || attempt + 1 >= maxAttempts || channel.closed.aborted) throw error;
        outage = error;
        const delayMs = retryDelayMs(attempt, channel, error);
        if (channel.clock.now() + delayMs >= deadline) throw error;
        await channel.clock.sleep(delayMs, options.signal);
      }
    }
  };

async function* responsesOf(call: ClientReadableStream<unknown>, unlink: () => void) {
  try {
    for await (const message of call) yield message;
  } catch (error) {
    throw remoteError(error);
  } finally {
    unlink();
    call.cancel();
    // Leaving the loop early ends in a CANCELLED error that nobody listens to any more.
    call.on("error", () => undefined);
  }
}

const streamOptions = (channel: RpcChannel, { deadlineMs }: CallOptions) =>
  deadlineMs === undefined ? {} : { deadline: absoluteDeadline(channel, deadlineMs) };

const serverStreaming =
  (channel: RpcChannel, desc: DescMethod) =>
  (request: unknown, options: CallOptions = {}): AsyncIterable<unknown> => ({
    // Called when read from, so that a stream nobody reads is none.
    [Symbol.asyncIterator]: () => {
      const { path, serialize, deserialize, metadata, link } = prepare(channel, desc);
      const limits = streamOptions(channel, options);
      const call = channel.client.makeServerStreamRequest(path, serialize, deserialize, request, metadata(), limits);
      return responsesOf(call, link(call, options.signal));
    },
  });

const send = (call: ClientWritableStream<unknown>, request: unknown): Promise<void> =>
  new Promise((resolve, reject) => {
    call.write(request, (error?: Error | null) => (error ? reject(remoteError(error)) : resolve()));
  });

const clientStreaming =
  (channel: RpcChannel, desc: DescMethod) =>
  async (requests: AsyncIterable<unknown> | Iterable<unknown>, options: CallOptions = {}): Promise<unknown> => {
    const { path, serialize, deserialize, metadata, link } = prepare(channel, desc);
    const deadline = absoluteDeadline(channel, options.deadlineMs ?? channel.defaultDeadlineMs);
    const answer = Promise.withResolvers<unknown>();
    const call = channel.client.makeClientStreamRequest(
      path,
      serialize,
      deserialize,
      metadata(),
      { deadline },
      (error, response) => (error ? answer.reject(remoteError(error)) : answer.resolve(response)),
    );
    const unlink = link(call, options.signal);
    const sendAll = async () => {
      for await (const request of requests) await send(call, request);
      call.end();
    };
    // Where sending fails because the call ended, its status is the better answer; where `requests` itself fails, that is.
    const sent = sendAll().catch((error: unknown) => {
      call.cancel();
      if (!(error instanceof RemoteError)) answer.reject(error);
    });
    try {
      return await answer.promise;
    } finally {
      unlink();
      void sent;
    }
  };

const bidiStreaming =
  (channel: RpcChannel, desc: DescMethod) =>
  (options: CallOptions = {}): Exchange<unknown, unknown> => {
    const { path, serialize, deserialize, metadata, link } = prepare(channel, desc);
    const limits = streamOptions(channel, options);
    const call = channel.client.makeBidiStreamRequest(path, serialize, deserialize, metadata(), limits);
    // An error before anybody reads must not end the process; readers get it from the iterator.
    call.on("error", () => undefined);
    const unlink = link(call, options.signal);
    return { send: (request) => send(call, request), end: () => void call.end(), responses: responsesOf(call, unlink) };
  };

const kinds = {
  unary,
  server_streaming: serverStreaming,
  client_streaming: clientStreaming,
  bidi_streaming: bidiStreaming,
} as const;

/** A typed client on a channel; it needs no closing of its own. */
export const createClient = <S extends DescService>(desc: S, channel: RpcChannel): ServiceClient<S> =>
  Object.fromEntries(
    desc.methods.map((method) => [method.localName, kinds[method.methodKind](channel, method)]),
  ) as ServiceClient<S>;

/** A client with a channel of its own; `close` cancels what is under way. */
export const openClient = <S extends DescService>(
  desc: S,
  options: ChannelOptions,
): { readonly rpc: ServiceClient<S>; close(): void } => {
  const channel = openChannel(options);
  return { rpc: createClient(desc, channel), close: () => channel.close() };
};
