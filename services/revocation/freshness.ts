import { create, toBinary } from "@bufbuild/protobuf";
import { durationFromMs } from "@bufbuild/protobuf/wkt";
import { type Position, PositionSchema } from "@curfew/contracts/gen/curfew/events/v1/common_pb.ts";
import {
  type WatcherPing,
  WatchRevocationsResponseSchema,
} from "@curfew/contracts/gen/curfew/revocation/v1/revocation_pb.ts";
import type { Bus } from "@curfew/event-log/bus.ts";
import type { Relay } from "@curfew/event-log/relay.ts";
import type { Feed } from "@curfew/projection/feed.ts";
import type { Clock } from "@curfew/runtime/clock.ts";
import type { Log } from "@curfew/runtime/log.ts";
import type { LeaseBook } from "./lease-book.ts";
import type { PendingRevocations } from "./pending.ts";
import type { WatchLimits } from "./watch-limits.ts";
import type { WatchSession } from "./watch-session.ts";

/**
 * Answers pings with freshness marks and leases. One round of reads, begun after the pings it serves were read, answers all of them:
 * no commit unpublished, then the ends of the topics, then our own feed at those ends, so everything below has been handed to each
 * stream before its mark. Where any of that fails there is no mark, and watchers stop answering by themselves.
 */
export interface Freshness {
  /** A session has a ping to be answered. */
  wake(): void;
  close(): Promise<void>;
}

interface Asked {
  readonly session: WatchSession;
  readonly ping: WatcherPing;
}

const warnEveryMs = 10_000;
/** With its rest a round lasts this many times its reading: a slow store is not kept busy with reads for marks, which slow it further. */
const readTimes = 4;
/** But no rest makes more of a round than this: a ping, of which there is a new one every 500 ms, is to be answered within 2 s. */
const mostEveryMs = 400;

/** Time from the beginning of a round that took so long to that of the next. */
export const nextRoundMs = (tookMs: number, markEveryMs: number): number =>
  Math.max(markEveryMs, tookMs, Math.min(readTimes * tookMs, mostEveryMs));

/** Rejects, and aborts `work`, when it takes longer. */
const within = async <T>(ms: number, clock: Clock, work: (signal: AbortSignal) => Promise<T>): Promise<T> => {
  const over = new AbortController();
  const done = new AbortController();
  const working = work(over.signal);
  working.catch(() => undefined);
  const late = clock.sleep(ms, done.signal).then(() => {
    over.abort();
    throw new Error(`no mark within ${ms} ms`);
  });
  late.catch(() => undefined);
  try {
    return await Promise.race([working, late]);
  } finally {
    done.abort();
  }
};

const answer = ({ session, ping }: Asked, positions: Position[], leaseMs: number | undefined): void => {
  const value = {
    sequence: ping.sequence,
    positions,
    clockOffset: durationFromMs(Math.round(session.clockOffsetMs)),
    ...(leaseMs !== undefined && { lease: durationFromMs(leaseMs) }),
  };
  const mark = create(WatchRevocationsResponseSchema, { kind: { case: "mark", value } });
  session.send(toBinary(WatchRevocationsResponseSchema, mark));
};

export const openFreshness = (parts: {
  readonly sessions: () => Iterable<WatchSession>;
  readonly relay: Relay;
  readonly bus: Bus;
  readonly topics: readonly string[];
  readonly feed: () => Feed | undefined;
  readonly book: LeaseBook;
  readonly pending: PendingRevocations;
  readonly clock: Clock;
  readonly log: Log;
  readonly limits: WatchLimits;
}): Freshness => {
  const { relay, bus, book, pending, clock, log, limits } = parts;
  const closing = new AbortController();
  let woken = Promise.withResolvers<void>();
  let warnedMs = Number.NEGATIVE_INFINITY;

  const asking = (): Asked[] => {
    const asked: Asked[] = [];
    for (const session of parts.sessions()) {
      const ping = session.takePing();
      if (!ping) continue;
      session.answering = true;
      asked.push({ session, ping });
    }
    return asked;
  };

  /** Positions below which everything committed before now is published, and has been pushed to every stream. */
  const covered = async (signal: AbortSignal): Promise<Position[]> => {
    await relay.settled(signal);
    const ends = await Promise.all(parts.topics.map((topic) => bus.ends(topic)));
    const positions = parts.topics.flatMap((topic, i) =>
      (ends[i] ?? []).map((offset, partition) => create(PositionSchema, { topic, partition, offset: BigInt(offset) })),
    );
    const feed = parts.feed();
    if (!feed || !(await feed.reached(positions, limits.markTimeoutMs))) throw new Error("our own feed is behind");
    return positions;
  };

  const withinLimit = <T>(work: (signal: AbortSignal) => Promise<T>) => within(limits.markTimeoutMs, clock, work);

  /**
   * Never for who has left a revocation unacknowledged for the length of a lease, whatever stream it comes by: the lease it has bounds
   * the effective time then. One that takes part acknowledges what a new stream brings first, and gets its lease at the next ping.
   */
  const isDue = ({ session }: Asked) =>
    (session.grantedMs === undefined || clock.monotonicMs() - session.grantedMs >= limits.renewAfterMs) &&
    !pending.owes(session.instance, clock.monotonicMs() - limits.leaseMs);

  /** Durable before anybody hears of it. Answers who was granted one. */
  const renew = async (due: readonly Asked[]): Promise<Set<WatchSession>> => {
    const beganMs = clock.monotonicMs();
    const rows = await book.grant(due.map(({ session }) => session));
    const granted = due.flatMap(({ session }, i) => (rows[i] ? [session] : []));
    for (const session of granted) session.grantedMs = beganMs;
    return new Set(granted);
  };

  const round = async (asked: readonly Asked[]) => {
    const leaving = asked.filter(({ session }) => session.goodbye);
    // Says when the instance stopped answering, whether or not there can be a mark.
    if (leaving.length > 0) await withinLimit(() => renew(leaving));
    const staying = asked.filter(({ session }) => !session.goodbye);
    if (staying.length === 0) return;
    const positions = await withinLimit(covered);
    const leased = await withinLimit(() => renew(staying.filter(isDue)));
    for (const each of staying) answer(each, positions, leased.has(each.session) ? limits.leaseMs : undefined);
  };

  const serve = async (asked: readonly Asked[]) => {
    try {
      await round(asked);
    } catch (error) {
      if (clock.monotonicMs() - warnedMs > warnEveryMs) {
        warnedMs = clock.monotonicMs();
        log.warn({ err: error, watchers: asked.length }, "no freshness mark: watchers stop answering");
      }
    }
    for (const { session } of asked) {
      session.answering = false;
      if (session.finishing && !session.asks) session.end();
    }
  };

  const running = (async () => {
    while (!closing.signal.aborted) {
      const beganMs = clock.monotonicMs();
      const asked = asking();
      if (asked.length > 0) await serve(asked);
      else {
        await woken.promise;
        woken = Promise.withResolvers<void>();
        continue;
      }
      const tookMs = clock.monotonicMs() - beganMs;
      const restMs = nextRoundMs(tookMs, limits.markEveryMs) - tookMs;
      if (restMs > 0) await clock.sleep(restMs, closing.signal);
    }
  })();

  return {
    wake: () => woken.resolve(),
    async close() {
      closing.abort();
      woken.resolve();
      await running;
    },
  };
};
