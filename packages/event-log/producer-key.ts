import {
  createPrivateKey,
  createPublicKey,
  generateKeyPairSync,
  type KeyObject,
  sign,
  verify,
  X509Certificate,
} from "node:crypto";
import { lengthPrefixed } from "@curfew/runtime/length-prefixed.ts";
import type { ProducerOptions } from "./bus.ts";
import type { EpochState } from "./epochs.ts";

/**
 * The key of a producer epoch (design: evidence, "Producer chain"): Ed25519, made in memory for one epoch and never stored. The service's
 * identity, the certificate that it shows in mutual TLS, certifies it, so that who has its records and the certificate authority can tell
 * the service's records from anybody else's.
 */

/** A certificate, PEM, leaf first where there are several, and its private key: what `IssuedCertificate` of packages/rpc is. */
export interface ProducerIdentity {
  readonly certPem: string;
  readonly keyPem: string;
}

export interface ProducerKey {
  /**
   * `curfew-key`, by the identity as it is now: `<public key>.<certificate DER>[,<DER>…].<signature>`, each base64url; the signature by
   * the certificate's key (SHA-256; ECDSA as DER) over "curfew-key/v1", producer, topic and public key, each length-prefixed (u32
   * big-endian).
   */
  certification(): string;
  /** `curfew-sig` over the hashes of the last record of each chain that a send brought on. */
  sign(hashes: readonly string[]): string;
  /** Over what the epoch's row says, base64url. */
  signState(state: EpochState): string;
}

/** The identity of a producer's service, as the settings of a producer have it. */
export const identityOf = (
  { name }: ProducerOptions,
  identity: ((service: string) => ProducerIdentity) | undefined,
): { identity?: () => ProducerIdentity } =>
  identity ? { identity: () => identity(name.slice(0, name.indexOf("/"))) } : {};

const keyDomain = "curfew-key/v1";
const stateDomain = "curfew-epoch/v1";
const sendDomain = Buffer.from("curfew-sig/v1\n");
const signatureBytes = 64;
const hashBytes = 32;
/** A leaf takes 64 KiB. */
export const maxCertificationChars = 16_384;
const maxCertificates = 8;
/** A send is chained on at most as many partitions. */
const maxHashes = 1_000;

const certificatesOf = (pem: string): Buffer[] =>
  [...pem.matchAll(/-----BEGIN CERTIFICATE-----[^-]+-----END CERTIFICATE-----/g)].map(
    ([text]) => new X509Certificate(text).raw,
  );

/** Node signs and verifies Ed25519 without a digest. */
const digestFor = (key: KeyObject) => (key.asymmetricKeyType === "ed25519" ? null : "sha256");

const stateBytes = (producer: string, topic: string, { acknowledged, ended }: EpochState): Buffer => {
  const numbers = Object.entries(acknowledged).sort(([a], [b]) => Number(a) - Number(b));
  return lengthPrefixed(stateDomain, producer, topic, ended ? "ended" : "open", ...numbers.flat().map(String));
};

/** @param identity asked at each certification: certificates are renewed while an epoch lasts. */
export const createProducerKey = (producer: string, topic: string, identity: () => ProducerIdentity): ProducerKey => {
  const { publicKey, privateKey } = generateKeyPairSync("ed25519");
  const raw = publicKey.export({ format: "jwk" }).x as string;
  let made: { certPem: string; text: string } | undefined;
  return {
    certification() {
      const { certPem, keyPem } = identity();
      if (made?.certPem === certPem) return made.text;
      const key = createPrivateKey(keyPem);
      const statement = lengthPrefixed(keyDomain, producer, topic, Buffer.from(raw, "base64url"));
      const chain = certificatesOf(certPem).map((der) => der.toString("base64url"));
      const text = `${raw}.${chain.join(",")}.${sign(digestFor(key), statement, key).toString("base64url")}`;
      if (chain.length === 0 || chain.length > maxCertificates || text.length > maxCertificationChars)
        throw new TypeError(`a producer's certificate chain has 1 to ${maxCertificates} certificates in 12 KiB`);
      made = { certPem, text };
      return text;
    },
    sign(hashes) {
      const heads = Buffer.from(hashes.join(""), "hex");
      const signature = sign(null, Buffer.concat([sendDomain, heads]), privateKey);
      return (hashes.length === 1 ? signature : Buffer.concat([signature, heads])).toString("base64url");
    },
    signState: (state) => sign(null, stateBytes(producer, topic, state), privateKey).toString("base64url"),
  };
};

const publicKeys = new Map<string, KeyObject>();
const maxPublicKeys = 1_000;

