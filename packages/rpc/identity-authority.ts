import "reflect-metadata"; // must come before x509, which throws without it
import { webcrypto } from "node:crypto";
import type { Clock } from "@curfew/runtime/clock.ts";
import { type Random, systemRandom } from "@curfew/runtime/random.ts";
import * as x509 from "@peculiar/x509";
import { assertTrustDomain, parseSpiffeId } from "./identity.ts";

/** The certificate authority of one trust domain. `keyPem` signs everybody: keep it in a 0600 file, never in a backup of data. */
export interface Authority {
  readonly trustDomain: string;
  readonly certPem: string;
  readonly keyPem: string;
  readonly certificate: x509.X509Certificate;
  readonly keys: webcrypto.CryptoKeyPair;
  readonly clock: Clock;
  readonly random: Random;
}

export interface AuthorityOptions {
  readonly trustDomain: string;
  readonly clock: Clock;
  readonly random?: Random;
}

export interface CertificateRequest {
  /** `/service/issuer`, `/workload/billing`, `/person/<pseudonym>`. */
  readonly spiffePath: string;
  /** 1 second to 31 days. */
  readonly validMs: number;
  /** Names for clients that check DNS names (Kafka, SMTP); ours check the SPIFFE URI. At most 16. */
  readonly dnsNames?: readonly string[];
  readonly commonName: string;
}

/** PEM: the certificate (the chain as TLS sends it, without the root) and its PKCS#8 key. */
export interface IssuedCertificate {
  readonly certPem: string;
  readonly keyPem: string;
}

const algorithm = { name: "ECDSA", namedCurve: "P-256", hash: "SHA-256" };
const dayMs = 86_400_000;
const authorityValidMs = 3650 * dayMs;
const maxValidMs = 31 * dayMs;
const maxDnsNames = 16;
/** Tolerance for machines whose clock is behind. */
const backdateMs = 60_000;
const organizationalUnits = { service: "svc", workload: "workload", person: "person" } as const;

const newKeys = async () =>
  (await webcrypto.subtle.generateKey(algorithm, true, ["sign", "verify"])) as webcrypto.CryptoKeyPair;

const pemOfKey = async (key: webcrypto.CryptoKey) =>
  x509.PemConverter.encode(await webcrypto.subtle.exportKey("pkcs8", key), "PRIVATE KEY");

/** 127 random bits, positive (RFC 5280, 4.1.2.2). */
const newSerialNumber = (random: Random): string => {
  const bytes = Buffer.from(random(16));
  bytes[0] = ((bytes[0] ?? 0) & 0x7f) | 0x40;
  return bytes.toString("hex");
};

/** Most significant first, so that RFC 2253 prints `CN=issuer,OU=svc,O=curfew`: the form Kafka's principal rules match. */
const distinguishedName = (unit: string, commonName: string) =>
  new x509.Name([{ O: ["curfew"] }, { OU: [unit] }, { CN: [commonName] }]);

/** A new P-256 CA, valid ten years, able to sign leaves only. Its URI is `spiffe://<trust domain>`, checked when loaded. */
export const createAuthority = async (options: AuthorityOptions): Promise<Authority> => {
  const { trustDomain, clock, random = systemRandom } = options;
  assertTrustDomain(trustDomain);
  const keys = await newKeys();
  const now = clock.now();
  const certificate = await x509.X509CertificateGenerator.createSelfSigned({
    serialNumber: newSerialNumber(random),
    name: distinguishedName("ca", trustDomain),
    notBefore: new Date(now - backdateMs),
    notAfter: new Date(now + authorityValidMs),
    signingAlgorithm: algorithm,
    keys,
    extensions: [
      new x509.BasicConstraintsExtension(true, 0, true),
      new x509.KeyUsagesExtension(x509.KeyUsageFlags.keyCertSign | x509.KeyUsageFlags.cRLSign, true),
      new x509.SubjectAlternativeNameExtension([{ type: "url", value: `spiffe://${trustDomain}` }]),
      await x509.SubjectKeyIdentifierExtension.create(keys.publicKey),
    ],
  });
  const keyPem = await pemOfKey(keys.privateKey);
  return { trustDomain, clock, random, keys, certificate, certPem: certificate.toString("pem"), keyPem };
};

