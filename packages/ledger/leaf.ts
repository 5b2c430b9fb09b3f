import { hash } from "node:crypto";
import { create, fromBinary, type MessageInitShape, toBinary } from "@bufbuild/protobuf";
import { type LedgerEntry, LedgerEntrySchema } from "@curfew/contracts/gen/curfew/ledger/v1/entry_pb.ts";
import { MAX_ENTRY_BYTES } from "./hash.ts";
import { readPlainLeaf } from "./leaf-reader.ts";

/** Leaves of Curfew's ledger: how a record becomes the bytes that are sealed, once, and how those are read. Pure. */

/** A record of a topic, as the bus gives it. */
export interface LogRecord {
  readonly topic: string;
  readonly partition: number;
  readonly offset: number;
  readonly timestampMs: number;
  readonly key: string;
  readonly headers: readonly (readonly [name: string, value: string])[];
  readonly value: Uint8Array;
}

/** A record as its leaf has it. */
export interface SealedRecord extends LogRecord {
  /** Too large for a leaf: only its hash is sealed; key, headers and value are empty. */
  readonly oversize: boolean;
  readonly sealedAtMs: number;
  /** Only on the first leaf of a shard that follows another. */
  readonly opening?: ShardOpening;
}

/** What a shard of the ledger follows. */
export interface ShardOpening {
  /** The signed checkpoint with which the shard before it ended. */
  readonly previousCheckpoint: string;
  /** Entries in all shards before it. */
  readonly first: number;
}

/** A leaf is no entry of ours. */
export class NoLeaf extends Error {
  override name = "NoLeaf";
}

const entryFormat = 1;

/** About the bytes of a record's leaf, known before it is made: exact to a few where text is ASCII, never under a third. */
export const aboutLeafBytes = (record: LogRecord): number => {
  const { topic, key, headers, value } = record;
  let bytes = 64 + topic.length + key.length + value.length;
  for (const header of headers) bytes += 6 + header[0].length + header[1].length;
  return bytes;
};

/** For what `aboutLeafBytes` counts, in the worst case: three bytes for each UTF-16 unit, and long lengths. */
const mostLeafBytes = (record: LogRecord): number => 256 + 3 * aboutLeafBytes(record);

/** Every UTF-16 unit takes a byte or more: such a record is too large, whatever it says. */
const isSurelyOversize = ({ key, headers, value }: LogRecord): boolean => {
  let units = key.length + value.length;
  for (const header of headers) units += header[0].length + header[1].length;
  return units > MAX_ENTRY_BYTES;
};

/** SHA-256 over every part of a record, each with its length, as in `curfew-prev`: what is sealed of one that is too large. */
const recordDigest = ({ topic, partition, key, headers, value }: LogRecord): Uint8Array => {
  const covered = headers.filter(([name]) => name !== "curfew-sig").flat();
  const texts = [topic, String(partition), key, ...covered].map((text) => Buffer.from(text));
  const parts = [...texts, value].flatMap((part) => {
    const length = Buffer.alloc(4);
    length.writeUInt32BE(part.length);
    return [length, part];
  });
  return hash("sha256", Buffer.concat(parts), "buffer");
};

const shared = Buffer.allocUnsafe(64 * 1024);

const firstText = 0x0a;
const secondText = 0x12;
const notShort = -1;

/** From here on a call into the runtime takes less than a loop over the text. */
const longerThanLoops = 12;

/** Writes a text with its tag, where it is short and ASCII, as nearly all are; answers where it ends. `notShort`: this one is not. */
const putShortText = (buffer: Buffer, start: number, tag: number, text: string): number => {
  const { length } = text;
  if (length >= 128) return notShort;
  buffer[start] = tag;
  buffer[start + 1] = length;
  let at = start + 2;
  // Whatever is not ASCII takes more bytes than it has UTF-16 units.
  if (length > longerThanLoops) return buffer.write(text, at) === length ? at + length : notShort;
  for (let i = 0; i < length; i += 1) {
    const code = text.charCodeAt(i);
    if (code >= 128) return notShort;
    buffer[at++] = code;
  }
  return at;
};

