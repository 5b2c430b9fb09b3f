import { X509Certificate } from "node:crypto";
import type { DescService } from "@bufbuild/protobuf";
import { Health } from "@curfew/contracts/gen/grpc/health/v1/health_pb.ts";
import type { Clock } from "@curfew/runtime/clock.ts";
import { type Random, systemRandom } from "@curfew/runtime/random.ts";
import { Server, type UntypedServiceImplementation } from "@grpc/grpc-js";
import { CallSet, shuttingDown } from "./active-call.ts";
import type { AuthorizationTable, Directory } from "./authorization.ts";
import { type IdentitySource, MutualTlsServerCredentials } from "./credentials.ts";
import type { RpcLog } from "./failure-of.ts";
import { createGate } from "./gate.ts";
import { type CallEnvironment, handleCall } from "./handle-call.ts";
import { createHealth, type HealthState } from "./health.ts";
import { callerOfNames } from "./identity.ts";
import { createReflection } from "./reflection.ts";
import { type BoundService, methodDefinition } from "./service-definition.ts";

export interface ServerLimits {
  /** Cap on the deadline of a call that answers once; also what a call without a deadline gets. Streams have none. */
  readonly maxDeadlineMs: number;
  readonly maxRequestBytes: number;
  readonly maxResponseBytes: number;
  /** Per connection. */
  readonly maxConcurrentStreams: number;
  /** Calls that answer once, at a time, over all connections; more get RESOURCE_EXHAUSTED. */
  readonly maxCalls: number;
  /** Calls that answer a stream, likewise. */
  readonly maxStreams: number;
  /** Of both, those of one caller: the others must find room while one of them takes all he gets. */
  readonly maxCallsPerCaller: number;
  readonly maxStreamsPerCaller: number;
  /** Then the client is asked to connect again: it bounds how long an open stream outlives a role. */
  readonly maxConnectionAgeMs: number;
  readonly maxConnectionAgeGraceMs: number;
  readonly maxConnectionIdleMs: number;
  readonly keepaliveMs: number;
  readonly keepaliveTimeoutMs: number;
}

export const defaultServerLimits: ServerLimits = {
  maxDeadlineMs: 30_000,
  maxRequestBytes: 1024 * 1024,
  maxResponseBytes: 4 * 1024 * 1024,
  maxConcurrentStreams: 1024,
  maxCalls: 4096,
  maxStreams: 4096,
  maxCallsPerCaller: 2048,
  maxStreamsPerCaller: 512,
  maxConnectionAgeMs: 3_600_000,
  maxConnectionAgeGraceMs: 30_000,
  maxConnectionIdleMs: 900_000,
  keepaliveMs: 30_000,
  keepaliveTimeoutMs: 10_000,
};

export interface ServerOptions {
  /** `localhost:0` and the like; port 0 takes a free one. `unix:` paths work too. */
  readonly address: string;
  readonly identity: IdentitySource;
  readonly caPem: string;
  readonly trustDomain: string;
  readonly services: readonly BoundService[];
  readonly authorize: AuthorizationTable;
  readonly directory: Directory;
  readonly reflection: boolean;
  readonly log: RpcLog;
  readonly clock: Clock;
  readonly random?: Random;
  readonly limits?: Partial<ServerLimits>;
}

export interface RpcServer {
  /** The port bound. */
  readonly port: number;
  /** Everything begins NOT_SERVING. */
  readonly health: HealthState;
  /**
   * Stops accepting, ends streams with UNAVAILABLE `SHUTTING_DOWN`, lets calls that answer once finish for `graceMs`, then aborts
   * them alike. Never rejects; a second call gets the first one's promise.
   */
  close(graceMs: number): Promise<void>;
}

const channelOptions = (limits: ServerLimits) => ({
  "grpc.max_receive_message_length": limits.maxRequestBytes,
  "grpc.max_send_message_length": limits.maxResponseBytes,
  "grpc.max_concurrent_streams": limits.maxConcurrentStreams,
  "grpc.max_connection_age_ms": limits.maxConnectionAgeMs,
  "grpc.max_connection_age_grace_ms": limits.maxConnectionAgeGraceMs,
  "grpc.max_connection_idle_ms": limits.maxConnectionIdleMs,
  "grpc.keepalive_time_ms": limits.keepaliveMs,
  "grpc.keepalive_timeout_ms": limits.keepaliveTimeoutMs,
  "grpc.enable_channelz": 0,
});

