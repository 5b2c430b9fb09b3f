import { isCount, isHash, nodeHash, sameHash } from "./hash.ts";

/** The most hashes a proof may have; a tree of 2^53 leaves needs 54. The C2SP witness protocol allows as many. */
export const MAX_PROOF_HASHES = 63;

const isProof = (proof: unknown): proof is readonly Uint8Array[] =>
  // Spread: `every` passes over holes.
  Array.isArray(proof) && proof.length <= MAX_PROOF_HASHES && [...proof].every(isHash);

// Not `>>`: sizes pass 2^31.
const half = (n: number): number => Math.floor(n / 2);
const isOdd = (n: number): boolean => n % 2 === 1;

/**
 * Whether `proof` shows the leaf with hash `leaf` at `index` of the tree of `size` leaves with `root` (RFC 9162,
 * 2.1.3.2). False for anything malformed; never throws.
 */
export const verifyInclusion = (
  index: number,
  size: number,
  leaf: Uint8Array,
  proof: readonly Uint8Array[],
  root: Uint8Array,
): boolean => {
  if (!isCount(index) || !isCount(size) || index >= size) return false;
  if (!isHash(leaf) || !isHash(root) || !isProof(proof)) return false;
  let fn = index;
  let sn = size - 1;
  let r = leaf;
  for (const p of proof) {
    if (sn === 0) return false;
    if (isOdd(fn) || fn === sn) {
      r = nodeHash(p, r);
      while (!isOdd(fn) && fn !== 0) {
        fn = half(fn);
        sn = half(sn);
      }
    } else r = nodeHash(r, p);
    fn = half(fn);
    sn = half(sn);
  }
  return sn === 0 && sameHash(r, root);
};

const isPowerOfTwo = (n: number): boolean => {
  let power = 1;
  while (power < n) power *= 2;
  return power === n;
};

/**
 * Whether `proof` shows that the tree of `newer` leaves with `newerRoot` begins with that of `older` leaves with
 * `olderRoot` (RFC 9162, 2.1.4.2). The empty tree is refused: it is consistent with everything and proves nothing.
 * False for anything malformed; never throws.
 */
export const verifyConsistency = (
  older: number,
  newer: number,
  proof: readonly Uint8Array[],
  olderRoot: Uint8Array,
  newerRoot: Uint8Array,
): boolean => {
  if (!isCount(older) || !isCount(newer) || older === 0 || older > newer) return false;
  if (!isHash(olderRoot) || !isHash(newerRoot) || !isProof(proof)) return false;
  if (older === newer) return proof.length === 0 && sameHash(olderRoot, newerRoot);
  const [first, ...rest] = isPowerOfTwo(older) ? [olderRoot, ...proof] : proof;
  if (first === undefined) return false;
  let fn = older - 1;
  let sn = newer - 1;
  while (isOdd(fn)) {
    fn = half(fn);
    sn = half(sn);
  }
  let fr = first;
  let sr = first;
  for (const c of rest) {
    if (sn === 0) return false;
    if (isOdd(fn) || fn === sn) {
      fr = nodeHash(c, fr);
      sr = nodeHash(c, sr);
      while (!isOdd(fn) && fn !== 0) {
        fn = half(fn);
        sn = half(sn);
      }
    } else sr = nodeHash(sr, c);
    fn = half(fn);
    sn = half(sn);
  }
  return sn === 0 && sameHash(fr, olderRoot) && sameHash(sr, newerRoot);
};
