import { randomFillSync } from "node:crypto";

/** Randomness as a parameter: `n` fresh bytes. */
export type Random = (n: number) => Uint8Array;

const pool = new Uint8Array(8192);
let used = pool.length;

/** Cryptographic bytes from a pool: one system call for many small draws. A byte handed out is overwritten in the pool. */
export const systemRandom: Random = (n) => {
  if (n > pool.length / 4) return randomFillSync(new Uint8Array(n));
  if (used + n > pool.length) {
    randomFillSync(pool);
    used = 0;
  }
  const bytes = pool.slice(used, used + n);
  pool.fill(0, used, used + n);
  used += n;
  return bytes;
};

const hexOfByte = Array.from({ length: 256 }, (_, byte) => byte.toString(16).padStart(2, "0"));

/** UUIDv7 (RFC 9562): 48-bit milliseconds, then random; sorts by time. */
export const uuidV7 = (nowMs: number, random: Random): string => {
  const bytes = random(10);
  const hex = (i: number, and = 0xff, or = 0) => hexOfByte[((bytes[i] as number) & and) | or] as string;
  const time = Math.floor(nowMs).toString(16).padStart(12, "0");
  const version = hex(0, 0x0f, 0x70) + hex(1);
  const variant = hex(2, 0x3f, 0x80) + hex(3);
  return `${time.slice(0, 8)}-${time.slice(8)}-${version}-${variant}-${hex(4)}${hex(5)}${hex(6)}${hex(7)}${hex(8)}${hex(9)}`;
};
