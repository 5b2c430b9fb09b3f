import { createCipheriv, createHash } from "node:crypto";
import { systemRandom } from "@curfew/runtime/random.ts";
import { Aes256Gcm, CipherSuite, DhkemX25519HkdfSha256, HkdfSha256 } from "@hpke/core";
import fc from "fast-check";
import { expect, test } from "vitest";
import * as hpke from "./hpke.ts";

const hex = (s: string) => Buffer.from(s, "hex");
const text = (s: string) => Buffer.from(s, "utf8");

test("RFC 9180 A.1 with AES-256-GCM: derived keys, encapsulation and a thousand accumulated encryptions", () => {
  const info = hex("4f6465206f6e2061204772656369616e2055726e");
  const ephemeral = hpke.deriveKeyPair(hex("2cd7c601cefb3d42a62b04b7a9041494c06c7843818e0ce28a8f704ae7ab20f9"));
  const recipient = hpke.deriveKeyPair(hex("dac33b0e9db1b59dbbea58d59a14e7b5896e9bdf98fad6891e99d1686492b9ee"));
  const skRm = "497b4502664cfea5d5af0b39934dac72242a74f8480451e1aee7d6a53320333d";
  expect(hpke.publicKeyOf(hpke.privateKeyFromRaw(hex(skRm)))).toEqual(recipient.publicKey);
  expect(Buffer.from(recipient.publicKey).toString("hex")).toBe(
    "430f4b9859665145a6b1ba274024487bd66f03a2dd577d7753c68d7d7d00c00c",
  );
  const context = hpke.senderContext(recipient.publicKey, info, ephemeral);
  expect(Buffer.from(context.enc).toString("hex")).toBe(
    "6c93e09869df3402d7bf231bf540fadd35cd56be14f97178f0954db94b7fc256",
  );
  // Inputs are drawn from SHAKE128 of nothing: a length byte, then that many bytes; AAD first, then the plaintext.
  const source = createHash("shake128", { outputLength: 1000 * 2 * 256 }).digest();
  let at = 0;
  const draw = () => {
    const length = source[at] ?? 0;
    at += 1 + length;
    return source.subarray(at - length, at);
  };
  const sink = createHash("shake128", { outputLength: 16 });
  for (let seq = 0; seq < 1000; seq++) {
    const nonce = Buffer.from(context.baseNonce);
    nonce.writeUInt32BE((nonce.readUInt32BE(8) ^ seq) >>> 0, 8);
    const cipher = createCipheriv("aes-256-gcm", context.key, nonce).setAAD(draw());
    sink.update(Buffer.concat([cipher.update(draw()), cipher.final(), cipher.getAuthTag()]));
  }
  expect(sink.digest("hex")).toBe("1702e73e1e71705faa8241022af1deea");
});

test("another implementation opens what is sealed here, and the reverse", async () => {
  const suite = new CipherSuite({ kem: new DhkemX25519HkdfSha256(), kdf: new HkdfSha256(), aead: new Aes256Gcm() });
  const { privateKey, publicKey } = hpke.generateKeyPair(systemRandom);
  const raw = privateKey.export({ format: "der", type: "pkcs8" }).subarray(-32);
  const arrayBuffer = (b: Uint8Array) => new Uint8Array(b).buffer;
  const theirPrivate = await suite.kem.deserializePrivateKey(arrayBuffer(raw));
  const theirPublic = await suite.kem.deserializePublicKey(arrayBuffer(publicKey));
  const info = hpke.sealInfo({ subject: "workload/billing", tokenId: "tok_1", generation: 2, keySha256: publicKey });
  const ours = hpke.seal(await hpke.encapsulate(publicKey), info, text("secret"), text("aad"));
  const opened = await suite.open(
    { recipientKey: theirPrivate, enc: arrayBuffer(ours.enc), info: arrayBuffer(info) },
    arrayBuffer(ours.ciphertext),
    arrayBuffer(text("aad")),
  );
  expect(Buffer.from(opened).toString()).toBe("secret");
  const theirs = await suite.seal(
    { recipientPublicKey: theirPublic, info: arrayBuffer(info) },
    arrayBuffer(text("secret")),
    arrayBuffer(text("aad")),
  );
  const back = hpke.open(privateKey, new Uint8Array(theirs.enc), new Uint8Array(theirs.ct), info, text("aad"));
  expect(back.toString()).toBe("secret");
});

