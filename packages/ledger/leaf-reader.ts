import type { SealedRecord } from "./leaf.ts";

/**
 * Reads the leaves that are nearly all of them: format 1, every field at most once and in order, text in ASCII, nothing negative, no
 * oversize record. What it reads, the protobuf library reads to the same, in four times the time: verifying a ledger spends most of its
 * own on this.
 */

/** Below 2^53 none takes more. */
const maxVarintBytes = 8;
const maxInt32 = 2 ** 31 - 1;

/** Not a plain leaf; carries no stack, since it is thrown away. */
const unusual = Symbol("unusual");

/** Whether `text`, in ASCII, stands there. */
const isAt = (bytes: Buffer, start: number, text: string): boolean => {
  // From its end: texts of the same kind begin alike.
  for (let i = text.length - 1; i >= 0; i -= 1) {
    const code = text.charCodeAt(i);
    if (code !== bytes[start + i] || code >= 128) return false;
  }
  return true;
};

class LeafReader {
  readonly #bytes: Buffer;
  #at = 0;
  #end: number;

  constructor(bytes: Buffer) {
    this.#bytes = bytes;
    this.#end = bytes.length;
  }

  /** Whether the field of this tag comes next, which is then passed. */
  next(tag: number): boolean {
    if (this.#at >= this.#end || this.#bytes[this.#at] !== tag) return false;
    this.#at += 1;
    return true;
  }

  assertEnd(): void {
    if (this.#at !== this.#end) throw unusual;
  }

  #varint(): number {
    const first = this.#at < this.#end ? (this.#bytes[this.#at] as number) : 128;
    if (first < 128) {
      this.#at += 1;
      return first;
    }
    let value = 0;
    let unit = 1;
    for (let i = 0; i < maxVarintBytes && this.#at < this.#end; i += 1) {
      const byte = this.#bytes[this.#at] as number;
      this.#at += 1;
      value += (byte & 127) * unit;
      if (byte < 128) return value;
      unit *= 128;
    }
    throw unusual;
  }

  number(tag: number, most: number): number {
    const value = this.next(tag) ? this.#varint() : 0;
    if (value > most) throw unusual;
    return value;
  }

  /** Passes a length and what it counts; answers where that begins. */
  #delimited(): number {
    const length = this.#varint();
    const start = this.#at;
    if (length > this.#end - start) throw unusual;
    this.#at = start + length;
    return start;
  }

  /** `like`: answered itself where it is the same; to compare costs less than to make a text. */
  text(tag: number, like = ""): string {
    if (!this.next(tag)) return "";
    const start = this.#delimited();
    const end = this.#at;
    const bytes = this.#bytes;
    if (like.length === end - start && isAt(bytes, start, like)) return like;
    for (let i = start; i < end; i += 1) if ((bytes[i] as number) >= 128) throw unusual;
    return bytes.toString("latin1", start, end);
  }

  /** Shares memory. */
  data(tag: number): Uint8Array {
    if (!this.next(tag)) return new Uint8Array();
    return this.#bytes.subarray(this.#delimited(), this.#at);
  }

  /** What `read` reads of the message whose tag was passed, which must be all of it. */
  message<T>(read: () => T): T {
    const outer = this.#end;
    const start = this.#delimited();
    this.#end = this.#at;
    this.#at = start;
    const value = read();
    this.assertEnd();
    this.#end = outer;
    return value;
  }
}

const readLeaf = (reader: LeafReader, like: SealedRecord | undefined): SealedRecord => {
  if (reader.number(0x08, 1) !== 1) throw unusual;
  const topic = reader.text(0x12, like?.topic);
  const partition = reader.number(0x18, maxInt32);
  const offset = reader.number(0x20, Number.MAX_SAFE_INTEGER);
  const timestampMs = reader.number(0x28, Number.MAX_SAFE_INTEGER);
  const key = reader.text(0x32, like?.key);
  const headers: (readonly [string, string])[] = [];
  const header = () => {
    const [name, text] = like?.headers[headers.length] ?? [];
    return [reader.text(0x0a, name), reader.text(0x12, text)] as const;
  };
  while (reader.next(0x3a)) headers.push(reader.message(header));
  const value = reader.data(0x42);
  if (!reader.next(0x4a)) throw unusual;
  const sealedAtMs = reader.message(
    () => reader.number(0x08, Number.MAX_SAFE_INTEGER) * 1_000 + reader.number(0x10, maxInt32) / 1_000_000,
  );
  reader.assertEnd();
  return { topic, partition, offset, timestampMs, key, headers, value, oversize: false, sealedAtMs };
};

/**
 * The record of a plain leaf, whose value shares the leaf's memory; undefined for every other leaf, and for what is none. `like` is a
 * record of about the same texts.
 */
export const readPlainLeaf = (leaf: Uint8Array, like: SealedRecord | undefined): SealedRecord | undefined => {
  try {
    const bytes = Buffer.isBuffer(leaf) ? leaf : Buffer.from(leaf.buffer, leaf.byteOffset, leaf.length);
    return readLeaf(new LeafReader(bytes), like);
  } catch (error) {
    if (error === unusual) return undefined;
    throw error;
  }
};
