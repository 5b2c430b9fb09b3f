import { IssuerService } from "@curfew/contracts/gen/curfew/issuer/v1/issuer_pb.ts";
import { topicNames } from "@curfew/event-log/event-types.ts";
import { openAggregates } from "@curfew/event-log/handle-command.ts";
import { type Lease, openLease } from "@curfew/event-log/lease.ts";
import { openOutbox } from "@curfew/event-log/outbox.ts";
import { type Feed, openFeed } from "@curfew/projection/feed.ts";
import { watchHealth } from "@curfew/rpc/health-watch.ts";
import { openWaker, type RunningService, relayService, type ServiceParts, serve } from "@curfew/rpc/replica.ts";
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

export const openIssuer = async (parts: IssuerParts): Promise<RunningService> => {
  const { clock, random, log, keyring, bus, store, trustDomain, instance } = parts;
  const waker = openWaker("issuer", parts);
  const outbox = await openOutbox({ ...parts, service: "issuer", topic: topicNames.tokens, wake: waker.wake });
  const { streams } = outbox;
  const aggregates = {
    tokens: openAggregates({ streams, decider: tokenDecider, clock }),
    policies: openAggregates({ streams, decider: policyDecider, clock }),
    keys: openAggregates({ streams, decider: keyDecider, clock }),
  };
  const identities = openAggregates({ streams, decider: identityDecider, clock });
  const policyBook = openPolicyBook({ commits: streams.commits, policies: aggregates.policies });
  const book = openTokenBook();

  let isReady = false;
  let lastPublished = -1;
  let feed: Feed | undefined;
  const handlers = issuerService({
    aggregates,
    outbox,
    policyBook,
    book,
    keyring,
    clock,
    random,
    isReady: () => isReady,
    ownWritesRead: async () => {
      const wanted = { topic: topicNames.tokens, partition: 0, offset: BigInt(lastPublished + 1) };
      await feed?.reached([wanted], ownWritesMs);
    },
    onPublished: (offset) => {
      lastPublished = Math.max(lastPublished, offset);
    },
  });
  const server = await serve(parts, [handlers, relayService(outbox.relay, outbox.topic)]);
  const address = `${parts.address.slice(0, parts.address.lastIndexOf(":"))}:${server.port}`;
  outbox.start(address);

  // The server answers, NOT_SERVING, while the log is read: the bus may take its time.
  const follow = (name: string, topics: readonly string[]) =>
    openFeed({ bus, name: `issuer-${name}`, topics, clock, log, dedupe: false, apply: book.apply });
  const opening = follow("tokens", [topicNames.tokens, topicNames.revocations]);
  // Only for "last used": nobody waits for it.
  const openingUses = follow("uses", [topicNames.uses]);
  let health: { close(): void } | undefined;
  let reactions: Lease | undefined;
  let closing = false;

  const start = async () => {
    feed = await opening;
    await feed.caughtUp;
    if (closing) return;
    isReady = true;
    health = watchHealth({ health: server.health, service: IssuerService, needs: ["store"], store, bus, clock, log });
    const { identitiesDir } = parts;
    const work = reactionsWork({
      aggregates,
      outbox,
      policyBook,
      book,
      identityImport: identitiesDir
        ? openIdentityImport({ dir: identitiesDir, identities, trustDomain, log })
        : undefined,
      keyring,
      clock,
      random,
      log,
      self: `spiffe://${trustDomain}/service/issuer`,
    });
    reactions = openLease({
      rows: outbox.leases,
      name: "reactions-issuer",
      holder: instance,
      address: () => address,
      clock,
      log,
      exclusive: parts.exclusive,
      work,
    });
  };
  const ready = start();
  const failed = Promise.all([opening, openingUses]).then((feeds) => Promise.race(feeds.map((each) => each.failed)));
  // Whoever runs the service looks at both; a test that does not is not ended by them.
  ready.catch(() => undefined);
  failed.catch(() => undefined);

  return {
    port: server.port,
    ready,
    failed,
    async close() {
      closing = true;
      health?.close();
      await server.close(stopGraceMs);
      await reactions?.close();
      // One that still waits for the bus is closed when it opens, if ever.
      for (const each of [opening, openingUses]) void each.then((opened) => opened.close()).catch(() => undefined);
      await feed?.close();
      await outbox.close();
      waker.close();
    },
  };
};
