import type { DocumentStore } from "@curfew/document-store/port.ts";
import type { Clock } from "@curfew/runtime/clock.ts";
import type { Random } from "@curfew/runtime/random.ts";
import type { Bus } from "../bus.ts";
import { openAggregates } from "../handle-command.ts";
import { type LeaseRow, openLease } from "../lease.ts";
import { openRelay, type Relay } from "../relay.ts";
import { openEventStreams } from "../streams.ts";
import { collecting, listLog } from "./collected.ts";

export const topic = "curfew.tokens.v1";

export interface ReplicaParts {
  readonly name: string;
  readonly store: DocumentStore;
  readonly bus: Bus;
  readonly clock: Clock;
  readonly random: Random;
  /** Relays by address, which is the name: how replicas reach each other. */
  readonly network: Map<string, Relay>;
}

/** What one process of a service holds of the event log. */
export const openReplica = async ({ name, store, bus, clock, random, network }: ReplicaParts) => {
  const log = listLog();
  const streams = await openEventStreams({ store, source: "/issuer", clock, random });
  const relay: Relay = openRelay({
    streams,
    topic,
    openProducer: () => bus.openProducer({ topic, name: `issuer/${name}` }),
    clock,
    log,
    lease: () => lease,
    wake: async (address, commitIds) => {
      const holder = network.get(address);
      if (!holder) throw new Error("nobody answers there");
      return await holder.publishNow(commitIds);
    },
  });
  network.set(name, relay);
  const rows = await store.collection<LeaseRow>("leases");
  const lease = openLease({
    rows,
    name: "relay-issuer",
    holder: name,
    address: () => name,
    clock,
    log,
    work: relay.work,
  });
  return { ...openAggregates({ streams, decider: collecting, clock }), streams, relay, lease, lines: log.lines };
};

export type Replica = Awaited<ReturnType<typeof openReplica>>;
