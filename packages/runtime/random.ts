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

/** UUIDv7 (RFC 9562): 48-bit milliseconds, then random; sorts by time. */
export const uuidV7 = (nowMs: number, random: Random): string => {
  const b = random(16);
  const view = new DataView(b.buffer, b.byteOffset, 16);
  view.setUint16(0, Math.floor(nowMs / 2 ** 32));
  view.setUint32(2, nowMs >>> 0);
  view.setUint8(6, 0x70 | (view.getUint8(6) & 0x0f));
  view.setUint8(8, 0x80 | (view.getUint8(8) & 0x3f));
  const hex = Buffer.from(b).toString("hex");
  return `${hex.slice(0, 8)}-${hex.slice(8, 12)}-${hex.slice(12, 16)}-${hex.slice(16, 20)}-${hex.slice(20)}`;
};