/** Protobuf's wire format for the few kinds of field that an entry has; fields at their default are left out, as they must be. */
class EntryWriter {
  readonly #buffer: Buffer;
  #end = 0;

  constructor(most: number) {
    // Used and done with within one call.
    this.#buffer = most <= shared.length ? shared : Buffer.allocUnsafe(most);
  }

  /** A copy. */
  bytes(): Uint8Array {
    const copy = Buffer.allocUnsafe(this.#end);
    this.#buffer.copy(copy, 0, 0, this.#end);
    return copy;
  }

  number(tag: number, value: number): void {
    if (value === 0) return;
    this.#buffer[this.#end++] = tag;
    this.#varint(value);
  }

  text(tag: number, text: string): void {
    if (text === "") return;
    const end = putShortText(this.#buffer, this.#end, tag, text);
    if (end === notShort) this.#delimited(tag, (at) => this.#buffer.write(text, at));
    else this.#end = end;
  }

  /** A message of two texts. */
  pair(tag: number, first: string, second: string): void {
    const length = 4 + first.length + second.length;
    if (first !== "" && second !== "" && length < 128) {
      const start = this.#end;
      this.#buffer[start] = tag;
      this.#buffer[start + 1] = length;
      const middle = putShortText(this.#buffer, start + 2, firstText, first);
      const end = middle === notShort ? notShort : putShortText(this.#buffer, middle, secondText, second);
      if (end !== notShort) {
        this.#end = end;
        return;
      }
    }
    this.message(tag, () => {
      this.text(firstText, first);
      this.text(secondText, second);
    });
  }

  data(tag: number, bytes: Uint8Array): void {
    if (bytes.length === 0) return;
    this.#buffer[this.#end++] = tag;
    this.#varint(bytes.length);
    this.#buffer.set(bytes, this.#end);
    this.#end += bytes.length;
  }

  message(tag: number, write: () => void): void {
    this.#delimited(tag, (at) => {
      this.#end = at;
      write();
      return this.#end - at;
    });
  }

  /** The length stands before what it counts: written first behind one byte for it, then moved where it takes more. */
  #delimited(tag: number, write: (at: number) => number): void {
    const start = this.#end;
    this.#buffer[start] = tag;
    const length = write(start + 2);
    this.#end = start + 1;
    if (length >= 128) this.#buffer.copyWithin(start + 1 + varintBytes(length), start + 2, start + 2 + length);
    this.#varint(length);
    this.#end += length;
  }

  #varint(value: number): void {
    let rest = value;
    while (rest >= 128) {
      this.#buffer[this.#end++] = (rest % 128) | 128;
      rest = Math.floor(rest / 128);
    }
    this.#buffer[this.#end++] = rest;
  }
}

const varintBytes = (value: number): number => (value < 128 ? 1 : value < 16_384 ? 2 : value < 2_097_152 ? 3 : 4);

/** The bytes that `toBinary` makes of the same entry, in a quarter of its time: sealing spends most of its own on this. */
const encodeEntry = (record: LogRecord, seconds: number, nanos: number): Uint8Array => {
  const writer = new EntryWriter(mostLeafBytes(record));
  writer.number(0x08, entryFormat);
  writer.text(0x12, record.topic);
  writer.number(0x18, record.partition);
  writer.number(0x20, record.offset);
  writer.number(0x28, record.timestampMs);
  writer.text(0x32, record.key);
  for (const header of record.headers) writer.pair(0x3a, header[0], header[1]);
  writer.data(0x42, record.value);
  writer.message(0x4a, () => {
    writer.number(0x08, seconds);
    writer.number(0x10, nanos);
  });
  return writer.bytes();
};

