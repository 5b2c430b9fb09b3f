import { BreachService } from "@curfew/contracts/gen/curfew/breach/v1/breach_pb.ts";
import { StoreUnavailable } from "@curfew/document-store/port.ts";
import type { Bus } from "@curfew/event-log/bus.ts";
import { topicNames } from "@curfew/event-log/event-types.ts";
import { openAggregates } from "@curfew/event-log/handle-command.ts";
import { openOutbox } from "@curfew/event-log/outbox.ts";
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
import { openUsedRequests } from "@curfew/rpc/used-requests.ts";
import { clockOf, degradedOf } from "./case-view.ts";
import { openChannels } from "./channels/open.ts";
import type { Channel, PageContent } from "./channels/page.ts";
import { openDelivery } from "./delivery.ts";
import type { PageState } from "./domain/pages.ts";
import { breachCase, type OpenCase } from "./domain.ts";
import { openDrafts } from "./drafts.ts";
import { breachService } from "./grpc.ts";
import type { PagingConfig } from "./paging.ts";
import { Knowledge } from "./projections.ts";
import { openRadii, type Radii } from "./radii.ts";
import { openReactions } from "./reactions.ts";
import { openUseRows, type UseRows } from "./use-rows.ts";

const name = "breach-notifier";
const factTopics = [topicNames.tokens, topicNames.revocations, topicNames.evidence, topicNames.breaches];
const stopGraceMs = 2_000;
const writeAgainMs = 500;

export type BreachParts = ServiceParts & {
  readonly paging: PagingConfig;
  /** In place of those that `paging` describes: for tests. */
  readonly channels?: ReadonlyMap<string, Channel>;
};

class Closed extends Error {
  override name = "Closed";
}

/** A feed that waits for a bus that is away waits no more once we close. */
const untilClosed = (bus: Bus, closing: AbortSignal): Bus => {
  const ask = async <T>(answer: () => Promise<T>): Promise<T> => {
    if (closing.aborted) throw new Closed("the service is closed");
    return await answer();
  };
  return {
    openProducer: (options) => bus.openProducer(options),
    subscribe: (options) => ask(() => bus.subscribe(options)),
    ends: (topic) => ask(() => bus.ends(topic)),
    describe: (topic) => bus.describe(topic),
    ping: () => bus.ping(),
    close: () => bus.close(),
  };
};

/** The page as it is sent now: numbers where they can be counted, and never waiting for them in vain. */
const composer =
  ({ paging, clock, log }: BreachParts, radii: Radii) =>
  async (state: OpenCase, page: PageState): Promise<PageContent> => {
    const { pageId, milestone, round } = page;
    const radius = await radii.of(state).catch((err: unknown) => {
      log.warn({ err, caseId: state.caseId }, "what was touched cannot be counted now");
      return undefined;
    });
    const nowMs = clock.now();
    return {
      pageId,
      milestone,
      round,
      caseId: state.caseId,
      tokenId: state.tokenId,
      noPersonalData: state.noPersonalData,
      clock: clockOf(state, nowMs),
      numbers: radius?.radius,
      degraded: degradedOf(state, { targets: paging.targets.length, busAnswers: radii.busAnswers }),
      nowMs,
    };
  };

/** Follows the topic of uses into rows. A store that is away is waited for: the bus keeps what was not read. */
const followUses = async ({ bus, clock, log }: BreachParts, rows: UseRows, closing: AbortSignal): Promise<Feed> => {
  const patiently = async <T>(work: () => Promise<T>): Promise<T> => {
    for (let tries = 0; ; tries += 1) {
      try {
        return await work();
      } catch (error) {
        if (!(error instanceof StoreUnavailable) || closing.aborted) throw error;
        if (tries === 0) log.warn({ err: error }, "uses wait for the database");
        await clock.sleep(writeAgainMs, closing);
      }
    }
  };
  return await openFeed({
    bus: untilClosed(bus, closing),
    name: `${name}-uses`,
    topics: [topicNames.uses],
    clock,
    log,
    dedupe: false,
    from: await patiently(() => rows.positions()),
    apply: (event) => rows.add(event),
    commit: (positions) => patiently(() => rows.commit(positions)),
  });
};

