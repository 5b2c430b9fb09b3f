import { GapCause } from "@curfew/contracts/gen/curfew/events/v1/evidence_pb.ts";
import { headerOf } from "@curfew/event-log/chain.ts";
import {
  closingFindings,
  closingOf,
  type Finding,
  Findings,
  findingOf,
  producerOf,
} from "@curfew/event-log/chain-check.ts";
import { Chain, type ChainState, closeEpoch } from "@curfew/event-log/chain-state.ts";
import type { EpochRow } from "@curfew/event-log/epochs.ts";
import { topicNames } from "@curfew/event-log/event-types.ts";
import type { ProducerTrust } from "@curfew/event-log/producer-key.ts";
import type { SealedRecord } from "@curfew/ledger/leaf.ts";
import { type Batch, type LedgerHead, nextOffset } from "./domain.ts";

/**
 * Whether everything that was produced is there (design: evidence, "Producer chain"): each sealed record is checked, in offset order,
 * against the state of its chain, and each event of a numbered stream against its predecessor. Memory is bounded: what fell out of it, or
 * was made before a restart, is read from what earlier batches left in the read model.
 */

export interface ChainPoint extends ChainState {
  /** Producer epoch, topic and partition. */
  readonly chain: string;
}

export interface CheckedBatch {
  /** At most one per producer and cause. */
  readonly findings: readonly Finding[];
  /** By place in the batch: the last record of a chain in it, and the chain's state there. */
  readonly heads: ReadonlyMap<number, ChainPoint>;
  /** Topics of which the batch has the first signed chain, and the place of its first record. */
  readonly signedTopics: ReadonlyMap<string, number>;
  /** Moves the memory on; to be called once the batch's rows are written, and not when it has to be checked again. */
  commit(): void;
}

export interface CompletenessParts {
  /** State of a chain as of all leaves below index `below`; undefined where none of it was sealed. */
  readonly chainBelow: (chain: string, below: number) => Promise<ChainState | undefined>;
  /** The last record of a partition, of those sealed up to `before`. */
  readonly lastOf: (topic: string, partition: number, before: LedgerHead) => Promise<SealedRecord | undefined>;
  /** When a topic's first signed chain was sealed, of all leaves below that index; undefined: there is none yet. */
  readonly signedSince: (topic: string, below: number) => Promise<number | undefined>;
  /** Whether an event with that number of the stream was sealed in an earlier batch. */
  readonly hasEvent: (topic: string, stream: string, sequence: number) => Promise<boolean>;
  /** A producer epoch's row in the store of producers; undefined: there is no such producer. */
  readonly rowOf: (producer: string) => Promise<Pick<EpochRow, "topic" | "key"> | undefined>;
  readonly trust: ProducerTrust;
}

const maxRemembered = 50_000;

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

/** Number of an event in its stream; undefined on uses and on what is no event of ours. */
export const streamPlace = (record: SealedRecord): { stream: string; sequence: number } | undefined => {
  if (record.topic === topicNames.uses) return undefined;
  const stream = headerOf(record, "ce_subject");
  const sequence = headerOf(record, "ce_sequence");
  if (!stream || sequence === undefined || !/^[1-9]\d{0,14}$/.test(sequence)) return undefined;
  return { stream, sequence: Number(sequence) };
};

/** What earlier batches left, as far as it is in memory. */
interface Memory {
  /** The last batch that it was moved on by. */
  batch: number;
  readonly chains: Map<string, ChainState>;
  readonly streams: Map<string, number>;
  /** Producer of the last record of each partition; empty where it names none. */
  readonly last: Map<string, string>;
  /** By topic; a topic that is not in it was not asked for yet. */
  readonly signedSince: Map<string, number | undefined>;
}

/** The check of one batch. It writes to the memory only in `commit`, so that it can be repeated. */
class BatchCheck implements CheckedBatch {
  readonly #parts: CompletenessParts;
  readonly #memory: Memory;
  readonly #before: LedgerHead;
  readonly #first: number;
  readonly #number: number;
  readonly #found = new Findings();
  /** `at`: the last record in the batch that moved it. */
  readonly #chains = new Map<string, { readonly chain: Chain; at: number | undefined }>();
  readonly #signedSince = new Map<string, number>();
  readonly #sequences = new Map<string, number>();
  readonly #positions = new Map<string, number>();
  readonly #last = new Map<string, string>();
  readonly signedTopics = new Map<string, number>();

  constructor(parts: CompletenessParts, memory: Memory, before: LedgerHead, batch: Batch) {
    this.#parts = parts;
    this.#memory = memory;
    this.#before = before;
    this.#first = batch.doc.first;
    this.#number = batch.number;
  }

  get findings(): Finding[] {
    return this.#found.list;
  }

