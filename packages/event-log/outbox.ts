import type { Collection, DocumentStore } from "@curfew/document-store/port.ts";
import type { Clock } from "@curfew/runtime/clock.ts";
import type { Log } from "@curfew/runtime/log.ts";
import type { Random } from "@curfew/runtime/random.ts";
import type { Bus } from "./bus.ts";
import { type Lease, type LeaseRow, openLease } from "./lease.ts";
import { openRelay, type Relay } from "./relay.ts";
import { type EventStreams, openEventStreams } from "./streams.ts";

/** A service's way to its own topic: streams in its store, and the relay that one of its replicas runs under a lease. */
export interface Outbox {
  readonly streams: EventStreams;
  readonly relay: Relay;
  readonly topic: string;
  readonly leases: Collection<LeaseRow>;
  /** Begins to contend for the relay's lease; `address` is where this replica answers its fellows (host:port). */
  start(address: string): void;
  /** Gives the lease back after the open send. */
  close(): Promise<void>;
}

export interface OutboxParts {
  readonly store: DocumentStore;
  readonly bus: Bus;
  /** issuer, revocation, …: ce_source is "/" and this; the lease is named after it. */
  readonly service: string;
  /** Id of this process, new at every start. */
  readonly instance: string;
  readonly topic: string;
  readonly clock: Clock;
  readonly random: Random;
  readonly log: Log;
  /** No second process can exist (embedded). */
  readonly exclusive: boolean;
  /** Asks the replica at `address` to publish: see rpc/relay-service.ts. */
  readonly wake: (address: string, commitIds: readonly string[]) => Promise<number[]>;
}

export const openOutbox = async (parts: OutboxParts): Promise<Outbox> => {
  const { store, bus, service, instance, topic, clock, log } = parts;
  const streams = await openEventStreams({ store, source: `/${service}`, clock, random: parts.random });
  const leases = await store.collection<LeaseRow>("leases");
  let lease: Lease | undefined;
  const relay = openRelay({
    streams,
    topic,
    openProducer: () => bus.openProducer({ topic, name: `${service}/${instance}` }),
    clock,
    log,
    lease: () => lease,
    wake: parts.wake,
  });
  return {
    streams,
    relay,
    topic,
    leases,
    start(address) {
      lease = openLease({
        rows: leases,
        name: `relay-${service}`,
        holder: instance,
        address: () => address,
        clock,
        log,
        exclusive: parts.exclusive,
        work: relay.work,
      });
    },
    close: async () => void (await lease?.close()),
  };
};
