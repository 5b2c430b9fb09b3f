import { fromBinary, type Message } from "@bufbuild/protobuf";
import { type Collection, type DocumentStore, StoreUnavailable, type Value } from "@curfew/document-store/port.ts";
import type { Clock } from "@curfew/runtime/clock.ts";
import type { Random } from "@curfew/runtime/random.ts";
import { currentTraceparent } from "@curfew/runtime/telemetry.ts";
import { encodeEvent } from "./envelope.ts";
import { eventTypeNamed } from "./event-types.ts";

/** One commit is one document, so one insert is the whole write; its `_id` is the optimistic lock. */
export type CommitDoc = {
  _id: string;
  stream: string;
  version: number;
  /** Exact bytes and headers, as they will stand on the topic. */
  events: { headers: { [name: string]: string }; value: Uint8Array }[];
  /** True until the relay has published it; then the field is gone (sparse index). */
  unpublished?: true;
  /** What belongs to the commit but to no event, e.g. a sealed secret waiting to be collected. */
  attached?: { [key: string]: Value };
  /** True where something is attached, for whoever clears it away: it unsets both (sparse index). */
  held?: true;
};

export const commitId = (stream: string, version: number) => `${stream}@${String(version).padStart(10, "0")}`;

export interface StreamEnd {
  /** Commits in the stream. */
  readonly version: number;
  /** Events in the stream. */
  readonly sequence: number;
}

export interface EventStreams {
  readonly commits: Collection<CommitDoc>;
  /** The commit with this number, or undefined where the stream ends before it: an exact read. */
  read(stream: string, version: number): Promise<{ doc: CommitDoc; events: Message[] } | undefined>;
  /** One atomic insert after `end`; undefined when another writer was first. Rejects with UncertainAppend on an outage. */
  append(
    stream: string,
    end: StreamEnd,
    events: readonly Message[],
    attached?: CommitDoc["attached"],
  ): Promise<CommitDoc | undefined>;
}

/** The store failed while `commit` was inserted: it is in the stream, will be, or never. Who reads it there knows it by its `ce_id`. */
export class UncertainAppend extends StoreUnavailable {
  readonly commit: CommitDoc;
  constructor(commit: CommitDoc, cause: Error) {
    super(cause.message, { cause });
    this.commit = commit;
  }
}

/** Whether two commits are the very same write: event ids are random. */
export const isSameCommit = (one: CommitDoc, other: CommitDoc): boolean =>
  one._id === other._id && one.events[0]?.headers.ce_id === other.events[0]?.headers.ce_id;

/** Events a commit may hold: they go out in one send of the bus. */
export const maxEventsPerCommit = 1_000;
/** Bytes of a commit's events together: one send of the bus, and far below what a document may hold. */
export const maxCommitBytes = 2 ** 20;

const decode = (event: CommitDoc["events"][number]): Message => {
  const row = eventTypeNamed(event.headers.ce_type ?? "");
  if (!row) throw new Error(`stored event of unknown type ${event.headers.ce_type}`);
  return fromBinary(row.desc, event.value);
};

export const openCommits = (store: DocumentStore): Promise<Collection<CommitDoc>> =>
  store.collection<CommitDoc>("commits", { indexes: ["unpublished", "held"] });

export const openEventStreams = async (parts: {
  store: DocumentStore;
  /** ce_source, e.g. /issuer. */
  source: string;
  clock: Clock;
  random: Random;
}): Promise<EventStreams> => {
  const commits = await openCommits(parts.store);
  const { clock, random, source } = parts;

  const commitOf = (
    stream: string,
    end: StreamEnd,
    events: readonly Message[],
    attached: CommitDoc["attached"],
  ): CommitDoc => {
    const nowMs = clock.now();
    const traceparent = currentTraceparent(random);
    const encoded = events.map((message, i) => {
      const sequence = end.sequence + 1 + i;
      const event = encodeEvent(message, { source, subject: stream, nowMs, random, traceparent, sequence });
      return { headers: { ...event.headers }, value: event.value };
    });
    const bytes = encoded.reduce((sum, { value }) => sum + value.length, 0);
    if (bytes > maxCommitBytes)
      throw new RangeError(`the events of a commit take ${bytes} bytes, over ${maxCommitBytes}`);
    const version = end.version + 1;
    const doc: CommitDoc = { _id: commitId(stream, version), stream, version, events: encoded, unpublished: true };
    return attached ? { ...doc, attached, held: true } : doc;
  };

  return {
    commits,
    async read(stream, version) {
      const doc = await commits.get(commitId(stream, version));
      return doc && { doc, events: doc.events.map(decode) };
    },
    async append(stream, end, events, attached) {
      if (events.length === 0 || events.length > maxEventsPerCommit)
        throw new RangeError(`a commit holds 1 to ${maxEventsPerCommit} events, not ${events.length}`);
      const doc = commitOf(stream, end, events, attached);
      try {
        return (await commits.insert(doc)) === "inserted" ? doc : undefined;
      } catch (error) {
        throw error instanceof StoreUnavailable ? new UncertainAppend(doc, error) : error;
      }
    },
  };
};
