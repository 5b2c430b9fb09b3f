import {
  type EndedToken,
  RevocationService,
  type WatchRevocationsRequest,
} from "@curfew/contracts/gen/curfew/revocation/v1/revocation_pb.ts";
import type { Bus } from "@curfew/event-log/bus.ts";
import { topicNames } from "@curfew/event-log/event-types.ts";
import { authorization } from "@curfew/rpc/authorization.ts";
import { createIdentitySource } from "@curfew/rpc/credentials.ts";
import type { Authority } from "@curfew/rpc/identity-authority.ts";
import { openServer } from "@curfew/rpc/server.ts";
import { bindService } from "@curfew/rpc/service-definition.ts";
import { issue, trustDomain } from "@curfew/rpc/testing/harness.ts";
import { systemClock } from "@curfew/runtime/clock.ts";

type Push = (message: object) => void;

/** The server's side of WatchRevocations as the protocol says, for the verifier's own tests: marks up to the ends of the bus, pushes on demand. */
export const openTestRevocation = async (options: {
  readonly authority: Authority;
  readonly bus: Bus;
  readonly port?: number;
}) => {
  const watchers = new Set<Push>();
  const acknowledged: string[] = [];
  const refuse = () => {
    throw new Error("not served in this test");
  };
  const positions = async () => {
    const topics = [topicNames.revocations, topicNames.tokens];
    const ends = await Promise.all(topics.map((topic) => options.bus.ends(topic)));
    return topics.map((topic, i) => ({ topic, partition: 0, offset: BigInt(ends[i]?.[0] ?? 0) }));
  };
  const answer = async (requests: AsyncIterable<WatchRevocationsRequest>, push: Push) => {
    for await (const { kind } of requests) {
      if (kind.case === "ping") {
        const { sequence } = kind.value;
        const value = { sequence, positions: await positions(), lease: { seconds: 5n, nanos: 0 } };
        push({ kind: { case: "mark", value } });
      } else if (kind.case === "acknowledge") acknowledged.push(...kind.value.revocationEventIds);
    }
  };
  const server = await openServer({
    address: `localhost:${options.port ?? 0}`,
    identity: createIdentitySource(await issue(options.authority, "/service/revocation")),
    caPem: options.authority.certPem,
    trustDomain,
    services: [
      bindService(RevocationService, {
        revokeToken: refuse,
        revokeBySecret: refuse,
        reportLeak: refuse,
        identifySecret: refuse,
        getRevocation: refuse,
        watchRevocations: async function* (requests, ctx) {
          const waiting: object[] = [];
          let more = Promise.withResolvers<void>();
          const push = (message: object) => {
            waiting.push(message);
            more.resolve();
          };
          watchers.add(push);
          ctx.signal.addEventListener("abort", () => more.resolve());
          answer(requests, push).then(more.resolve, more.resolve);
          try {
            while (!ctx.signal.aborted) {
              for (const message of waiting.splice(0)) yield message;
              await more.promise;
              more = Promise.withResolvers();
            }
          } finally {
            watchers.delete(push);
          }
        },
      }),
    ],
    authorize: authorization,
    directory: { rolesOf: () => new Set(), isAudience: () => true },
    reflection: false,
    log: { warn: () => undefined, error: () => undefined },
    clock: systemClock,
  });
  return {
    port: server.port,
    acknowledged,
    push: (tokens: readonly Partial<EndedToken>[]) => {
      for (const push of watchers) push({ kind: { case: "ended", value: { tokens } } });
    },
    close: () => server.close(0),
  };
};
export type TestRevocation = Awaited<ReturnType<typeof openTestRevocation>>;
