import { IssuerService } from "@curfew/contracts/gen/curfew/issuer/v1/issuer_pb.ts";
import { topicNames } from "@curfew/event-log/event-types.ts";
import { openAggregates } from "@curfew/event-log/handle-command.ts";
import { type Lease, openLease } from "@curfew/event-log/lease.ts";
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
import { identityDecider, keyDecider, policyDecider } from "./domain/records.ts";
import { tokenDecider } from "./domain.ts";
import { issuerService } from "./grpc.ts";
import { openIdentityImport } from "./identities.ts";
import { openPolicyBook } from "./policy-book.ts";
import { openTokenBook } from "./projections.ts";
import { reactionsWork } from "./reactions.ts";

export interface IssuerParts extends ServiceParts {
  /** Where `curfew identity create` leaves its notes; absent: nothing is imported. */
  readonly identitiesDir?: string;
}

const stopGraceMs = 2_000;
const ownWritesMs = 250;

/** What the handlers and the reactions work on. */
const openCore = async (parts: IssuerParts) => {
  const { clock } = parts;
  const waker = openWaker("issuer", parts);
  const outbox = await openOutbox({ ...parts, service: "issuer", topic: topicNames.tokens, wake: waker.wake });
  const { streams } = outbox;
  const aggregates = {
    tokens: openAggregates({ streams, decider: tokenDecider, clock }),
    policies: openAggregates({ streams, decider: policyDecider, clock }),
    keys: openAggregates({ streams, decider: keyDecider, clock }),
  };
  return {
    waker,
    outbox,
    aggregates,
    usedRequests: await openUsedRequests(parts),
    identities: openAggregates({ streams, decider: identityDecider, clock }),
    policyBook: openPolicyBook({ commits: streams.commits, policies: aggregates.policies, clock }),
    book: openTokenBook(),
  };
};
type Core = Awaited<ReturnType<typeof openCore>>;

const openReactions = (parts: IssuerParts, core: Core, address: string): Lease => {
  const { trustDomain, log, identitiesDir, instance, clock, exclusive } = parts;
  const { identities, outbox } = core;
  const work = reactionsWork({
    ...core,
    ...parts,
    identityImport: identitiesDir
      ? openIdentityImport({ dir: identitiesDir, identities, trustDomain, log })
      : undefined,
    self: `spiffe://${trustDomain}/service/issuer`,
  });
  const name = "reactions-issuer";
  return openLease({
    rows: outbox.leases,
    name,
    holder: instance,
    address: () => address,
    clock,
    log,
    exclusive,
    work,
  });
};

/** The log as this replica reads it, into the book; the server answers meanwhile, NOT_SERVING, for the bus may take its time. */
const openFeeds = ({ bus, clock, log }: IssuerParts, { book }: Core) => {
  const follow = (name: string, topics: readonly string[]) =>
    openFeed({ bus, name: `issuer-${name}`, topics, clock, log, dedupe: false, apply: book.apply });
  const opening = follow("tokens", [topicNames.tokens, topicNames.revocations]);
  // Only for "last used": nobody waits for it.
  const openingUses = follow("uses", [topicNames.uses]);
  let tokens: Feed | undefined;
  const failed = Promise.race([opening, openingUses].map(async (each) => (await each).failed));
  failed.catch(() => undefined); // whoever runs the service looks at it
  return {
    failed,
    async caughtUp() {
      tokens = await opening;
      await tokens.caughtUp;
    },
    reached: async (offset: number) => {
      const wanted = { topic: topicNames.tokens, partition: 0, offset: BigInt(offset + 1) };
      await tokens?.reached([wanted], ownWritesMs);
    },
    async close() {
      // One that still waits for the bus is closed when it opens, if ever.
      for (const each of [opening, openingUses]) void each.then((feed) => feed.close()).catch(() => undefined);
      await tokens?.close();
    },
  };
};

export const openIssuer = async (parts: IssuerParts): Promise<RunningService> => {
  const { store, bus, clock, log } = parts;
  const core = await openCore(parts);
  const { outbox } = core;
  const feeds = openFeeds(parts, core);
  let isReady = false;
  let lastPublished = -1;
  const handlers = issuerService({
    ...core,
    ...parts,
    isReady: () => isReady,
    ownWritesRead: () => feeds.reached(lastPublished),
    onPublished: (offset) => {
      lastPublished = Math.max(lastPublished, offset);
    },
  });
  const server = await serve(parts, [handlers, relayService(outbox.relay, outbox.topic)]);
  const address = advertisedAddress(parts, server.port);
  outbox.start(address);

  let health: { close(): void } | undefined;
  let reactions: Lease | undefined;
  let closing = false;
  const start = async () => {
    await Promise.all([feeds.caughtUp(), outbox.compared]);
    if (closing) return;
    isReady = true;
    health = watchHealth({ health: server.health, service: IssuerService, needs: ["store"], store, bus, clock, log });
    reactions = openReactions(parts, core, address);
  };
  const ready = start();
  const failed = Promise.race([feeds.failed, outbox.failed]);
  for (const promise of [ready, failed]) promise.catch(() => undefined); // whoever runs the service looks at it

  return {
    port: server.port,
    ready,
    failed,
    async close(at = () => undefined) {
      closing = true;
      health?.close();
      at("server");
      await server.close(stopGraceMs);
      at("reactions");
      await reactions?.close();
      at("feeds");
      await feeds.close();
      at("outbox");
      await outbox.close();
      core.waker.close();
    },
  };
};
