import { hash } from "node:crypto";
import type { InRecord, OutRecord } from "./bus.ts";

/**
 * The producer chain (design: evidence, "What is sealed"): every record names its producer epoch, its number there and the hash of the
 * record before it in the same partition, so that whoever reads the topic sees a removed, added or changed record with constant state.
 */
export const producerHeader = "curfew-producer";
export const sequenceHeader = "curfew-seq";
export const previousHeader = "curfew-prev";
/** `curfew-prev` of the first record of a chain. */
export const chainStart = "0".repeat(64);

// Hashing is synchronous, so one buffer serves everybody; only a record larger than it gets one of its own.
const shared = Buffer.allocUnsafe(64 * 1024);

/** SHA-256, hex, over topic, partition, key, every header but `curfew-sig` in order, and value, each length-prefixed (u32 big-endian). */
export const recordHash = (
  topic: string,
  record: { partition: number; key: string; headers: Iterable<readonly [string, string]>; value: Uint8Array },
): string => {
  const parts: (string | Uint8Array)[] = [topic, String(record.partition), record.key];
  for (const [name, value] of record.headers) if (name !== "curfew-sig") parts.push(name, value);
  parts.push(record.value);
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

/** With its chain headers. */
export type ChainedRecord = OutRecord;

/** The chains of one producer epoch on one topic: one per partition. `link` must be called in the order of sending. */
export const openChain = (topic: string, producer: string) => {
  const heads = new Map<number, { sequence: number; hash: string }>();
  return {
    producer,
    /** The record with its chain headers added last. */
    link(record: OutRecord): ChainedRecord {
      const head = heads.get(record.partition) ?? { sequence: 0, hash: chainStart };
      const headers = {
        ...record.headers,
        [producerHeader]: producer,
        [sequenceHeader]: String(head.sequence + 1),
        [previousHeader]: head.hash,
      };
      const linked = { ...record, headers };
      heads.set(record.partition, {
        sequence: head.sequence + 1,
        hash: recordHash(topic, { ...linked, headers: Object.entries(headers) }),
      });
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
  const header = (name: string) => record.headers.find(([n]) => n === name)?.[1];
  const producer = header(producerHeader);
  const number = header(sequenceHeader) ?? "";
  const seen = /^[1-9]\d{0,14}$/.test(number) ? Number(number) : undefined;
  const previous = header(previousHeader);
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
