import type { PeerCertificate } from "node:tls";

/** Who is at the other end of a connection, by the SPIFFE URI of its certificate; never by anything a request says. */
export interface Caller {
  readonly kind: "service" | "workload" | "person";
  /** The last segment of the URI: `issuer`, `billing`, a person's pseudonym. */
  readonly name: string;
  readonly uri: string;
}

/** What the server knows of an authenticated connection. */
export interface Peer {
  readonly caller: Caller;
  /** SHA-256 of the DER certificate, base64url without padding: `x5t#S256` of RFC 8705. */
  readonly thumbprint: string;
  /** Milliseconds since the epoch; an open connection must not outlive its certificate. */
  readonly notAfterMs: number;
}

const maxUriLength = 512;
const trustDomainPattern = /^[a-z0-9](?:[a-z0-9.-]{0,253}[a-z0-9])?$/;
const pathPattern = /^\/(service|workload|person)\/([A-Za-z0-9][A-Za-z0-9._-]{0,127})$/;

/** Throws on anything that is not a SPIFFE trust domain name (lower case, no port, no user, no percent-encoding). */
export const assertTrustDomain = (trustDomain: string): void => {
  if (!trustDomainPattern.test(trustDomain)) throw new TypeError(`not a trust domain: ${JSON.stringify(trustDomain)}`);
};

/**
 * Reads `spiffe://<trustDomain>/<service|workload|person>/<name>`. Undefined for everything else: another trust domain, other
 * path depths, percent-encoding, dot segments, query, fragment, upper-case scheme. SPIFFE-ID standard, section 2.
 */
export const parseSpiffeId = (text: unknown, trustDomain: string): Caller | undefined => {
  if (typeof text !== "string" || text.length > maxUriLength) return undefined;
  const prefix = `spiffe://${trustDomain}`;
  if (!text.startsWith(prefix)) return undefined;
  const [, kind, name] = pathPattern.exec(text.slice(prefix.length)) ?? [];
  if (kind === undefined || name === undefined) return undefined;
  return { kind: kind as Caller["kind"], name, uri: text };
};

/**
 * The caller in Node's rendering of a certificate's subject alternative names (`URI:spiffe://…, DNS:localhost`). Node quotes a
 * name that contains a separator; no name of ours does, so one that is quoted is refused instead of parsed. Exactly one URI
 * (X509-SVID standard, section 2), else undefined.
 */
export const callerOfNames = (subjectAltName: string | undefined, trustDomain: string): Caller | undefined => {
  if (!subjectAltName || subjectAltName.includes('"')) return undefined;
  const uris = subjectAltName.split(", ").filter((name) => name.startsWith("URI:"));
  return uris.length === 1 ? parseSpiffeId(uris[0]?.slice("URI:".length), trustDomain) : undefined;
};

/** The peer that a certificate, already verified against the CA by TLS, stands for; undefined if it names nobody of ours. */
export const peerOfCertificate = (
  certificate: PeerCertificate | undefined,
  trustDomain: string,
  sha256: (bytes: Uint8Array) => Buffer,
): Peer | undefined => {
  const caller = callerOfNames(certificate?.subjectaltname, trustDomain);
  if (!certificate || !caller) return undefined;
  const notAfterMs = Date.parse(certificate.valid_to);
  if (Number.isNaN(notAfterMs)) return undefined;
  return { caller, notAfterMs, thumbprint: sha256(certificate.raw).toString("base64url") };
};
