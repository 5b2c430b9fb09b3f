import type { Position } from "@curfew/contracts/gen/curfew/events/v1/common_pb.ts";
import {
  type DriftCause,
  DriftCauseSchema,
  GapCauseSchema,
} from "@curfew/contracts/gen/curfew/events/v1/evidence_pb.ts";
import { actorOf, countOf, done, entityOf, msOf, nameOf, said } from "./parts.ts";
import { finding } from "./revocations.ts";
import type { Tellers } from "./told.ts";

const placeText = (position: Position | undefined) =>
  position ? `${position.topic}/${position.partition}@${position.offset}` : undefined;

const driftUid = (drift: { cause: DriftCause; topic: string; setting: string }) =>
  ["drift", nameOf(DriftCauseSchema, drift.cause), drift.topic, drift.setting].filter(Boolean).join("/");

export const evidenceTold = {
  "curfew.evidence-gap.found.v1": ({ producer, cause, position, expectedSequence, seenSequence }, id) =>
    finding({
      uid: id,
      title: "Gap in the evidence",
      message: `The evidence of ${said(producer) ?? "no known producer"} is not whole: ${nameOf(GapCauseSchema, cause)}`,
      severity: "High",
      resources: [{ uid: said(producer) ?? "unknown", type: "Producer" }],
      more: {
        unmapped: {
          cause: nameOf(GapCauseSchema, cause),
          position: placeText(position),
          expected_sequence: countOf(expectedSequence),
          seen_sequence: countOf(seenSequence),
        },
      },
    }),
  "curfew.producer-epoch.closed.v1": ({ producer, topic, chains, ended, certification }) => ({
    class: "entity_management",
    activity: "Update",
    severity: "Informational",
    message: `Producer epoch ${said(producer) ?? "without a name"} ${ended ? "was ended" : "fell silent and was closed"}`,
    correlation: producer,
    attributes: {
      ...done,
      entity: entityOf("Producer epoch", said(producer) ?? "unknown", {
        topic: said(topic),
        acknowledged: Object.fromEntries(chains.map((chain) => [chain.partition, countOf(chain.acknowledged)])),
        signed: certification !== "",
      }),
    },
  }),
  "curfew.evidence-drift.found.v1": (drift) =>
    finding({
      uid: driftUid(drift),
      title: "Evidence is not kept as it must be",
      message: `${said(drift.topic) ?? "The ledger's files"}: ${nameOf(DriftCauseSchema, drift.cause)}`,
      severity: "High",
      resources: [{ uid: said(drift.topic) ?? said(drift.setting) ?? "ledger", type: drift.topic ? "Topic" : "File" }],
      more: {
        unmapped: {
          cause: nameOf(DriftCauseSchema, drift.cause),
          position: placeText(drift.position),
          setting: said(drift.setting),
          expected: drift.expected,
          seen: drift.seen,
          ledger_index: drift.ledgerIndex === undefined ? undefined : countOf(drift.ledgerIndex),
        },
      },
    }),
  "curfew.evidence-drift.ended.v1": (drift) =>
    finding({
      uid: driftUid(drift),
      activity: "Close",
      title: "Evidence is not kept as it must be",
      message: `${said(drift.topic) ?? "The ledger's files"}: as it must be again`,
      severity: "Informational",
      resources: [{ uid: said(drift.topic) ?? said(drift.setting) ?? "ledger", type: drift.topic ? "Topic" : "File" }],
      more: { unmapped: { cause: nameOf(DriftCauseSchema, drift.cause), setting: said(drift.setting) } },
    }),
  "curfew.evidence.exported.v1": ({ exportedBy, tokenId, caseId, from, to, entries, ledgerSize, manifestSha256 }) => ({
    class: "entity_management",
    activity: "Read",
    severity: "Medium",
    message: `An evidence bundle of ${countOf(entries)} entries was made`,
    correlation: caseId || tokenId,
    attributes: {
      ...done,
      actor: actorOf(exportedBy),
      entity: entityOf("Evidence bundle", Buffer.from(manifestSha256).toString("hex"), {
        token_id: said(tokenId),
        case_id: said(caseId),
        from: msOf(from),
        to: msOf(to),
        entries: countOf(entries),
        ledger_size: countOf(ledgerSize),
      }),
    },
  }),
  "curfew.ledger-key.rotated.v1": ({ origin, oldKey, newKey, ledgerSize }) => ({
    class: "entity_management",
    activity: "Update",
    severity: "Medium",
    message: `The ledger ${origin} is signed by another key`,
    correlation: origin,
    attributes: {
      ...done,
      entity: entityOf("Ledger", origin, {
        old_key: oldKey,
        new_key: newKey,
        ledger_size: countOf(ledgerSize),
      }),
    },
  }),
} satisfies Partial<Tellers>;
