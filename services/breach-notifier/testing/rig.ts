import { create, type Message } from "@bufbuild/protobuf";
import { durationFromMs, timestampFromMs } from "@bufbuild/protobuf/wkt";
import { BreachService } from "@curfew/contracts/gen/curfew/breach/v1/breach_pb.ts";
import {
  LeakReportedSchema,
  RevocationEffectiveSchema,
  RevocationReason,
  TokenRevokedSchema,
} from "@curfew/contracts/gen/curfew/events/v1/revocations_pb.ts";
import { TokenIssuedSchema } from "@curfew/contracts/gen/curfew/events/v1/tokens_pb.ts";
import {
  Outcome,
  Reason,
  UseCompletedSchema,
  UseDecidedSchema,
} from "@curfew/contracts/gen/curfew/events/v1/uses_pb.ts";
import type { Bus, Producer } from "@curfew/event-log/bus.ts";
import { encodeEvent } from "@curfew/event-log/envelope.ts";
import { eventTypeOf, topicNames } from "@curfew/event-log/event-types.ts";
import { interruptibleBus, interruptibleStore } from "@curfew/rpc/testing/outages.ts";
import { shiftedClock } from "@curfew/rpc/testing/shifted-clock.ts";
import { openTestSuite } from "@curfew/rpc/testing/suite.ts";
import { systemRandom } from "@curfew/runtime/random.ts";
import { type PagingConfig, parsePaging } from "../paging.ts";
import { openBreachNotifier } from "../service.ts";

const organisation = `
controllers:
  - id: acme
    name: Acme GmbH
    country: DE
    contact: privacy@acme.example
    dpo: dpo@acme.example
    population: { contact: 12000, financial: 4000 }
    records: { contact: 30000, financial: 90000 }
  - { id: other, name: Other AG, contact: o, dpo: p }
resource_services:
  - { name: invoices, controllers: [acme] }
  - { name: shop, controllers: [acme, other] }
people:
  - { name: sam, roles: [security] }
  - { name: dora, roles: [dpo] }
  - { name: dana, roles: [dpo] }
  - { name: otto, roles: [oncall] }
  - { name: aude, roles: [auditor] }
`;

const hourMs = 3_600_000;

export const tokenIdOf = (n: number) => `tok_00000000-0000-8000-8000-${String(n).padStart(12, "0")}`;

