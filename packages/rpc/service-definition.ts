import type { DescMethod, DescService, MessageInitShape, MessageShape } from "@bufbuild/protobuf";
import type { MethodDefinition } from "@grpc/grpc-js";
import type { StatusByCode } from "./errors.ts";
import type { Caller } from "./identity.ts";

/** What a handler knows of its call besides the request. */
export interface CallContext {
  readonly caller: Caller;
  /** SHA-256 of the client's certificate, base64url (`x5t#S256`, RFC 8705). */
  readonly peerThumbprint: string;
  /** `curfew.issuer.v1.IssuerService/CreateToken`. */
  readonly method: string;
  /** Wall clock, milliseconds since the epoch, when the call ends at the latest; undefined for a stream without a deadline. */
  readonly deadlineMs: number | undefined;
  /** Whether `signal` has aborted, without the cost of making one. */
  readonly aborted: boolean;
  /** Aborts when the caller cancels or goes away, the deadline passes or the server stops; its reason is an RpcError. */
  readonly signal: AbortSignal;
}

type In<M extends DescMethod> = MessageShape<M["input"]>;
type Out<M extends DescMethod> = MessageInitShape<M["output"]>;

/**
 * The async function that answers a method. It may answer a plain init object: `create()` is applied to it; or the message's bytes,
 * where it has a faster way to them, or sends them to many.
 */
export type Handler<M extends DescMethod> = M extends { methodKind: "unary" }
  ? (request: In<M>, ctx: CallContext) => Promise<Out<M> | Uint8Array> | Out<M>
  : M extends { methodKind: "server_streaming" }
    ? (request: In<M>, ctx: CallContext) => AsyncIterable<Out<M>>
    : M extends { methodKind: "client_streaming" }
      ? (requests: AsyncIterable<In<M>>, ctx: CallContext) => Promise<Out<M>>
      : M extends { methodKind: "bidi_streaming" }
        ? (requests: AsyncIterable<In<M>>, ctx: CallContext) => AsyncIterable<Out<M> | Uint8Array>
        : never;

export type Handlers<S extends DescService> = { readonly [K in keyof S["method"]]: Handler<S["method"][K]> };

/** A handler with its types forgotten; made only by `bindService`, which checks them. */
export type AnyHandler = (input: unknown, ctx: CallContext) => unknown;

export interface BoundService {
  readonly desc: DescService;
  readonly handlers: Readonly<Record<string, AnyHandler>>;
  readonly rejections: StatusByCode;
  /** Longest deadline per method (local name) in ms, where the server's default does not fit. */
  readonly deadlineCapsMs: Readonly<Record<string, number>>;
}

/** A service with its handlers, every method answered: the compiler checks it, and so does this (throws) for untyped callers. */
export const bindService = <S extends DescService>(
  desc: S,
  handlers: Handlers<S>,
  options: {
    readonly rejections?: StatusByCode;
    readonly deadlineCapsMs?: { readonly [K in keyof S["method"]]?: number };
  } = {},
): BoundService => {
  const untyped = handlers as unknown as Readonly<Record<string, AnyHandler>>;
  for (const method of desc.methods) {
    if (typeof untyped[method.localName] !== "function") throw new TypeError(`no handler for ${methodName(method)}`);
  }
  const caps = (options.deadlineCapsMs ?? {}) as Readonly<Record<string, number>>;
  return { desc, handlers: untyped, rejections: options.rejections ?? {}, deadlineCapsMs: caps };
};

/** `curfew.issuer.v1.IssuerService/CreateToken`: the name used in the authorization table, spans, logs and request keys. */
export const methodName = (method: DescMethod): string => `${method.parent.typeName}/${method.name}`;

const same = (bytes: Buffer): Buffer => bytes;

/**
 * The method as grpc-js knows it, with messages left as bytes: encoding and decoding happen where their errors can be
 * answered and logged (grpc-js answers INTERNAL for both and logs nothing).
 */
export const methodDefinition = (method: DescMethod): MethodDefinition<Buffer, Buffer> => ({
  path: `/${methodName(method)}`,
  requestStream: method.methodKind === "client_streaming" || method.methodKind === "bidi_streaming",
  responseStream: method.methodKind === "server_streaming" || method.methodKind === "bidi_streaming",
  requestSerialize: same,
  requestDeserialize: same,
  responseSerialize: same,
  responseDeserialize: same,
});

/** A Buffer over the same memory. */
export const bufferOf = (bytes: Uint8Array): Buffer =>
  Buffer.from(bytes.buffer as ArrayBuffer, bytes.byteOffset, bytes.byteLength);
