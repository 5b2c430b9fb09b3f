import { createHash } from "node:crypto";
import { systemRandom } from "@curfew/runtime/random.ts";
import fc from "fast-check";
import { expect, test } from "vitest";
import { findSecrets, MAX_CHUNK_LENGTH, SecretScanner } from "./scan.ts";
import { mintSecret, type SecretKind } from "./secret.ts";
import { secretVariants } from "./variants.ts";

const KINDS: readonly SecretKind[] = ["s", "x", "c"];
const noise = fc.oneof(
  fc.string({ unit: "binary" }),
  fc.constantFrom("", "cfw", "cfws", "cfws_", "_", "cfwx_0123456789abcdefghijABCDEFGHIJ012345", "é", "\n"),
);
/** Text with secrets in it, cut anywhere, and where each secret begins in bytes. */
const planted = fc
  .array(fc.tuple(noise, fc.constantFrom(...KINDS)), { maxLength: 8 })
  .map((parts) => parts.map(([before, kind]) => ({ before, kind, secret: mintSecret(kind, systemRandom) })))
  .map((parts) => {
    const expected: { offset: number; kind: SecretKind; secret: string }[] = [];
    let bytes = Buffer.alloc(0);
    for (const { before, kind, secret } of parts) {
      bytes = Buffer.concat([bytes, Buffer.from(before)]);
      expected.push({ offset: bytes.length, kind, secret });
      bytes = Buffer.concat([bytes, Buffer.from(secret)]);
    }
    return { bytes: Buffer.concat([bytes, Buffer.from("cfws_tail")]), expected };
  });

test("every secret in a piece of text is found at its place, whatever stands around it", () => {
  fc.assert(
    fc.property(planted, ({ bytes, expected }) => {
      expect(findSecrets(bytes)).toEqual(expected);
      const text = bytes.toString();
      const found = findSecrets(text);
      expect(found.map(({ secret }) => secret)).toEqual(expected.map(({ secret }) => secret));
      for (const { offset, secret } of found) expect(text.startsWith(secret, offset)).toBe(true);
    }),
  );
});

test("a stream cut anywhere, also into single bytes, gives each secret once at the same place", () => {
  const cuts = fc.array(fc.integer({ min: 1, max: 97 }), { minLength: 1 });
  fc.assert(
    fc.property(planted, cuts, ({ bytes, expected }, sizes) => {
      const scanner = new SecretScanner();
      const found = [];
      for (let at = 0, i = 0; at < bytes.length; i++) {
        const end = at + (sizes[i % sizes.length] ?? 1);
        found.push(...scanner.push(bytes.subarray(at, end)));
        at = end;
      }
      expect(found).toEqual(expected);
      const single = new SecretScanner();
      expect([...bytes].flatMap((byte) => single.push(Uint8Array.of(byte)))).toEqual(expected);
    }),
  );
});

test("noise of the right shape is no secret, and does not hide one that begins inside it", () => {
  const secret = mintSecret("c", systemRandom);
  expect(findSecrets("cfws_0123456789abcdefghijABCDEFGHIJ012345")).toEqual([]);
  const hidden = `cfws_0123456789abcdefghijABCDEFGHIJ01${secret}`;
  expect(findSecrets(hidden)).toEqual([{ offset: hidden.length - secret.length, kind: "c", secret }]);
});

test("a piece past the limit is refused rather than cut short", () => {
  expect(() => findSecrets(Buffer.alloc(MAX_CHUNK_LENGTH + 1))).toThrow(RangeError);
});

const forms = (secret: string) => new Map(secretVariants(secret).map(({ form, bytes }) => [form, bytes]));

test("the canary finds a secret in every form it can leak in, behind and before anything", () => {
  fc.assert(
    fc.property(fc.constantFrom(...KINDS), fc.uint8Array(), fc.uint8Array(), (kind, before, after) => {
      const secret = mintSecret(kind, systemRandom);
      const sha = createHash("sha256").update(secret).digest();
      const variants = secretVariants(secret);
      const within = (body: Uint8Array) => Buffer.concat([before, body, after]);
      const hidesIn = (leak: Uint8Array | string) => variants.some(({ bytes }) => Buffer.from(leak).includes(bytes));
      for (const body of [Buffer.from(secret), Buffer.from(secret.slice(5, 35)), sha]) {
        const leak = within(body);
        const texts = [leak.toString("base64"), leak.toString("base64url"), leak.toString("hex")];
        for (const found of [leak, ...texts, leak.toString("hex").toUpperCase()]) expect(hidesIn(found)).toBe(true);
      }
    }),
  );
});

test("another secret's forms are not this one's, and no form's name reveals anything", () => {
  const [one, two] = [mintSecret("s", systemRandom), mintSecret("s", systemRandom)];
  const mine = [...forms(one).values()].map((bytes) => bytes.toString("latin1"));
  for (const bytes of forms(two).values()) expect(mine).not.toContain(bytes.toString("latin1"));
  for (const form of forms(one).keys()) for (const text of mine) expect(form).not.toContain(text);
  expect(Math.min(...mine.map((text) => text.length))).toBeGreaterThan(20);
  expect(forms(one).size).toBe(secretVariants(one).length);
  expect(() => secretVariants("cfws_short")).toThrow(/^secretVariants: not a secret$/);
});
