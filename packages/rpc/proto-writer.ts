/**
 * Writes protobuf messages field by field, for the few of which there are very many: encoding from the descriptor takes four times as
 * long. A caller writes its fields in the order of their numbers, as protobuf-es does; its test holds the bytes to protobuf-es's.
 */

const chunkBytes = 64 * 1024;
/** Longer texts are faster by one call into the runtime. */
const loopChars = 64;

// Encoding is synchronous, so one chunk serves everybody: a message is a view of it, and what comes next is written behind.
let chunk = Buffer.allocUnsafeSlow(chunkBytes);
let start = 0;
let end = 0;

const reserve = (bytes: number): void => {
  if (end + bytes <= chunk.length) return;
  const larger = Buffer.allocUnsafeSlow(Math.max(chunkBytes, 2 * (end - start + bytes)));
  chunk.copy(larger, 0, start, end);
  end -= start;
  start = 0;
  chunk = larger;
};

/** At most 10 bytes. */
const varint = (value: number): void => {
  let rest = value;
  while (rest >= 0x80) {
    chunk[end++] = (rest % 0x80) | 0x80;
    rest = Math.floor(rest / 0x80);
  }
  chunk[end++] = rest;
};

const negative = (value: bigint): void => {
  let rest = BigInt.asUintN(64, value);
  for (; rest >= 0x80n; rest >>= 7n) chunk[end++] = Number(rest & 0x7fn) | 0x80;
  chunk[end++] = Number(rest);
};

/** The length of what was written behind the byte at `at` (counted from `start`), which was left for it. */
const lengthAt = (at: number): void => {
  const length = end - start - at - 1;
  if (length < 0x80) {
    chunk[start + at] = length;
    return;
  }
  reserve(4);
  const more = length < 2 ** 14 ? 1 : length < 2 ** 21 ? 2 : 3;
  const from = start + at;
  chunk.copyWithin(from + 1 + more, from + 1, end);
  end = from;
  varint(length);
  end += length;
};

/** True when the text was ASCII and is written. */
const asciiWritten = (value: string): boolean => {
  let to = end;
  for (let i = 0; i < value.length; i += 1) {
    const code = value.charCodeAt(i);
    if (code >= 0x80) return false;
    chunk[to++] = code;
  }
  end = to;
  return true;
};

/** A string, also an empty one. Field numbers up to 15. */
export const listedText = (field: number, value: string): void => {
  const { length } = value;
  // A UTF-16 unit takes at most three bytes of UTF-8.
  reserve(2 + 3 * length);
  chunk[end++] = (field << 3) | 2;
  chunk[end++] = length;
  if (length <= loopChars && asciiWritten(value)) return;
  const at = end - start - 1;
  end += chunk.write(value, end);
  lengthAt(at);
};

export const text = (field: number, value: string): void => {
  if (value !== "") listedText(field, value);
};

export const bytes = (field: number, value: Uint8Array): void => {
  const { length } = value;
  if (length === 0) return;
  reserve(12 + length);
  chunk[end++] = (field << 3) | 2;
  varint(length);
  chunk.set(value, end);
  end += length;
};

export const int32 = (field: number, value: number): void => {
  if (value === 0) return;
  reserve(12);
  chunk[end++] = field << 3;
  if (value > 0) varint(value);
  else negative(BigInt(value));
};

export const int64 = (field: number, value: bigint): void => {
  if (value === 0n) return;
  reserve(12);
  chunk[end++] = field << 3;
  if (value > 0n && value <= 0x1fffffffffffffn) varint(Number(value));
  else negative(value);
};

/** A message in a field; absent where there is none. */
export const nested = <T>(field: number, value: T | undefined, write: (value: T) => void): void => {
  if (value === undefined) return;
  reserve(2);
  chunk[end++] = (field << 3) | 2;
  const at = end - start;
  end += 1;
  write(value);
  lengthAt(at);
};

/** google.protobuf.Timestamp. */
export const time = ({ seconds, nanos }: { readonly seconds: bigint; readonly nanos: number }): void => {
  int64(1, seconds);
  int32(2, nanos);
};

/** The bytes of what `write` writes of `value`: a view of memory that others share, not to be changed, transferred or kept for long. */
export const written = <T>(value: T, write: (value: T) => void): Uint8Array<ArrayBuffer> => {
  start = end;
  write(value);
  return new Uint8Array(chunk.buffer, start, end - start);
};
