import { readFileSync } from "node:fs";
import { setTimeout as sleep } from "node:timers/promises";
import type { AuditorService } from "@curfew/contracts/gen/curfew/auditor/v1/auditor_pb.ts";
import type { Endpoints } from "@curfew/deploy/installation.ts";
import { openSqliteStore } from "@curfew/document-store/sqlite.ts";
import type { Bus, InRecord } from "@curfew/event-log/bus.ts";
import { type ChainHead, checkLink } from "@curfew/event-log/chain.ts";
import { type ReadEvent, readEvent } from "@curfew/event-log/envelope.ts";
import type { EpochRow } from "@curfew/event-log/epochs.ts";
import { topicNames } from "@curfew/event-log/event-types.ts";
import { openKafkaBus } from "@curfew/event-log/kafka.ts";
import { openSqliteBus } from "@curfew/event-log/sqlite.ts";
import { topics } from "@curfew/event-log/topics.ts";
import type { ServiceClient } from "@curfew/rpc/client.ts";
import { systemClock } from "@curfew/runtime/clock.ts";

/**
 * What stands on the topics and in the ledger, read from outside: a bus consumer of its own that keeps its positions over broker and
 * process deaths, checks every producer chain and every stream record by record, and compares with what `ListEvents` answers.
 */
export interface Evidence {
  /** Reads on to the present ends. */
  catchUp(): Promise<void>;
  /** Event ids by what they say: `<type> <request key>`, `<type> <token id>`, `<type> <use id>`, `<type> <use id>/<part>`. */
  has(mark: string): boolean;
  /** Breaks of chains, gaps and forks of streams; empty when all is well. */
  readonly problems: readonly string[];
  readonly events: readonly ReadEvent[];
  /** Event ids that are not exactly once in ListEvents; waits for the sealing at most `waitMs`. */
  missingInLedger(auditor: ServiceClient<typeof AuditorService>, waitMs: number): Promise<string[]>;
}

interface OpenBus {
  readonly bus: Bus;
  close(): Promise<void>;
}

const names = Object.values(topicNames);
const readLimitMs = 60_000;

/** The topics of a running live suite. */
export const kafkaBus = (brokers: readonly string[], endpoints: Endpoints) => async (): Promise<OpenBus> => {
  const store = await openSqliteStore({ file: ":memory:" });
  const own = endpoints.identities["service/issuer"];
  if (!own) throw new Error("no identity to read the topics with");
  const pem = (file: string) => readFileSync(file, "utf8");
  const ssl = { ca: pem(endpoints.ca), cert: pem(own.cert), key: pem(own.key) };
  const epochs = await store.collection<EpochRow>("epochs");
  const bus = await openKafkaBus({ brokers, clientId: "outside", ssl, epochs, clock: systemClock });
  return {
    bus,
    close: async () => {
      await bus.close();
      await store.close();
    },
  };
};

/** The topics of an embedded suite, beside the process that writes them. */
export const sqliteBus = (file: string) => async (): Promise<OpenBus> => {
  const store = await openSqliteStore({ file: ":memory:" });
  const partitions = Object.fromEntries(topics.map((topic) => [topic.name, topic.partitions]));
  const epochs = await store.collection<EpochRow>("epochs");
  const bus = await openSqliteBus({ file, epochs, clock: systemClock, topics: partitions });
  return {
    bus,
    close: async () => {
      await bus.close();
      await store.close();
    },
  };
};

interface Fields {
  readonly requestKey?: string;
  readonly tokenId?: string;
  readonly useId?: string;
  readonly part?: number;
  readonly ended?: object;
}

const marksOf = ({ type, message }: ReadEvent): string[] => {
  const { requestKey, tokenId, useId, part, ended } = message as unknown as Fields;
  // What the access touched, in the record of its decision: as good as a part of its own.
  if (useId && ended) return [`${type} ${useId}`, `curfew.use.completed.v1 ${useId}/1`];
  if (useId) return [`${type} ${useId}`, ...(part === undefined ? [] : [`${type} ${useId}/${part}`])];
  return [requestKey, tokenId].filter(Boolean).map((key) => `${type} ${key}`);
};

const place = ({ topic, partition, offset }: InRecord) => `${topic}/${partition}@${offset}`;

