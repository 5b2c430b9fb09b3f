import { createHash, createHmac, createSecretKey } from "node:crypto";
import { type Random, systemRandom } from "@curfew/runtime/random.ts";
import fc from "fast-check";
import { expect, test } from "vitest";
import { digest, secretHash } from "./digest.ts";
import { ALPHABET, checkCharacters, mintSecret, parseSecret, SECRET_LENGTH, type SecretKind } from "./secret.ts";
import { assertTokenId, parseTokenId, tokenIdFrom } from "./token-id.ts";

const KINDS: readonly SecretKind[] = ["s", "x", "c"];
const kind = fc.constantFrom(...KINDS);
/** Draws bytes out of `bytes`, round and round. */
const replay = (bytes: Uint8Array): Random => {
  let at = 0;
  return (n) => Uint8Array.from({ length: n }, () => bytes[at++ % bytes.length] ?? 0);
};
const anyRandom = fc.uint8Array({ minLength: 64, maxLength: 64, max: 247 }).map(replay);

test("the check characters are those of the published GitHub sample", () => {
  expect(checkCharacters("zQWBuTSOoRi4A9spHcVY5ncnsDkxkJ")).toBe("0mLq17");
  expect(parseSecret("cfws_zQWBuTSOoRi4A9spHcVY5ncnsDkxkJ0mLq17")).toEqual({ ok: true, kind: "s" });
});

test("every secret minted parses as its kind", () => {
  fc.assert(
    fc.property(kind, anyRandom, (k, random) => {
      const secret = mintSecret(k, random);
      expect(secret).toMatch(/^cfw[sxc]_[0-9A-Za-z]{36}$/);
      expect(parseSecret(secret)).toEqual({ ok: true, kind: k });
    }),
  );
});

test("a secret with one character changed, cut, added or swapped does not parse", () => {
  const change = fc.record({
    at: fc.nat(SECRET_LENGTH - 1),
    to: fc.constantFrom(...ALPHABET, "_", "-", " ", "\n", "é"),
  });
  fc.assert(
    fc.property(kind, anyRandom, change, (k, random, { at, to }) => {
      const secret = mintSecret(k, random);
      const changed = secret.slice(0, at) + to + secret.slice(at + 1);
      const anotherKind = at === 3 && KINDS.includes(to as SecretKind);
      if (changed !== secret && !anotherKind) expect(parseSecret(changed)).toEqual({ ok: false });
      expect(parseSecret(secret.slice(0, at) + secret.slice(at + 1))).toEqual({ ok: false });
      expect(parseSecret(secret.slice(0, at) + to + secret.slice(at))).toEqual({ ok: false });
      expect(parseSecret(`${secret}\n`)).toEqual({ ok: false });
    }),
  );
});

test("hostile input is refused without an exception", () => {
  fc.assert(
    fc.property(fc.anything(), (input) => {
      expect(parseSecret(input)).toEqual({ ok: false });
    }),
  );
  expect(parseSecret("cfws_".repeat(1_000_000))).toEqual({ ok: false });
});

test("bytes that would favour some characters are drawn again", () => {
  const secret = mintSecret("s", replay(Uint8Array.from([255, 248, 247, 0, 61, 62])));
  expect(secret.slice(5, 35)).toBe("z0z0".repeat(8).slice(0, 30));
  const drawn = Array.from({ length: 4000 }, () => mintSecret("s", systemRandom).slice(5, 35)).join("");
  const counts = Array.from(ALPHABET, (c) => drawn.split(c).length - 1);
  // 120,000 draws: 1,935 each, standard deviation 44. Eight of them never happens by chance; `% 62` over 256 would exceed it.
  for (const n of counts) expect(Math.abs(n - 120_000 / 62)).toBeLessThan(8 * 44);
});

test("a random source that yields nothing usable ends in an error, not in a loop", () => {
  expect(() => mintSecret("s", (n) => new Uint8Array(n).fill(255))).toThrow("random source");
  expect(() => mintSecret("s", () => new Uint8Array(0))).toThrow("random source");
});

test("what is stored is the HMAC under the pepper of the secret's SHA-256", () => {
  const secret = mintSecret("x", systemRandom);
  const sha = createHash("sha256").update(secret).digest();
  expect(Buffer.from(secretHash(secret)).equals(sha)).toBe(true);
  for (const bytes of [1, 32, 64]) {
    const pepper = systemRandom(bytes);
    const key = createSecretKey(pepper);
    // Twice: the second finds the key prepared.
    for (const hashed of [sha, createHash("sha256").update(pepper).digest()])
      expect(Buffer.from(digest(key, hashed))).toEqual(createHmac("sha256", pepper).update(hashed).digest());
    expect(() => digest(key, Buffer.from(secret))).toThrow(RangeError);
  }
  expect(() => digest(createSecretKey(Buffer.alloc(65)), sha)).toThrow(RangeError);
});

test("a token id holds the first 122 bits of the request key, in order, and nothing else", () => {
  fc.assert(
    fc.property(fc.uint8Array({ minLength: 16, maxLength: 64 }), (key) => {
      const id = tokenIdFrom(key);
      expect(parseTokenId(id)).toBe(id);
      const bits = Array.from(Buffer.from(id.slice(4).replaceAll("-", ""), "hex"), (b) =>
        b.toString(2).padStart(8, "0"),
      ).join("");
      expect(bits.slice(48, 52) + bits.slice(64, 66)).toBe("100010");
      const keyBits = Array.from(key, (b) => b.toString(2).padStart(8, "0")).join("");
      expect(bits.slice(0, 48) + bits.slice(52, 64) + bits.slice(66)).toBe(keyBits.slice(0, 122));
    }),
  );
  expect(tokenIdFrom(new Uint8Array(32))).toBe("tok_00000000-0000-8000-8000-000000000000");
  expect(tokenIdFrom(new Uint8Array(16).fill(255))).toBe("tok_ffffffff-ffff-8fff-bfff-ffffffffffff");
  expect(() => tokenIdFrom(new Uint8Array(15))).toThrow(RangeError);
});

test("nothing but a canonical UUIDv8 is a token id, and a refused text is not repeated", () => {
  const id = "tok_00000000-0000-8000-8000-000000000000";
  assertTokenId(id);
  const bad = [
    id.toUpperCase(),
    `${id}\n`,
    ` ${id}`,
    id.slice(4),
    id.replace("-8000-8", "-7000-8"),
    id.replace("-8000-8", "-8000-c"),
    "",
    null,
  ];
  for (const text of bad) expect(parseTokenId(text)).toBeUndefined();
  fc.assert(
    fc.property(fc.anything(), (input) => {
      expect(parseTokenId(input)).toBeUndefined();
    }),
  );
  const secret = mintSecret("s", systemRandom);
  expect(() => assertTokenId(secret)).toThrow(/^not a token id$/);
});
