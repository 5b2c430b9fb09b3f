import { isMessage } from "@bufbuild/protobuf";
import {
  GapCause,
  type ProducerEpochClosed,
  ProducerEpochClosedSchema,
} from "@curfew/contracts/gen/curfew/events/v1/evidence_pb.ts";
import { headerOf, producerHeader } from "./chain.ts";
import { Chain, closeEpoch, type Fault, type SealedRecord } from "./chain-state.ts";
import { readEvent, UnreadableRecord } from "./envelope.ts";
import { eventTypeOf, topicNames } from "./event-types.ts";
import type { ProducerTrust } from "./producer-key.ts";

/** Something missing, doubled or strange, at one record, or at the end of the partition where something is missing. */
export interface Finding extends Fault {
  /** curfew-producer; empty: the record names none that could be one of ours. */
  readonly producer: string;
  readonly topic: string;
  readonly partition: number;
}

/** Findings, at most one of each producer (or partition, where no producer is named) and cause: the first. */
export class Findings {
  readonly #found = new Map<string, Finding>();
  readonly #most: number;
  /** Others that were found after so many. */
  left = 0;

  constructor(most = Number.POSITIVE_INFINITY) {
    this.#most = most;
  }

  get list(): Finding[] {
    return [...this.#found.values()];
  }

  add(finding: Finding): void {
    const { producer, topic, partition, cause } = finding;
    const key = `${producer || `${topic}/${partition}`} ${cause}`;
    if (this.#found.has(key)) return;
    if (this.#found.size >= this.#most) this.left += 1;
    else this.#found.set(key, finding);
  }
}

/** service/instance/epoch, as our producers write it. Anything else names no chain. */
const producerForm = /^[a-z][a-z0-9-]{0,63}\/[A-Za-z0-9._-]{1,128}\/\d{1,15}$/;

export const isProducer = (text: string): boolean => producerForm.test(text);

/** curfew-producer; empty where it is none that could be one of ours. */
export const producerOf = (record: Pick<SealedRecord, "headers">): string => {
  const named = headerOf(record, producerHeader) ?? "";
  return isProducer(named) ? named : "";
};

const sealedTopics: ReadonlySet<string> = new Set(Object.values(topicNames));
const closedType = eventTypeOf({ $typeName: ProducerEpochClosedSchema.typeName }).type;

/** More than any topic has. */
const maxPartitions = 1_000;

/** The closing that a record is; of an epoch that there can be, since its names go into what is found. */
export const closingOf = (record: SealedRecord): ProducerEpochClosed | undefined => {
  if (record.topic !== topicNames.evidence || headerOf(record, "ce_type") !== closedType) return undefined;
  try {
    const { message } = readEvent(record);
    if (!isMessage(message, ProducerEpochClosedSchema) || message.chains.length > maxPartitions) return undefined;
    return producerForm.test(message.producer) && sealedTopics.has(message.topic) ? message : undefined;
  } catch (error) {
    if (error instanceof UnreadableRecord) return undefined;
    throw error;
  }
};

/** What closing an epoch found, each where it belongs; `record` is the closing. */
export const closingFindings = (
  record: SealedRecord,
  producer: string,
  { isTrue, closed }: ReturnType<typeof closeEpoch>,
): Finding[] => [
  ...(isTrue ? [] : [{ producer, ...placeOf(record), cause: GapCause.BAD_SIGNATURE, expected: 0, seen: 0 }]),
  ...closed.flatMap(({ chain, faults }) => faults.map((fault) => findingOf(chain, fault))),
];

export const findingOf = ({ producer, topic, partition }: Chain, fault: Fault): Finding => ({
  ...fault,
  producer,
  topic,
  partition,
});

const placeOf = ({ topic, partition, offset }: SealedRecord) => ({ topic, partition, offset });

/** One chain, after all records. */
export interface ChainReport {
  /** curfew-producer. */
  readonly producer: string;
  readonly topic: string;
  readonly partition: number;
  /** Numbers; 0: there is no record of it. */
  readonly first: number;
  readonly last: number;
  /** Number up to which signatures by a certified key cover it; undefined: it is not signed. */
  readonly signed: number | undefined;
  /** Number that its producer stated as acknowledged when its epoch was closed; undefined: none, so that its last second is unknown. */
  readonly closed: number | undefined;
  /** Its producer ended it itself: `closed` is all that was acknowledged. */
  readonly ended: boolean;
}

export interface ChainCheck {
  /** The next record in ledger order. */
  add(record: SealedRecord): void;
  /** After the last record. */
  finish(): {
    readonly chains: readonly ChainReport[];
    readonly findings: readonly Finding[];
    /** Findings left out, past 10,000. */
    readonly leftOut: number;
  };
}

/** A ledger names more chains than can be kept in memory. */
export class TooManyChains extends Error {
  override name = "TooManyChains";
}

interface Checked {
  readonly chain: Chain;
  first: number;
  closed: number | undefined;
  ended: boolean;
}

/** The map under a key, made when there is none yet: to join texts to one key for every record takes longer than to follow two. */
const inner = <K, L, V>(maps: Map<K, Map<L, V>>, key: K): Map<L, V> => {
  const known = maps.get(key);
  if (known) return known;
  const made = new Map<L, V>();
  maps.set(key, made);
  return made;
};

/** What the order of records within partitions tells; `chain`: the record's, where it names one. */
const openPartitions = (findings: Findings) => {
  const ends = new Map<string, Map<number, { next: number; chain: Chain | undefined }>>();
  return {
    add(record: SealedRecord, chain: Chain | undefined): void {
      const { topic, partition, offset } = record;
      const lanes = inner(ends, topic);
      const end = lanes.get(partition) ?? { next: 0, chain: undefined };
      const { next: expected, chain: last } = end;
      if (offset !== expected)
        findings.add({ producer: "", ...placeOf(record), cause: GapCause.OFFSET_JUMP, expected, seen: offset });
      if (last && last !== chain) for (const fault of last.interrupted()) findings.add(findingOf(last, fault));
      if (!lanes.has(partition)) lanes.set(partition, end);
      end.next = offset + 1;
      end.chain = chain;
    },
  };
};

const maxFindings = 10_000;
/** About 100 MB. */
const maxChains = 200_000;
const settleEvery = 4_096;

/**
 * Checks every producer chain of a ledger from its first record on, offline. Memory grows with the number of chains alone; `add` throws
 * TooManyChains past 200,000. Who was a known producer is told by certificates; the auditor, live, also asks the store of producers, and
 * what it found is on the ledger as EvidenceGapFound.
 */
export const openChainCheck = (trust: ProducerTrust): ChainCheck => {
  /** By producer, then topic, then partition. */
  const epochs = new Map<string, Map<string, Map<number, Checked>>>();
  const findings = new Findings(maxFindings);
  const partitions = openPartitions(findings);
  const signedSince = new Map<string, number>();
  let count = 0;

  const checkedOf = (producer: string, topic: string, partition: number): Checked => {
    let checked = epochs.get(producer)?.get(topic)?.get(partition);
    if (checked) return checked;
    count += 1;
    if (count > maxChains)
      throw new TooManyChains(`more than ${maxChains} producer chains: not all can be checked at once`);
    checked = { chain: new Chain(producer, topic, partition), first: 0, closed: undefined, ended: false };
    inner(inner(epochs, producer), topic).set(partition, checked);
    return checked;
  };

  const close = (record: SealedRecord, closing: ProducerEpochClosed): void => {
    const { producer, topic, ended } = closing;
    const of = (partition: number) => checkedOf(producer, topic, partition);
    const result = closeEpoch(closing, (partition) => of(partition).chain, trust);
    for (const finding of closingFindings(record, producer, result)) findings.add(finding);
    for (const { chain, acknowledged } of result.closed) {
      const checked = of(chain.partition);
      // It may have gone on after an earlier one.
      if (acknowledged > 0) checked.closed = Math.max(checked.closed ?? 0, acknowledged);
      if (result.isTrue && ended) checked.ended = true;
    }
  };

  return {
    add(record) {
      const { topic, partition, offset } = record;
      const simple = (cause: GapCause) => {
        partitions.add(record, undefined);
        findings.add({ producer: "", topic, partition, offset, cause, expected: 0, seen: 0 });
      };
      if (record.oversize) return simple(GapCause.OVERSIZE);
      const named = headerOf(record, producerHeader) ?? "";
      // One that has a chain was found to be a producer.
      if (!epochs.has(named) && !isProducer(named)) return simple(GapCause.UNKNOWN_PRODUCER);
      const checked = checkedOf(named, topic, partition);
      const { chain } = checked;
      partitions.add(record, chain);
      const faults = chain.add(record, { trust, signedSinceMs: signedSince.get(topic) });
      const { sequence = 0, key = "" } = chain.state ?? {};
      if (checked.first === 0) checked.first = sequence;
      if (key !== "" && !signedSince.has(topic)) signedSince.set(topic, record.sealedAtMs);
      if (sequence % settleEvery === 0) faults.push(...chain.settle());
      for (const fault of faults) findings.add(findingOf(chain, fault));
      const closing = closingOf(record);
      if (closing) close(record, closing);
    },
    finish() {
      const chains: ChainReport[] = [];
      const topics = [...epochs.values()].flatMap((each) => [...each.values()]);
      for (const each of topics)
        for (const { chain, first, closed, ended } of each.values()) {
          const { producer, topic, partition } = chain;
          for (const fault of chain.settle()) findings.add(findingOf(chain, fault));
          const { sequence = 0, key = "", signed } = chain.state ?? {};
          if (sequence === 0 && closed === undefined) continue;
          chains.push({
            producer,
            topic,
            partition,
            first,
            last: sequence,
            signed: key === "" ? undefined : signed,
            closed,
            ended,
          });
        }
      return { chains, findings: findings.list, leftOut: findings.left };
    },
  };
};
