import { create, type MessageInitShape } from "@bufbuild/protobuf";
import { durationFromMs } from "@bufbuild/protobuf/wkt";
import {
  type EndedTokenSchema,
  RevocationService,
  type WatchRevocationsRequest,
  type WatchRevocationsResponse,
  WatchRevocationsResponseSchema,
} from "@curfew/contracts/gen/curfew/revocation/v1/revocation_pb.ts";
import { authorization } from "@curfew/rpc/authorization.ts";
import { openChannel } from "@curfew/rpc/channel.ts";
import { createIdentitySource } from "@curfew/rpc/credentials.ts";
import { RpcError } from "@curfew/rpc/errors.ts";
import { openServer } from "@curfew/rpc/server.ts";
import { type BoundService, bindService } from "@curfew/rpc/service-definition.ts";
import { issue, newAuthority, trustDomain } from "@curfew/rpc/testing/harness.ts";
import { type Clock, systemClock } from "@curfew/runtime/clock.ts";

/**
 * The other side of the SDK's protocols over real gRPC and mutual TLS, with what the real services do not offer: marks, answers and
 * acknowledgements can be held back, lost or put in a given order. The journey tests have the real services.
 */

export const topics = { revocations: "curfew.revocations.v1", tokens: "curfew.tokens.v1" } as const;
export type Positions = readonly { readonly topic: string; readonly partition: number; readonly offset: bigint }[];
export const positionsAt = (offset: number): Positions =>
  Object.values(topics).map((topic) => ({ topic, partition: 0, offset: BigInt(offset) }));

/** Both clocks can be set on and back; sleeping stays real. */
export const openJumpyClock = () => {
  let monotonicMs = 0;
  let wallMs = 0;
  const clock: Clock = {
    now: () => systemClock.now() + wallMs,
    monotonicMs: () => systemClock.monotonicMs() + monotonicMs,
    sleep: systemClock.sleep,
  };
  return {
    clock,
    /** As after SIGSTOP and SIGCONT. */
    stopFor: (ms: number) => {
      monotonicMs += ms;
      wallMs += ms;
    },
    setWall: (ms: number) => {
      wallMs += ms;
    },
  };
};

export const refuse = (): never => {
  throw new RpcError({ status: "UNIMPLEMENTED", reason: "FAKE", message: "not in this fake" });
};

interface WatchStream {
  push(message: WatchRevocationsResponse): void;
  finish(): void;
}

export const openFakeRevocation = () => {
  const streams = new Set<WatchStream>();
  /** Everything received, over all streams, in order. */
  const received: WatchRevocationsRequest["kind"][] = [];
  const fake = {
    received,
    streams,
    /** No marks while false. */
    marks: true as boolean,
    leases: true as boolean,
    /** How long a stream stays open after its watcher has sent all. */
    lingersMs: 0,
    /** Streams that were broken off. */
    brokenOff: 0,
    /** Of every watcher, as measured. */
    clockOffsetMs: 0,
    positions: positionsAt(10),
    /** Sent to each new stream first. */
    recent: [] as MessageInitShape<typeof EndedTokenSchema>[],
    hellos: () => received.flatMap((kind) => (kind.case === "hello" ? [kind.value] : [])),
    pings: () => received.flatMap((kind) => (kind.case === "ping" ? [kind.value] : [])),
    acknowledged: () => received.flatMap((kind) => (kind.case === "acknowledge" ? kind.value.revocationEventIds : [])),
    push(...tokens: MessageInitShape<typeof EndedTokenSchema>[]) {
      for (const stream of streams) stream.push(endedMessage(tokens));
    },
    breakStreams() {
      for (const stream of streams) stream.finish();
    },
    service: (): BoundService =>
      bindService(RevocationService, {
        revokeToken: refuse,
        revokeBySecret: refuse,
        reportLeak: refuse,
        identifySecret: refuse,
        getRevocation: refuse,
        watchRevocations: (requests, ctx) => watch(requests, ctx.signal),
      }),
  };
  const endedMessage = (tokens: MessageInitShape<typeof EndedTokenSchema>[]) =>
    create(WatchRevocationsResponseSchema, { kind: { case: "ended", value: { tokens } } });
  const markOf = (sequence: bigint) =>
    create(WatchRevocationsResponseSchema, {
      kind: {
        case: "mark",
        value: {
          sequence,
          positions: [...fake.positions],
          ...(fake.leases && { lease: durationFromMs(5_000) }),
          clockOffset: durationFromMs(fake.clockOffsetMs),
        },
      },
    });
  async function* watch(requests: AsyncIterable<WatchRevocationsRequest>, signal: AbortSignal) {
    const queue: WatchRevocationsResponse[] = [];
    let woken = Promise.withResolvers<void>();
    let over: boolean = false;
    const stream: WatchStream = {
      push(message) {
        queue.push(message);
        woken.resolve();
      },
      finish() {
        over = true;
        woken.resolve();
      },
    };
    const { finish } = stream;
    signal.addEventListener("abort", () => {
      if (!over) fake.brokenOff += 1;
      finish();
    });
    const reading = (async () => {
      for await (const request of requests) {
        received.push(request.kind);
        if (request.kind.case === "hello") {
          if (fake.recent.length > 0) stream.push(endedMessage(fake.recent));
          streams.add(stream);
        }
        if (request.kind.case === "ping" && !request.kind.value.goodbye && fake.marks)
          stream.push(markOf(request.kind.value.sequence));
      }
    })();
    reading.then(() => systemClock.sleep(fake.lingersMs)).then(finish, finish);
    try {
      while (!over || queue.length > 0) {
        const message = queue.shift();
        if (message) yield message;
        else {
          await woken.promise;
          woken = Promise.withResolvers<void>();
        }
      }
    } finally {
      streams.delete(stream);
    }
  }
  return fake;
};
export type FakeRevocation = ReturnType<typeof openFakeRevocation>;

/** A certificate authority, and servers and identities under it. `close` closes all of them. */
export const openFakeSuite = async () => {
  const authority = await newAuthority();
  const closers: (() => unknown)[] = [];
  const suite = {
    authority,
    caPem: authority.certPem,
    trustDomain,
    closers,
    identity: async (path: string) => createIdentitySource(await issue(authority, path)),
    /** Answers its address and what stops it. */
    async serve(name: string, service: BoundService) {
      const server = await openServer({
        address: "localhost:0",
        identity: await suite.identity(`/service/${name}`),
        caPem: authority.certPem,
        trustDomain,
        services: [service],
        authorize: authorization,
        directory: { rolesOf: () => new Set(), isAudience: (workload) => workload === "crm" },
        reflection: false,
        log: { warn: () => undefined, error: () => undefined },
        clock: systemClock,
      });
      const stop = () => server.close(0);
      closers.push(stop);
      return { address: `localhost:${server.port}`, stop };
    },
    async channel(address: string, expectService: string, path = "/workload/crm") {
      const identity = await suite.identity(path);
      const options = { address, identity, caPem: authority.certPem, trustDomain, expectService, clock: systemClock };
      const channel = openChannel(options);
      closers.push(() => channel.close());
      return channel;
    },
    async close() {
      for (const close of closers.reverse()) await close();
    },
  };
  return suite;
};
export type FakeSuite = Awaited<ReturnType<typeof openFakeSuite>>;