const openFacts = ({ bus, clock, log }: BreachParts, knowledge: Knowledge, closing: AbortSignal): Promise<Feed> =>
  openFeed({
    bus: untilClosed(bus, closing),
    name: `${name}-facts`,
    topics: factTopics,
    clock,
    log,
    dedupe: false,
    apply: knowledge.apply,
  });

/** Turns signals of compromise into cases, a clock, pages and drafts of a notification. */
export const openBreachNotifier = async (parts: BreachParts): Promise<RunningService> => {
  const { store, bus, clock, random, log, instance, organisation, paging } = parts;
  const waker = openWaker(name, parts);
  const outbox = await openOutbox({ ...parts, service: name, topic: topicNames.breaches, wake: waker.wake });
  const { streams } = outbox;
  const cases = openAggregates({ streams, decider: breachCase, clock });
  const knowledge = new Knowledge();
  const rows = await openUseRows(store);
  const closing = new AbortController();
  let facts: Feed | undefined;
  let uses: Feed | undefined;
  let isReady = false;
  const radii = openRadii({
    ...{ knowledge, rows, bus, organisation, clock },
    feeds: () => (facts && uses ? { facts, uses } : undefined),
  });
  const drafts = await openDrafts({ store, streams, radii, organisation, clock });
  const usedRequests = await openUsedRequests({ store, clock, log });
  const channels = parts.channels ?? openChannels(paging, parts.trustDomain, clock);
  const targets = [...channels.keys()];
  if (targets.length === 0) log.warn({}, "nobody is paged: no target is configured (paging.targets)");

  const server = await serve(parts, [
    breachService({
      ...{ cases, outbox, knowledge, radii, drafts, usedRequests, clock },
      feeds: () => (isReady && facts && uses ? [facts, uses] : undefined),
      targets: targets.length,
    }),
    relayService(outbox.relay, outbox.topic),
  ]);
  const address = advertisedAddress(parts, server.port);
  outbox.start(address);
  // Time goes on whether or not the bus is there: cases are in the store. Signals are taken once the log is read.
  const reactions = openReactions({
    ...{ outbox, cases, knowledge, bus, targets, instance, clock, log, repeatMs: paging.repeatMs },
    feed: () => (isReady ? facts : undefined),
    openDelivery: (command) => openDelivery({ channels, compose: composer(parts, radii), command, clock, random, log }),
    address: () => address,
    exclusive: parts.exclusive,
  });

  const openings = [openFacts(parts, knowledge, closing.signal), followUses(parts, rows, closing.signal)] as const;
  const failed = Promise.withResolvers<never>();
  failed.promise.catch(() => undefined); // whoever waits sees it; nobody has to
  const fail = (error: unknown) => void (closing.signal.aborted || failed.reject(error));
  let health: { close(): void } | undefined;
  const ready = (async () => {
    [facts, uses] = await Promise.all(openings);
    for (const feed of [facts, uses]) feed.failed.catch(fail);
    await Promise.all([facts.caughtUp, uses.caughtUp, outbox.compared]);
    if (closing.signal.aborted) return;
    isReady = true;
    knowledge.onSignal();
    health = watchHealth({ health: server.health, service: BreachService, needs: ["store"], store, bus, clock, log });
  })();
  ready.catch(fail);
  outbox.failed.catch(fail);

  const close = async (at: (part: string) => void) => {
    closing.abort();
    health?.close();
    at("server");
    await server.close(stopGraceMs);
    at("reactions");
    await reactions.close();
    at("feeds");
    for (const opening of openings)
      await opening.then((feed) => feed.close()).catch((err: unknown) => log.debug({ err }, "a feed was not open"));
    at("outbox");
    await outbox.close();
    waker.close();
  };
  let closed: Promise<void> | undefined;
  return {
    port: server.port,
    ready,
    failed: failed.promise,
    close(at = () => undefined) {
      closed ??= close(at);
      return closed;
    },
  };
};
