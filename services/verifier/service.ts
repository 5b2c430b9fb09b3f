import { timestampMs } from "@bufbuild/protobuf/wkt";
import { openWatcher, type Watcher } from "@curfew/client/watch.ts";
import type { OutRecord, Producer } from "@curfew/event-log/bus.ts";
import { topicNames } from "@curfew/event-log/event-types.ts";
import type { PersonalStore } from "@curfew/personal-data/personal-store.ts";
import { type Feed, openFeed } from "@curfew/projection/feed.ts";
import { openChannel } from "@curfew/rpc/channel.ts";
import type { HealthState } from "@curfew/rpc/health.ts";
import { type RunningService, type ServiceParts, serve } from "@curfew/rpc/replica.ts";
import { openFacts } from "./facts.ts";
import { verifierService } from "./grpc.ts";
import { openPeople, type People } from "./people.ts";
import { Fold } from "./projections.ts";
import { followErasures } from "./reactions.ts";
import { openRecentAnswers, type RecentAnswers } from "./recent-answers.ts";
import { openRecorder } from "./recorder.ts";
import { type Attempts, moreNetworks, openUnknownAttempts } from "./unknown-attempts.ts";
import { openLiveWait, type Verifier } from "./verify.ts";

export interface VerifierParts extends ServiceParts {
  /** Pseudonyms and keys of people; shared with the auditor, who erases. */
  readonly personal: PersonalStore;
  /** Replicas of revocation, host:port; at least one. */
  readonly revocationAddresses: readonly string[];
}

const healthEveryMs = 100;
const pingEveryMs = 1_000;
const busRetryMs = 500;
const graceMs = 2_000;
/** Producers of uses, each for partitions of its own. */
const lanes = 2;
const prunePerEvent = 2;
const prunePerTick = 2_000;
const networkType = "network";

/** What is open, in the order in which it is to be closed. */
type Closers = (() => Promise<void> | void)[];

/**
 * Serves at once, NOT_SERVING; then reads the log from its beginning and watches `revocation`. SERVING only while it is caught up, live
 * and the bus takes uses; it falls back to NOT_SERVING and recovers by itself.
 */
export const openVerifier = async (parts: VerifierParts): Promise<RunningService> => {
  const { clock, log } = parts;
  const closing = new AbortController();
  const closers: Closers = [];
  const ready = Promise.withResolvers<void>();
  const failed = Promise.withResolvers<never>();
  for (const promise of [ready.promise, failed.promise]) promise.catch(() => undefined);
  let verifier: Verifier | undefined;
  const server = await serve(parts, [verifierService(parts.organisation, () => verifier)]);
  const begin = async () => {
    const opened = await openParts(parts, closing.signal, closers, failed.reject);
    if (!opened) return;
    await Promise.all([opened.feed.caughtUp, opened.erasures.caughtUp]);
    verifier = opened;
    await keepHealth(parts, opened, server.health, closing.signal, ready.resolve);
  };
  const running = begin().catch((error) => {
    if (closing.signal.aborted) return;
    log.error({ err: error }, "the verifier cannot go on");
    ready.reject(error);
    failed.reject(error);
  });
  let closed: Promise<void> | undefined;
  return {
    port: server.port,
    ready: ready.promise,
    failed: failed.promise,
    close() {
      closed ??= (async () => {
        closing.abort();
        await server.close(graceMs);
        // `running` may wait for a feed that will never catch up; closing that ends nothing it still needs.
        for (const close of closers) await close();
        const over = new AbortController();
        await Promise.race([running, clock.sleep(graceMs, over.signal)]);
        over.abort();
      })();
      return closed;
    },
  };
};