const isCount = (value: number) => Number.isSafeInteger(value) && value >= 0;

/** Leaf bytes of a record, and the record as they have it. `opening`: the leaf is the first of a shard that follows another. */
export const encodeLeaf = (
  record: LogRecord,
  sealedAtMs: number,
  opening?: ShardOpening,
): { leaf: Uint8Array; sealed: SealedRecord } => {
  const seconds = Math.floor(sealedAtMs / 1_000);
  const nanos = (sealedAtMs % 1_000) * 1_000_000;
  const { topic, partition, offset, timestampMs, key, headers, value } = record;
  // Kafka says -1 for "no time": rare enough for the long way.
  const counts = isCount(partition) && isCount(offset) && isCount(timestampMs) && isCount(seconds) && isCount(nanos);
  if (!opening && counts && !isSurelyOversize(record)) {
    const leaf = encodeEntry(record, seconds, nanos);
    const sealed = { topic, partition, offset, timestampMs, key, headers, value, oversize: false, sealedAtMs };
    if (leaf.length <= MAX_ENTRY_BYTES) return { leaf, sealed };
  }
  const place: MessageInitShape<typeof LedgerEntrySchema> = {
    format: entryFormat,
    topic,
    partition,
    offset: BigInt(offset),
    timestampMs: BigInt(timestampMs),
    sealedAt: { seconds: BigInt(seconds), nanos },
    ...(opening && { opening: { previousCheckpoint: opening.previousCheckpoint, first: BigInt(opening.first) } }),
  };
  const as = { sealedAtMs, ...(opening && { opening }) };
  if (!isSurelyOversize(record)) {
    const headers = record.headers.map(([name, value]) => ({ name, value }));
    const entry = create(LedgerEntrySchema, { ...place, key: record.key, headers, value: record.value });
    const leaf = toBinary(LedgerEntrySchema, entry);
    if (leaf.length <= MAX_ENTRY_BYTES) return { leaf, sealed: { ...record, oversize: false, ...as } };
  }
  const leaf = toBinary(LedgerEntrySchema, create(LedgerEntrySchema, { ...place, recordSha256: recordDigest(record) }));
  const stripped = { ...record, key: "", headers: [], value: new Uint8Array() };
  return { leaf, sealed: { ...stripped, oversize: true, ...as } };
};

/** Reads a leaf; throws NoLeaf for what is none. */
export const decodeLeaf = (leaf: Uint8Array): SealedRecord => decodeLeafLike(leaf, undefined);

/** The same; `like`, the record before it say, makes it faster and changes nothing. */
export const decodeLeafLike = (leaf: Uint8Array, like: SealedRecord | undefined): SealedRecord =>
  readPlainLeaf(leaf, like) ?? decodeAnyLeaf(leaf);

/** The same of any leaf, by the protobuf library. */
export const decodeAnyLeaf = (leaf: Uint8Array): SealedRecord => {
  let entry: LedgerEntry;
  try {
    entry = fromBinary(LedgerEntrySchema, leaf);
  } catch (error) {
    throw new NoLeaf("a leaf is no ledger entry", { cause: error });
  }
  if (entry.format !== entryFormat || !entry.sealedAt) throw new NoLeaf("a leaf is of an unknown format");
  return {
    topic: entry.topic,
    partition: entry.partition,
    offset: Number(entry.offset),
    timestampMs: Number(entry.timestampMs),
    key: entry.key,
    headers: entry.headers.map(({ name, value }) => [name, value] as const),
    value: entry.value,
    oversize: entry.recordSha256.length > 0,
    sealedAtMs: Number(entry.sealedAt.seconds) * 1_000 + entry.sealedAt.nanos / 1_000_000,
    ...(entry.opening && {
      opening: { previousCheckpoint: entry.opening.previousCheckpoint, first: Number(entry.opening.first) },
    }),
  };
};