const addServices = (server: Server, services: readonly BoundService[], env: CallEnvironment): void => {
  for (const bound of services) {
    const definition = Object.fromEntries(bound.desc.methods.map((m) => [m.localName, methodDefinition(m)]));
    const handlers: UntypedServiceImplementation = {};
    for (const method of bound.desc.methods) handlers[method.localName] = handleCall(bound, method, env);
    server.addService(definition, handlers);
  }
};

/** The port is taken, or the address is none of this machine's. */
export class AddressUnavailable extends Error {
  override name = "AddressUnavailable";
}

const bind = (server: Server, address: string, credentials: MutualTlsServerCredentials): Promise<number> =>
  new Promise((resolve, reject) => {
    server.bindAsync(address, credentials, (error, port) => {
      if (!error) return resolve(port);
      // The library gives the system's code in its text alone.
      const code = /\bE[A-Z]{4,}\b/.exec(error.message)?.[0] ?? "for an unknown reason";
      const why = code === "EADDRINUSE" ? "the port is taken" : code;
      reject(new AddressUnavailable(`cannot listen on ${address}: ${why}`, { cause: error }));
    });
  });

const drain = async (server: Server, env: CallEnvironment, clock: Clock, graceMs: number): Promise<void> => {
  env.stopping = true;
  const drained = Promise.withResolvers<void>();
  // Refuses new connections and asks clients to go; waits for streams for ever, hence they are ended here.
  server.tryShutdown(() => drained.resolve());
  for (const stream of [...env.streams]) stream.abort(shuttingDown());
  const timer = new AbortController();
  await Promise.race([drained.promise, clock.sleep(graceMs, timer.signal)]);
  timer.abort();
  for (const call of [...env.unary]) call.abort(shuttingDown());
  server.forceShutdown();
};

/** Serves over mutual TLS 1.3 only: see `createGate` for who gets in. Rejects with AddressUnavailable when it cannot listen. */
export const openServer = async (options: ServerOptions): Promise<RpcServer> => {
  const { address, identity, caPem, trustDomain, authorize, directory, clock, log } = options;
  const limits = { ...defaultServerLimits, ...options.limits };
  const random = options.random ?? systemRandom;
  const env: CallEnvironment = {
    clock,
    log,
    random,
    limits,
    passed: new WeakMap(),
    unary: new CallSet(limits.maxCalls, limits.maxCallsPerCaller),
    streams: new CallSet(limits.maxStreams, limits.maxStreamsPerCaller),
    stopping: false,
  };
  const self = callerOfNames(new X509Certificate(identity.current().certPem).subjectAltName, trustDomain);
  if (!self) throw new Error(`the server's own certificate names nobody of trust domain ${trustDomain}`);
  const gate = createGate({ trustDomain, authorize, directory, self, clock, passed: env.passed });
  const server = new Server({ ...channelOptions(limits), interceptors: [gate] });
  const health = createHealth(options.services.map((bound) => bound.desc.typeName));
  const served: DescService[] = [...options.services.map((bound) => bound.desc), Health];
  const reflection = options.reflection ? createReflection(served) : [];
  addServices(server, [...options.services, health.service, ...reflection], env);
  const credentials = new MutualTlsServerCredentials(identity, caPem);
  let port: number;
  try {
    port = await bind(server, address, credentials);
  } catch (error) {
    credentials.unsubscribe();
    server.forceShutdown();
    throw error;
  }
  let closing: Promise<void> | undefined;
  return {
    port,
    health,
    close(graceMs) {
      closing ??= (async () => {
        health.setAll("NOT_SERVING");
        await drain(server, env, clock, graceMs);
        credentials.unsubscribe();
      })();
      return closing;
    },
  };
};
