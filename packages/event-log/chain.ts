import { hash } from "node:crypto";
import type { InRecord, OutRecord } from "./bus.ts";
import type { ProducerKey } from "./producer-key.ts";

/**
 * The producer chain (design: evidence, "What is sealed"): every record names its producer epoch, its number there and the hash of the
 * record before it in the same partition, so that whoever reads the topic sees a removed, added or changed record with constant state.
 */
export const producerHeader = "curfew-producer";
export const sequenceHeader = "curfew-seq";
export const previousHeader = "curfew-prev";
/** On the first record of a chain: the key of its epoch, and who certifies it. Absent: the chain is not signed. */
export const keyHeader = "curfew-key";
/** On the last record that a send adds to a chain: covers it and, by `curfew-prev`, everything before it. */
export const signatureHeader = "curfew-sig";
/** `curfew-prev` of the first record of a chain. */
export const chainStart = "0".repeat(64);

// Hashing is synchronous, so one buffer serves everybody; only a record larger than it gets one of its own.
const shared = Buffer.allocUnsafe(64 * 1024);

interface Hashed {
  readonly partition: number;
  readonly key: string;
  readonly value: Uint8Array;
}

/** Longer texts, and any that are not ASCII, take the long way. */
const maxShort = 255;

/**
 * The texts at the beginning of `shared`, each behind its length. Most are those of the record before, in the same places, and stay as they
 * stand: to compare a text costs less than to write it, and to call into the runtime for each would cost twice as much again.
 */
class ShortTexts {
  readonly #texts: string[] = [];
  readonly #starts: number[] = [];
  /** How many of them still stand there: of the record before, and of the one that is being placed. */
  #standing = 0;
  #placed = 0;
  #count = 0;
  /** -1: one has to take the long way, and so has the record. */
  #end = 0;

  begin(): void {
    this.#standing = this.#placed;
    // Whatever ends this record early: the next one finds nothing.
    this.#placed = 0;
    this.#count = 0;
    this.#end = 0;
  }

  add(text: string): void {
    const start = this.#end;
    if (start < 0) return;
    const at = this.#count;
    const stands = at < this.#standing && this.#starts[at] === start && this.#texts[at] === text;
    this.#end = stands ? start + 4 + text.length : write(text, start);
    this.#texts[at] = text;
    this.#starts[at] = start;
    this.#count = at + 1;
  }

  /** Where they end; -1: they are not all there. What stands behind them may be written over from now on, and they may not. */
  finish(): number {
    this.#placed = this.#end < 0 ? 0 : this.#count;
    return this.#end;
  }
}

/** Writes a text behind its length and answers where it ends; -1: it has to take the long way. */
const write = (text: string, start: number): number => {
  const { length } = text;
  if (length > maxShort || start + 4 + length > shared.length) return -1;
  shared[start] = 0;
  shared[start + 1] = 0;
  shared[start + 2] = 0;
  shared[start + 3] = length;
  let end = start + 4;
  for (let i = 0; i < length; i += 1) {
    const code = text.charCodeAt(i);
    if (code >= 0x80) return -1;
    shared[end++] = code;
  }
  return end;
};

const shortTexts = new ShortTexts();

const placed = (topic: string, { key, partition }: Hashed): void => {
  shortTexts.begin();
  shortTexts.add(topic);
  shortTexts.add(String(partition));
  shortTexts.add(key);
};

/** Undefined: it has to take the long way. */
const placedHash = ({ value }: Hashed): string | undefined => {
  const end = shortTexts.finish();
  if (end < 0 || end + 4 + value.length > shared.length) return undefined;
  shared.writeUInt32BE(value.length, end);
  shared.set(value, end + 4);
  return hash("sha256", shared.subarray(0, end + 4 + value.length), "hex");
};

/** SHA-256, hex, over topic, partition, key, every header but `curfew-sig` in order, and value, each length-prefixed (u32 big-endian). */
export const recordHash = (
  topic: string,
  record: Hashed & { readonly headers: Iterable<readonly [string, string]> },
): string => {
  placed(topic, record);
  for (const [name, value] of record.headers) {
    if (name === signatureHeader) continue;
    shortTexts.add(name);
    shortTexts.add(value);
  }
  return placedHash(record) ?? longHash(topic, record);
};

/** The same of a record that is sent. */
const sentHash = (topic: string, record: OutRecord): string => {
  const { headers } = record;
  placed(topic, record);
  for (const name in headers) {
    if (name === signatureHeader) continue;
    shortTexts.add(name);
    shortTexts.add(headers[name] as string);
  }
  return placedHash(record) ?? longHash(topic, { ...record, headers: Object.entries(headers) });
};