test("whatever is sealed opens again, each time under a fresh key", async () => {
  const { privateKey, publicKey } = hpke.generateKeyPair(systemRandom);
  const bytes = fc.uint8Array({ maxLength: 300 });
  await fc.assert(
    fc.asyncProperty(bytes, bytes, bytes, async (info, plaintext, aad) => {
      const a = hpke.seal(await hpke.encapsulate(publicKey), info, plaintext, aad);
      const b = hpke.seal(await hpke.encapsulate(publicKey), info, plaintext, aad);
      expect(hpke.open(privateKey, a.enc, a.ciphertext, info, aad)).toEqual(Buffer.from(plaintext));
      expect(a.enc).not.toEqual(b.enc);
      expect(a.ciphertext).not.toEqual(b.ciphertext);
    }),
  );
});

test("another key, info, aad, any changed bit and any truncation fail alike", async () => {
  const { privateKey, publicKey } = hpke.generateKeyPair(systemRandom);
  const other = hpke.generateKeyPair(systemRandom).privateKey;
  const info = text("info");
  const { enc, ciphertext } = hpke.seal(await hpke.encapsulate(publicKey), info, text("secret"), text("aad"));
  const flipped = (b: Uint8Array, i: number) => Uint8Array.from(b, (x, j) => (i === j ? x ^ 1 : x));
  expect(() => hpke.open(other, enc, ciphertext, info, text("aad"))).toThrow(hpke.OpenFailed);
  expect(() => hpke.open(privateKey, enc, ciphertext, text("inf0"), text("aad"))).toThrow(hpke.OpenFailed);
  expect(() => hpke.open(privateKey, enc, ciphertext, info, text(""))).toThrow(hpke.OpenFailed);
  for (let i = 0; i < ciphertext.length; i++) {
    expect(() => hpke.open(privateKey, enc, flipped(ciphertext, i), info, text("aad"))).toThrow(hpke.OpenFailed);
    expect(() => hpke.open(privateKey, enc, ciphertext.subarray(0, i), info, text("aad"))).toThrow(hpke.OpenFailed);
  }
  for (let i = 0; i < enc.length; i++)
    expect(() => hpke.open(privateKey, flipped(enc, i), ciphertext, info, text("aad"))).toThrow(hpke.OpenFailed);
  expect(() => hpke.open(privateKey, enc.subarray(1), ciphertext, info, text("aad"))).toThrow(hpke.OpenFailed);
});

test.each([
  ["empty", ""],
  ["31 bytes", "00".repeat(31)],
  ["33 bytes", "09".repeat(33)],
  ["zero (low order)", "00".repeat(32)],
  ["one (low order)", `01${"00".repeat(31)}`],
  ["of order 8", "e0eb7a7c3b41b8ae1656e3faf19fc46ada098deb9c32b1fd866205165f49b800"],
])("nothing is sealed to a public key that is %s", async (_what, key) => {
  await expect(hpke.encapsulate(hex(key))).rejects.toThrow(hpke.InvalidKey);
});

test("the binding differs whenever one of its parts does, also when text moves between parts", () => {
  const base = { subject: "workload/a", tokenId: "tok_1", generation: 1, keySha256: Buffer.alloc(32) };
  const all = [
    base,
    { ...base, subject: "workload/at", tokenId: "ok_1" },
    { ...base, generation: 11 },
    { ...base, tokenId: "tok_11", generation: 1 },
    { ...base, keySha256: Buffer.alloc(32, 1) },
  ].map((b) => Buffer.from(hpke.sealInfo(b)).toString("hex"));
  expect(new Set(all).size).toBe(all.length);
});
