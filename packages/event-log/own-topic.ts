import { type Collection, StoreUnavailable } from "@curfew/document-store/port.ts";
import type { Clock } from "@curfew/runtime/clock.ts";
import type { Log } from "@curfew/runtime/log.ts";
import { type Bus, BusUnavailable, type InRecord } from "./bus.ts";
import { topicNames } from "./event-types.ts";
import { readTopic } from "./read-topic.ts";
import { type CommitDoc, commitId } from "./streams.ts";

/**
 * A store restored from a backup lacks commits that its topic has: what it wrote next would fork its streams. So a service compares
 * before it serves (design "Restore"); `restore.ts` copies the missing commits back. The log wins.
 */

/** The topic that a service alone writes, from the streams in its store. */
export const ownTopics: Readonly<Record<string, string>> = {
  issuer: topicNames.tokens,
  revocation: topicNames.revocations,
  auditor: topicNames.evidence,
  "breach-notifier": topicNames.breaches,
};

/** The topic has what the store has not. The message says what to do. */
export class StoreBehind extends Error {
  override name = "StoreBehind";
}

/** Store and topic tell different stories, and neither may be changed by a program. */
export class StreamForked extends Error {
  override name = "StreamForked";
}

export interface OwnTopic {
  readonly bus: Bus;
  readonly commits: Collection<CommitDoc>;
  readonly topic: string;
  /** issuer, revocation, … */
  readonly service: string;
}

/** More than a relay that takes over can publish a second time, so that what is newest is among them. */
const comparedRecords = 5_000;
const streamsAtOnce = 50;

/** An event on the topic. */
export interface Place {
  readonly record: InRecord;
  readonly headers: ReadonlyMap<string, string>;
  readonly stream: string;
  readonly sequence: number;
  readonly id: string;
}

export const placeOf = (record: InRecord, service: string): Place => {
  const headers = new Map(record.headers);
  const stream = headers.get("ce_subject") ?? "";
  const sequence = Number(headers.get("ce_sequence"));
  const id = headers.get("ce_id") ?? "";
  if (stream === "" || id === "" || !(Number.isSafeInteger(sequence) && sequence > 0))
    throw new StreamForked(`${record.topic}@${record.offset} is no event of a stream`);
  if (headers.get("ce_source") !== `/${service}`)
    throw new StreamForked(`${record.topic}@${record.offset} was not written by ${service}`);
  return { record, headers, stream, sequence, id };
};

const sequenceOf = (event: CommitDoc["events"][number] | undefined): number => Number(event?.headers.ce_sequence);
const firstOf = ({ events }: CommitDoc): number => sequenceOf(events[0]);
export const lastOf = ({ events }: CommitDoc): number => sequenceOf(events.at(-1));
export const idIn = (commit: CommitDoc, sequence: number) => commit.events[sequence - firstOf(commit)]?.headers.ce_id;

/** The commit that holds an event, or the last one before where the stream in the store ends earlier; neither: there is no stream. */
export interface Found {
  readonly holding?: CommitDoc;
  readonly before?: CommitDoc;
}

/** By exact reads, halving: a commit holds at least one event, so none has a higher number than its event. */
export const find = async (
  commits: OwnTopic["commits"],
  stream: string,
  sequence: number,
  near?: Found,
): Promise<Found> => {
  const known = near?.holding ?? near?.before;
  if (known && firstOf(known) <= sequence && sequence <= lastOf(known)) return { holding: known };
  let before = known && lastOf(known) < sequence ? known : undefined;
  let low = before?.version ?? 0;
  let high = low + sequence - (before ? lastOf(before) : 0) + 1;
  // Where each commit holds one event, the first read finds it.
  for (let version = high - 1; high - low > 1; version = Math.floor((low + high) / 2)) {
    const commit = await commits.get(commitId(stream, version));
    if (!commit || firstOf(commit) > sequence) high = version;
    else if (lastOf(commit) >= sequence) return { holding: commit };
    else {
      low = version;
      before = commit;
    }
  }
  return before ? { before } : {};
};

export const inGroups = async <T>(items: readonly T[], act: (item: T) => Promise<void>): Promise<void> => {
  for (let i = 0; i < items.length; i += streamsAtOnce) await Promise.all(items.slice(i, i + streamsAtOnce).map(act));
};

/** Resolves when the newest events of the topic are in the store; otherwise rejects with StoreBehind. A store that is ahead is fine. */
export const compareWithTopic = async (own: OwnTopic, signal?: AbortSignal): Promise<void> => {
  const { commits, topic, service } = own;
  const newest = new Map<string, Place>();
  const note = (records: readonly InRecord[]) => {
    for (const place of records.map((record) => placeOf(record, service)))
      if (place.sequence > (newest.get(place.stream)?.sequence ?? 0)) newest.set(place.stream, place);
  };
  await readTopic({ ...own, name: `${service}-compare`, last: comparedRecords }, note, signal);
  await inGroups([...newest.values()], async ({ stream, sequence, id }) => {
    signal?.throwIfAborted();
    const { holding } = await find(commits, stream, sequence);
    if (holding && idIn(holding, sequence) === id) return;
    const lacks = holding ? "has another event" : "has no event";
    throw new StoreBehind(
      `the store of ${service} ${lacks} ${sequence} of ${stream} that ${topic} has: was it restored from a backup? Nothing is served. ` +
        `Run "curfew restore --data DIR" with the suite stopped, or, where services are processes of their own, start ${service} once with CURFEW_RESTORE=true`,
    );
  });
};

const retryMs = 500;

/**
 * Compares as soon as bus and store can be asked. `unasked` is called when they cannot be at first. Rejects with StoreBehind, or with
 * the signal's reason.
 */
export const comparePatiently = async (
  own: OwnTopic & { readonly clock: Clock; readonly log: Log },
  signal: AbortSignal,
  unasked: () => void,
): Promise<void> => {
  const { clock, log, topic } = own;
  for (let tries = 0; ; tries += 1) {
    signal.throwIfAborted();
    try {
      return await compareWithTopic(own, signal);
    } catch (error) {
      if (!(error instanceof BusUnavailable || error instanceof StoreUnavailable)) throw error;
      if (tries === 0) log.warn({ err: error, topic }, "waiting to compare the store with its topic");
      unasked();
      await clock.sleep(retryMs, signal);
    }
  }
};
