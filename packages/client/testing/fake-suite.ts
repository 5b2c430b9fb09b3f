import { createHash } from "node:crypto";
import { create, type MessageInitShape } from "@bufbuild/protobuf";
import { durationFromMs, timestampFromMs } from "@bufbuild/protobuf/wkt";
import { EvidenceMode } from "@curfew/contracts/gen/curfew/events/v1/common_pb.ts";
import { Reason } from "@curfew/contracts/gen/curfew/events/v1/uses_pb.ts";
import {
  type EndedTokenSchema,
  RevocationService,
  type WatchRevocationsRequest,
  type WatchRevocationsResponse,
  WatchRevocationsResponseSchema,
} from "@curfew/contracts/gen/curfew/revocation/v1/revocation_pb.ts";
import {
  type CachedUse,
  type CompletedUse,
  CompletedUseSchema,
  type UseRequest,
  VerifierService,
  type VerifyTokenRequest,
  type VerifyTokenResponseSchema,
} from "@curfew/contracts/gen/curfew/verifier/v1/verifier_pb.ts";
import { authorization } from "@curfew/rpc/authorization.ts";
import { openChannel } from "@curfew/rpc/channel.ts";
import { createIdentitySource } from "@curfew/rpc/credentials.ts";
import { RpcError, type RpcFailure } from "@curfew/rpc/errors.ts";
import { openServer } from "@curfew/rpc/server.ts";
import { type BoundService, bindService } from "@curfew/rpc/service-definition.ts";
import { issue, newAuthority, trustDomain } from "@curfew/rpc/testing/harness.ts";
import { type Clock, systemClock } from "@curfew/runtime/clock.ts";
import { systemRandom, uuidV7 } from "@curfew/runtime/random.ts";
import { mintSecret } from "@curfew/token-format/secret.ts";
import { tokenIdFrom } from "@curfew/token-format/token-id.ts";

/**
 * The other side of the SDK's protocols over real gRPC and mutual TLS, with what the real services do not offer: marks, answers and
 * acknowledgements can be held back, lost or put in a given order. The journey tests have the real services.
 */

export const topics = { revocations: "curfew.revocations.v1", tokens: "curfew.tokens.v1" } as const;
type Positions = readonly { readonly topic: string; readonly partition: number; readonly offset: bigint }[];
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