/** Undefined when closed meanwhile. */
const openParts = async (
  parts: VerifierParts,
  signal: AbortSignal,
  closers: Closers,
  fail: (error: Error) => void,
): Promise<(Verifier & { readonly erasures: Feed }) | undefined> => {
  const { bus, clock, random, log, instance, keyring, identity, caPem, trustDomain, personal, exclusive } = parts;
  const partitions = await partitionsOf(parts, signal);
  if (partitions === undefined) return undefined;
  const facts = openFacts({ partitions, instance, clock, random });
  const producers: Producer[] = [];
  for (let lane = 1; lane <= Math.min(lanes, partitions); lane += 1)
    producers.push(await bus.openProducer({ topic: topicNames.uses, name: `verifier/${instance}.${lane}` }));
  const recorder = openRecorder({ producers, clock, log });
  closers.push(() => recorder.close());
  const people = openPeople({ personal, random, clock });
  const unknownAttempts = openUnknownAttempts({
    clock,
    log,
    publish: async (attempts) => {
      const names = await networkPseudonyms(parts, people, attempts);
      await recorder.follow(attempts.map((merged, i) => facts.attempts(merged, names[i] ?? "")));
    },
  });
  const fold = new Fold();
  const feed = await openFeed({
    bus,
    name: `verifier-${instance}`,
    topics: [topicNames.revocations, topicNames.tokens],
    clock,
    log,
    // The fold is a join: neither order nor repetition matters to it.
    dedupe: false,
    apply: ({ message }) => {
      fold.apply(message);
      fold.prune(clock.now(), prunePerEvent);
    },
  });
  feed.failed.catch(fail);
  const publish = (records: readonly OutRecord[]) => recorder.follow(records);
  const erasures = await followErasures({ personal, bus, people, facts, publish, instance, exclusive, clock, log });
  erasures.failed.catch(fail);
  closers.push(() => erasures.close());
  if (signal.aborted) {
    await feed.close();
    return undefined;
  }
  const channels = parts.revocationAddresses.map((address) =>
    openChannel({ address, identity, caPem, trustDomain, expectService: "revocation", clock, random }),
  );
  const recentAnswers = openRecentAnswers(clock);
  const watcher = openFoldWatcher(parts, { fold, feed, recentAnswers }, channels);
  closers.unshift(() => unknownAttempts.close());
  closers.push(
    () => watcher.close(),
    () => {
      for (const channel of channels) channel.close();
    },
    () => feed.close(),
  );
  const liveWithin = openLiveWait(watcher, clock);
  const tokensEnd = async () => {
    const ends = await bus.ends(topicNames.tokens);
    return ends.map((end, partition) => ({ topic: topicNames.tokens, partition, offset: BigInt(end) }));
  };
  const asking = { fold, feed, watcher, recentAnswers, tokensEnd, liveWithin, keyring, clock };
  return { ...asking, recorder, facts, unknownAttempts, people, instance, erasures };
};

const openFoldWatcher = (
  { instance, clock, random, log }: VerifierParts,
  known: { readonly fold: Fold; readonly feed: Feed; readonly recentAnswers: RecentAnswers },
  channels: Parameters<typeof openWatcher>[0]["channels"],
): Watcher => {
  const { fold, feed, recentAnswers } = known;
  return openWatcher({
    channels,
    instance,
    reportsUses: false,
    clock,
    random,
    log,
    onEnded: (tokens) => {
      for (const { tokenId, upToGeneration, endsAt } of tokens) {
        if (upToGeneration === 0) fold.revoke(tokenId, clock.now());
        else fold.supersede(tokenId, upToGeneration, endsAt ? timestampMs(endsAt) : clock.now());
      }
    },
    openForMs: ({ tokenId }) => recentAnswers.openForMs(tokenId),
    positionsApplied: (positions) =>
      positions.every(({ topic, partition, offset }) => BigInt(feed.next(topic, partition)) >= offset),
  });
};

/** Under the first controller that the resource service is listed for: the merged attempts may have named several. */
const networkPseudonyms = async (
  { organisation }: VerifierParts,
  people: People,
  attempts: readonly Attempts[],
): Promise<string[]> => {
  const named = attempts.filter(({ network }) => network !== "" && network !== moreNetworks);
  const controllerOf = (name: string) =>
    organisation.resourceServices.find((service) => service.name === name)?.controllers[0] ?? name;
  const found = await people.pseudonymsOf(
    named.map(({ resourceService, network }) => ({
      controller: controllerOf(resourceService),
      identifierType: networkType,
      value: network,
    })),
  );
  return attempts.map((one) => found[named.indexOf(one)] ?? one.network);
};

/** How many partitions uses have; an unavailable bus is waited out. Undefined when closed meanwhile. */
const partitionsOf = async ({ bus, clock, log }: VerifierParts, signal: AbortSignal): Promise<number | undefined> => {
  for (let tries = 0; !signal.aborted; tries += 1) {
    try {
      return (await bus.ends(topicNames.uses)).length;
    } catch (error) {
      if ((error as Error).name !== "BusUnavailable") throw error;
      if (tries === 0) log.warn({ topic: topicNames.uses }, "waiting for the bus");
      await clock.sleep(busRetryMs, signal);
    }
  }
  return undefined;
};

/** Says whether this replica can answer, until closed; forgets in small steps what is over. */
const keepHealth = async (
  { bus, clock, log }: VerifierParts,
  { fold, watcher, recorder }: Verifier,
  health: HealthState,
  signal: AbortSignal,
  ready: () => void,
): Promise<void> => {
  let isBusThere = true;
  const pings = (async () => {
    while (!signal.aborted) {
      isBusThere = await bus.ping().then(
        () => true,
        () => false,
      );
      await clock.sleep(pingEveryMs, signal);
    }
  })();
  let serving = false;
  while (!signal.aborted) {
    fold.prune(clock.now(), prunePerTick);
    const can = isBusThere && recorder.reachable && watcher.isLive();
    if (can !== serving) {
      serving = can;
      health.setAll(can ? "SERVING" : "NOT_SERVING");
      if (can) {
        log.info({}, "serving");
        ready();
      } else log.warn({ isBusThere, reachable: recorder.reachable, live: watcher.isLive() }, "not serving");
    }
    await clock.sleep(healthEveryMs, signal);
  }
  await pings;
};