/** Notifiers on a real bus, store and mutual TLS, and the topics of the other services to write to. Time is real and can be pushed. */
export const openRig = async () => {
  const clock = shiftedClock();
  const suite = await openTestSuite({ organisation, clock });
  const { bus } = await suite.parts("issuer");
  const producers = new Map<string, Promise<Producer>>();
  const sequences = new Map<string, number>();

  /** Publishes an event as its service does; answers its ce_id and position. */
  const publish = async (message: Message, subject: string, o: { atMs?: number; id?: string } = {}) => {
    const { topic } = eventTypeOf(message);
    const producer = producers.get(topic) ?? bus.openProducer({ topic, name: `${topic.split(".")[1]}/test` });
    producers.set(topic, producer);
    const isUse = topic === topicNames.uses;
    const sequence = (sequences.get(`${topic} ${subject}`) ?? 0) + 1;
    if (!isUse) sequences.set(`${topic} ${subject}`, sequence);
    const event = encodeEvent(message, {
      source: "/test",
      subject,
      nowMs: o.atMs ?? clock.now(),
      random: systemRandom,
      traceparent: `00-${"1".repeat(32)}-${"2".repeat(16)}-00`,
      ...(!isUse && { sequence }),
      ...(o.id !== undefined && { id: o.id }),
    });
    const [offset = 0] = await (await producer).send([{ partition: 0, key: subject, ...event }]);
    return { id: event.headers.ce_id ?? "", position: { topic, partition: 0, offset: BigInt(offset) } };
  };

  const issue = (tokenId: string, o: { dataCategories?: string[]; audiences?: string[]; atMs?: number } = {}) =>
    publish(
      create(TokenIssuedSchema, {
        tokenId,
        subject: "spiffe://test.example/workload/billing",
        grant: { audiences: o.audiences ?? ["invoices"], dataCategories: o.dataCategories ?? ["contact"] },
        generation: { number: 1, expiresAt: timestampFromMs((o.atMs ?? clock.now()) + 500 * hourMs) },
        lineageExpiresAt: timestampFromMs((o.atMs ?? clock.now()) + 700 * hourMs),
      }),
      `tokens/${tokenId}`,
      o,
    );

  /** One allowed use; `people` absent: not reported yet. */
  const use = async (
    tokenId: string,
    useId: string,
    o: {
      people?: string[];
      records?: number;
      address?: string;
      controller?: string;
      atMs?: number;
      service?: string;
    } = {},
  ) => {
    const resourceService = o.service ?? "invoices";
    const decided = await publish(
      create(UseDecidedSchema, {
        useId,
        decidedAt: timestampFromMs(o.atMs ?? clock.now()),
        tokenId,
        generation: 1,
        resourceService,
        reason: Reason.OK,
        details: {
          resource: "invoices/7",
          dataCategories: ["contact"],
          controller: o.controller ?? "acme",
          maxPeople: 10n,
          maxRecords: 20n,
        },
        source: { addressPseudonym: o.address ?? "home" },
      }),
      tokenId,
      { id: `${useId}/decided` },
    );
    if (!o.people) return decided;
    return await publish(
      create(UseCompletedSchema, {
        useId,
        tokenId,
        outcome: Outcome.COMPLETED,
        people: o.people,
        records: BigInt(o.records ?? o.people.length),
        part: 1,
        parts: 1,
        resourceService,
      }),
      tokenId,
      { id: `${useId}/completed/1` },
    );
  };

  /** As revocation commits it: the report, and the end of a live token. */
  const reportLeak = async (tokenId: string, o: { exposedSinceMs?: number; live?: boolean } = {}) => {
    const subject = `revocations/${tokenId}`;
    const live = o.live ?? true;
    const leak = await publish(
      create(LeakReportedSchema, {
        tokenId,
        generation: 1,
        generationLive: live,
        sighting: {
          kind: "git",
          location: "https://git.example/repository",
          public: true,
          ...(o.exposedSinceMs !== undefined && { exposedSince: timestampFromMs(o.exposedSinceMs) }),
        },
        reportedBy: { spiffeId: "spiffe://test.example/person/sam" },
        reportedAt: timestampFromMs(clock.now()),
        requestKey: "aa",
      }),
      subject,
    );
    const revoked =
      live &&
      (await publish(
        create(TokenRevokedSchema, {
          tokenId,
          reason: RevocationReason.LEAKED,
          revokedAt: timestampFromMs(clock.now()),
        }),
        subject,
      ));
    return { leak, revoked: revoked || undefined };
  };

  const takeEffect = (tokenId: string, revocationEventId: string, effectiveAtMs = clock.now()) =>
    publish(
      create(RevocationEffectiveSchema, {
        tokenId,
        revocationEventId,
        effectiveAt: timestampFromMs(effectiveAtMs),
        largestClockOffset: durationFromMs(0),
      }),
      `revocations/${tokenId}`,
    );

  let held: { readonly topic: string; readonly released: PromiseWithResolvers<void> } | undefined;
  /** A bus that delivers nothing of a topic while that is held back. */
  const holding = (inner: Bus): Bus => ({
    openProducer: (options) => inner.openProducer(options),
    // One for each topic, so that what is held back holds back no other, as on a broker.
    async subscribe(options) {
      const subscriptions = await Promise.all(
        options.topics.map((topic) =>
          inner.subscribe({
            ...options,
            topics: [topic],
            onRecords: async (records) => {
              if (topic === held?.topic) await held.released.promise;
              await options.onRecords(records);
            },
          }),
        ),
      );
      return {
        failed: Promise.race(subscriptions.map((each) => each.failed)),
        close: async () => void (await Promise.all(subscriptions.map((each) => each.close()))),
      };
    },
    ends: (topic) => inner.ends(topic),
    describe: (topic) => inner.describe(topic),
    ping: () => inner.ping(),
    close: () => inner.close(),
  });

  /** One more replica. `kill` cuts it off from store and bus for good, as kill -9 does: it commits nothing any more. */
  const start = async (paging: PagingConfig | object = {}, o: { waitUntilReady?: boolean } = {}) => {
    const parts = await suite.parts("breach-notifier");
    const store = interruptibleStore(parts.store);
    const own = interruptibleBus(holding(parts.bus));
    const opening = openBreachNotifier({
      ...parts,
      store: store.store,
      bus: own.bus,
      // A killed one's leases need not be waited for; correctness never rests on them.
      exclusive: true,
      paging: "repeatMs" in paging ? paging : parsePaging(paging),
    });
    const service = await (o.waitUntilReady === false ? opening : suite.use(opening));
    const client = (path: string) => suite.client(BreachService, service, path, "breach-notifier");
    return {
      service,
      client,
      dora: await client("person/dora"),
      setStoreDown: (how: false | "before" | "after") => store.setDown(how),
      kill: () => {
        store.setDown("before");
        own.setDown(true);
      },
      close: async () => {
        store.setDown(false);
        own.end();
        await service.close();
      },
    };
  };

  return {
    ...{ clock, suite, publish, issue, use, reportLeak, takeEffect, start },
    /** Until the answer is called, no replica reads more of the topic. */
    hold: (topic: string) => {
      const released = Promise.withResolvers<void>();
      held = { topic, released };
      return () => released.resolve();
    },
    close: () => suite.close(),
  };
};
export type Rig = Awaited<ReturnType<typeof openRig>>;
export type Notifier = Awaited<ReturnType<Rig["start"]>>;
