import { deepStrictEqual, ok } from "node:assert";
import { Rejection } from "@curfew/decider/decider.ts";
import { Metadata } from "@grpc/grpc-js";
import { describe, expect, test } from "vitest";
import { encodeFailure, parseRpcError, RemoteError, RpcError, type RpcFailure, type StatusByCode } from "./errors.ts";
import { failureOf } from "./failure-of.ts";

const asServiceError = (failure: RpcFailure) => {
  const { code, details, metadata } = encodeFailure(failure);
  return Object.assign(new Error(details), { code, details, metadata });
};

describe("a failure on the wire", () => {
  test("comes back with every detail", () => {
    const failure: RpcFailure = {
      status: "FAILED_PRECONDITION",
      reason: "TOKEN_ENDED",
      message: "the token has ended — für immer",
      metadata: { tokenId: "tok_1" },
      retryDelayMs: 1500,
      fieldViolations: [{ field: "a.b[0]", description: "too long", reason: "STRING_MAX_LEN" }],
      preconditions: [{ type: "LIVE", subject: "tok_1", description: "ended" }],
    };
    expect(parseRpcError(asServiceError(failure))).toMatchObject(failure);
  });

  test("drops details that would not fit the headers, but keeps status and reason", () => {
    const many = Array.from({ length: 100 }, (_, i) => ({ field: `f${i}`, description: "x".repeat(100), reason: "R" }));
    const failure: RpcFailure = { status: "INVALID_ARGUMENT", reason: "BAD", message: "bad", fieldViolations: many };
    const parsed = parseRpcError(asServiceError(failure));
    expect(parsed).toMatchObject({ status: "INVALID_ARGUMENT", reason: "BAD" });
    expect(parsed.fieldViolations).toBeUndefined();
  });

  test("bounds the message", () => {
    const failure: RpcFailure = { status: "ABORTED", reason: "R", message: "🙂".repeat(1000) };
    expect(parseRpcError(asServiceError(failure)).message).toHaveLength(512);
  });

  test("with details that are not protobuf is read without them", () => {
    const metadata = new Metadata();
    metadata.set("grpc-status-details-bin", Buffer.from([255, 255]));
    const error = Object.assign(new Error("x"), { code: 5, details: "gone", metadata });
    expect(parseRpcError(error)).toEqual({ status: "NOT_FOUND", reason: "", message: "gone" });
  });

  test("of no known form is UNKNOWN", () => {
    expect(parseRpcError("what").status).toBe("UNKNOWN");
  });
});

/** As in the document store's port, which this package recognises by name only. */
class StoreUnavailable extends Error {
  override name = "StoreUnavailable";
}

describe("the failure of an error", () => {
  const rejections = { TOKEN_ENDED: "FAILED_PRECONDITION", UNKNOWN_TOKEN: "NOT_FOUND" } satisfies StatusByCode;
  const logged: unknown[] = [];
  const log = { warn: (f: unknown) => void logged.push(f), error: (f: unknown) => void logged.push(f) };
  const random = (n: number) => new Uint8Array(n).fill(7);
  const failed = (error: unknown) => failureOf(error, { method: "s/M", rejections, log, random });
  const caught = (fn: () => void): unknown => {
    try {
      fn();
    } catch (error) {
      return error;
    }
    throw new Error("did not throw");
  };

  test("is what the table says for a rejection", () => {
    expect(failed(new Rejection("UNKNOWN_TOKEN", "no such token", { hint: "x" }))).toEqual({
      status: "NOT_FOUND",
      reason: "UNKNOWN_TOKEN",
      message: "no such token",
      metadata: { hint: "x" },
    });
    const ended = failed(new Rejection("TOKEN_ENDED", "it has ended", { subject: "tok_1" }));
    expect(ended.preconditions).toEqual([{ type: "TOKEN_ENDED", subject: "tok_1", description: "it has ended" }]);
  });

  test("is UNAVAILABLE with a retry delay for an outage, whose own message stays inside", () => {
    const failure = failed(new StoreUnavailable("mongo-7.internal refused"));
    expect(failure).toMatchObject({ status: "UNAVAILABLE", reason: "STORE_UNAVAILABLE", retryDelayMs: 500 });
    expect(JSON.stringify(failure)).not.toContain("mongo");
  });

  test.each([
    ["an assertion", caught(() => ok(false, "secret s3cr3t"))],
    ["a failed comparison", caught(() => deepStrictEqual({ a: "s3cr3t" }, {}))],
    ["anything", new TypeError("s3cr3t")],
    ["a rejection that is in no table", new Rejection("toString", "s3cr3t")],
    ["another service's answer", new RemoteError({ status: "NOT_FOUND", reason: "X", message: "s3cr3t" })],
    ["what is no error", "s3cr3t"],
  ])("is INTERNAL with only a logged id for %s", (_name, error) => {
    logged.length = 0;
    const failure = failed(error);
    const errorId = "0707070707070707";
    expect(failure).toEqual({
      status: "INTERNAL",
      reason: "INTERNAL",
      message: "internal error",
      metadata: { errorId },
    });
    expect(logged).toEqual([{ err: error, errorId, method: "s/M" }]);
  });

  test("is what an RpcError carries", () => {
    const failure: RpcFailure = { status: "NOT_FOUND", reason: "R", message: "m" };
    expect(failed(new RpcError(failure))).toBe(failure);
  });
});