/** The authority from its PEM files. Throws if the certificate is another trust domain's, or the key another certificate's. */
export const loadAuthority = async (
  pem: { readonly certPem: string; readonly keyPem: string },
  options: AuthorityOptions,
): Promise<Authority> => {
  const { trustDomain, clock, random = systemRandom } = options;
  assertTrustDomain(trustDomain);
  const certificate = new x509.X509Certificate(pem.certPem);
  const names = certificate.getExtension(x509.SubjectAlternativeNameExtension)?.names.items ?? [];
  if (!names.some((name) => name.type === "url" && name.value === `spiffe://${trustDomain}`)) {
    throw new Error(`the CA certificate is not of trust domain ${trustDomain}`);
  }
  const pkcs8 = x509.PemConverter.decodeFirst(pem.keyPem);
  const privateKey = await webcrypto.subtle.importKey("pkcs8", pkcs8, algorithm, true, ["sign"]);
  const publicKey = (await certificate.publicKey.export(algorithm, ["verify"])) as webcrypto.CryptoKey;
  const probe = random(32);
  const signature = await webcrypto.subtle.sign(algorithm, privateKey, probe);
  if (!(await webcrypto.subtle.verify(algorithm, publicKey, signature, probe))) {
    throw new Error("the CA key does not belong to the CA certificate");
  }
  const keys = { privateKey, publicKey };
  return { trustDomain, clock, random, keys, certificate, certPem: pem.certPem, keyPem: pem.keyPem };
};

/** A P-256 leaf for both ends of TLS, never valid beyond its CA. Throws on a bad path, name or lifetime: callers check input first. */
export const issueCertificate = async (
  authority: Authority,
  request: CertificateRequest,
): Promise<IssuedCertificate> => {
  const uri = `spiffe://${authority.trustDomain}${request.spiffePath}`;
  const caller = parseSpiffeId(uri, authority.trustDomain);
  if (!caller) throw new TypeError(`not an identity path: ${JSON.stringify(request.spiffePath)}`);
  if (!(request.validMs >= 1000 && request.validMs <= maxValidMs)) throw new RangeError("validMs: 1 second to 31 days");
  const dnsNames = request.dnsNames ?? [];
  if (dnsNames.length > maxDnsNames) throw new RangeError(`at most ${maxDnsNames} DNS names`);
  const keys = await newKeys();
  const now = authority.clock.now();
  const certificate = await x509.X509CertificateGenerator.create({
    serialNumber: newSerialNumber(authority.random),
    subject: distinguishedName(organizationalUnits[caller.kind], request.commonName).toString(),
    issuer: authority.certificate.subject,
    notBefore: new Date(now - backdateMs),
    notAfter: new Date(Math.min(now + request.validMs, authority.certificate.notAfter.getTime())),
    publicKey: keys.publicKey,
    signingKey: authority.keys.privateKey,
    signingAlgorithm: algorithm,
    extensions: [
      new x509.BasicConstraintsExtension(false, undefined, true),
      new x509.KeyUsagesExtension(x509.KeyUsageFlags.digitalSignature, true),
      new x509.ExtendedKeyUsageExtension([x509.ExtendedKeyUsage.serverAuth, x509.ExtendedKeyUsage.clientAuth]),
      new x509.SubjectAlternativeNameExtension([
        { type: "url", value: uri },
        ...dnsNames.map((value) => ({ type: "dns" as const, value })),
      ]),
      await x509.AuthorityKeyIdentifierExtension.create(authority.keys.publicKey),
      await x509.SubjectKeyIdentifierExtension.create(keys.publicKey),
    ],
  });
  return { certPem: certificate.toString("pem"), keyPem: await pemOfKey(keys.privateKey) };
};
