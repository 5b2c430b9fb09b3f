import { hash, webcrypto } from "node:crypto";
import { Integer, ObjectIdentifier, OctetString, PrintableString, Sequence } from "asn1js";
import {
  AlgorithmIdentifier,
  Attribute,
  AttributeTypeAndValue,
  BasicConstraints,
  Certificate,
  ContentInfo,
  EncapsulatedContentInfo,
  Extension,
  ExtKeyUsage,
  IssuerAndSerialNumber,
  MessageImprint,
  PKIStatus,
  PKIStatusInfo,
  SignedAndUnsignedAttributes,
  SignedData,
  SignerInfo,
  TimeStampResp,
  TSTInfo,
} from "pkijs";
import { expect, it } from "vitest";
import { NONCE_BYTES, openTimestamp, timestampQuery } from "./timestamp.ts";

/** Answers that OpenSSL would not make: each lacks one thing. Those that it makes are tested in test/journey/timestamp.test.ts. */

const data = Buffer.from("a checkpoint\n");
const timeStamping = "1.3.6.1.5.5.7.3.8";
const codeSigning = "1.3.6.1.5.5.7.3.3";

const makeKeys = async () =>
  (await webcrypto.subtle.generateKey({ name: "ECDSA", namedCurve: "P-256" }, true, [
    "sign",
    "verify",
  ])) as webcrypto.CryptoKeyPair;

/** A certificate by `issuer` for `subject`, with one extension or none. */
const makeCertificate = async (
  subject: string,
  publicKey: webcrypto.CryptoKey,
  issuer: { readonly name: string; readonly privateKey: webcrypto.CryptoKey },
  extensions: readonly Extension[],
  notAfter = new Date("2027-01-01T00:00:00Z"),
) => {
  const certificate = new Certificate();
  const named = (value: string) =>
    new AttributeTypeAndValue({ type: "2.5.4.3", value: new PrintableString({ value }) });
  certificate.version = 2;
  certificate.serialNumber = new Integer({ value: 7 });
  certificate.issuer.typesAndValues.push(named(issuer.name));
  certificate.subject.typesAndValues.push(named(subject));
  certificate.notBefore.value = new Date("2026-01-01T00:00:00Z");
  certificate.notAfter.value = notAfter;
  certificate.extensions = [...extensions];
  await certificate.subjectPublicKeyInfo.importKey(publicKey as never);
  await certificate.sign(issuer.privateKey as never, "SHA-256");
  return { certificate, der: new Uint8Array(certificate.toSchema(true).toBER()) };
};

/** An authority and the certificate of a signer, for `purposes`. */
const makeChain = async (purposes: readonly string[], critical: boolean, notAfter?: Date) => {
  const [root, signer] = [await makeKeys(), await makeKeys()];
  const issuer = { name: "CA", privateKey: root.privateKey };
  const constraints = new BasicConstraints({ cA: true });
  const isCa = new Extension({ extnID: "2.5.29.19", critical: true, extnValue: constraints.toSchema().toBER() });
  const usage = new ExtKeyUsage({ keyPurposes: [...purposes] }).toSchema().toBER();
  const extensions = purposes.length === 0 ? [] : [new Extension({ extnID: "2.5.29.37", critical, extnValue: usage })];
  const authority = await makeCertificate("CA", root.publicKey, issuer, [isCa]);
  const leaf = await makeCertificate("TSA", signer.publicKey, issuer, extensions, notAfter);
  return { ...leaf, authority: authority.der, privateKey: signer.privateKey };
};

type Made = {
  purposes?: readonly string[];
  critical?: boolean;
  notAfter?: Date;
  /** Hash under the signature that names the certificate; null: none. */
  named?: (der: Uint8Array) => Uint8Array | null;
  status?: number;
  version?: number;
  contentType?: string;
  tweak?: (signed: SignedData) => void;
};

