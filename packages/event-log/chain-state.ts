import type { ProducerEpochClosed } from "@curfew/contracts/gen/curfew/events/v1/evidence_pb.ts";
import { GapCause } from "@curfew/contracts/gen/curfew/events/v1/evidence_pb.ts";
import type { InRecord } from "./bus.ts";
import { type ChainHead, checkLink, headerOf, keyHeader, signatureHeader } from "./chain.ts";
import { topicWriters } from "./event-types.ts";
import { type ProducerTrust, verifySend, verifyState } from "./producer-key.ts";

/**
 * One producer chain as it is checked, record by record in offset order (design: evidence, "Producer chain"): the same in the auditor, which
 * keeps the states of chains in its read models, and in whoever verifies a ledger offline. Pure.
 */

/** A record as its leaf has it. */
export interface SealedRecord extends InRecord {
  /** Only its hash is sealed. */
  readonly oversize: boolean;
  readonly sealedAtMs: number;
}

/** All that is kept of a chain. */
export interface ChainState extends ChainHead {
  /** Public key that its first record certified, base64url; empty: the chain is not signed. */
  readonly key: string;
  /** Number up to which signatures cover it. */
  readonly signed: number;
  /** Offset of the first record after that; undefined: there is none. */
  readonly unsignedFrom: number | undefined;
}

/** Something wrong at one record of a chain, or, where records are missing, at the offset where its partition ends. */
export interface Fault {
  readonly cause: GapCause;
  readonly offset: number;
  readonly expected: number;
  readonly seen: number;
}

export interface ChainRules {
  readonly trust: ProducerTrust;
  /** When the first signed chain of the topic was sealed; undefined: there was none yet. */
  readonly signedSinceMs: number | undefined;
}

/** A send has at most 1,000 records, and its last one in each chain is signed. */
const maxUnsigned = 1_024;
/** A process from before there were signatures may go on writing so long beside those that sign: a rolling update. */
const updateMs = 86_400_000;

export class Chain {
  readonly producer: string;
  readonly topic: string;
  readonly partition: number;
  #state: ChainState | undefined;
  /** The last signature, not verified yet: the last one covers what those before it do. */
  #pending: { header: string; offset: number; sequence: number; hash: string; unsignedFrom: number } | undefined;

  constructor(producer: string, topic: string, partition: number, state?: ChainState) {
    this.producer = producer;
    this.topic = topic;
    this.partition = partition;
    this.#state = state;
  }

  /** Signatures that were not settled yet do not count in it. */
  get state(): ChainState | undefined {
    return this.#state;
  }

  add(record: SealedRecord, rules: ChainRules): Fault[] {
    const before = this.#state;
    const { verdict, head } = checkLink(before, record);
    const faults: Fault[] = [];
    const fault = (cause: GapCause, expected = 0, seen = 0) =>
      void faults.push({ cause, offset: record.offset, expected, seen });
    if (verdict.kind === "hole") fault(GapCause.HOLE, verdict.expected, verdict.seen);
    if (verdict.kind === "fork") fault(GapCause.FORK, verdict.expected, verdict.seen);
    if (verdict.kind === "unknown-producer") fault(GapCause.UNKNOWN_PRODUCER);
    if (!head || head === before || verdict.kind === "repeat") return faults;
    const key = before ? before.key : this.#keyOf(record, rules.trust, fault);
    const isUncertified = !before && headerOf(record, keyHeader) !== undefined;
    if (key === "" && !isUncertified && isLate(before, record, rules)) fault(GapCause.MISSING_SIGNATURE, head.sequence);
    const { signed, unsignedFrom } = before ?? { signed: 0, unsignedFrom: undefined };
    this.#state = { ...head, key, signed, unsignedFrom: key === "" ? undefined : (unsignedFrom ?? record.offset) };
    this.#sign(record, key === "" ? undefined : headerOf(record, signatureHeader));
    const covered = this.#pending?.sequence ?? signed;
    if (key !== "" && head.sequence - covered >= maxUnsigned)
      fault(GapCause.MISSING_SIGNATURE, covered + 1, head.sequence);
    return faults;
  }

  /** Verifies the last signature: what follows it is known to be covered or not. */
  settle(): Fault[] {
    const pending = this.#pending;
    const state = this.#state;
    if (!pending || !state) return [];
    this.#pending = undefined;
    if (verifySend(state.key, pending.header, pending.hash)) {
      this.#state = { ...state, signed: pending.sequence };
      return [];
    }
    this.#state = { ...state, unsignedFrom: pending.unsignedFrom };
    const { offset, sequence } = pending;
    return [{ cause: GapCause.BAD_SIGNATURE, offset, expected: sequence, seen: state.signed }];
  }

