import { createHmac, hash, type KeyObject } from "node:crypto";

const HASH_BYTES = 32;

/** SHA-256 of the secret's characters, 32 bytes. As sensitive as the secret: `VerifyToken` takes it instead. */
export const secretHash = (secret: string): Uint8Array => hash("sha256", secret, "buffer");

/** What is stored of a secret: HMAC-SHA-256(pepper, SHA-256(secret)), 32 bytes. Throws unless given a 32-byte hash. */
export const digest = (pepperKey: KeyObject, hashOfSecret: Uint8Array): Uint8Array => {
  if (hashOfSecret.length !== HASH_BYTES) throw new RangeError(`digest: ${HASH_BYTES} bytes of SHA-256 wanted`);
  return createHmac("sha256", pepperKey).update(hashOfSecret).digest();
};