/** Undefined: no key. Those used last are kept: making one costs a fifth of a verification. */
const publicKeyOf = (raw: string): KeyObject | undefined => {
  const known = publicKeys.get(raw);
  if (known) return known;
  try {
    const key = createPublicKey({ format: "jwk", key: { kty: "OKP", crv: "Ed25519", x: raw } });
    if (publicKeys.size >= maxPublicKeys) publicKeys.clear();
    publicKeys.set(raw, key);
    return key;
  } catch {
    return undefined;
  }
};

const isSigned = (raw: string, message: Uint8Array, signature: Uint8Array): boolean => {
  const key = publicKeyOf(raw);
  return key !== undefined && verify(null, message, key, signature);
};

/** Whether `curfew-sig` is the key's (base64url) over a send that has this record's chain hash (hex). */
export const verifySend = (key: string, header: string, recordHash: string): boolean => {
  if (header.length > 2 * (signatureBytes + maxHashes * hashBytes)) return false;
  const bytes = Buffer.from(header, "base64url");
  const own = Buffer.from(recordHash, "hex");
  const heads = bytes.length === signatureBytes ? own : bytes.subarray(signatureBytes);
  if (bytes.length < signatureBytes || heads.length % hashBytes !== 0) return false;
  const isAmong = Array.from({ length: heads.length / hashBytes }, (_, i) => i * hashBytes).some(
    (at) => own.compare(heads, at, at + hashBytes) === 0,
  );
  return isAmong && isSigned(key, Buffer.concat([sendDomain, heads]), bytes.subarray(0, signatureBytes));
};

/** Whether what an epoch's row says is signed by its key (base64url). */
export const verifyState = (
  key: string,
  producer: string,
  topic: string,
  state: EpochState,
  signature: Uint8Array,
): boolean => isSigned(key, stateBytes(producer, topic, state), signature);

/** What tells whose a certification is. */
export interface ProducerTrust {
  /**
   * The public key (base64url) that `certification` certifies for a producer and topic; undefined where it does not: not by our authority,
   * not by the service that the producer's name begins with, or with a certificate that ended more than `maxAwayMs` before `atMs`, or
   * begins as long after it. `atMs` undefined: at any time.
   */
  keyOf(producer: string, topic: string, certification: string, atMs: number | undefined): string | undefined;
}

/**
 * Records wait out an outage of the bus with the certification that they were linked with, and clocks that were wrong are set right: what is
 * found is found for ever, so a clock that is set back must not make strangers of those who got their certificates before.
 */
const maxAwayMs = 7 * 86_400_000;

/** By the certificates in `caPem`; names are SPIFFE IDs of `trustDomain`. Throws on a PEM that holds none. */
export const openProducerTrust = ({ caPem, trustDomain }: { caPem: string; trustDomain: string }): ProducerTrust => {
  const authorities = certificatesOf(caPem).map((der) => new X509Certificate(der));
  if (authorities.length === 0) throw new TypeError("no certificate of an authority in the PEM");

  const isIssued = (chain: readonly X509Certificate[], atMs: number | undefined): boolean =>
    chain.every((certificate, i) => {
      const next = chain[i + 1];
      const issuers = next ? [next] : authorities;
      const from = Date.parse(certificate.validFrom);
      const to = Date.parse(certificate.validTo);
      const isInTime = atMs === undefined || (from - maxAwayMs <= atMs && atMs <= to + maxAwayMs);
      const isBy = (issuer: X509Certificate) =>
        issuer.ca && certificate.checkIssued(issuer) && certificate.verify(issuer.publicKey);
      return isInTime && issuers.some(isBy);
    });

  const certifiedKey = (producer: string, topic: string, certification: string, atMs: number | undefined) => {
    const [raw = "", certificates = "", signature = "", more] = certification.split(".");
    const ders = certificates.split(",").map((text) => Buffer.from(text, "base64url"));
    const bytes = Buffer.from(raw, "base64url");
    if (more !== undefined || ders.length > maxCertificates || bytes.length !== 32) return undefined;
    const chain = ders.map((der) => new X509Certificate(der));
    const [leaf] = chain as [X509Certificate];
    const names = leaf.subjectAltName ?? "";
    const uris = names.split(", ").filter((name) => name.startsWith("URI:"));
    const [service] = producer.split("/");
    // Node quotes a name that contains a separator; none of ours does.
    if (leaf.ca || names.includes('"') || uris.length !== 1) return undefined;
    if (uris[0] !== `URI:spiffe://${trustDomain}/service/${service}`) return undefined;
    const key = leaf.publicKey;
    const statement = lengthPrefixed(keyDomain, producer, topic, bytes);
    const isCertified = verify(digestFor(key), statement, key, Buffer.from(signature, "base64url"));
    return isCertified && isIssued(chain, atMs) ? bytes.toString("base64url") : undefined;
  };

  return {
    keyOf(producer, topic, certification, atMs) {
      if (certification.length > maxCertificationChars) return undefined;
      try {
        return certifiedKey(producer, topic, certification, atMs);
      } catch {
        return undefined; // no certificate
      }
    },
  };
};
