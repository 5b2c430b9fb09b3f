import { checkLink, producerHeader, recordHash, sequenceHeader } from "@curfew/event-log/chain.ts";
import { topicNames } from "@curfew/event-log/event-types.ts";
import type { SealedRecord } from "@curfew/ledger/leaf.ts";
import { headerOf } from "./decoded.ts";
import { isWholeRange, type Selection } from "./manifest.ts";

/** What the entries of a bundle say about their own completeness, read in order. The same for who makes a bundle and who checks it. */
export interface Report {
  /** Every leaf of a range was to be there, so that each producer's chain could be followed. */
  readonly followed: boolean;
  readonly chains: readonly {
    readonly producer: string;
    readonly topic: string;
    readonly partition: number;
    /** Numbers of its first and last record here. */
    readonly first: number;
    readonly last: number;
    readonly records: number;
  }[];
  /** Numbered streams that belong to what was asked for as wholes. */
  readonly streams: readonly {
    readonly topic: string;
    readonly stream: string;
    readonly first: number;
    readonly last: number;
  }[];
  /** Each a sentence; at most 100. */
  readonly missing: readonly string[];
}

const maxMissing = 100;
const numberForm = /^[1-9]\d{0,14}$/;

interface Chain {
  readonly first: number;
  head: { sequence: number; hash: string };
  records: number;
}

/** Whether a selection takes all events of a stream that any of its events is in. */
const takesWhole = (selection: Selection, stream: string): boolean =>
  isWholeRange(selection) ||
  stream === selection.case ||
  // A case is asked for together with its token, and without the token's other cases.
  (selection.token !== "" &&
    stream.split("/").includes(selection.token) &&
    !(selection.case !== "" && stream.startsWith("case/")));

export const openReport = (selection: Selection) => {
  const followed = isWholeRange(selection);
  const fromStart = selection.from === "";
  const chains = new Map<string, Chain & { producer: string; topic: string; partition: number }>();
  const streams = new Map<string, { topic: string; stream: string; first: number; last: number }>();
  const missing: string[] = [];
  const miss = (what: string) => void (missing.length < maxMissing && missing.push(what));

  const followChain = (index: number, record: SealedRecord): void => {
    const { topic, partition } = record;
    const producer = headerOf(record, producerHeader);
    const number = headerOf(record, sequenceHeader);
    if (producer === "" || !numberForm.test(number)) {
      if (followed) miss(`leaf ${index} names no producer: nobody says to have produced it`);
      return;
    }
    const key = `${producer} ${topic}/${partition}`;
    const chain = chains.get(key);
    const sequence = Number(number);
    if (!chain) {
      const head = { sequence, hash: recordHash(topic, record) };
      chains.set(key, { producer, topic, partition, first: sequence, head, records: 1 });
      const isWrongStart = sequence === 1 ? checkLink(undefined, record).verdict.kind !== "ok" : fromStart;
      if (followed && isWrongStart)
        miss(`${key}: its first record here, leaf ${index}, is number ${sequence}, and none before it is there`);
      return;
    }
    chain.records += 1;
    const { verdict, head } = checkLink(chain.head, record);
    if (head) chain.head = head;
    if (!followed || verdict.kind === "ok" || verdict.kind === "repeat") return;
    const what =
      verdict.kind === "hole" ? `records ${verdict.expected} to ${verdict.seen - 1} are missing` : verdict.kind;
    miss(`${key}: before leaf ${index}: ${what}`);
  };

  const followStream = (index: number, record: SealedRecord): void => {
    const { topic } = record;
    const stream = headerOf(record, "ce_subject");
    const number = headerOf(record, "ce_sequence");
    if (topic === topicNames.uses || stream === "" || !numberForm.test(number) || !takesWhole(selection, stream))
      return;
    const sequence = Number(number);
    const known = streams.get(`${topic} ${stream}`);
    if (!known) streams.set(`${topic} ${stream}`, { topic, stream, first: sequence, last: sequence });
    const expected = known ? known.last + 1 : fromStart ? 1 : sequence;
    if (sequence > expected) miss(`${stream}: before leaf ${index}: events ${expected} to ${sequence - 1} are missing`);
    if (known) known.last = Math.max(known.last, sequence);
  };

  return {
    /** In ascending order of the leaves. */
    add(index: number, record: SealedRecord): void {
      if (record.oversize) {
        miss(`leaf ${index}: a record too large for a leaf, of which only the hash is sealed`);
        return;
      }
      followChain(index, record);
      followStream(index, record);
    },
    result: (): Report => ({
      followed,
      chains: [...chains.values()].map(({ producer, topic, partition, first, head, records }) => {
        return { producer, topic, partition, first, last: head.sequence, records };
      }),
      streams: [...streams.values()],
      missing,
    }),
  };
};
