import { create } from "@bufbuild/protobuf";
import {
  type ProducerEpochClosed,
  ProducerEpochClosedSchema,
} from "@curfew/contracts/gen/curfew/events/v1/evidence_pb.ts";
import { type Collection, StoreUnavailable } from "@curfew/document-store/port.ts";
import { type Bus, BusRefused, BusUnavailable } from "@curfew/event-log/bus.ts";
import { isProducer } from "@curfew/event-log/chain-check.ts";
import type { EpochRow } from "@curfew/event-log/epochs.ts";
import { topicNames } from "@curfew/event-log/event-types.ts";
import type { Outbox } from "@curfew/event-log/outbox.ts";
import { maxCertificationChars } from "@curfew/event-log/producer-key.ts";
import type { Clock } from "@curfew/runtime/clock.ts";
import type { Log } from "@curfew/runtime/log.ts";
import type { Follower } from "../follower.ts";

/**
 * Closes producer epochs (design: evidence, "Producer chain"): a row that has not changed for a minute of this auditor's own time is its
 * producer's last word. Its numbers go on the log once everything that can have been acknowledged by then is sealed, so that whoever reads
 * the ledger in order can compare at that place. Where the auditor cannot look, no time passes.
 */

const lookEveryMs = 5_000;
const quietLooks = 12;
const pageRows = 1_000;
/** Open at once; those beyond are looked at when others were closed. */
const maxWatched = 20_000;
const sealedWithinMs = 2_000;

const sealedTopics = new Set<string>(Object.values(topicNames));

interface Watched {
  /** As last read. */
  readonly text: string;
  /** With the largest numbers seen: a row that was put back says less than it did. */
  readonly row: EpochRow;
  /** Looks since it changed. */
  readonly quiet: number;
}

/** No producer goes back, or to another topic. */
const isBehind = (row: EpochRow, known: EpochRow): boolean =>
  row.topic !== known.topic ||
  Object.entries(known.acknowledged).some(([partition, number]) => (row.acknowledged[partition] ?? 0) < number);

/** What is known of a row after it was read once more. */
export const looked = (known: Watched | undefined, row: EpochRow): Watched => {
  const text = JSON.stringify(row);
  if (known?.text === text) return { ...known, quiet: known.quiet + 1 };
  return { text, row: known && isBehind(row, known.row) ? known.row : row, quiet: 0 };
};

/** Every service may write to the store of producers: a row that none of ours would write must not hold up the others. */
const isRow = ({ _id, topic, acknowledged, key = "", signature = "" }: EpochRow): boolean =>
  isProducer(_id) &&
  [topic, key, signature].every((text) => typeof text === "string" && text.length <= maxCertificationChars) &&
  typeof acknowledged === "object" &&
  acknowledged !== null;

const isCount = (number: unknown): number is number => Number.isSafeInteger(number) && (number as number) > 0;

/** `ends`: of each partition of its topic, asked after the row was read. */
export const closingOfRow = (row: EpochRow, ends: readonly number[]): ProducerEpochClosed =>
  create(ProducerEpochClosedSchema, {
    producer: row._id,
    topic: row.topic,
    chains: ends.map((end, partition) => {
      const number = row.acknowledged[partition];
      return { partition, acknowledged: BigInt(isCount(number) ? number : 0), endOffset: BigInt(end) };
    }),
    ended: row.ended === true,
    certification: row.key ?? "",
    signature: Buffer.from(row.signature ?? "", "base64url"),
  });

const saysTheSame = (one: ProducerEpochClosed, other: ProducerEpochClosed): boolean =>
  one.ended === other.ended &&
  one.chains.every(({ acknowledged }, partition) => acknowledged === (other.chains[partition]?.acknowledged ?? 0n));

export interface EpochWatchParts {
  readonly epochs: Collection<EpochRow>;
  readonly outbox: Pick<Outbox, "streams" | "relay">;
  readonly bus: Pick<Bus, "ends">;
  readonly follower: Pick<Follower, "reached">;
  readonly clock: Clock;
  readonly log: Log;
}

/** Until told to stop. */
export const watchEpochs = async (parts: EpochWatchParts, signal: AbortSignal): Promise<void> => {
  const { epochs, outbox, bus, follower, clock, log } = parts;
  let watched = new Map<string, Watched>();

  const read = async (): Promise<void> => {
    const now = new Map<string, Watched>();
    for (let from = ""; now.size < maxWatched; ) {
      const rows = await epochs.find({ where: { open: true }, ...(from && { from }), limit: pageRows });
      for (const row of rows.filter(isRow)) now.set(row._id, looked(watched.get(row._id), row));
      const last = rows.at(-1);
      if (!last || rows.length < pageRows) break;
      from = `${last._id} `;
    }
    // What it says no more, because somebody removed or spoilt it, it has said: no row of a producer goes before it is closed here.
    if (now.size < maxWatched)
      for (const [id, known] of watched) if (!now.has(id)) now.set(id, { ...known, quiet: quietLooks });
    watched = now;
  };

  /** Records the closing unless it stands there already; false when another auditor was first. */
  const record = async (closing: ProducerEpochClosed): Promise<boolean> => {
    const { streams, relay } = outbox;
    const stream = `epochs/${closing.producer}`;
    let version = 0;
    let last: ProducerEpochClosed | undefined;
    for (let found = await streams.read(stream, 1); found; found = await streams.read(stream, version + 1)) {
      last = found.events[0] as ProducerEpochClosed;
      version += 1;
    }
    if (last && saysTheSame(last, closing)) return true;
    const commit = await streams.append(stream, { version, sequence: version }, [closing]);
    // Not waited for: the relay's scan finds it otherwise.
    if (commit) void relay.published(commit);
    return commit !== undefined;
  };

  const close = async (topic: string, rows: readonly EpochRow[]): Promise<void> => {
    const ends = sealedTopics.has(topic) ? await bus.ends(topic) : [];
    const wanted = ends.map((end, partition) => ({ topic, partition, offset: BigInt(end) }));
    if (!(await follower.reached(wanted, sealedWithinMs))) return;
    for (const row of rows) {
      if (signal.aborted) return;
      // Nobody looks for the records of a topic that is not sealed.
      if (sealedTopics.has(topic) && !(await record(closingOfRow(row, ends)))) continue;
      await epochs.unset(row._id, "open");
      watched.delete(row._id);
    }
  };

  while (!signal.aborted) {
    try {
      await read();
      const quiet = [...watched.values()].filter((each) => each.quiet >= quietLooks).map(({ row }) => row);
      for (const [topic, rows] of Map.groupBy(quiet, (row) => row.topic)) await close(topic, rows);
    } catch (err) {
      const isAway = [StoreUnavailable, BusUnavailable, BusRefused].some((kind) => err instanceof kind);
      if (!isAway) throw err;
      log.warn({ err }, "the producers' epochs are looked at again");
    }
    await clock.sleep(lookEveryMs, signal);
  }
};
