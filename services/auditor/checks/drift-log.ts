import { create } from "@bufbuild/protobuf";
import {
  type EvidenceDriftEnded,
  EvidenceDriftEndedSchema,
  type EvidenceDriftFound,
  EvidenceDriftFoundSchema,
} from "@curfew/contracts/gen/curfew/events/v1/evidence_pb.ts";
import type { Outbox } from "@curfew/event-log/outbox.ts";
import type { CommitDoc } from "@curfew/event-log/streams.ts";
import type { Log } from "@curfew/runtime/log.ts";
import { type Drift, driftCauseName, driftStream, stopsSealing } from "./drift.ts";

/** A drift that is not over. */
export interface OpenDrift extends Drift {
  /** ce_time of its EvidenceDriftFound. */
  readonly sinceMs: number;
}

/** Which drifts are open, as their streams tell it: found and ended in turn, a commit for each. All replicas see the same. */
export interface DriftLog {
  /** Records each as EvidenceDriftFound unless it is open already. */
  found(...drifts: readonly Drift[]): Promise<void>;
  /** Of those that `isLooked` names only `now` are there: the others that are open are recorded as ended. */
  settle(isLooked: (drift: Drift) => boolean, now: readonly Drift[]): Promise<void>;
  open(): Promise<OpenDrift[]>;
  /** Resolves when this process next finds that nothing may be sealed. */
  lost(): Promise<void>;
}

const placeOf = ({ topic, partition, offset }: Drift) =>
  partition === undefined ? {} : { position: { topic, partition, offset: BigInt(offset ?? 0) } };

const openDrift = (message: EvidenceDriftFound, doc: CommitDoc): OpenDrift => {
  const { cause, topic, position, setting, expected, seen, ledgerIndex } = message;
  return {
    cause,
    topic,
    ...(position && { partition: position.partition, offset: Number(position.offset) }),
    setting,
    expected,
    seen,
    ...(ledgerIndex !== undefined && { ledgerIndex: Number(ledgerIndex) }),
    sinceMs: Date.parse(doc.events[0]?.headers.ce_time ?? ""),
  };
};

export const openDriftLog = ({ streams, relay }: Outbox, log: Pick<Log, "error" | "info">): DriftLog => {
  let lost = Promise.withResolvers<void>();

  const lastOf = async (stream: string) => {
    const [doc] = await streams.commits.findLatest({ from: `${stream}@`, below: `${stream}@~`, order: -1, limit: 1 });
    const message = doc && (await streams.read(stream, doc.version))?.events[0];
    const isOpen = message?.$typeName === EvidenceDriftFoundSchema.typeName;
    return {
      version: doc?.version ?? 0,
      open: doc && isOpen ? openDrift(message as EvidenceDriftFound, doc) : undefined,
    };
  };

  /** Where another replica was first, it said the same. */
  const append = async (stream: string, version: number, event: EvidenceDriftFound | EvidenceDriftEnded) => {
    const commit = await streams.append(stream, { version, sequence: version }, [event]);
    // Not waited for: the relay's scan finds it otherwise.
    if (commit) void relay.published(commit);
    return commit !== undefined;
  };

  const found = async (drift: Drift): Promise<void> => {
    const stream = driftStream(drift);
    const { version, open } = await lastOf(stream);
    if (!open) {
      const { ledgerIndex, ...fields } = drift;
      const event = create(EvidenceDriftFoundSchema, {
        ...fields,
        ...placeOf(drift),
        ...(ledgerIndex !== undefined && { ledgerIndex: BigInt(ledgerIndex) }),
      });
      if (await append(stream, version, event))
        log.error({ ...drift, cause: driftCauseName(drift.cause) }, "the evidence has drifted");
    }
    if (!stopsSealing(drift)) return;
    lost.resolve();
    lost = Promise.withResolvers();
  };

  const ended = async (drift: Drift): Promise<void> => {
    const stream = driftStream(drift);
    const { version, open } = await lastOf(stream);
    if (!open) return;
    const { cause, topic, setting } = drift;
    const place = placeOf({ ...drift, offset: 0 });
    if (await append(stream, version, create(EvidenceDriftEndedSchema, { cause, topic, setting, ...place })))
      log.info({ cause: driftCauseName(cause), topic, setting }, "a drift of the evidence is over");
  };

  /** From one stream to the next; there are at most a few for each partition and setting. */
  const open = async (): Promise<OpenDrift[]> => {
    const drifts: OpenDrift[] = [];
    for (let from = "drift/"; ; ) {
      const [first] = await streams.commits.find({ from, below: "drift0", limit: 1 });
      if (!first) return drifts;
      const last = await lastOf(first.stream);
      if (last.open) drifts.push(last.open);
      from = `${first.stream}@~`;
    }
  };

  return {
    async found(...drifts) {
      for (const drift of drifts) await found(drift);
    },
    async settle(isLooked, now) {
      for (const drift of now) await found(drift);
      const there = new Set(now.map(driftStream));
      for (const drift of await open()) if (isLooked(drift) && !there.has(driftStream(drift))) await ended(drift);
    },
    open,
    lost: () => lost.promise,
  };
};
