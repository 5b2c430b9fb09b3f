import { RelayService } from "@curfew/contracts/gen/curfew/relay/v1/relay_pb.ts";
import type { DocumentStore } from "@curfew/document-store/port.ts";
import type { Bus } from "@curfew/event-log/bus.ts";
import type { Relay } from "@curfew/event-log/relay.ts";
import type { Keyring } from "@curfew/keyring/keyring.ts";
import type { Clock } from "@curfew/runtime/clock.ts";
import type { Log } from "@curfew/runtime/log.ts";
import { directoryOf, type Organisation } from "@curfew/runtime/organisation.ts";
import type { Random } from "@curfew/runtime/random.ts";
import { authorization } from "./authorization.ts";
import { openClient } from "./client.ts";
import type { IdentitySource } from "./credentials.ts";
import { RpcError } from "./errors.ts";
import { openServer, type RpcServer } from "./server.ts";
import { type BoundService, bindService } from "./service-definition.ts";

/** What every service is made of: the same `service.ts` runs on these in main, in the embedded suite and in tests. */
export interface ServiceParts {
  /** The service's own database. */
  readonly store: DocumentStore;
  readonly bus: Bus;
  readonly keyring: Keyring;
  readonly organisation: Organisation;
  readonly clock: Clock;
  readonly random: Random;
  readonly log: Log;
  /** Id of this process, new at every start: lower-case letters, digits, hyphens. */
  readonly instance: string;
  /** Where to listen, host:port; port 0 takes a free one. */
  readonly address: string;
  /** Host under which fellow replicas reach this one; absent: that of `address`. */
  readonly advertiseHost?: string;
  readonly identity: IdentitySource;
  readonly caPem: string;
  readonly trustDomain: string;
  readonly reflection: boolean;
  /** No second process can exist (embedded): leases left by a killed one are taken over at once. */
  readonly exclusive: boolean;
}

/** A service at work. */
export interface RunningService {
  readonly port: number;
  /** Resolves once it serves. Rejects when it cannot start. */
  readonly ready: Promise<void>;
  /** Rejects when it cannot go on: the process should end and be started anew. */
  readonly failed: Promise<never>;
  /** Tells `at` which part is being closed. */
  close(at?: (part: string) => void): Promise<void>;
}

/** host:port under which fellow replicas reach this one, once its port is bound. */
export const advertisedAddress = (parts: ServiceParts, port: number): string =>
  `${parts.advertiseHost ?? parts.address.slice(0, parts.address.lastIndexOf(":"))}:${port}`;

/** Opens the gRPC server of a replica. Its health is NOT_SERVING until `server.health.setAll("SERVING")`. */
export const serve = (parts: ServiceParts, services: readonly BoundService[]): Promise<RpcServer> =>
  openServer({
    address: parts.address,
    identity: parts.identity,
    caPem: parts.caPem,
    trustDomain: parts.trustDomain,
    services,
    authorize: authorization,
    directory: directoryOf(parts.organisation),
    reflection: parts.reflection,
    log: parts.log,
    clock: parts.clock,
    random: parts.random,
  });

/** The relay as its fellow replicas call it. */
export const relayService = (relay: Relay, topic: string): BoundService =>
  bindService(RelayService, {
    wakeRelay: async ({ commitIds }) => {
      try {
        const offsets = await relay.publishNow(commitIds);
        return { positions: offsets.map((offset) => ({ topic, partition: 0, offset: BigInt(offset) })) };
      } catch (error) {
        if ((error as Error).name !== "NotHolder") throw error;
        throw new RpcError({ status: "UNAVAILABLE", reason: "NOT_HOLDER", message: (error as Error).message });
      }
    },
  });

const wakeDeadlineMs = 2_000;
const maxConnections = 4;

/** Calls `wakeRelay` on a fellow replica; best effort, one connection per address, the last few kept. */
export const openWaker = (service: string, parts: ServiceParts) => {
  const clients = new Map<string, ReturnType<typeof open>>();
  const open = (address: string) =>
    openClient(RelayService, {
      address,
      identity: parts.identity,
      caPem: parts.caPem,
      trustDomain: parts.trustDomain,
      expectService: service,
      clock: parts.clock,
      random: parts.random,
    });
  return {
    async wake(address: string, commitIds: readonly string[]): Promise<number[]> {
      let client = clients.get(address);
      if (!client) {
        const [oldest] = clients.keys();
        if (clients.size >= maxConnections && oldest !== undefined) {
          clients.get(oldest)?.close();
          clients.delete(oldest);
        }
        client = open(address);
        clients.set(address, client);
      }
      const { positions } = await client.rpc.wakeRelay({ commitIds: [...commitIds] }, { deadlineMs: wakeDeadlineMs });
      return positions.map(({ offset }) => Number(offset));
    },
    close: () => {
      for (const client of clients.values()) client.close();
    },
  };
};