const longHash = (
  topic: string,
  record: Hashed & { readonly headers: Iterable<readonly [string, string]> },
): string => {
  const parts: (string | Uint8Array)[] = [topic, String(record.partition), record.key];
  for (const [name, value] of record.headers) if (name !== signatureHeader) parts.push(name, value);
  return hashOf([...parts, record.value]);
};

const hashOf = (parts: readonly (string | Uint8Array)[]): string => {
  let most = 0;
  // A UTF-16 unit takes at most three bytes of UTF-8.
  for (const part of parts) most += 4 + (typeof part === "string" ? 3 * part.length : part.length);
  const buffer = most <= shared.length ? shared : Buffer.allocUnsafe(most);
  let end = 0;
  for (const part of parts) {
    const start = end + 4;
    if (typeof part === "string") end = start + buffer.write(part, start);
    else {
      buffer.set(part, start);
      end = start + part.length;
    }
    buffer.writeUInt32BE(end - start, start - 4);
  }
  return hash("sha256", buffer.subarray(0, end), "hex");
};

/** The first header of that name. */
export const headerOf = (record: Pick<InRecord, "headers">, name: string): string | undefined => {
  for (const header of record.headers) if (header[0] === name) return header[1];
  return undefined;
};

/** With its chain headers. */
export type ChainedRecord = OutRecord;

/** The chains of one producer epoch on one topic: one per partition. `link` and `linkSend` must be called in the order of sending. */
export const openChain = (topic: string, producer: string, key?: ProducerKey) => {
  const heads = new Map<number, { sequence: number; hash: string }>();
  const link = (record: OutRecord) => {
    const head = heads.get(record.partition) ?? { sequence: 0, hash: chainStart };
    const { partition, value } = record;
    const headers: Record<string, string> = { ...record.headers };
    headers[producerHeader] = producer;
    headers[sequenceHeader] = String(head.sequence + 1);
    headers[previousHeader] = head.hash;
    if (key && head.sequence === 0) headers[keyHeader] = key.certification();
    const linked = { partition, key: record.key, headers, value };
    heads.set(partition, { sequence: head.sequence + 1, hash: sentHash(topic, linked) });
    return linked;
  };
  return {
    producer,
    /** The record with its chain headers added last; without a signature. */
    link: (record: OutRecord): ChainedRecord => link(record),
    /** The records of one send, of which the last of each chain is signed: one signature covers them all. */
    linkSend(records: readonly OutRecord[]): ChainedRecord[] {
      const linked = records.map(link);
      if (!key) return linked;
      const last = new Map(linked.map((record) => [record.partition, record]));
      const signature = key.sign([...last.keys()].map((partition) => (heads.get(partition) as ChainHead).hash));
      for (const { headers } of last.values()) headers[signatureHeader] = signature;
      return linked;
    },
    /** Last number per partition. */
    sequences: () => new Map([...heads].map(([partition, head]) => [partition, head.sequence])),
  };
};

export type ChainVerdict =
  | { readonly kind: "ok" }
  | { readonly kind: "repeat" } // the very record before: an append that the broker wrote twice
  | { readonly kind: "unknown-producer" }
  | { readonly kind: "hole" | "fork"; readonly producer: string; readonly expected: number; readonly seen: number };

/** Position in one chain; what the auditor keeps per (producer epoch, topic, partition). */
export interface ChainHead {
  readonly sequence: number;
  readonly hash: string;
}

/** Checks one record in offset order against its chain's head (undefined: first record seen of it) and answers the next head. */
export const checkLink = (
  head: ChainHead | undefined,
  record: InRecord,
): { verdict: ChainVerdict; producer: string | undefined; head: ChainHead | undefined } => {
  const producer = headerOf(record, producerHeader);
  const number = headerOf(record, sequenceHeader) ?? "";
  const seen = /^[1-9]\d{0,14}$/.test(number) ? Number(number) : undefined;
  const previous = headerOf(record, previousHeader);
  if (producer === undefined || previous === undefined || seen === undefined)
    return { verdict: { kind: "unknown-producer" }, producer, head };
  const expected = (head?.sequence ?? 0) + 1;
  const hash = recordHash(record.topic, record);
  const next = { sequence: seen, hash };
  if (head && hash === head.hash) return { verdict: { kind: "repeat" }, producer, head };
  if (seen > expected) return { verdict: { kind: "hole", producer, expected, seen }, producer, head: next };
  if (seen < expected || previous !== (head?.hash ?? chainStart))
    return { verdict: { kind: "fork", producer, expected, seen }, producer, head: seen < expected ? head : next };
  return { verdict: { kind: "ok" }, producer, head: next };
};