const refuse = (): never => {
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

export interface FakeToken {
  readonly secret: string;
  readonly tokenId: string;
  reason: Reason;
  cacheable: boolean;
  ancestors: string[];
  asOf: Positions;
  expiresAtMs: number;
}

const sha256 = (text: string) => createHash("sha256").update(text).digest("hex");

export const openFakeVerifier = (clock: Clock) => {
  const tokens = new Map<string, FakeToken>();
  const cached = new Map<string, CachedUse>();
  const completed = new Map<string, CompletedUse>();
  const fake = {
    tokens,
    asked: 0,
    requests: [] as (UseRequest | undefined)[],
    batches: [] as number[],
    reports: 0,
    /** Recorded, over all reports. */
    records: 0,
    cached,
    /** By use and part; what was over before its decision was reported is part 1. */
    completed,
    /** Use ids that came again with other content. */
    forged: [] as string[],
    failure: undefined as RpcFailure | undefined,
    reportFailure: undefined as RpcFailure | undefined,
    /** So many reports are recorded, and then the answer is lost. */
    loseAnswers: 0,
    /** A use of this scope is refused with the whole report or batch. */
    poison: "",
    /** So is a report of one that touched a person of this identifier. */
    poisonedPerson: "",
    /** Called before an answer leaves. */
    beforeAnswer: async (): Promise<void> => undefined,
    token(options: Partial<FakeToken> = {}): FakeToken {
      const token: FakeToken = {
        secret: mintSecret("s", systemRandom),
        tokenId: tokenIdFrom(systemRandom(32)),
        reason: Reason.OK,
        cacheable: true,
        ancestors: [],
        asOf: positionsAt(20),
        expiresAtMs: clock.now() + 3_600_000,
        ...options,
      };
      tokens.set(sha256(token.secret), token);
      return token;
    },
    completedOf: (useId: string) => [...completed.values()].filter((part) => part.useId === useId),
    service: (): BoundService =>
      bindService(VerifierService, {
        verifyToken: refuse,
        async batchVerifyTokens({ requests }) {
          fake.asked += requests.length;
          fake.batches.push(requests.length);
          fake.requests.push(...requests.map(({ use }) => use));
          if (fake.failure) throw new RpcError(fake.failure);
          if (requests.some(({ use }) => use?.scope === fake.poison)) throw new RpcError(poisoned);
          const responses = requests.map(answer);
          await fake.beforeAnswer();
          return { responses };
        },
        reportUses(request) {
          fake.reports += 1;
          if (fake.reportFailure) throw new RpcError(fake.reportFailure);
          if (request.cachedUses.some(({ use }) => use?.scope === fake.poison)) throw new RpcError(poisoned);
          const touched = [...request.cachedUses.map(({ ended }) => ended), ...request.completedUses].flatMap(
            (part) => part?.people ?? [],
          );
          if (touched.some(({ value }) => value === fake.poisonedPerson)) throw new RpcError(poisoned);
          for (const use of request.cachedUses) {
            record(cached, use.useId, use);
            if (!use.ended) continue;
            const { useId, tokenId, ended } = use;
            const { outcome, records, people, unnamedPeople } = ended;
            const whole = { useId, tokenId, outcome, records, people, unnamedPeople, part: 1, parts: 1 };
            record(completed, `${useId}/1`, create(CompletedUseSchema, whole));
          }
          for (const part of request.completedUses) record(completed, `${part.useId}/${part.part}`, part);
          fake.records += request.cachedUses.length + request.completedUses.length;
          if (fake.loseAnswers > 0) {
            fake.loseAnswers -= 1;
            throw new RpcError({ status: "INTERNAL", reason: "LOST", message: "the answer was lost" });
          }
          return {};
        },
      }),
  };
  const poisoned: RpcFailure = { status: "INVALID_ARGUMENT", reason: "POISON", message: "a use is refused" };
  const record = <T>(into: Map<string, T>, id: string, value: T) => {
    if (into.has(id) && JSON.stringify(into.get(id), plain) !== JSON.stringify(value, plain)) fake.forged.push(id);
    into.set(id, value);
  };
  const plain = (_key: string, value: unknown) => (typeof value === "bigint" ? String(value) : value);
  const answer = ({ credential }: VerifyTokenRequest): MessageInitShape<typeof VerifyTokenResponseSchema> => {
    const hash = credential.case === "secretSha256" ? Buffer.from(credential.value).toString("hex") : "";
    const token = tokens.get(hash);
    const useId = uuidV7(clock.now(), systemRandom);
    if (!token) return { allowed: false, reason: Reason.UNKNOWN };
    const { tokenId, reason } = token;
    if (reason !== Reason.OK) return { allowed: false, reason, useId, tokenId };
    const cacheable = {
      tokenId,
      generation: 1,
      subject: `spiffe://${trustDomain}/workload/billing`,
      grant: {
        scopes: ["invoices:read"],
        resources: ["invoices/**"],
        audiences: ["crm"],
        purposes: ["billing"],
        dataCategories: ["contact"],
        evidenceMode: EvidenceMode.BATCHED,
      },
      notBefore: timestampFromMs(token.expiresAtMs - 3_600_000),
      expiresAt: timestampFromMs(token.expiresAtMs),
      ancestors: token.ancestors,
      asOf: [...token.asOf],
    };
    return { allowed: true, reason, useId, tokenId, ...(token.cacheable && { cacheable }) };
  };
  return fake;
};
export type FakeVerifier = ReturnType<typeof openFakeVerifier>;

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
