import { hash, type KeyObject } from "node:crypto";

const hashBytes = 32;
const blockBytes = 64;

/** SHA-256 of the secret's characters, 32 bytes. As sensitive as the secret: `VerifyToken` takes it instead. */
export const secretHash = (secret: string): Uint8Array => hash("sha256", secret, "buffer");

/** The two blocks of a key, each with room for the hash behind it. */
interface Pads {
  readonly inner: Uint8Array;
  readonly outer: Uint8Array;
}

const padsOf = new WeakMap<KeyObject, Pads>();

const padsFor = (key: KeyObject): Pads => {
  const known = padsOf.get(key);
  if (known) return known;
  const bytes = key.export();
  if (bytes.length > blockBytes) throw new RangeError(`digest: a pepper of at most ${blockBytes} bytes wanted`);
  const padded = (mask: number) =>
    Uint8Array.from({ length: blockBytes + hashBytes }, (_, i) => (i < blockBytes ? mask ^ (bytes[i] ?? 0) : 0));
  const pads = { inner: padded(0x36), outer: padded(0x5c) };
  bytes.fill(0);
  padsOf.set(key, pads);
  return pads;
};

/**
 * What is stored of a secret: HMAC-SHA-256(pepper, SHA-256(secret)), 32 bytes. Throws unless given a 32-byte hash. Written out (RFC 2104)
 * over one-shot hashes: Node has no one-shot HMAC, and making one of its Hmac objects takes longer than all the rest of it.
 */
export const digest = (pepperKey: KeyObject, hashOfSecret: Uint8Array): Uint8Array => {
  if (hashOfSecret.length !== hashBytes) throw new RangeError(`digest: ${hashBytes} bytes of SHA-256 wanted`);
  const { inner, outer } = padsFor(pepperKey);
  inner.set(hashOfSecret, blockBytes);
  outer.set(hash("sha256", inner, "buffer"), blockBytes);
  inner.fill(0, blockBytes);
  return hash("sha256", outer, "buffer");
};
