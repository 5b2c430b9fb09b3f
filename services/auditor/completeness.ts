import { GapCause } from "@curfew/contracts/gen/curfew/events/v1/evidence_pb.ts";
import { type ChainHead, checkLink, producerHeader } from "@curfew/event-log/chain.ts";
import { topicNames } from "@curfew/event-log/event-types.ts";
import type { SealedRecord } from "@curfew/ledger/leaf.ts";
import { type Batch, type LedgerHead, nextOffset } from "./domain.ts";

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

const producerOf = (record: SealedRecord): string => {
  const named = headerOf(record, producerHeader) ?? "";
  return producerForm.test(named) ? named : "";
};

/** What earlier batches left, as far as it is in memory. */
interface Memory {
  readonly heads: Map<string, ChainHead>;
  readonly streams: Map<string, number>;
  readonly producers: Map<string, boolean>;
}

/** The check of one batch. It writes to the memory only in `commit`, so that it can be repeated. */
class BatchCheck implements CheckedBatch {
  readonly #parts: CompletenessParts;
  readonly #memory: Memory;
  readonly #before: LedgerHead;
  readonly #first: number;
  readonly #found = new Map<string, Finding>();
  readonly #points = new Map<string, { at: number; head: ChainHead }>();
  readonly #sequences = new Map<string, number>();
  readonly #positions = new Map<string, number>();

  constructor(parts: CompletenessParts, memory: Memory, before: LedgerHead, batch: Batch) {
    this.#parts = parts;
    this.#memory = memory;
    this.#before = before;
    this.#first = batch.doc.first;
  }

  get findings(): Finding[] {
    return [...this.#found.values()];
  }

  get heads(): Map<number, ChainPoint> {
    return new Map([...this.#points].map(([chain, { at, head }]) => [at, { chain, ...head }]));
  }

  commit(): void {
    const heads = [...this.#points].map(([chain, { head }]) => [chain, head] as const);
    remember(this.#memory.heads, heads);
    remember(this.#memory.streams, this.#sequences);
  }

  async add(record: SealedRecord, at: number): Promise<void> {
    this.#checkOffset(record);
    if (record.oversize) return this.#find(record, "", GapCause.OVERSIZE);
    await this.#checkChain(record, at);
    await this.#checkStream(record);
  }

  #find(record: SealedRecord, producer: string, cause: GapCause, expected = 0, seen = 0): void {
    const { topic, partition, offset } = record;
    const key = `${producer || `${topic}/${partition}`} ${cause}`;
    if (!this.#found.has(key)) this.#found.set(key, { producer, cause, topic, partition, offset, expected, seen });
  }

  #checkOffset(record: SealedRecord): void {
    const { topic, partition, offset } = record;
    const place = `${topic}/${partition}`;
    const expected = this.#positions.get(place) ?? nextOffset(this.#before.positions, topic, partition);
    if (offset !== expected) this.#find(record, "", GapCause.OFFSET_JUMP, expected, offset);
    this.#positions.set(place, offset + 1);
  }

  async #checkChain(record: SealedRecord, at: number): Promise<void> {
    const producer = producerOf(record);
    if (producer === "") return this.#find(record, "", GapCause.UNKNOWN_PRODUCER);
    const chain = `${producer} ${record.topic}/${record.partition}`;
    let head = this.#points.get(chain)?.head ?? this.#memory.heads.get(chain);
    if (!head) {
      head = await this.#parts.headBelow(chain, this.#first);
      // Where the chain is known from before, its producer was looked for then.
      if (!head && !(await this.#isKnown(producer, record.topic)))
        this.#find(record, producer, GapCause.UNKNOWN_PRODUCER);
    }
    const { verdict, head: next } = checkLink(head, record);
    if (next && next !== head) this.#points.set(chain, { at, head: next });
    if (verdict.kind === "hole") this.#find(record, producer, GapCause.HOLE, verdict.expected, verdict.seen);
    if (verdict.kind === "fork") this.#find(record, producer, GapCause.FORK, verdict.expected, verdict.seen);
    if (verdict.kind === "unknown-producer") this.#find(record, producer, GapCause.UNKNOWN_PRODUCER);
  }

  async #isKnown(producer: string, topic: string): Promise<boolean> {
    const { producers } = this.#memory;
    const key = `${producer} ${topic}`;
    const known = producers.get(key) ?? (await this.#parts.topicOfProducer(producer)) === topic;
    remember(producers, [[key, known]]);
    return known;
  }

  async #checkStream(record: SealedRecord): Promise<void> {
    const place = streamPlace(record);
    if (!place) return;
    const { stream, sequence } = place;
    const key = `${record.topic} ${stream}`;
    const last = this.#sequences.get(key) ?? this.#memory.streams.get(key);
    const follows = sequence === 1 || (last !== undefined && sequence <= last + 1);
    if (!follows && !(await this.#parts.hasEvent(record.topic, stream, sequence - 1))) {
      const expected = last === undefined ? sequence - 1 : last + 1;
      this.#find(record, producerOf(record), GapCause.STREAM_GAP, expected, sequence);
    }
    this.#sequences.set(key, Math.max(sequence, last ?? 0));
  }
}

export const openCompleteness = (parts: CompletenessParts) => {
  const memory: Memory = { heads: new Map(), streams: new Map(), producers: new Map() };
  return {
    /** Checks a batch that follows `before`. May be called again for the same batch as long as `commit` was not. */
    async check(before: LedgerHead, batch: Batch): Promise<CheckedBatch> {
      const check = new BatchCheck(parts, memory, before, batch);
      for (const [at, record] of batch.records.entries()) await check.add(record, at);
      return check;
    },
  };
};
