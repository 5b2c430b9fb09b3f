import {
  Action,
  Outcome,
  OutcomeSchema,
  Reason,
  ReasonSchema,
  type UseDecided,
  type UseSource,
} from "@curfew/contracts/gen/curfew/events/v1/uses_pb.ts";
import type { Told } from "./ocsf.ts";
import { countOf, msOf, nameOf, said, userOf } from "./parts.ts";
import type { Tellers } from "./told.ts";

/** By what the access does to the data; not said counts as a read, as everywhere. */
const activities: Readonly<Record<Action, string>> = {
  [Action.UNSPECIFIED]: "Read",
  [Action.READ]: "Read",
  [Action.WRITE]: "Update",
  [Action.DELETE]: "Delete",
};

const reasonOf = (reason: Reason) => nameOf(ReasonSchema, reason);

/** OCSF wants one: the pseudonym of the address, else what the caller was known by. */
const endpointOf = (source: UseSource | undefined) => {
  const uid = said(source?.addressPseudonym) ?? said(source?.presenterThumbprint);
  return {
    ...(uid === undefined ? { name: "unknown" } : { uid }),
    location: source?.country ? { country: source.country } : undefined,
  };
};

const decided = (event: UseDecided): Told => {
  const { details, reason, tokenId, resourceService, ended } = event;
  const allowed = reason === Reason.OK;
  return {
    class: "api_activity",
    activity: activities[details?.action ?? Action.UNSPECIFIED] ?? "Unlisted",
    severity: allowed ? "Informational" : reason === Reason.REVOKED ? "Medium" : "Low",
    message: `${resourceService} ${allowed ? "allowed" : "denied"} ${said(details?.scope) ?? "an access"} to ${
      tokenId === "" ? "no known token" : `token ${tokenId}`
    }${allowed ? "" : `: ${reasonOf(reason)}`}`,
    correlation: event.useId,
    attributes: {
      status_id: allowed ? 1 : 2,
      status: allowed ? "Success" : "Failure",
      status_code: reasonOf(reason),
      actor: { user: userOf(event.subject, tokenId) },
      api: { operation: said(details?.scope) ?? "unknown", service: { name: said(resourceService) ?? "unknown" } },
      src_endpoint: endpointOf(event.source),
      dst_endpoint: { svc_name: said(resourceService) ?? "unknown" },
      resources: details && [
        {
          uid: said(details.resource) ?? "unknown",
          data: {
            purpose: said(details.purpose),
            data_categories: details.dataCategories,
            controller: said(details.controller),
            max_people: countOf(details.maxPeople),
            max_records: countOf(details.maxRecords),
          },
        },
      ],
      unmapped: {
        generation: event.generation,
        decided_at: msOf(event.decidedAt),
        instance: event.instance,
        presenter_thumbprint: said(event.source?.presenterThumbprint),
        ended: ended && {
          outcome: nameOf(OutcomeSchema, ended.outcome),
          records: countOf(ended.records),
          people: ended.people.length,
          unnamed_people: countOf(ended.unnamedPeople),
        },
      },
    },
  };
};

/** OCSF captions of a status, by how an access ended. */
const statusOf = (outcome: Outcome) =>
  outcome === Outcome.COMPLETED
    ? { status_id: 1, status: "Success" }
    : outcome === Outcome.FAILED
      ? { status_id: 2, status: "Failure" }
      : { status_id: 99, status: nameOf(OutcomeSchema, outcome) };

export const usesTold = {
  "curfew.use.decided.v1": decided,
  "curfew.use.completed.v1": ({ useId, completedAt, tokenId, outcome, records, people, unnamedPeople, ...event }) => ({
    class: "api_activity",
    activity: "Complete",
    severity: "Informational",
    message: `An access by token ${tokenId} at ${event.resourceService} ended: ${nameOf(OutcomeSchema, outcome)}`,
    correlation: useId,
    attributes: {
      ...statusOf(outcome),
      actor: { user: userOf("", tokenId) },
      api: { operation: "unknown", service: { name: said(event.resourceService) ?? "unknown" } },
      src_endpoint: { name: "unknown" },
      dst_endpoint: { svc_name: said(event.resourceService) ?? "unknown" },
      unmapped: {
        completed_at: msOf(completedAt),
        outcome: nameOf(OutcomeSchema, outcome),
        records: countOf(records),
        people: people.length,
        unnamed_people: countOf(unnamedPeople),
        part: event.part,
        parts: event.parts,
      },
    },
  }),
  "curfew.unknown-attempts.denied.v1": ({ useId, reason, networkPseudonym, count, firstAt, lastAt, ...event }) => ({
    class: "api_activity",
    activity: "Attempt",
    severity: "Low",
    message: `${event.resourceService} denied ${count} accesses with no known token: ${reasonOf(reason)}`,
    correlation: useId,
    attributes: {
      status_id: 2,
      status: "Failure",
      status_code: reasonOf(reason),
      count: Number(count),
      start_time: msOf(firstAt),
      end_time: msOf(lastAt),
      actor: { user: userOf("") },
      api: { operation: "unknown", service: { name: said(event.resourceService) ?? "unknown" } },
      src_endpoint: networkPseudonym === "" ? { name: "unknown" } : { uid: networkPseudonym },
      dst_endpoint: { svc_name: said(event.resourceService) ?? "unknown" },
      unmapped: { instance: event.instance },
    },
  }),
} satisfies Partial<Tellers>;
