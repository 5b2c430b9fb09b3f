import { createCipheriv, createDecipheriv, createSecretKey, hkdfSync } from "node:crypto";
import { lengthPrefixed } from "@curfew/runtime/length-prefixed.ts";
import { systemRandom } from "@curfew/runtime/random.ts";
import { describe, expect, it } from "vitest";
import { type FieldPlace, NotSealedThere, openField, type Sealed, sealField } from "./sealed-field.ts";

const keyOf = (byte: number) => createSecretKey(Buffer.alloc(32, byte));
const anna = "psn_000102030405060708090a0b0c0d0e0f";
const place: FieldPlace = { eventType: "curfew.use.decided.v1", field: "source.address", id: "use-1" };
const seal = (text: string, key = keyOf(1)) => sealField(key, anna, place, text, systemRandom);
const contextOf = ({ eventType, field, id }: FieldPlace, pseudonym = anna) =>
  lengthPrefixed("curfew/sealed-field/v1", pseudonym, eventType, field, id);

/** What the key and salt make, by the description in common.proto. */
const derived = (key: number, salt: Uint8Array) => {
  const made = Buffer.from(hkdfSync("sha256", Buffer.alloc(32, key), salt, contextOf(place), 76));
  return { key: made.subarray(0, 32), nonce: made.subarray(32, 44), commitment: made.subarray(44) };
};

describe("a sealed field", () => {
  it("opens under its person's key, where it was sealed", () => {
    for (const text of ["", "203.0.113.7", "ü".repeat(31), "x".repeat(62), "x".repeat(63), "x".repeat(1_022)])
      expect(openField(keyOf(1), seal(text), place)).toBe(text);
    expect(() => seal("x".repeat(1_023))).toThrow(RangeError);
  });

  it("is as long as others of its bucket, and never the same twice", () => {
    const lengths = ["", "::1", "203.0.113.7", "2001:db8:0:0:0:0:0:1"].map((text) => seal(text).ciphertext.length);
    expect(new Set(lengths)).toEqual(new Set([80]));
    expect(seal("x".repeat(63)).ciphertext).toHaveLength(272);
    expect(seal("a").ciphertext).not.toEqual(seal("a").ciphertext);
  });

  it("opens nowhere else: not in another event, field or use, under another pseudonym, or with a bit changed", () => {
    const sealed = seal("203.0.113.7");
    const refused = (changed: Sealed, at: FieldPlace = place, key = keyOf(1)) =>
      expect(() => openField(key, changed, at)).toThrow(NotSealedThere);
    refused(sealed, { ...place, id: "use-2" });
    refused(sealed, { ...place, field: "people" });
    refused(sealed, { ...place, eventType: "curfew.use.completed.v1" });
    refused({ ...sealed, pseudonym: anna.replace("0", "1") });
    refused(sealed, place, keyOf(2));
    for (const part of ["salt", "commitment", "ciphertext"] as const) {
      for (let at = 0; at < sealed[part].length; at += 1) {
        const bytes = Uint8Array.from(sealed[part]);
        bytes[at] = (bytes[at] as number) ^ 1;
        refused({ ...sealed, [part]: bytes });
      }
      refused({ ...sealed, [part]: sealed[part].subarray(1) });
      refused({ ...sealed, [part]: new Uint8Array() });
    }
  });

  it("is what its description says: computed once more from HKDF and AES, and kept as bytes", () => {
    const salt = Uint8Array.from({ length: 16 }, (_, i) => i);
    const sealed = sealField(keyOf(1), anna, place, "203.0.113.7", () => salt);
    const { key, nonce, commitment } = derived(1, salt);
    const content = Buffer.alloc(64);
    content.writeUInt16BE(11);
    content.write("203.0.113.7", 2);
    const aes = createCipheriv("aes-256-gcm", key, nonce).setAAD(contextOf(place));
    const ciphertext = Buffer.concat([aes.update(content), aes.final(), aes.getAuthTag()]);
    expect(sealed).toEqual({ pseudonym: anna, salt, commitment, ciphertext });
    expect(Buffer.from(sealed.commitment).toString("hex")).toMatchInlineSnapshot(
      `"f3818ea818395378b07a23ed4d4693cb0696e05afb4d93523488c52a79baab0c"`,
    );
    expect(Buffer.from(sealed.ciphertext).toString("hex")).toMatchInlineSnapshot(
      `"e1f940abecd1b27c8e92401190150ca39254d507149cd10370eea426df1e4317f9b5a79aa0237158851834377d8d1f574a6358a5adaed6ef8b6f4e43ff98cb06949bfb60b76faac247d6deaba8876c02"`,
    );
  });
});

