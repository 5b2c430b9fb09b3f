import type { Actor } from "@curfew/contracts/gen/curfew/events/v1/common_pb.ts";
import type { Told } from "./ocsf.ts";
import { msOf, said, userOf } from "./parts.ts";
import type { Tellers } from "./told.ts";

/** OCSF asks of an incident who looks after it: a named person once one has acted, else the people on call. */
const assigneeOf = (person: Actor | undefined) =>
  person && person.spiffeId !== "" ? { assignee: userOf(person.spiffeId) } : { assignee_group: { name: "on call" } };

const followUp = (
  caseId: string,
  message: string,
  of: { person?: Actor | undefined; severity?: Told["severity"]; unmapped?: object; findings?: readonly object[] },
): Told => ({
  class: "incident_finding",
  activity: "Update",
  severity: of.severity ?? "Medium",
  message,
  correlation: caseId,
  attributes: {
    status_id: 2,
    status: "In Progress",
    ...assigneeOf(of.person),
    ticket: { uid: caseId, type: "Breach case" },
    finding_info_list: of.findings ?? [{ uid: caseId, title: "Suspected breach" }],
    unmapped: of.unmapped,
  },
});

export const breachesTold = {
  "curfew.case.opened.v1": ({ caseId, tokenId, signal, noPersonalData, producer }) => ({
    class: "incident_finding",
    activity: "Create",
    severity: noPersonalData ? "High" : "Critical",
    message: `Case ${caseId} was opened${noPersonalData ? "; no personal data can be reached" : ""}`,
    correlation: caseId,
    attributes: {
      status_id: 1,
      status: "New",
      is_suspected_breach: !noPersonalData,
      ...assigneeOf(undefined),
      ticket: { uid: caseId, type: "Breach case" },
      finding_info_list: [
        { uid: said(signal?.eventId) ?? caseId, title: "Suspected breach", types: signal && [signal.eventType] },
      ],
      unmapped: { token_id: said(tokenId), producer: said(producer), signal_at: msOf(signal?.at) },
    },
  }),
  "curfew.signal.joined.v1": ({ caseId, signal }) =>
    followUp(caseId, `Another signal joined case ${caseId}`, {
      severity: "High",
      findings: [
        { uid: said(signal?.eventId) ?? caseId, title: "Suspected breach", types: signal && [signal.eventType] },
      ],
    }),
  /** The reason is a person's own words: it is read at the auditor. */
  "curfew.awareness.decided.v1": ({ caseId, awareAt, decidedBy, evidenceEventIds, decidedAt }) =>
    followUp(caseId, `It was decided when the controller became aware, in case ${caseId}`, {
      person: decidedBy,
      severity: "High",
      unmapped: { aware_at: msOf(awareAt), decided_at: msOf(decidedAt), evidence_event_ids: evidenceEventIds },
    }),
  "curfew.page.due.v1": ({ caseId, pageId, milestone, target, round, dueAt }) =>
    followUp(caseId, `A page is due in case ${caseId}: ${milestone}`, {
      unmapped: { page_id: pageId, milestone, target, round, due_at: msOf(dueAt) },
    }),
  "curfew.page.sent.v1": ({ caseId, pageId, sentAt }) =>
    followUp(caseId, `A page was sent in case ${caseId}`, { unmapped: { page_id: pageId, sent_at: msOf(sentAt) } }),
  "curfew.page.failed.v1": ({ caseId, pageId, failedAt }) =>
    followUp(caseId, `A page could not be sent in case ${caseId}`, {
      severity: "High",
      unmapped: { page_id: pageId, failed_at: msOf(failedAt) },
    }),
  "curfew.page.acknowledged.v1": ({ caseId, milestone, acknowledgedBy, acknowledgedAt }) =>
    followUp(caseId, `A person has seen the page in case ${caseId}: ${milestone}`, {
      person: acknowledgedBy,
      unmapped: { milestone, acknowledged_at: msOf(acknowledgedAt) },
    }),
  "curfew.notification.drafted.v1": ({ caseId, controller, draftSha256, draftedBy, draftedAt }) =>
    followUp(caseId, `A notification was drafted in case ${caseId}`, {
      person: draftedBy,
      unmapped: {
        controller,
        draft_sha256: Buffer.from(draftSha256).toString("hex"),
        drafted_at: msOf(draftedAt),
      },
    }),
} satisfies Partial<Tellers>;
