import { AsyncLocalStorage } from "node:async_hooks";
import { createHash } from "node:crypto";
import { encodeFailure, type RpcFailure, type RpcStatus } from "@curfew/rpc/errors.ts";
import {
  type CallCredentials,
  credentials,
  Metadata,
  ServerInterceptingCall,
  type ServerInterceptingCallInterface,
  type ServerInterceptor,
  type ServerListener,
  status,
} from "@grpc/grpc-js";
import { type AccessRequest, InvalidRequest } from "./access-request.ts";
import { type DenialReason, Denied } from "./denied.ts";
import type { LocalVerifier } from "./local-verifier.ts";
import type { Use } from "./open-use.ts";
import type { TokenSource } from "./token-source.ts";

/** What a resource service declares of a method; who presents the token is read from the connection. */
export type MethodAccess = Omit<AccessRequest, "sourceAddress" | "presenterThumbprint">;

/** The method, `/invoices.v1.Invoices/List`, and the metadata of a call → what it will do; undefined: this method needs no token. */
export type AccessOf = (path: string, metadata: Metadata) => MethodAccess | undefined;

const uses = new AsyncLocalStorage<Use>();

/** The use that the running handler was let in for. Throws outside of one. */
export const currentUse = (): Use => {
  const use = uses.getStore();
  if (!use)
    throw new Error("no access was authorized here: is the interceptor installed, and does the method need a token?");
  return use;
};

const scheme = /^bearer (\S+)$/i;

const statusOf = {
  MALFORMED: "UNAUTHENTICATED",
  UNKNOWN: "UNAUTHENTICATED",
  EXPIRED: "UNAUTHENTICATED",
  NOT_YET_VALID: "UNAUTHENTICATED",
  REVOKED: "UNAUTHENTICATED",
  SUPERSEDED: "UNAUTHENTICATED",
  BINDING_MISMATCH: "UNAUTHENTICATED",
  WRONG_AUDIENCE: "PERMISSION_DENIED",
  SCOPE_MISSING: "PERMISSION_DENIED",
  RESOURCE_NOT_GRANTED: "PERMISSION_DENIED",
  PURPOSE_NOT_GRANTED: "PERMISSION_DENIED",
  DATA_CATEGORY_NOT_GRANTED: "PERMISSION_DENIED",
  STALE_VERIFIER: "UNAVAILABLE",
  VERIFIER_UNREACHABLE: "UNAVAILABLE",
  CLOSED: "UNAVAILABLE",
  EVIDENCE_BACKLOG: "RESOURCE_EXHAUSTED",
  OVERLOADED: "RESOURCE_EXHAUSTED",
  QUESTION_REFUSED: "INTERNAL",
} as const satisfies Readonly<Record<DenialReason, RpcStatus>>;

/** What the bearer is told: the reason, never the token's id or what the verifier said besides. */
const failureOf = (error: unknown): RpcFailure => {
  if (error instanceof Denied) {
    const { reason } = error;
    return { status: statusOf[reason], reason, message: `access denied: ${reason}` };
  }
  const isOurs = error instanceof InvalidRequest;
  const message = isOurs
    ? `the service declares this access wrongly: ${error.message}`
    : "the access cannot be checked";
  return { status: "INTERNAL", reason: isOurs ? "INVALID_ACCESS" : "INTERNAL", message };
};

const missing: RpcFailure = {
  status: "UNAUTHENTICATED",
  reason: "TOKEN_MISSING",
  message: "send the token as authorization: Bearer …",
};

/** Address and certificate of whoever called, as far as the connection tells. */
const presenterOf = (call: ServerInterceptingCallInterface) => {
  const [, address = ""] = /^\[?([0-9a-fA-F.:]+?)\]?:\d+$/.exec(call.getPeer()) ?? [];
  const certificate = call.getAuthContext().sslPeerCertificate?.raw;
  return {
    sourceAddress: address,
    ...(certificate && { presenterThumbprint: createHash("sha256").update(certificate).digest("base64url") }),
  };
};

/** The access failed: the call ended otherwise than OK. Only ends the use; the call has its own status. */
class CallFailed extends Error {}

/** Ends the use when the call ends. */
const openCallEnd = () => {
  const { promise, resolve, reject } = Promise.withResolvers<void>();
  promise.catch(() => undefined);
  return { promise, ended: (code: number) => (code === status.OK ? resolve() : reject(new CallFailed())) };
};

/**
 * A server interceptor for a resource service on grpc-js: no handler runs but for a bearer that `verifier` lets in for what
 * `accessOf` declares. The handler finds its use in `currentUse()`; the use completes with the call, failed when its status is not OK.
 */
export const tokenInterceptor =
  (options: { readonly verifier: LocalVerifier; readonly accessOf: AccessOf }): ServerInterceptor =>
  (method, call) => {
    const end = openCallEnd();
    const refuse = (failure: RpcFailure) => call.sendStatus(encodeFailure(failure));
    const admit = (metadata: Metadata, access: MethodAccess, pass: (use: Use) => void): void => {
      const [, secret] = scheme.exec(String(metadata.get("authorization")[0] ?? "")) ?? [];
      // Neither handlers nor what logs metadata shall see it.
      metadata.remove("authorization");
      if (!secret) {
        refuse(missing);
        return;
      }
      let began = false;
      options.verifier
        .authorize(secret, { ...access, ...presenterOf(call) }, (use) => {
          began = true;
          pass(use);
          return end.promise;
        })
        .catch((error: unknown) => {
          if (!began) refuse(failureOf(error));
        });
    };
    return new ServerInterceptingCall(call, {
      start: (next) => next(listenerOf(method.path, options.accessOf, admit, refuse, end.ended)),
      sendStatus: (sent, next) => {
        end.ended(sent.code ?? status.OK);
        next(sent);
      },
    });
  };

/** Runs whatever reaches the handler inside the use; a handler begins with the metadata or with the end of the request. */
const listenerOf = (
  path: string,
  accessOf: AccessOf,
  admit: (metadata: Metadata, access: MethodAccess, pass: (use: Use) => void) => void,
  refuse: (failure: RpcFailure) => void,
  ended: (code: number) => void,
): ServerListener => {
  let use: Use | undefined;
  const within = (go: () => void) => (use ? uses.run(use, go) : go());
  return {
    onReceiveMetadata: (metadata, next) => {
      let access: MethodAccess | undefined;
      try {
        access = accessOf(path, metadata);
      } catch {
        return refuse(failureOf(undefined));
      }
      if (!access) return next(metadata);
      admit(metadata, access, (admitted) => {
        use = admitted;
        within(() => next(metadata));
      });
    },
    onReceiveMessage: (message, next) => within(() => next(message)),
    onReceiveHalfClose: (next) => within(() => next()),
    onCancel: () => ended(status.CANCELLED),
  };
};

/** Sends the newest secret of a token source with a call: `client.list(request, { credentials: bearerOf(source) }, …)`. Over TLS only. */
export const bearerOf = (source: TokenSource): CallCredentials =>
  credentials.createFromMetadataGenerator((_options, callback) => {
    source.current().then(
      (secret) => {
        const metadata = new Metadata();
        metadata.set("authorization", `Bearer ${secret}`);
        callback(null, metadata);
      },
      (error: unknown) => callback(error as Error),
    );
  });
