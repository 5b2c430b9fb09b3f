import type { Collection } from "@curfew/document-store/port.ts";
import type { EpochRow } from "@curfew/event-log/epochs.ts";
import { isLeaseHeld, type LeaseRow } from "@curfew/event-log/lease.ts";
import { openProducerTrust } from "@curfew/event-log/producer-key.ts";
import type { ServiceParts } from "@curfew/rpc/replica.ts";
import { ledgerKeys, sealOf } from "../ledger-keys.ts";
import type { ShardFiles } from "../public-log/shard-files.ts";
import { RebuildRefused, rebuild } from "./rebuild.ts";

/** Lease under which one replica seals. */
export const sealLease = "seal-auditor";

/** At the start of an auditor that is a process of its own. Rejects with RebuildRefused while another one seals. */
export const rebuildOnce = async (
  parts: Pick<ServiceParts, "store" | "keyring" | "caPem" | "trustDomain" | "clock" | "log">,
  how: {
    readonly epochs: Collection<EpochRow>;
    readonly origin: string | undefined;
    /** The ledger's files, where the store is gone. */
    readonly files: ShardFiles | undefined;
  },
): Promise<void> => {
  const { store, clock, log } = parts;
  if (await isLeaseHeld(await store.collection<LeaseRow>("leases"), sealLease, clock))
    throw new RebuildRefused("another auditor seals: stop all of them, and start one with CURFEW_REBUILD");
  const origin = how.origin ?? `${parts.trustDomain}/ledger`;
  const seal = sealOf(origin, ledgerKeys(parts.keyring, origin));
  const { epochs, files } = how;
  const never = new AbortController().signal;
  const trust = openProducerTrust(parts);
  const rebuilt = await rebuild({ store, epochs, trust, seal, ...(files && { files }), clock }, () => undefined, never);
  log.warn({ ...rebuilt }, "the read models were made anew: start without CURFEW_REBUILD from now on");
};
