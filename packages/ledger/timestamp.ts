import { hash, X509Certificate } from "node:crypto";
import { fromBER, Integer, OctetString, Sequence } from "asn1js";
import {
  AlgorithmIdentifier,
  Certificate,
  type ExtKeyUsage,
  MessageImprint,
  PKIStatus,
  SignedData,
  type SignerInfo,
  TimeStampReq,
  TimeStampResp,
  TSTInfo,
} from "pkijs";

/*
 * Timestamps of somebody else's clock (RFC 3161): a time-stamp authority (TSA) signs that it has seen a hash, and when.
 * SHA-256 throughout. pkijs takes ASN.1 and CMS apart and follows the chain of certificates; what it leaves out is here.
 */

/** Of an answer: a token with a chain of certificates has some kilobytes. */
export const MAX_TIMESTAMP_BYTES = 65_536;
const MAX_DATA_BYTES = 1_000_000;
export const NONCE_BYTES = 16;

const sha256 = "2.16.840.1.101.3.4.2.1";
const signedDataType = "1.2.840.113549.1.7.2";
const tstInfoType = "1.2.840.113549.1.9.16.1.4";
const contentTypeAttribute = "1.2.840.113549.1.9.3";
/** RFC 5816 and RFC 2634: which certificate signs, as a signed attribute. */
const signingCertificateV2 = "1.2.840.113549.1.9.16.2.47";
const signingCertificate = "1.2.840.113549.1.9.16.2.12";
const hashNames: Readonly<Record<string, string>> = {
  "1.3.14.3.2.26": "sha1",
  [sha256]: "sha256",
  "2.16.840.1.101.3.4.2.2": "sha384",
  "2.16.840.1.101.3.4.2.3": "sha512",
};
const extendedKeyUsage = "2.5.29.37";
const timeStamping = "1.3.6.1.5.5.7.3.8";

/** No timestamp of these bytes by an authority that we trust. The message says which rule was broken and repeats nothing of the answer. */
export class TimestampRefused extends Error {
  override readonly name = "TimestampRefused";
}

export type Timestamp = {
  /** When the authority says that it had the hash, in ms since the Unix epoch. */
  readonly timeMs: number;
  /** Object identifier of the policy under which it says so. */
  readonly policy: string;
};

/** The bytes of `der`, in memory of their own: what pkijs takes. */
const bufferOf = (der: Uint8Array): ArrayBuffer => new Uint8Array(der).buffer;

/** An INTEGER that is positive and has as many bytes as `nonce`, whatever those are. */
const nonceInteger = (nonce: Uint8Array): Integer => {
  const bytes = new Uint8Array(nonce);
  bytes[0] = ((bytes[0] ?? 0) & 0x3f) | 0x40;
  return new Integer({ valueHex: bytes.buffer });
};

/** The DER of a TimeStampReq (section 2.4.1) for `data`, which asks for the certificate of the authority. `nonce`: 16 random bytes. */
export const timestampQuery = (data: Uint8Array, nonce: Uint8Array): Uint8Array => {
  if (nonce.length !== NONCE_BYTES) throw new RangeError(`a nonce has ${NONCE_BYTES} bytes`);
  const request = new TimeStampReq({
    version: 1,
    messageImprint: new MessageImprint({
      hashAlgorithm: new AlgorithmIdentifier({ algorithmId: sha256 }),
      hashedMessage: new OctetString({ valueHex: bufferOf(hash("sha256", data, "buffer")) }),
    }),
    nonce: nonceInteger(nonce),
    certReq: true,
  });
  return new Uint8Array(request.toSchema().toBER());
};

const must: (holds: unknown, otherwise: string) => asserts holds = (holds, otherwise) => {
  if (!holds) throw new TimestampRefused(otherwise);
};

/** What `read` answers; whatever it throws over malformed input (a stack that overflows too) is a refusal. */
const wellFormed = async <T>(otherwise: string, read: () => T | Promise<T>): Promise<T> => {
  try {
    return await read();
  } catch (error) {
    if (error instanceof TimestampRefused) throw error;
    throw new TimestampRefused(otherwise, { cause: error });
  }
};

const sameBytes = (a: Uint8Array, b: Uint8Array): boolean => Buffer.compare(a, b) === 0;

/** The signed token of an answer that grants one. */
const readToken = (response: Uint8Array): SignedData => {
  must(fromBER(bufferOf(response)).offset === response.length, "the answer is malformed");
  const { status, timeStampToken } = TimeStampResp.fromBER(bufferOf(response));
  must(
    status.status === PKIStatus.granted || status.status === PKIStatus.grantedWithMods,
    "the authority does not grant a timestamp",
  );
  must(timeStampToken, "there is no token in the answer");
  must(timeStampToken.contentType === signedDataType, "the token is not signed");
  return new SignedData({ schema: timeStampToken.content });
};

const attributeOf = ({ signedAttrs }: SignerInfo, type: string) =>
  signedAttrs?.attributes.filter((attribute) => attribute.type === type).flatMap(({ values }) => values) ?? [];

