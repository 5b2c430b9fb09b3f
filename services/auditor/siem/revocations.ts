import { RevocationReason, RevocationReasonSchema } from "@curfew/contracts/gen/curfew/events/v1/revocations_pb.ts";
import type { Told } from "./ocsf.ts";
import { actorOf, done, durationMs, entityOf, msOf, nameOf, tokenOf } from "./parts.ts";
import type { Tellers } from "./told.ts";

const urgent: ReadonlySet<RevocationReason> = new Set([RevocationReason.LEAKED, RevocationReason.COMPROMISED]);

/** A finding that a person should look at. `uid` is the same in all that is told of it. */
export const finding = (of: {
  readonly uid: string;
  readonly title: string;
  readonly message: string;
  readonly severity: Told["severity"];
  readonly resources: readonly object[];
  readonly activity?: "Create" | "Close";
  readonly info?: object;
  readonly more?: object;
}): Told => {
  const closed = of.activity === "Close";
  return {
    class: "detection_finding",
    activity: of.activity ?? "Create",
    severity: of.severity,
    message: of.message,
    correlation: of.uid,
    attributes: {
      is_alert: !closed,
      ...(closed ? { status_id: 4, status: "Resolved" } : { status_id: 1, status: "New" }),
      finding_info: { uid: of.uid, title: of.title, types: [of.title], ...of.info },
      resources: of.resources,
      ...of.more,
    },
  };
};

export const revocationsTold = {
  "curfew.token.revoked.v1": ({ tokenId, reason, revokedBy, revokedAt }) => ({
    class: "entity_management",
    activity: "Delete",
    severity: urgent.has(reason) ? "High" : "Low",
    message: `Token ${tokenId} was revoked: ${nameOf(RevocationReasonSchema, reason)}`,
    correlation: tokenId,
    attributes: {
      ...done,
      actor: actorOf(revokedBy),
      entity: tokenOf(tokenId, { reason: nameOf(RevocationReasonSchema, reason), revoked_at: msOf(revokedAt) }),
    },
  }),
  /** Where exactly it was seen can name a person: the kind of place is told, the place itself is read at the auditor. */
  "curfew.leak.reported.v1": ({ tokenId, generation, generationLive, sighting, reportedBy, reportedAt }, id) =>
    finding({
      uid: id,
      title: "Leaked secret",
      message: `The ${generationLive ? "live" : "ended"} secret of token ${tokenId} was seen in a ${
        sighting?.public ? "public" : "private"
      } place of kind ${sighting?.kind ?? "unknown"}`,
      severity: generationLive ? "High" : "Medium",
      info: { created_time: msOf(reportedAt), first_seen_time: msOf(sighting?.exposedSince) },
      resources: [{ uid: tokenId, type: "API token", version: String(generation) }],
      more: {
        unmapped: {
          generation_live: generationLive,
          kind: sighting?.kind,
          public: sighting?.public,
          reported_by: reportedBy?.spiffeId,
        },
      },
    }),
  "curfew.secret.identified.v1": ({ tokenId, generation, identifiedBy }) => ({
    class: "entity_management",
    activity: "Read",
    severity: "Low",
    message: `A secret was identified as that of token ${tokenId}`,
    correlation: tokenId,
    attributes: { ...done, actor: actorOf(identifiedBy), entity: tokenOf(tokenId, undefined, generation) },
  }),
  "curfew.revocation.acknowledged.v1": ({ instance, revocationEventIds, receivedAt, clockOffset }) => ({
    class: "entity_management",
    activity: "Acknowledge",
    severity: "Informational",
    message: `Verifying instance ${instance} allows none of ${revocationEventIds.length} revoked tokens from now on`,
    attributes: {
      ...done,
      entity: entityOf("Verifying instance", instance, {
        revocation_event_ids: revocationEventIds,
        received_at: msOf(receivedAt),
        clock_offset_ms: durationMs(clockOffset),
      }),
    },
  }),
  "curfew.revocation.effective.v1": ({ tokenId, revocationEventId, effectiveAt, acknowledged, lapsed, ...event }) => ({
    class: "entity_management",
    activity: "Take effect",
    severity: "Informational",
    message: `The revocation of token ${tokenId} has taken effect everywhere`,
    correlation: tokenId,
    attributes: {
      ...done,
      entity: tokenOf(tokenId, {
        revocation_event_id: revocationEventId,
        effective_at: msOf(effectiveAt),
        acknowledged,
        lapsed,
        largest_clock_offset_ms: durationMs(event.largestClockOffset),
        lapsed_instances: event.lapsedInstances.map(({ instance, name }) => ({ instance, name })),
      }),
    },
  }),
  "curfew.use-reporting.gap.v1": ({ instance, resourceService, from, to }, id) =>
    finding({
      uid: id,
      title: "Uses may be missing",
      message: `Uses that ${resourceService} allowed may be missing from the log`,
      severity: "High",
      info: { first_seen_time: msOf(from), last_seen_time: msOf(to) },
      resources: [{ uid: instance, type: "SDK instance", namespace: resourceService }],
    }),
} satisfies Partial<Tellers>;
