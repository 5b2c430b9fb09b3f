import { hash } from "node:crypto";
import type { Http2Session } from "node:http2";
import type { Clock } from "@curfew/runtime/clock.ts";
import {
  type Metadata,
  ServerInterceptingCall,
  type ServerInterceptingCallInterface,
  type ServerInterceptor,
} from "@grpc/grpc-js";
import { certificateExpired } from "./active-call.ts";
import { type AuthorizationTable, allowedCallers, allows, type Directory } from "./authorization.ts";
import { encodeFailure, type RpcFailure } from "./errors.ts";
import { type Caller, type Peer, peerOfCertificate } from "./identity.ts";

const sha256 = (bytes: Uint8Array) => hash("sha256", bytes, "buffer");

/** What grpc-js hides. Without the session the certificate is read again at every call (10 k calls/s, not 14 k). */
type Hidden = ServerInterceptingCallInterface & {
  readonly stream?: { readonly session?: Http2Session };
  readonly metadata?: Metadata;
  readonly cancelled?: boolean;
};
const sessionOf = (call: Hidden): Http2Session | undefined => call.stream?.session;

/**
 * How much a known client may send before it is read: HTTP/2's 64 KB are less than one report of uses, so that client and server waited
 * for each other's turns of the event loop. grpc-js has no option for it. It bounds what a connection holds.
 */
const connectionWindowBytes = 2 * 1024 * 1024;
const streamWindowBytes = 256 * 1024;

const widen = (session: Http2Session): void => {
  session.setLocalWindowSize(connectionWindowBytes);
  session.settings({ initialWindowSize: streamWindowBytes });
};

const unauthenticated = (message: string): RpcFailure => ({
  status: "UNAUTHENTICATED",
  reason: "UNAUTHENTICATED",
  message,
});

/** A call that the gate let through. */
export interface PassedCall {
  readonly peer: Peer;
  /** Answered already, by grpc-js itself: its deadline is over, or it broke off while it was read. */
  isOver(): boolean;
}

/**
 * The one interceptor: finds the caller in the connection's certificate, asks the table, and either ends the call before its
 * handler knows of it or lets it through and remembers the peer by its metadata object. Nothing the caller sent is consulted.
 */
export const createGate = (options: {
  readonly trustDomain: string;
  readonly authorize: AuthorizationTable;
  readonly directory: Directory;
  readonly self: Caller;
  readonly clock: Clock;
  readonly passed: WeakMap<Metadata, PassedCall>;
}): ServerInterceptor => {
  const { trustDomain, authorize, directory, self, clock, passed } = options;
  // By session: addresses and ports are used again by others, a session never is.
  const known = new WeakMap<object, Peer>();
  const peerOf = (call: ServerInterceptingCallInterface): Peer | undefined => {
    const session = sessionOf(call);
    const cached = session && known.get(session);
    if (cached) return cached;
    const peer = peerOfCertificate(call.getAuthContext().sslPeerCertificate, trustDomain, sha256);
    if (session && peer) {
      known.set(session, peer);
      widen(session);
    }
    return peer;
  };
  const isExpired = ({ notAfterMs }: Peer) => notAfterMs <= clock.now();
  const refusal = (path: string, peer: Peer | undefined): RpcFailure | undefined => {
    if (!peer) return unauthenticated("the certificate names no caller of this trust domain");
    if (isExpired(peer)) return certificateExpired().failure;
    const method = path.slice(1);
    const rules = Object.hasOwn(authorize, method) ? authorize[method] : undefined;
    if (allows(rules, peer.caller, directory, self)) return undefined;
    const metadata = { method };
    const message = `this caller may not call ${method}: it is for ${allowedCallers(rules)}`;
    return { status: "PERMISSION_DENIED", reason: "CALLER_NOT_ALLOWED", message, metadata };
  };
  return ({ path }, call) => {
    const peer = peerOf(call);
    const refused = refusal(path, peer);
    const hidden: Hidden = call;
    // Not wrapped, which costs a twentieth of a call. What the wrapping did besides is the handler's: a call that is over before all of it
    // was read still reaches that one, and says so here alone.
    if (!refused && peer && hidden.metadata && typeof hidden.cancelled === "boolean") {
      passed.set(hidden.metadata, { peer, isOver: () => hidden.cancelled !== false });
      return call as ServerInterceptingCall;
    }
    // So that the client connects again, with the certificate that it has by now.
    if (peer && isExpired(peer)) sessionOf(call)?.close();
    const failure = encodeFailure(refused ?? unauthenticated("no certificate"));
    return new ServerInterceptingCall(call, { start: () => call.sendStatus(failure) });
  };
};