const makeAnswer = async (made: Made = {}) => {
  const { purposes = [timeStamping], critical = true, notAfter, status = PKIStatus.granted, version = 1 } = made;
  const { certificate, authority, privateKey, der } = await makeChain(purposes, critical, notAfter);
  const sha256 = (bytes: Uint8Array) => new Uint8Array(hash("sha256", bytes, "buffer"));
  const info = new TSTInfo({
    version,
    policy: "1.2.3",
    messageImprint: new MessageImprint({
      hashAlgorithm: new AlgorithmIdentifier({ algorithmId: "2.16.840.1.101.3.4.2.1" }),
      hashedMessage: new OctetString({ valueHex: sha256(data).buffer }),
    }),
    serialNumber: new Integer({ value: 1 }),
    genTime: new Date("2026-11-27T03:00:00Z"),
  });
  const content = info.toSchema().toBER();
  const contentType = "1.2.840.113549.1.9.16.1.4";
  const certHash = (made.named ?? sha256)(der);
  const attributes = [
    new Attribute({ type: "1.2.840.113549.1.9.3", values: [new ObjectIdentifier({ value: contentType })] }),
    new Attribute({
      type: "1.2.840.113549.1.9.4",
      values: [new OctetString({ valueHex: sha256(new Uint8Array(content)).buffer })],
    }),
  ];
  if (certHash) {
    const id = new Sequence({ value: [new OctetString({ valueHex: new Uint8Array(certHash).buffer })] });
    const value = new Sequence({ value: [new Sequence({ value: [id] })] });
    attributes.push(new Attribute({ type: "1.2.840.113549.1.9.16.2.47", values: [value] }));
  }
  const { issuer, serialNumber } = certificate;
  const signed = new SignedData({
    version: 3,
    encapContentInfo: new EncapsulatedContentInfo({
      eContentType: made.contentType ?? contentType,
      eContent: new OctetString({ valueHex: content }),
    }),
    signerInfos: [
      new SignerInfo({
        version: 1,
        sid: new IssuerAndSerialNumber({ issuer, serialNumber }),
        signedAttrs: new SignedAndUnsignedAttributes({ type: 0, attributes }),
      }),
    ],
    certificates: [certificate],
  });
  await signed.sign(privateKey as never, 0, "SHA-256");
  made.tweak?.(signed);
  const token = new ContentInfo({ contentType: ContentInfo.SIGNED_DATA, content: signed.toSchema(true) });
  const answer = new TimeStampResp({ status: new PKIStatusInfo({ status }), timeStampToken: token });
  return { response: new Uint8Array(answer.toSchema().toBER()), authorities: [authority] };
};

const outcome = async (made?: Made) => {
  const { response, authorities } = await makeAnswer(made);
  return await openTimestamp(response, { data, authorities }).then(
    ({ timeMs }) => new Date(timeMs).toISOString(),
    (error: Error) => `${error.name}: ${error.message}`,
  );
};

it("an answer that lacks nothing is opened", async () => {
  expect(await outcome()).toBe("2026-11-27T03:00:00.000Z");
  expect(await outcome({ status: PKIStatus.grantedWithMods })).toBe("2026-11-27T03:00:00.000Z");
});

it.each<[string, Made, string]>([
  ["is not granted, with a token all the same", { status: PKIStatus.rejection }, "does not grant a timestamp"],
  ["is by a certificate for anything", { purposes: [] }, "is not for timestamps alone"],
  ["is by one for code", { purposes: [codeSigning] }, "is not for timestamps alone"],
  ["is by one for more than timestamps", { purposes: [timeStamping, codeSigning] }, "is not for timestamps alone"],
  ["is by one whose use is not critical", { critical: false }, "is not for timestamps alone"],
  ["is by one that had expired then", { notAfter: new Date("2026-11-27T02:59:59Z") }, "does not lead to a trusted"],
  ["names no certificate", { named: () => null }, "is not named under the signature"],
  ["names another certificate", { named: () => Buffer.alloc(32, 1) }, "another certificate is named"],
  ["is of a version to come", { version: 2 }, "is not of version 1"],
  ["is a signature of something else", { contentType: "1.2.840.113549.1.7.1" }, "the token is no timestamp"],
  [
    "has a second signature",
    { tweak: (signed) => void signed.signerInfos.push(signed.signerInfos[0] as SignerInfo) },
    "a timestamp has one signature",
  ],
  ["has no certificate", { tweak: (signed) => void signed.certificates?.pop() }, "does not lead to a trusted"],
])("one that %s is refused", async (_what, made, why) => {
  const said = await outcome(made);
  expect(said).toContain("TimestampRefused: ");
  expect(said).toContain(why);
});

it("a nonce that is asked for must be there, and has its bytes", async () => {
  const { response, authorities } = await makeAnswer();
  const nonce = Buffer.alloc(NONCE_BYTES, 9);
  await expect(openTimestamp(response, { data, authorities, nonce })).rejects.toThrow("of another query");
  expect(() => timestampQuery(data, Buffer.alloc(8))).toThrow("a nonce has 16 bytes");
  await expect(openTimestamp(response, { data: new Uint8Array(), authorities })).rejects.toThrow("no bytes to check");
});
