import { GapCause } from "@curfew/contracts/gen/curfew/events/v1/evidence_pb.ts";
import { checkLink, producerHeader, recordHash, sequenceHeader } from "@curfew/event-log/chain.ts";
import { type ChainReport, type Finding, openChainCheck, TooManyChains } from "@curfew/event-log/chain-check.ts";
import { topicNames } from "@curfew/event-log/event-types.ts";
import type { ProducerTrust } from "@curfew/event-log/producer-key.ts";
import type { SealedRecord } from "@curfew/ledger/leaf.ts";
import { headerOf } from "./decoded.ts";
import { isWholeRange, type Manifest, type Selection } from "./manifest.ts";

/** What the entries of a bundle say about their own completeness, read in order. The same for who makes a bundle and who checks it. */
export interface Report {
  /** Producer chains of a range, every leaf of which was to be there. Signatures and ends are checked where it begins with the ledger. */
  readonly chains: readonly ChainReport[];
  /** Numbered streams that belong to what was asked for as wholes. */
  readonly streams: readonly Stream[];
  /** Each a sentence; at most 100. */
  readonly missing: readonly string[];
}

interface Stream {
  readonly topic: string;
  readonly stream: string;
  readonly first: number;
  readonly last: number;
}

const maxMissing = 100;
const numberForm = /^[1-9]\d{0,14}$/;

/** Follows producer chains; `finish` answers them. */
interface ChainFollower {
  add(index: number, record: SealedRecord): void;
  finish(): readonly ChainReport[];
}
type Miss = (what: string) => void;

/** That these numbers are missing; `what` in the singular. */
export const missingText = (what: string, from: number, to: number): string =>
  from === to ? `${what} ${from} is missing` : `${what}s ${from} to ${to} are missing`;

const textOfFinding = ({ producer, topic, partition, offset, cause, expected, seen }: Finding): string => {
  const whose = producer || "a record";
  const where = `${topic}/${partition}@${offset}`;
  const what: Partial<Record<GapCause, string>> = {
    [GapCause.HOLE]: `${whose}: ${missingText("record", expected, seen - 1)} before ${where}`,
    [GapCause.FORK]: `${whose}: ${where} does not follow the record before it`,
    [GapCause.UNKNOWN_PRODUCER]: `${whose} at ${where} is of no producer that is known`,
    [GapCause.OVERSIZE]: `${where} is too large for a leaf: only its hash is sealed`,
    [GapCause.BAD_SIGNATURE]: `${whose}: the signature at ${where} does not hold`,
    [GapCause.MISSING_SIGNATURE]: `${whose}: what must be signed by ${where} is not`,
    [GapCause.SHORT]: `${whose}: ${expected} records were acknowledged, and ${seen} are there`,
  };
  return what[cause] ?? `${whose}: fault ${cause} at ${where}`;
};

/** From the first leaf of a ledger on: with signatures, and what producers said they had sent. */
const fromTheFirst = (trust: ProducerTrust, miss: Miss): ChainFollower => {
  const check = openChainCheck(trust);
  let isTooMuch = false;
  return {
    add(_index, record) {
      if (isTooMuch) return;
      try {
        check.add(record);
      } catch (error) {
        if (!(error instanceof TooManyChains)) throw error;
        isTooMuch = true;
        miss(error.message);
      }
    },
    finish() {
      const { chains, findings } = check.finish();
      // A jump of offsets alone proves nothing.
      for (const finding of findings) if (finding.cause !== GapCause.OFFSET_JUMP) miss(textOfFinding(finding));
      return chains;
    },
  };
};

/** From the middle of a ledger on: each chain from its first record here, whose certificate may lie further back. */
const fromTheMiddle = (miss: Miss): ChainFollower => {
  const chains = new Map<string, ChainReport & { last: number; hash: string }>();
  return {
    add(index, record) {
      const { topic, partition } = record;
      if (record.oversize) return miss(`leaf ${index} is too large for a leaf: only its hash is sealed`);
      const producer = headerOf(record, producerHeader);
      const number = headerOf(record, sequenceHeader);
      if (producer === "" || !numberForm.test(number)) return miss(`leaf ${index} names no producer`);
      const key = `${producer} ${topic}/${partition}`;
      const chain = chains.get(key);
      if (!chain) {
        const first = Number(number);
        const point = { first, last: first, hash: recordHash(topic, record) };
        chains.set(key, { producer, topic, partition, ...point, signed: undefined, closed: undefined, ended: false });
        return;
      }
      const { verdict, head } = checkLink({ sequence: chain.last, hash: chain.hash }, record);
      if (head) {
        chain.last = head.sequence;
        chain.hash = head.hash;
      }
      if (verdict.kind === "hole")
        miss(`${producer}: ${missingText("record", verdict.expected, verdict.seen - 1)} before leaf ${index}`);
      else if (verdict.kind !== "ok" && verdict.kind !== "repeat")
        miss(`${producer}: leaf ${index} does not follow the record before it`);
    },
    finish: () => [...chains.values()].map(({ hash: _, ...chain }) => chain),
  };
};

/** Nothing to follow: most records of a chain are about something else. */
const nobody: ChainFollower = { add: () => undefined, finish: () => [] };

/** Whether a selection takes all events of a stream that any of its events is in. */
const takesWhole = (selection: Selection, stream: string): boolean =>
  isWholeRange(selection) ||
  stream === selection.case ||
  // A case is asked for together with its token, and without the token's other cases.
  (selection.token !== "" &&
    stream.split("/").includes(selection.token) &&
    !(selection.case !== "" && stream.startsWith("case/")));

export const openReport = (
  { selection, range, before }: Pick<Manifest, "selection" | "range" | "before">,
  trust: ProducerTrust,
) => {
  const isFromStart = range.first === 0 && before === undefined;
  const missing: string[] = [];
  const miss = (what: string) => void (missing.length < maxMissing && missing.push(what));
  const follower = !isWholeRange(selection) ? nobody : isFromStart ? fromTheFirst(trust, miss) : fromTheMiddle(miss);
  const streams = new Map<string, Stream & { last: number }>();

  const followStream = (index: number, record: SealedRecord): void => {
    const { topic } = record;
    const stream = headerOf(record, "ce_subject");
    const number = headerOf(record, "ce_sequence");
    if (topic === topicNames.uses || stream === "" || !numberForm.test(number) || !takesWhole(selection, stream))
      return;
    const sequence = Number(number);
    const known = streams.get(`${topic} ${stream}`);
    if (!known) streams.set(`${topic} ${stream}`, { topic, stream, first: sequence, last: sequence });
    const expected = known ? known.last + 1 : isFromStart ? 1 : sequence;
    if (sequence > expected) miss(`${stream}: ${missingText("event", expected, sequence - 1)} before leaf ${index}`);
    if (known) known.last = Math.max(known.last, sequence);
  };

  return {
    /** In ascending order of the leaves. */
    add(index: number, record: SealedRecord): void {
      follower.add(index, record);
      followStream(index, record);
    },
    /** Once, after the last. */
    result(): Report {
      const chains = follower.finish();
      return { chains, streams: [...streams.values()], missing };
    },
  };
};
