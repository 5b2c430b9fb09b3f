import { create, type DescMessage, fromBinary, type MessageInitShape, toBinary } from "@bufbuild/protobuf";
import { anyPack, anyUnpack } from "@bufbuild/protobuf/wkt";
import {
  BadRequestSchema,
  ErrorInfoSchema,
  PreconditionFailureSchema,
  RetryInfoSchema,
} from "@curfew/contracts/gen/google/rpc/error_details_pb.ts";
import { StatusSchema } from "@curfew/contracts/gen/google/rpc/status_pb.ts";
import { status as grpcStatus, Metadata } from "@grpc/grpc-js";

/** A gRPC status by name: `"NOT_FOUND"`. */
export type RpcStatus = Exclude<keyof typeof grpcStatus, "OK">;

export interface FieldViolation {
  /** Path in proto notation: `policy.audiences[0]`. */
  readonly field: string;
  readonly description: string;
  /** Id of the rule, `string.min_len`; empty where none is known. */
  readonly reason: string;
}

/** google.rpc.PreconditionFailure.Violation. */
export interface Precondition {
  readonly type: string;
  readonly subject: string;
  readonly description: string;
}

export interface RpcFailure {
  readonly status: RpcStatus;
  /** UPPER_SNAKE_CASE, stable, what callers branch on: ErrorInfo.reason in domain `curfew`. */
  readonly reason: string;
  /** For humans, shown to the caller: no secret, no personal data. */
  readonly message: string;
  readonly metadata?: Readonly<Record<string, string>>;
  readonly fieldViolations?: readonly FieldViolation[];
  readonly retryDelayMs?: number;
  readonly preconditions?: readonly Precondition[];
}

/** What a handler throws to answer with a status. Everything it carries is shown to the caller. */
export class RpcError extends Error {
  override name = "RpcError";
  readonly failure: RpcFailure;
  constructor(failure: RpcFailure, options?: ErrorOptions) {
    super(failure.message, options);
    this.failure = failure;
  }
}

/**
 * What a client's call rejects with. Another class than RpcError on purpose: one service's answer, bubbling through a second
 * service, must not become that one's answer.
 */
export class RemoteError extends Error {
  override name = "RemoteError";
  readonly failure: RpcFailure;
  constructor(failure: RpcFailure, options?: ErrorOptions) {
    super(failure.message, options);
    this.failure = failure;
  }
}

/** A service's closed table: `const rejections = {…} satisfies StatusByCode<RejectionCode>`. */
export type StatusByCode<Code extends string = string> = Readonly<Record<Code, RpcStatus>>;

export const errorDomain = "curfew";
const detailsKey = "grpc-status-details-bin";
/** Node refuses header blocks beyond 16 KiB in all; details past this are dropped, the status and its reason stay. */
const maxDetailsBytes = 6 * 1024;
const maxMessageLength = 512;

const pack = <D extends DescMessage>(schema: D, init: MessageInitShape<D>) => anyPack(schema, create(schema, init));

const durationOf = (ms: number) => ({ seconds: BigInt(Math.floor(ms / 1000)), nanos: (ms % 1000) * 1_000_000 });

const encodeDetails = (failure: RpcFailure): Uint8Array => {
  const { reason, metadata = {}, fieldViolations = [], preconditions = [], retryDelayMs } = failure;
  const details = [pack(ErrorInfoSchema, { reason, domain: errorDomain, metadata: { ...metadata } })];
  const encode = () =>
    toBinary(
      StatusSchema,
      create(StatusSchema, { code: grpcStatus[failure.status], message: failure.message, details }),
    );
  const smallest = encode();
  if (retryDelayMs !== undefined) {
    details.push(pack(RetryInfoSchema, { retryDelay: durationOf(Math.max(0, Math.ceil(retryDelayMs))) }));
  }
  if (fieldViolations.length > 0) details.push(pack(BadRequestSchema, { fieldViolations: [...fieldViolations] }));
  if (preconditions.length > 0) details.push(pack(PreconditionFailureSchema, { violations: [...preconditions] }));
  const whole = encode();
  return whole.length <= maxDetailsBytes ? whole : smallest;
};

/** The failure as grpc-js sends it, with google.rpc.Status in `grpc-status-details-bin`. */
export const encodeFailure = (failure: RpcFailure): { code: grpcStatus; details: string; metadata: Metadata } => {
  const bounded = { ...failure, message: failure.message.slice(0, maxMessageLength).toWellFormed() };
  const metadata = new Metadata();
  metadata.set(detailsKey, Buffer.from(encodeDetails(bounded)));
  return { code: grpcStatus[failure.status], details: bounded.message, metadata };
};

const decodeDetails = (bytes: Uint8Array): Partial<RpcFailure> => {
  const found: { -readonly [K in keyof RpcFailure]?: RpcFailure[K] } = {};
  for (const any of fromBinary(StatusSchema, bytes).details) {
    const info = anyUnpack(any, ErrorInfoSchema);
    if (info) Object.assign(found, { reason: info.reason, metadata: info.metadata });
    const delay = anyUnpack(any, RetryInfoSchema)?.retryDelay;
    if (delay) found.retryDelayMs = Number(delay.seconds) * 1000 + delay.nanos / 1_000_000;
    const badRequest = anyUnpack(any, BadRequestSchema);
    if (badRequest) found.fieldViolations = badRequest.fieldViolations;
    const unmet = anyUnpack(any, PreconditionFailureSchema);
    if (unmet) found.preconditions = unmet.violations;
  }
  return found;
};

const isServiceError = (error: unknown): error is { code: number; details: string; metadata: Metadata } =>
  error instanceof Error && "code" in error && "metadata" in error && error.metadata instanceof Metadata;

/**
 * The failure in whatever a call threw: a RemoteError, an RpcError or grpc-js's own ServiceError. Details that cannot be decoded
 * count as absent; anything else is `UNKNOWN`.
 */
export const parseRpcError = (error: unknown): RpcFailure => {
  if (error instanceof RemoteError || error instanceof RpcError) return error.failure;
  if (!isServiceError(error)) return { status: "UNKNOWN", reason: "", message: String(error) };
  const status = (grpcStatus[error.code] ?? "UNKNOWN") as RpcStatus;
  const failure = { status, reason: "", message: error.details };
  const [bytes] = error.metadata.get(detailsKey);
  if (!Buffer.isBuffer(bytes)) return failure;
  try {
    return { ...failure, ...decodeDetails(bytes) };
  } catch {
    return failure;
  }
};
