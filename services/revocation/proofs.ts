import { timestampMs } from "@bufbuild/protobuf/wkt";
import type { RevocationEffective } from "@curfew/contracts/gen/curfew/events/v1/revocations_pb.ts";
import type { DocumentStore } from "@curfew/document-store/port.ts";
import { type InstanceFact, type Proof, proofOf } from "./domain/effective.ts";
import type { LeaseBook } from "./lease-book.ts";
import type { PendingRevocation } from "./pending.ts";

type ProofRow = {
  _id: string;
  effectiveAtMs: number;
  instances: { [field in keyof InstanceFact]: NonNullable<InstanceFact[field]> }[];
};

export interface EffectiveProof extends Proof {
  readonly effectiveAtMs: number;
}

/** Proofs of revocations that took effect, one insert-only row each: the first one written is the one. By ce_id of the TokenRevoked. */
export interface Proofs {
  get(eventId: string): Promise<EffectiveProof | undefined>;
  /** Keeps `proof`, or answers the one that is there. */
  keep(eventId: string, proof: EffectiveProof): Promise<EffectiveProof>;
  /** As far as it goes now, for a revocation that is pending; every lease is read after its commit. */
  soFar(revocation: PendingRevocation): Promise<Proof>;
}

/**
 * What the log says of a revocation whose row is gone, its store having been restored from a backup. Who acknowledged it stands on the
 * log too, as RevocationAcknowledged, by instance.
 */
export const proofOfEvent = ({ effectiveAt, lapsedInstances }: RevocationEffective): EffectiveProof => ({
  effectiveAtMs: effectiveAt ? timestampMs(effectiveAt) : 0,
  instances: lapsedInstances.map(({ instance, name, leaseEndedAt }) => ({
    ...{ instance, name, clockOffsetMs: 0 },
    ...(leaseEndedAt && { leaseEndedAtMs: timestampMs(leaseEndedAt) }),
  })),
});

export const openProofs = async (parts: {
  readonly store: DocumentStore;
  readonly book: LeaseBook;
  readonly leaseMs: number;
}): Promise<Proofs> => {
  const rows = await parts.store.collection<ProofRow>("proofs");
  const get: Proofs["get"] = async (eventId) => {
    const row = await rows.get(eventId);
    return row && { effectiveAtMs: row.effectiveAtMs, instances: row.instances };
  };
  return {
    get,
    async keep(eventId, proof) {
      const instances = proof.instances.map((fact) => ({ ...fact })) as ProofRow["instances"];
      const row = { _id: eventId, effectiveAtMs: proof.effectiveAtMs, instances };
      return (await rows.insert(row)) === "inserted" ? proof : ((await get(eventId)) ?? proof);
    },
    async soFar(revocation) {
      const { leases, read } = await parts.book.newest();
      return proofOf(leases, revocation, read, parts.leaseMs);
    },
  };
};
