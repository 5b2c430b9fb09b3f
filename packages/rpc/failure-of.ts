import { Rejection } from "@curfew/decider/decider.ts";
import type { Random } from "@curfew/runtime/random.ts";
import { RpcError, type RpcFailure, type RpcStatus, type StatusByCode } from "./errors.ts";

/** What the rpc package logs with: part of `@curfew/runtime/log.ts`. */
export interface RpcLog {
  warn(fields: Readonly<Record<string, unknown>>, message: string): void;
  error(fields: Readonly<Record<string, unknown>>, message: string): void;
}

export interface FailureContext {
  /** `curfew.issuer.v1.IssuerService/CreateToken`. */
  readonly method: string;
  readonly rejections: StatusByCode;
  readonly log: RpcLog;
  readonly random: Random;
}

/**
 * Outages and lost races, by class name, so that this package depends on no adapter. After an unavailable store nothing is known
 * about the write: the same request id may be sent again.
 */
const passing: Readonly<Record<string, { status: RpcStatus; reason: string; message: string; retryDelayMs: number }>> =
  {
    StoreUnavailable: {
      status: "UNAVAILABLE",
      reason: "STORE_UNAVAILABLE",
      message: "the store cannot be reached; retry with the same request id",
      retryDelayMs: 500,
    },
    BusUnavailable: {
      status: "UNAVAILABLE",
      reason: "BUS_UNAVAILABLE",
      message: "the event bus cannot be reached",
      retryDelayMs: 500,
    },
    CommandConflict: {
      status: "ABORTED",
      reason: "CONFLICT",
      message: "too many changes at once; retry with the same request id",
      retryDelayMs: 100,
    },
  };

const failureOfRejection = ({ code, message, details }: Rejection, status: RpcStatus): RpcFailure => {
  const failure = { status, reason: code, message, metadata: details };
  if (status !== "FAILED_PRECONDITION") return failure;
  const { subject = "" } = details;
  return { ...failure, preconditions: [{ type: code, subject, description: message }] };
};

/**
 * The three kinds of error (design, "Code") as the caller sees them: a rejection by the service's table, an outage or conflict by
 * the one above, and anything else, assertions included, as INTERNAL with nothing but an id under which it was logged.
 */
export const failureOf = (error: unknown, context: FailureContext): RpcFailure => {
  if (error instanceof RpcError) return error.failure;
  if (error instanceof Error) {
    if (error instanceof Rejection) {
      const status = Object.hasOwn(context.rejections, error.code) ? context.rejections[error.code] : undefined;
      if (status) return failureOfRejection(error, status);
    }
    const known = Object.hasOwn(passing, error.name) ? passing[error.name] : undefined;
    if (known) {
      context.log.warn({ err: error, method: context.method }, "call failed: outage or conflict");
      return known;
    }
  }
  const errorId = Buffer.from(context.random(8)).toString("hex");
  context.log.error({ err: error, errorId, method: context.method }, "call failed: internal error");
  return { status: "INTERNAL", reason: "INTERNAL", message: "internal error", metadata: { errorId } };
};
