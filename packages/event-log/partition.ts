/**
 * The partition of a key, as kafkajs's and Java's default partitioner choose it: murmur2 (32 bits, seed 0x9747b28c) of the UTF-8
 * bytes, sign bit cleared, modulo `count`. Any other client that writes or looks up by key then agrees.
 */
export const partitionFor = (key: string, count: number): number =>
  count === 1 ? 0 : (murmur2(Buffer.from(key, "utf8")) & 0x7fffffff) % count;

const multiplier = 0x5bd1e995;

const murmur2 = (data: Buffer): number => {
  const { length } = data;
  const tail = length & ~3;
  let h = 0x9747b28c ^ length;
  for (let i = 0; i < tail; i += 4) {
    let k = Math.imul(data.readInt32LE(i), multiplier);
    k = Math.imul(k ^ (k >>> 24), multiplier);
    h = Math.imul(h, multiplier) ^ k;
  }
  if (tail < length) {
    for (let i = length - 1; i >= tail; i -= 1) h ^= (data[i] ?? 0) << (8 * (i - tail));
    h = Math.imul(h, multiplier);
  }
  h = Math.imul(h ^ (h >>> 13), multiplier);
  return h ^ (h >>> 15);
};