/** Streams seen so far: every sequence under one id, each following the one before. */
const openStreams = (problem: (what: string) => void) => {
  const streams = new Map<string, string[]>();
  return ({ record, subject, sequence, id }: ReadEvent) => {
    if (sequence === undefined) return;
    const stream = `${record.topic} ${subject}`;
    const ids = streams.get(stream) ?? [];
    streams.set(stream, ids);
    const before = ids[sequence - 1];
    if (before === undefined && sequence === ids.length + 1) ids.push(id);
    else if (before === undefined) problem(`gap: ${stream} goes from ${ids.length} to ${sequence}`);
    else if (before !== id) problem(`fork: ${stream} has ${sequence} as ${before} and as ${id}`);
  };
};

export const openEvidence = (open: () => Promise<OpenBus>): Evidence => {
  const positions = new Map<string, number>();
  const heads = new Map<string, ChainHead>();
  const marks = new Set<string>();
  const events: ReadEvent[] = [];
  const problems: string[] = [];
  const stream = openStreams((what) => void problems.push(what));
  const lane = (topic: string, partition: number) => `${topic}/${partition}`;

  const take = (record: InRecord) => {
    const at = lane(record.topic, record.partition);
    const next = positions.get(at) ?? 0;
    if (record.offset < next) return;
    if (record.offset > next) problems.push(`${place(record)} follows ${next - 1}`);
    positions.set(at, record.offset + 1);
    const producer = record.headers.find(([name]) => name === "curfew-producer")?.[1] ?? "";
    const { verdict, head } = checkLink(heads.get(`${at} ${producer}`), record);
    if (head) heads.set(`${at} ${producer}`, head);
    // "repeat": the broker wrote the very same record twice, which the chain allows.
    if (verdict.kind !== "ok" && verdict.kind !== "repeat")
      problems.push(`${place(record)}: ${JSON.stringify(verdict)}`);
    const event = readEvent(record);
    events.push(event);
    for (const mark of marksOf(event)) marks.add(mark);
    stream(event);
  };

  const catchUp = async () => {
    const { bus, close } = await open();
    try {
      const ends = new Map<string, number>();
      for (const topic of names)
        for (const [partition, end] of (await bus.ends(topic)).entries()) ends.set(lane(topic, partition), end);
      const isThere = () => [...ends].every(([at, end]) => (positions.get(at) ?? 0) >= end);
      if (isThere()) return;
      const reading = await bus.subscribe({
        name: "outside",
        topics: names,
        start: (topic, partition) => positions.get(lane(topic, partition)) ?? 0,
        onRecords: (records) => records.forEach(take),
      });
      let failure: Error | undefined;
      reading.failed.catch((error: Error) => {
        failure = error;
      });
      const untilMs = performance.now() + readLimitMs;
      while (!isThere()) {
        if (failure) throw failure;
        if (performance.now() > untilMs) throw new Error("the topics could not be read to their ends");
        await sleep(20);
      }
      await reading.close();
    } finally {
      await close();
    }
  };

  /** Resumes at the last page: the ledger only grows. */
  const listing = { ids: [] as string[], lastPage: "", lastPageFrom: 0 };
  const list = async (auditor: ServiceClient<typeof AuditorService>) => {
    listing.ids.length = listing.lastPageFrom;
    for (let pageToken = listing.lastPage; ; ) {
      const page = await auditor.listEvents({ pageToken, pageSize: 1_000 });
      listing.lastPage = pageToken;
      listing.lastPageFrom = listing.ids.length;
      listing.ids.push(...page.events.map((event) => event.eventId));
      if (page.nextPageToken === "") return;
      pageToken = page.nextPageToken;
    }
  };
  const missing = async (auditor: ServiceClient<typeof AuditorService>) => {
    await list(auditor);
    const counts = new Map<string, number>();
    for (const id of listing.ids) counts.set(id, (counts.get(id) ?? 0) + 1);
    return [...new Set(events.map(({ id }) => id))].flatMap((id) => {
      const times = counts.get(id) ?? 0;
      return times === 1 ? [] : [`${id} is ${times} times in the ledger`];
    });
  };

  return {
    catchUp,
    has: (mark) => marks.has(mark),
    problems,
    events,
    async missingInLedger(auditor, waitMs) {
      const untilMs = performance.now() + waitMs;
      for (;;) {
        const found = await missing(auditor).catch((error: Error) => [`ListEvents: ${error.message}`]);
        if (found.length === 0 || performance.now() > untilMs) return found;
        await sleep(200);
      }
    },
  };
};
