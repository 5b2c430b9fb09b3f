import { hash } from "node:crypto";

export const HASH_BYTES = 32;
/** The longest entry: an entry bundle states lengths in 16 bits. */
export const MAX_ENTRY_BYTES = 65_535;

// A prefix before the bytes needs one contiguous buffer; hashing is synchronous, so one of each serves everybody.
const leafBuffer = Buffer.alloc(1 + MAX_ENTRY_BYTES);
const nodeBuffer = Buffer.alloc(1 + 2 * HASH_BYTES, 1);

/** By way of a string: to make a Buffer of its own for each digest takes the runtime longer than to hash 1 KB. */
const digest = (bytes: Uint8Array): Uint8Array => Buffer.from(hash("sha256", bytes, "binary"), "latin1");

/** RFC 6962 hash of an entry: SHA-256(0x00 ‖ entry), 32 bytes. Throws a RangeError past `MAX_ENTRY_BYTES`. */
export const leafHash = (entry: Uint8Array): Uint8Array => {
  if (entry.length > MAX_ENTRY_BYTES) throw new RangeError(`a ledger entry has at most ${MAX_ENTRY_BYTES} bytes`);
  leafBuffer.set(entry, 1);
  return digest(leafBuffer.subarray(0, 1 + entry.length));
};

/** RFC 6962 hash of an inner node: SHA-256(0x01 ‖ left ‖ right). Both must be 32 bytes; the caller has checked. */
export const nodeHash = (left: Uint8Array, right: Uint8Array): Uint8Array => {
  nodeBuffer.set(left, 1);
  nodeBuffer.set(right, 1 + HASH_BYTES);
  return digest(nodeBuffer);
};

/** The root of the tree without leaves: SHA-256 of nothing. */
export const emptyRoot = (): Uint8Array => hash("sha256", "", "buffer");

export const isHash = (value: unknown): value is Uint8Array =>
  value instanceof Uint8Array && value.length === HASH_BYTES;

export const sameHash = (a: Uint8Array, b: Uint8Array): boolean => Buffer.compare(a, b) === 0;

/** A size or an index: sizes past 2^53 cannot be counted exactly and are refused everywhere. */
export const isCount = (value: unknown): value is number => Number.isSafeInteger(value) && (value as number) >= 0;
