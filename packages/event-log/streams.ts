import { fromBinary, type Message } from "@bufbuild/protobuf";
import type { Collection, DocumentStore, Value } from "@curfew/document-store/port.ts";
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
  /** One atomic insert after `end`; undefined when another writer was first. */
  append(stream: string, end: StreamEnd, events: readonly Message[], attached?: CommitDoc["attached"]): Promise<CommitDoc | undefined>;
}

/** Events a commit may hold. */
const maxEventsPerCommit = 1_000;

const decode = (event: CommitDoc["events"][number]): Message => {
  const row = eventTypeNamed(event.headers["ce_type"] ?? "");
  if (!row) throw new Error(`stored event of unknown type ${event.headers["ce_type"]}`);
  return fromBinary(row.desc, event.value);
};

export const openEventStreams = async (parts: {
  store: DocumentStore;
  /** ce_source, e.g. /issuer. */
  source: string;
  clock: Clock;
  random: Random;
}): Promise<EventStreams> => {
  const commits = await parts.store.collection<CommitDoc>("commits", { indexes: ["unpublished"] });
  return {
    commits,
    async read(stream, version) {
      const doc = await commits.get(commitId(stream, version));
      return doc && { doc, events: doc.events.map(decode) };
    },
    async append(stream, end, events, attached) {
      if (events.length === 0 || events.length > maxEventsPerCommit)
        throw new RangeError(`a commit holds 1 to ${maxEventsPerCommit} events, not ${events.length}`);
      const nowMs = parts.clock.now();
      const traceparent = currentTraceparent(parts.random);
      const doc: CommitDoc = {
        _id: commitId(stream, end.version + 1),
        stream,
        version: end.version + 1,
        events: events.map((message, i) => {
          const encoded = encodeEvent(message, {
            source: parts.source,
            subject: stream,
            nowMs,
            random: parts.random,
            traceparent,
            sequence: end.sequence + 1 + i,
          });
          return { headers: { ...encoded.headers }, value: encoded.value };
        }),
        unpublished: true,
        ...(attached && { attached }),
      };
      return (await commits.insert(doc)) === "inserted" ? doc : undefined;
    },
  };
};
