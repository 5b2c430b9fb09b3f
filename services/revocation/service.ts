import { RevocationService } from "@curfew/contracts/gen/curfew/revocation/v1/revocation_pb.ts";
import type { Bus } from "@curfew/event-log/bus.ts";
import { topicNames } from "@curfew/event-log/event-types.ts";
import { openAggregates } from "@curfew/event-log/handle-command.ts";
import type { Lease } from "@curfew/event-log/lease.ts";
import { openOutbox } from "@curfew/event-log/outbox.ts";
import { restoredAtMs } from "@curfew/event-log/restore.ts";
import { type Feed, openFeed } from "@curfew/projection/feed.ts";
import { watchHealth } from "@curfew/rpc/health-watch.ts";
import {
  advertisedAddress,
  openWaker,
  type RunningService,
  relayService,
  type ServiceParts,
  serve,
} from "@curfew/rpc/replica.ts";
import { bindService } from "@curfew/rpc/service-definition.ts";
import { openUsedRequests } from "@curfew/rpc/used-requests.ts";
import { openAcknowledger } from "./acknowledger.ts";
import { acknowledgements, reportingGaps } from "./domain/watcher.ts";
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

/** What handlers, feed and reactions work on. */
const openCore = async (parts: ServiceParts, limits: WatchLimits) => {
  const { store, clock, log } = parts;
  const waker = openWaker("revocation", parts);
  const outbox = await openOutbox({
    ...parts,
    service: "revocation",
    topic: topicNames.revocations,
    wake: waker.wake,
  });
  const { streams } = outbox;
  const book = await openLeaseBook({ store, clock, leaseMs: limits.leaseMs });
  return {
    waker,
    outbox,
    book,
    limits,
    revocations: openAggregates({ streams, decider: revocation, clock }),
    acknowledgements: openAggregates({ streams, decider: acknowledgements, clock }),
    gaps: openAggregates({ streams, decider: reportingGaps, clock }),
    proofs: await openProofs({ store, book, leaseMs: limits.leaseMs }),
    usedRequests: await openUsedRequests({ store, clock, log }),
    index: new SecretIndex(),
    restoredMs: await restoredAtMs(store),
    pending: new PendingRevocations(),
    hub: openWatchHub({ clock, limits }),
  };
};
type Core = Awaited<ReturnType<typeof openCore>>;

/** The topics as this replica reads them; the server answers meanwhile, for the bus may take its time. */
const openLog = ({ bus, clock, log, instance }: ServiceParts, core: Core) => {
  const { compared, failed: behind } = core.outbox;
  let opened: Feed | undefined;
  let served: Feed | undefined;
  let closed = false;
  // A feed that waits for a bus that is away waits no more once we close.
  const ask = async <T>(answer: () => Promise<T>): Promise<T> => {
    if (closed) throw new Closed("the service is closed");
    return await answer();
  };
  const asked: Pick<Bus, "ends" | "subscribe"> = {
    ends: (topic) => ask(() => bus.ends(topic)),
    subscribe: (options) => ask(() => bus.subscribe(options)),
  };
  const { apply } = createProjection({ ...core, clock, watched: () => served !== undefined });
  const opening = openFeed({ bus: asked as Bus, name: `revocation-${instance}`, topics, clock, log, apply });
  const failed = Promise.race([opening.then((feed) => feed.failed), behind]);
  failed.catch(() => undefined); // whoever runs the service looks at it
  return {
    failed,
    /** Undefined until everything that was on the topics at start is applied, and our store has all that is on our own. */
    served: () => served,
    async caughtUp(): Promise<void> {
      opened = await opening;
      await Promise.all([opened.caughtUp, compared]);
      served = opened;
    },
    async close(): Promise<void> {
      closed = true;
      await opened?.close();
      if (!opened) void opening.then((feed) => feed.close()).catch(() => undefined);
    },
  };
};

/** What watchers are served by. */
const openWatching = ({ bus, clock, log, instance }: ServiceParts, core: Core, feed: () => Feed | undefined) => {
  const { outbox, hub, book, pending, limits } = core;
  const { relay } = outbox;
  const sessions = () => hub.sessions;
  const freshness = openFreshness({ relay, bus, topics, book, pending, clock, log, limits, sessions, feed });
  const acknowledger = openAcknowledger({
    ...{ instance, relay, clock, log },
    aggregates: core.acknowledgements,
    everyMs: limits.acknowledgeEveryMs,
    recorded: (receipt) => pending.acknowledge(receipt.eventIds, receipt.instance, receipt),
  });
  return { freshness, acknowledger };
};

/**
 * One replica of `revocation`. It listens at once, so that RevokeToken works while the bus cannot be asked; everything else answers
 * UNAVAILABLE until the topics of tokens and revocations have been read to what was their end at start.
 */
export const openRevocation = async (parts: ServiceParts, options: RevocationOptions = {}): Promise<RunningService> => {
  const { clock } = parts;
  const core = await openCore(parts, { ...defaultWatchLimits, ...options.limits });
  const { outbox, waker } = core;
  const log = openLog(parts, core);
  const watching = openWatching(parts, core, log.served);
  const limiter = openLimiter({ clock, ...failedLookUps });
  const handlers = createHandlers({ ...parts, ...core, ...watching, limiter, feed: log.served });
  const server = await serve(parts, [
    bindService(RevocationService, handlers, { rejections }),
    relayService(outbox.relay, outbox.topic),
  ]);
  const address = advertisedAddress(parts, server.port);
  outbox.start(address);

  let health: { close(): void } | undefined;
  let reactions: Lease | undefined;
  let closed: Promise<void> | undefined;
  const start = async () => {
    await log.caughtUp();
    if (closed !== undefined) return;
    // The emergency stop needs the store alone.
    health = watchHealth({ ...parts, health: server.health, service: RevocationService, needs: ["store"] });
    reactions = openReactions({ ...parts, ...core, address: () => address });
  };
  const ready = start();
  ready.catch(() => undefined); // whoever runs the service looks at it

  const close = async (at: (part: string) => void) => {
    health?.close();
    at("server");
    await server.close(graceMs);
    at("watching");
    await watching.freshness.close();
    await watching.acknowledger.close();
    at("reactions");
    await reactions?.close();
    at("feed");
    await log.close();
    at("outbox");
    await outbox.close();
    waker.close();
  };
  return {
    port: server.port,
    ready,
    failed: log.failed,
    close(at = () => undefined) {
      closed ??= close(at);
      return closed;
    },
  };
};