  get heads(): Map<number, ChainPoint> {
    const heads = new Map<number, ChainPoint>();
    for (const [name, { chain, at }] of this.#chains)
      if (at !== undefined && chain.state) heads.set(at, { chain: name, ...chain.state });
    return heads;
  }

  commit(): void {
    const moved = [...this.heads.values()].map(({ chain, ...state }) => [chain, state] as const);
    remember(this.#memory.chains, moved);
    remember(this.#memory.streams, this.#sequences);
    remember(this.#memory.last, this.#last);
    for (const [topic, sinceMs] of this.#signedSince) this.#memory.signedSince.set(topic, sinceMs);
    this.#memory.batch = this.#number;
  }

  async add(record: SealedRecord, at: number): Promise<void> {
    this.#checkOffset(record);
    await this.#checkLast(record);
    if (record.oversize) return this.#find(record, "", GapCause.OVERSIZE);
    await this.#checkChain(record, at);
    await this.#checkStream(record);
    const closing = closingOf(record);
    if (!closing) return;
    const { producer, topic } = closing;
    const chains = new Map<number, Chain>();
    for (const { partition } of closing.chains)
      chains.set(partition, (await this.#open(producer, topic, partition)).chain);
    const result = closeEpoch(closing, (partition) => chains.get(partition) as Chain, this.#parts.trust);
    for (const finding of closingFindings(record, producer, result)) this.#found.add(finding);
  }

  /** One signature for each chain of the batch: the last one covers what those before it do. */
  finish(): void {
    for (const { chain } of this.#chains.values())
      for (const fault of chain.settle()) this.#found.add(findingOf(chain, fault));
  }

  #find(record: SealedRecord, producer: string, cause: GapCause, expected = 0, seen = 0): void {
    const { topic, partition, offset } = record;
    this.#found.add({ producer, cause, topic, partition, offset, expected, seen });
  }

  #checkOffset(record: SealedRecord): void {
    const { topic, partition, offset } = record;
    const place = `${topic}/${partition}`;
    const expected = this.#positions.get(place) ?? nextOffset(this.#before.positions, topic, partition);
    if (offset !== expected) this.#find(record, "", GapCause.OFFSET_JUMP, expected, offset);
    this.#positions.set(place, offset + 1);
  }

  /** Whether the chain of the record before it in its partition is left unsigned there. */
  async #checkLast(record: SealedRecord): Promise<void> {
    const { topic, partition } = record;
    const place = `${topic}/${partition}`;
    let last = this.#last.get(place) ?? this.#memory.last.get(place);
    if (last === undefined) {
      const before = await this.#parts.lastOf(topic, partition, this.#before);
      last = before ? producerOf(before) : "";
    }
    const producer = producerOf(record);
    this.#last.set(place, producer);
    if (last === "" || last === producer) return;
    const { chain } = await this.#open(last, topic, partition);
    for (const fault of chain.interrupted()) this.#found.add(findingOf(chain, fault));
  }

  async #open(producer: string, topic: string, partition: number) {
    const name = `${producer} ${topic}/${partition}`;
    const known = this.#chains.get(name);
    if (known) return known;
    const state = this.#memory.chains.get(name) ?? (await this.#parts.chainBelow(name, this.#first));
    const opened = { chain: new Chain(producer, topic, partition, state), at: undefined as number | undefined };
    this.#chains.set(name, opened);
    return opened;
  }

  async #checkChain(record: SealedRecord, at: number): Promise<void> {
    const { topic } = record;
    const producer = producerOf(record);
    if (producer === "") return this.#find(record, "", GapCause.UNKNOWN_PRODUCER);
    const opened = await this.#open(producer, topic, record.partition);
    const { chain } = opened;
    const before = chain.state;
    // Where the chain is known from before, its producer was looked for then.
    const row = before ? undefined : await this.#parts.rowOf(producer);
    if (!before && row?.topic !== topic) this.#find(record, producer, GapCause.UNKNOWN_PRODUCER);
    // It matters to what is not signed, and to nothing else.
    const signedSinceMs = before && before.key !== "" ? undefined : await this.#since(topic);
    const faults = chain.add(record, { trust: this.#parts.trust, signedSinceMs });
    for (const fault of faults) this.#found.add(findingOf(chain, fault));
    if (chain.state !== before) opened.at = at;
    const { state } = opened.chain;
    if (before || !state) return;
    const isSigned = state.key !== "";
    // A producer that is known to sign does not begin a chain without.
    if (row?.key !== undefined && !isSigned && faults.length === 0)
      this.#find(record, producer, GapCause.MISSING_SIGNATURE, state.sequence);
    if (!isSigned || signedSinceMs !== undefined) return;
    this.signedTopics.set(topic, at);
    this.#signedSince.set(topic, record.sealedAtMs);
  }

  async #since(topic: string): Promise<number | undefined> {
    const here = this.#signedSince.get(topic);
    if (here !== undefined) return here;
    const { signedSince } = this.#memory;
    if (!signedSince.has(topic)) signedSince.set(topic, await this.#parts.signedSince(topic, this.#first));
    return signedSince.get(topic);
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
  const empty = (batch: number): Memory => ({
    batch,
    chains: new Map(),
    streams: new Map(),
    last: new Map(),
    signedSince: new Map(),
  });
  let memory = empty(0);
  return {
    /** Checks a batch that follows `before`. May be called again for the same batch as long as `commit` was not. */
    async check(before: LedgerHead, batch: Batch): Promise<CheckedBatch> {
      // Another replica has sealed meanwhile, or this one did not hear that the rows were written: what is in memory is of before.
      if (memory.batch !== before.batch) memory = empty(before.batch);
      const check = new BatchCheck(parts, memory, before, batch);
      for (const [at, record] of batch.records.entries()) await check.add(record, at);
      check.finish();
      return check;
    },
  };
};
