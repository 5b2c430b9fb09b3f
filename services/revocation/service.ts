import { RevocationService } from "@curfew/contracts/gen/curfew/revocation/v1/revocation_pb.ts";
import type { Bus } from "@curfew/event-log/bus.ts";
import { topicNames } from "@curfew/event-log/event-types.ts";
import { openAggregates } from "@curfew/event-log/handle-command.ts";
import type { Lease } from "@curfew/event-log/lease.ts";
import { openOutbox } from "@curfew/event-log/outbox.ts";
import { type Feed, openFeed } from "@curfew/projection/feed.ts";
import { openWaker, type RunningService, relayService, type ServiceParts, serve } from "@curfew/rpc/replica.ts";
import { bindService } from "@curfew/rpc/service-definition.ts";
import { openAcknowledger } from "./acknowledger.ts";
import { watcher } from "./domain/watcher.ts";
import { revocation } from "./domain.ts";
import { openFreshness } from "./freshness.ts";
import { createHandlers, rejections } from "./grpc.ts";
import { openLeaseBook } from "./lease-book.ts";
import { openLimiter } from "./limiter.ts";
import { PendingRevocations } from "./pending.ts";
import { createProjection } from "./projections.ts";
import { openProofs } from "./proofs.ts";
import { openReactions } from "./reactions.ts";
import { SecretIndex } from "./secret-index.ts";
import { openWatchHub } from "./watch-hub.ts";
import { defaultWatchLimits, type WatchLimits } from "./watch-limits.ts";

const topics = [topicNames.tokens, topicNames.revocations];
const graceMs = 2_000;
const failedLookUps = { attempts: 100, windowMs: 60_000, maxCallers: 10_000 };

export interface RevocationOptions {
  readonly limits?: Partial<WatchLimits>;
}

class Closed extends Error {
  override name = "Closed";
}

/** A feed that waits for a bus that is away waits no more once we close. */
const untilClosed = (bus: Bus, closing: AbortSignal): Pick<Bus, "ends" | "subscribe"> => {
  const ask = async <T>(answer: () => Promise<T>): Promise<T> => {
    if (closing.aborted) throw new Closed("the service is closed");
    return await answer();
  };
  return { ends: (topic) => ask(() => bus.ends(topic)), subscribe: (options) => ask(() => bus.subscribe(options)) };
};

/**
 * One replica of `revocation`. It listens at once, so that RevokeToken works while the bus cannot be asked; everything else answers
 * UNAVAILABLE until the topics of tokens and revocations have been read to what was their end at start.
 */
export const openRevocation = async (parts: ServiceParts, options: RevocationOptions = {}): Promise<RunningService> => {
  const { store, bus, clock, log, keyring, instance, random, exclusive } = parts;
  const limits = { ...defaultWatchLimits, ...options.limits };
  const waker = openWaker("revocation", parts);
  const outbox = await openOutbox({
    ...{ store, bus, instance, clock, random, log, exclusive },
    service: "revocation",
    topic: topicNames.revocations,
    wake: waker.wake,
  });
  const { streams, relay } = outbox;
  const revocations = openAggregates({ streams, decider: revocation, clock });
  const watchers = openAggregates({ streams, decider: watcher, clock });
  const book = await openLeaseBook({ store, clock, leaseMs: limits.leaseMs });
  const proofs = await openProofs({ store, book, leaseMs: limits.leaseMs });
  const index = new SecretIndex();
  const pending = new PendingRevocations();
  const hub = openWatchHub({ clock, limits });
  const closing = new AbortController();
  const failed = Promise.withResolvers<never>();
  failed.promise.catch(() => undefined);
  let feed: Feed | undefined;
  const served = () => feed;

  const freshness = openFreshness({
    ...{ relay, bus, topics, book, clock, log, limits },
    sessions: () => hub.sessions,
    feed: served,
  });
  const acknowledger = openAcknowledger({
    ...{ watchers, relay, clock, log },
    everyMs: limits.acknowledgeEveryMs,
    recorded: (ids, from, acknowledgement) => pending.acknowledge(ids, from, acknowledgement),
  });
  const limiter = openLimiter({ clock, ...failedLookUps });
  const handlers = createHandlers({
    ...{ hub, book, pending, freshness, acknowledger, clock, limits, outbox, revocations, index, proofs },
    ...{ keyring, limiter, bus, feed: served },
  });
  const server = await serve(parts, [
    bindService(RevocationService, handlers, { rejections }),
    relayService(relay, outbox.topic),
  ]);
  const address = `localhost:${server.port}`;
  outbox.start(address);

  const projection = createProjection({ index, pending, hub, clock, watched: () => feed !== undefined });
  const opening = openFeed({
    bus: { ...untilClosed(bus, closing.signal) } as Bus,
    name: `revocation-${instance}`,
    topics,
    clock,
    log,
    apply: projection.apply,
  });
  let reactions: Lease | undefined;
  const ready = (async () => {
    const opened = await opening;
    opened.failed.catch(failed.reject);
    await opened.caughtUp;
    if (closing.signal.aborted) return;
    feed = opened;
    reactions = openReactions({
      ...{ outbox, revocations, watchers, pending, book, proofs, instance, exclusive, clock, log, limits },
      address: () => address,
    });
    server.health.setAll("SERVING");
  })();
  ready.catch((error) => void (closing.signal.aborted || failed.reject(error)));

  const close = async () => {
    closing.abort();
    server.health.setAll("NOT_SERVING");
    await server.close(graceMs);
    await freshness.close();
    await acknowledger.close();
    await reactions?.close();
    await opening.then((opened) => opened.close()).catch(() => undefined);
    await outbox.close();
    waker.close();
  };
  let closed: Promise<void> | undefined;
  return {
    port: server.port,
    ready,
    failed: failed.promise,
    close() {
      closed ??= close();
      return closed;
    },
  };
};
