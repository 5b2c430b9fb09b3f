import { GapCause } from "@curfew/contracts/gen/curfew/events/v1/evidence_pb.ts";
import { type ChainHead, checkLink, producerHeader } from "@curfew/event-log/chain.ts";
import { topicNames } from "@curfew/event-log/event-types.ts";
import { type Batch, type LedgerHead, nextOffset } from "./domain.ts";
import type { SealedRecord } from "./leaf.ts";

/**
 * Whether everything that was produced is there (design: evidence, "Producer chain"): each sealed record is checked, in offset order,
 * against the head of its chain, and each event of a numbered stream against its predecessor. State is bounded: heads that fell out of
 * memory, or were made before a restart, are read from what earlier batches left in the read model.
 */

/** Something missing, doubled or strange, at one record. */
export interface Finding {
  /** curfew-producer; empty: the record names none that could be one of ours. */
  readonly producer: string;
  readonly cause: GapCause;
  readonly topic: string;
  readonly partition: number;
  readonly offset: number;
  readonly expected: number;
  readonly seen: number;
}

export interface ChainPoint extends ChainHead {
  /** Producer epoch, topic and partition. */
  readonly chain: string;
}

export interface CheckedBatch {
  /** At most one per producer and cause. */
  readonly findings: readonly Finding[];
  /** By place in the batch: the last record of a chain in it, and the chain's head there. */
  readonly heads: ReadonlyMap<number, ChainPoint>;
  /** Moves the memory on; to be called once the batch's rows are written, and not when it has to be checked again. */
  commit(): void;
}

export interface CompletenessParts {
  /** Head of a chain as of all leaves below index `below`; undefined where none of it was sealed. */
  readonly headBelow: (chain: string, below: number) => Promise<ChainHead | undefined>;
  /** Whether an event with that number of the stream was sealed in an earlier batch. */
  readonly hasEvent: (topic: string, stream: string, sequence: number) => Promise<boolean>;
  /** Topic of a producer epoch's row in the store of producers; undefined: there is no such producer. */
  readonly topicOfProducer: (producer: string) => Promise<string | undefined>;
}

const maxRemembered = 50_000;
/** service/instance/epoch, as our producers write it. Anything else names no chain. */
const producerForm = /^[a-z][a-z0-9-]*\/[A-Za-z0-9._-]{1,128}\/\d{1,15}$/;

/** Forgets what was written longest ago. */
const remember = <V>(memory: Map<string, V>, entries: Iterable<readonly [string, V]>): void => {
  for (const [key, value] of entries) {
    memory.delete(key);
    memory.set(key, value);
  }
  for (const key of memory.keys()) {
    if (memory.size <= maxRemembered) break;
    memory.delete(key);
  }
};

const headerOf = (record: SealedRecord, name: string) => record.headers.find(([n]) => n === name)?.[1];

/** Number of an event in its stream; undefined on uses and on what is no event of ours. */
export const streamPlace = (record: SealedRecord): { stream: string; sequence: number } | undefined => {
  if (record.topic === topicNames.uses) return undefined;
  const stream = headerOf(record, "ce_subject");
  const sequence = headerOf(record, "ce_sequence");
  if (!stream || sequence === undefined || !/^[1-9]\d{0,14}$/.test(sequence)) return undefined;
  return { stream, sequence: Number(sequence) };
};

export const openCompleteness = (parts: CompletenessParts) => {
  const heads = new Map<string, ChainHead>();
  const streams = new Map<string, number>();
  const producers = new Map<string, boolean>();

  const isKnown = async (producer: string, topic: string): Promise<boolean> => {
    const key = `${producer} ${topic}`;
    const known = producers.get(key) ?? (await parts.topicOfProducer(producer)) === topic;
    remember(producers, [[key, known]]);
    return known;
  };

  return {
    /** Checks a batch that follows `before`. May be called again for the same batch as long as `commit` was not. */
    async check(before: LedgerHead, batch: Batch): Promise<CheckedBatch> {
      const findings = new Map<string, Finding>();
      const points = new Map<string, { at: number; head: ChainHead }>();
      const sequences = new Map<string, number>();
      const positions = new Map<string, number>();
      const found = (record: SealedRecord, producer: string, cause: GapCause, expected = 0, seen = 0) => {
        const { topic, partition, offset } = record;
        const key = `${producer || `${topic}/${partition}`} ${cause}`;
        if (!findings.has(key)) findings.set(key, { producer, cause, topic, partition, offset, expected, seen });
      };

      const checkChain = async (record: SealedRecord, at: number): Promise<void> => {
        const named = headerOf(record, producerHeader) ?? "";
        const producer = producerForm.test(named) ? named : "";
        if (producer === "") return found(record, "", GapCause.UNKNOWN_PRODUCER);
        const chain = `${producer} ${record.topic}/${record.partition}`;
        let head = points.get(chain)?.head ?? heads.get(chain);
        if (!head) {
          head = await parts.headBelow(chain, batch.doc.first);
          if (!head && !(await isKnown(producer, record.topic))) found(record, producer, GapCause.UNKNOWN_PRODUCER);
        }
        const link = checkLink(head, record);
        if (link.head && link.head !== head) points.set(chain, { at, head: link.head });
        const { verdict } = link;
        if (verdict.kind === "hole") found(record, producer, GapCause.HOLE, verdict.expected, verdict.seen);
        if (verdict.kind === "fork") found(record, producer, GapCause.FORK, verdict.expected, verdict.seen);
        if (verdict.kind === "unknown-producer") found(record, producer, GapCause.UNKNOWN_PRODUCER);
      };

      const checkStream = async (record: SealedRecord): Promise<void> => {
        const place = streamPlace(record);
        if (!place) return;
        const { stream, sequence } = place;
        const key = `${record.topic} ${stream}`;
        const last = sequences.get(key) ?? streams.get(key);
        const follows = sequence === 1 || (last !== undefined && sequence <= last + 1);
        if (!follows && !(await parts.hasEvent(record.topic, stream, sequence - 1))) {
          const named = headerOf(record, producerHeader) ?? "";
          const producer = producerForm.test(named) ? named : "";
          found(record, producer, GapCause.STREAM_GAP, last === undefined ? sequence - 1 : last + 1, sequence);
        }
        sequences.set(key, Math.max(sequence, last ?? 0));
      };

      const checkOffset = (record: SealedRecord): void => {
        const place = `${record.topic}/${record.partition}`;
        const expected = positions.get(place) ?? nextOffset(before.positions, record.topic, record.partition);
        if (record.offset !== expected) found(record, "", GapCause.OFFSET_JUMP, expected, record.offset);
        positions.set(place, record.offset + 1);
      };

      for (const [at, record] of batch.records.entries()) {
        checkOffset(record);
        if (record.oversize) found(record, "", GapCause.OVERSIZE);
        else {
          await checkChain(record, at);
          await checkStream(record);
        }
      }
      return {
        findings: [...findings.values()],
        heads: new Map([...points].map(([chain, { at, head }]) => [at, { chain, ...head }])),
        commit() {
          remember(
            heads,
            [...points].map(([chain, { head }]) => [chain, head]),
          );
          remember(streams, sequences);
        },
      };
    },
  };
};