  /** The epoch was closed: `acknowledged` of its records must be there, and no unsigned one below `endOffset` may be last. */
  close(acknowledged: number, endOffset: number): Fault[] {
    const faults = this.settle();
    const { sequence, key, signed, unsignedFrom } = this.#state ?? { sequence: 0, key: "", signed: 0 };
    if (sequence < acknowledged)
      faults.push({ cause: GapCause.SHORT, offset: endOffset, expected: acknowledged, seen: sequence });
    if (key !== "" && unsignedFrom !== undefined && unsignedFrom < endOffset)
      faults.push({ cause: GapCause.MISSING_SIGNATURE, offset: unsignedFrom, expected: signed + 1, seen: sequence });
    return faults;
  }

  /**
   * A record that is not of this chain follows in its partition. What a send appends to a partition stands together there, so that records
   * without a signature by now get none: whoever may write to the topic put them behind what is signed.
   */
  interrupted(): Fault[] {
    const { key, signed, unsignedFrom, sequence } = this.#state ?? { key: "", signed: 0, sequence: 0 };
    if (key === "" || unsignedFrom === undefined) return [];
    return [{ cause: GapCause.MISSING_SIGNATURE, offset: unsignedFrom, expected: signed + 1, seen: sequence }];
  }

  #sign(record: SealedRecord, header: string | undefined): void {
    const state = this.#state as ChainState;
    if (header === undefined) return;
    const unsignedFrom = this.#pending?.unsignedFrom ?? state.unsignedFrom ?? record.offset;
    this.#pending = { header, offset: record.offset, sequence: state.sequence, hash: state.hash, unsignedFrom };
    this.#state = { ...state, unsignedFrom: undefined };
  }

  /** Of the first record. */
  #keyOf(record: SealedRecord, trust: ProducerTrust, fault: (cause: GapCause) => void): string {
    const writer = topicWriters[this.topic];
    const certification = headerOf(record, keyHeader);
    const isStranger = writer !== undefined && !this.producer.startsWith(`${writer}/`);
    const key =
      certification === undefined ? "" : trust.keyOf(this.producer, this.topic, certification, record.sealedAtMs);
    if (isStranger || key === undefined) fault(GapCause.UNKNOWN_PRODUCER);
    return key ?? "";
  }
}

/** Whether an unsigned record stands where there should be signatures by now. */
const isLate = (before: ChainState | undefined, { sealedAtMs }: SealedRecord, { signedSinceMs }: ChainRules): boolean =>
  signedSinceMs !== undefined && (before === undefined || sealedAtMs > signedSinceMs + updateMs);

/** What a closing says of a chain, and what is wrong with it there. */
export interface ClosedChain {
  readonly chain: Chain;
  /** Number that the chain's own producer stated; 0: none. */
  readonly acknowledged: number;
  readonly faults: readonly Fault[];
}

/**
 * Closes an epoch. `chainOf` answers its chains as of the closing's place in the ledger. `isTrue`: whether it is the word of the epoch's
 * producer; of one that is not, no number counts.
 */
export const closeEpoch = (
  event: ProducerEpochClosed,
  chainOf: (partition: number) => Chain,
  trust: ProducerTrust,
): { readonly isTrue: boolean; readonly closed: readonly ClosedChain[] } => {
  const { producer, topic, chains, ended, certification, signature } = event;
  const stated = chains.filter((end) => end.acknowledged > 0n);
  const acknowledged = Object.fromEntries(stated.map((end) => [end.partition, Number(end.acknowledged)]));
  const key = certification === "" ? "" : trust.keyOf(producer, topic, certification, undefined);
  const isTrue =
    key === "" || (key !== undefined && verifyState(key, producer, topic, { acknowledged, ended }, signature));
  const closed = chains.map(({ partition, endOffset }) => {
    const chain = chainOf(partition);
    // What nobody signed says nothing of a signed chain.
    const isOwn = chain.state === undefined || chain.state.key === key;
    const number = isTrue && isOwn ? (acknowledged[partition] ?? 0) : 0;
    const faults = chain.close(number, Number(endOffset));
    if (isTrue && !isOwn)
      faults.push({ cause: GapCause.MISSING_SIGNATURE, offset: Number(endOffset), expected: 0, seen: 0 });
    return { chain, acknowledged: number, faults };
  });
  return { isTrue, closed };
};
