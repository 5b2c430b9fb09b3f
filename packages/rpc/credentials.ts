import { createSecureContext, type PeerCertificate, type SecureContext } from "node:tls";
import { ChannelCredentials, ServerCredentials } from "@grpc/grpc-js";
import { callerOfNames } from "./identity.ts";
import type { IssuedCertificate } from "./identity-authority.ts";

/** A process's own certificate, replaced while it runs: new connections use the new one, open ones keep theirs. */
export interface IdentitySource {
  current(): IssuedCertificate;
  /** Throws, and keeps the old one, when certificate and key do not belong together. */
  replace(next: IssuedCertificate): void;
  /** Calls `listener` after each replacement, until the returned function is called. */
  subscribe(listener: (identity: IssuedCertificate) => void): () => void;
}

/** Shared by a process's servers and clients, so that one renewal reaches all of them. */
export const createIdentitySource = (initial: IssuedCertificate): IdentitySource => {
  let identity = initial;
  const listeners = new Set<(identity: IssuedCertificate) => void>();
  return {
    current: () => identity,
    replace(next) {
      createSecureContext({ cert: next.certPem, key: next.keyPem });
      identity = next;
      for (const listener of listeners) listener(next);
    },
    subscribe(listener) {
      listeners.add(listener);
      return () => listeners.delete(listener);
    },
  };
};

const contextOptions = (identity: IssuedCertificate, caPem: string) => ({
  ca: [Buffer.from(caPem)],
  cert: [Buffer.from(identity.certPem)],
  key: [Buffer.from(identity.keyPem)],
  minVersion: "TLSv1.3" as const,
});

/**
 * Mutual TLS 1.3 with a replaceable certificate. A subclass of our own, because neither `createSsl` nor the experimental
 * provider credentials of grpc-js can set the TLS version, short of changing it for the whole process.
 */
export class MutualTlsServerCredentials extends ServerCredentials {
  readonly unsubscribe: () => void;
  constructor(identity: IdentitySource, caPem: string) {
    super({ requestCert: true, rejectUnauthorized: true }, contextOptions(identity.current(), caPem));
    this.unsubscribe = identity.subscribe((next) => this.updateSecureContextOptions(contextOptions(next, caPem)));
  }
  override _equals(other: ServerCredentials): boolean {
    return this === other;
  }
}

/** The client's half: presents the current certificate, and accepts only the server whose URI is `expectUri`. */
export class MutualTlsChannelCredentials extends ChannelCredentials {
  readonly unsubscribe: () => void;
  #context: SecureContext;
  readonly #checkServerIdentity: (host: string, certificate: PeerCertificate) => Error | undefined;

  constructor(identity: IdentitySource, caPem: string, trustDomain: string, expectUri: string) {
    super();
    this.#context = createSecureContext(contextOptions(identity.current(), caPem));
    this.unsubscribe = identity.subscribe((next) => {
      this.#context = createSecureContext(contextOptions(next, caPem));
    });
    this.#checkServerIdentity = (_host, certificate) =>
      callerOfNames(certificate.subjectaltname, trustDomain)?.uri === expectUri
        ? undefined
        : new Error(`the server is not ${expectUri}`);
  }
  override _isSecure(): boolean {
    return true;
  }
  override _equals(other: ChannelCredentials): boolean {
    return this === other;
  }
  override _createSecureConnector(
    ...args: Parameters<ChannelCredentials["_createSecureConnector"]>
  ): ReturnType<ChannelCredentials["_createSecureConnector"]> {
    const verify = { checkServerIdentity: this.#checkServerIdentity };
    const connector = () =>
      ChannelCredentials.createFromSecureContext(this.#context, verify)._createSecureConnector(...args);
    const first = connector();
    return {
      connect: (socket) => connector().connect(socket),
      waitForReady: () => Promise.resolve(),
      getCallCredentials: () => first.getCallCredentials(),
      destroy: () => undefined,
    };
  }
}