/** Section 2.3 and 2.4.2: a certificate for timestamps alone, and named under the signature, so that no other can take its place. */
const checkSigner = (certificate: Certificate, signer: SignerInfo): void => {
  const usage = certificate.extensions?.find(({ extnID }) => extnID === extendedKeyUsage);
  const purposes = (usage?.parsedValue as ExtKeyUsage | undefined)?.keyPurposes ?? [];
  must(
    usage?.critical && purposes.length === 1 && purposes[0] === timeStamping,
    "the certificate that signs is not for timestamps alone",
  );
  const [v2] = attributeOf(signer, signingCertificateV2);
  const [named] = v2 ? [v2] : attributeOf(signer, signingCertificate);
  must(named instanceof Sequence, "the certificate that signs is not named under the signature");
  const [ids] = named.valueBlock.value;
  const [id] = ids instanceof Sequence ? ids.valueBlock.value : [];
  const [first, second] = id instanceof Sequence ? id.valueBlock.value : [];
  const stated = first instanceof Sequence ? new AlgorithmIdentifier({ schema: first }).algorithmId : undefined;
  const name = stated ? hashNames[stated] : v2 ? "sha256" : "sha1";
  const certHash = first instanceof OctetString ? first : second;
  must(name && certHash instanceof OctetString, "the certificate that signs is named by no hash that is known");
  const own = hash(name, new Uint8Array(certificate.toSchema().toBER()), "buffer");
  must(sameBytes(own, certHash.valueBlock.valueHexView), "another certificate is named than the one that signs");
};

/** PEM of one or more certificates, as DER. Throws a TimestampRefused where there is none. */
export const readAuthorities = (pem: string): readonly Uint8Array[] => {
  const blocks = pem.match(/-----BEGIN CERTIFICATE-----[A-Za-z0-9+/=\s]+-----END CERTIFICATE-----/g) ?? [];
  must(blocks.length > 0, "there is no PEM certificate");
  try {
    return blocks.map((block) => new X509Certificate(block).raw);
  } catch (error) {
    throw new TimestampRefused("a PEM certificate is malformed", { cause: error });
  }
};

/** The token of an answer, and what it says, which is over `data`. */
const readClaim = async (response: Uint8Array, data: Uint8Array) => {
  must(response.length <= MAX_TIMESTAMP_BYTES, `the answer has over ${MAX_TIMESTAMP_BYTES} bytes`);
  must(data.length > 0 && data.length <= MAX_DATA_BYTES, `there are no bytes to check, or over ${MAX_DATA_BYTES}`);
  const token = await wellFormed("the answer is malformed", () => readToken(response));
  const { eContentType, eContent } = token.encapContentInfo;
  must(eContentType === tstInfoType && eContent, "the token is no timestamp");
  const info = await wellFormed("the timestamp is malformed", () => TSTInfo.fromBER(eContent.getValue()));
  must(info.version === 1, "the timestamp is not of version 1");
  must(info.messageImprint.hashAlgorithm.algorithmId === sha256, "the timestamp is not over a SHA-256 hash");
  const imprint = info.messageImprint.hashedMessage.valueBlock.valueHexView;
  must(sameBytes(imprint, hash("sha256", data, "buffer")), "the timestamp is of something else");
  const timeMs = info.genTime.getTime();
  must(Number.isSafeInteger(timeMs), "the time is malformed");
  return { token, info, said: { timeMs, policy: info.policy } };
};

/**
 * What the DER of a TimeStampResp says of `data`. Nobody's signature was checked: anybody may have made it up. Rejects with a
 * TimestampRefused for what no authority could have meant as a timestamp of `data`.
 */
export const claimedTimestamp = async (response: Uint8Array, data: Uint8Array): Promise<Timestamp> =>
  (await readClaim(response, data)).said;

/**
 * Opens the DER of a TimeStampResp (section 2.4.2): granted, over `data`, with the nonce of the query where one is given, signed by
 * a certificate for timestamps that leads to one of `authorities` (DER) and was valid then. Whether it was revoked is not looked at.
 * Rejects with a TimestampRefused.
 */
export const openTimestamp = async (
  response: Uint8Array,
  expected: { readonly data: Uint8Array; readonly nonce?: Uint8Array; readonly authorities: readonly Uint8Array[] },
): Promise<Timestamp> => {
  const { data, nonce, authorities } = expected;
  const { token, info, said } = await readClaim(response, data);
  if (nonce !== undefined) {
    const stated = info.nonce?.valueBlock.valueHexView ?? new Uint8Array();
    must(sameBytes(stated, nonceInteger(nonce).valueBlock.valueHexView), "the timestamp is of another query");
  }
  const [signer, ...more] = token.signerInfos;
  must(signer && more.length === 0, "a timestamp has one signature");
  must(attributeOf(signer, contentTypeAttribute).length === 1, "the kind of content is not under the signature");
  const trustedCerts = authorities.map((der) => Certificate.fromBER(bufferOf(der)));
  const verified = await wellFormed("the signature does not lead to a trusted authority", () =>
    token.verify({ signer: 0, data: bufferOf(data), trustedCerts, checkChain: true, extendedMode: true }),
  );
  const { signatureVerified, signerCertificate } = verified;
  must(signatureVerified === true && signerCertificate, "the signature does not hold");
  await wellFormed("the signer's certificate is malformed", () => checkSigner(signerCertificate, signer));
  return said;
};
