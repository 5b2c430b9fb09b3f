import type { Collection, DocumentStore } from "@curfew/document-store/port.ts";
import type { Clock } from "@curfew/runtime/clock.ts";
import type { Log } from "@curfew/runtime/log.ts";
import type { Random } from "@curfew/runtime/random.ts";
import type { Bus } from "./bus.ts";
import { type Lease, type LeaseRow, openLease, type Tenure } from "./lease.ts";
import { comparePatiently } from "./own-topic.ts";
import { openRelay, type Relay } from "./relay.ts";
import { type EventStreams, openEventStreams } from "./streams.ts";

/** A service's way to its own topic: streams in its store, and the relay that one of its replicas runs under a lease. */
export interface Outbox {
  readonly streams: EventStreams;
  readonly relay: Relay;
  readonly topic: string;
  readonly leases: Collection<LeaseRow>;
  /**
   * Resolves once the store is known to have all that its topic has: before that nothing is published, and nothing should be served.
   * Rejects with StoreBehind; never resolves once closed, or before `start`.
   */
  readonly compared: Promise<void>;
  /** As `compared`, but resolves too once the bus could not be asked: for what must go on without it. */
  readonly comparedOrUnasked: Promise<void>;
  /** Rejects as `compared` does. */
  readonly failed: Promise<never>;
  /** Begins to compare, and to contend for the relay's lease; `address` is where this replica answers its fellows (host:port). */
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
  const closing = new AbortController();
  const compared = Promise.withResolvers<void>();
  const comparedOrUnasked = Promise.withResolvers<void>();
  const failed = Promise.withResolvers<never>();
  for (const { promise } of [compared, comparedOrUnasked, failed]) promise.catch(() => undefined); // whoever waits sees it
  const compare = () => {
    const own = { bus, commits: streams.commits, topic, service, clock, log };
    comparePatiently(own, closing.signal, comparedOrUnasked.resolve).then(
      () => {
        compared.resolve();
        comparedOrUnasked.resolve();
      },
      (error) => {
        if (closing.signal.aborted) return;
        log.error({ err: error }, "the store cannot be served");
        for (const each of [compared, comparedOrUnasked, failed]) each.reject(error);
      },
    );
  };
  /** The relay's work, once nothing of ours can fork what is on the topic. */
  const work = async (tenure: Tenure) => {
    const over = Promise.withResolvers<"over">();
    tenure.signal.addEventListener("abort", () => over.resolve("over"), { once: true });
    if (tenure.signal.aborted || (await Promise.race([compared.promise, over.promise])) === "over") return;
    await relay.work(tenure);
  };
  return {
    streams,
    relay,
    topic,
    leases,
    compared: compared.promise,
    comparedOrUnasked: comparedOrUnasked.promise,
    failed: failed.promise,
    start(address) {
      compare();
      lease = openLease({
        rows: leases,
        name: `relay-${service}`,
        holder: instance,
        address: () => address,
        clock,
        log,
        exclusive: parts.exclusive,
        work,
      });
    },
    async close() {
      closing.abort();
      await lease?.close();
    },
  };
};