/** GF(2^128) of GCM (SP 800-38D, 6.3): bit 0 is the leftmost. */
const reduction = 0xe1n << 120n;
const times = (x: bigint, y: bigint): bigint => {
  let z = 0n;
  let v = y;
  for (let i = 127n; i >= 0n; i -= 1n) {
    if ((x >> i) & 1n) z ^= v;
    v = v & 1n ? (v >> 1n) ^ reduction : v >> 1n;
  }
  return z;
};
const power = (x: bigint, n: bigint): bigint => {
  let result = 1n << 127n;
  for (let base = x, left = n; left > 0n; left >>= 1n, base = times(base, base))
    if (left & 1n) result = times(result, base);
  return result;
};
const inverse = (x: bigint) => power(x, 2n ** 128n - 2n);
const block = (bytes: Uint8Array) => BigInt(`0x${Buffer.from(bytes).toString("hex").padEnd(32, "0")}`);
const bytesOf = (x: bigint) => Buffer.from(x.toString(16).padStart(32, "0"), "hex");
const blocksOf = (bytes: Buffer) =>
  Array.from({ length: Math.ceil(bytes.length / 16) }, (_, i) => block(bytes.subarray(16 * i, 16 * i + 16)));

/** GHASH of what is authenticated, and the pad of the tag. */
const gcmOf = (key: Buffer, nonce: Buffer) => {
  const ecb = (input: Buffer) => createCipheriv("aes-256-ecb", key, null).setAutoPadding(false).update(input);
  const h = block(ecb(Buffer.alloc(16)));
  const pad = block(ecb(Buffer.concat([nonce, Buffer.from([0, 0, 0, 1])])));
  const hash = (aad: Buffer, ciphertext: Buffer) => {
    const lengths = (BigInt(aad.length * 8) << 64n) | BigInt(ciphertext.length * 8);
    return [...blocksOf(aad), ...blocksOf(ciphertext), lengths].reduce((y, x) => times(y ^ x, h), 0n);
  };
  return { h, pad, hash };
};

describe("one ciphertext, two keys", () => {
  it("opens under both in plain AES-GCM (the control), and never as a sealed field: the commitment is one key's", () => {
    const salt = Buffer.alloc(16, 7);
    const aad = contextOf(place);
    const [one, two] = [derived(1, salt), derived(2, salt)];
    const [g1, g2] = [gcmOf(one.key, one.nonce), gcmOf(two.key, two.nonce)];
    // The last block of the ciphertext is chosen so that both tags are the same: it is multiplied by the square of each hash key.
    const ciphertext = Buffer.alloc(64, 3);
    ciphertext.fill(0, 48);
    const difference = g1.hash(aad, ciphertext) ^ g1.pad ^ g2.hash(aad, ciphertext) ^ g2.pad;
    const factor = times(g1.h, g1.h) ^ times(g2.h, g2.h);
    bytesOf(times(difference, inverse(factor))).copy(ciphertext, 48);
    const tag = bytesOf(g1.hash(aad, ciphertext) ^ g1.pad);

    const opens = ({ key, nonce }: { key: Buffer; nonce: Buffer }) => {
      const aes = createDecipheriv("aes-256-gcm", key, nonce, { authTagLength: 16 }).setAAD(aad).setAuthTag(tag);
      return Buffer.concat([aes.update(ciphertext), aes.final()]);
    };
    expect(opens(one).equals(opens(two))).toBe(false);

    for (const { commitment } of [one, two]) {
      const sealed = { pseudonym: anna, salt, commitment, ciphertext: Buffer.concat([ciphertext, tag]) };
      const committed = [1, 2].filter((key) => {
        try {
          openField(keyOf(key), sealed, place);
          return true;
        } catch (error) {
          return !/committed/.test((error as Error).message);
        }
      });
      expect(committed).toHaveLength(1);
    }
  });
});
