import type { DescMessage, Message, MessageShape } from "@bufbuild/protobuf";
import * as breaches from "@curfew/contracts/gen/curfew/events/v1/breaches_pb.ts";
import * as subjects from "@curfew/contracts/gen/curfew/events/v1/data_subjects_pb.ts";
import * as evidence from "@curfew/contracts/gen/curfew/events/v1/evidence_pb.ts";
import * as revocations from "@curfew/contracts/gen/curfew/events/v1/revocations_pb.ts";
import * as tokens from "@curfew/contracts/gen/curfew/events/v1/tokens_pb.ts";
import * as uses from "@curfew/contracts/gen/curfew/events/v1/uses_pb.ts";

/** The five topics that are sealed. */
export const topicNames = {
  tokens: "curfew.tokens.v1",
  uses: "curfew.uses.v1",
  revocations: "curfew.revocations.v1",
  breaches: "curfew.breaches.v1",
  evidence: "curfew.evidence.v1",
} as const;

/** The ledger for compliance tooling, derived from it: not sealed itself, and nothing on it is an event of ours. */
export const siemTopic = "curfew.siem.v1";

/** The one service that writes a topic. */
export const topicWriters: Readonly<Record<string, string>> = {
  [topicNames.tokens]: "issuer",
  [topicNames.uses]: "verifier",
  [topicNames.revocations]: "revocation",
  [topicNames.breaches]: "breach-notifier",
  [topicNames.evidence]: "auditor",
};

export interface EventType<Desc extends DescMessage = DescMessage, Name extends string = string> {
  readonly desc: Desc;
  /** CloudEvents type, e.g. curfew.token.issued.v1. */
  readonly type: `curfew.${Name}.v1`;
  readonly topic: string;
}

/** The types are kept one by one, so that a table over all events (EventByType) does not compile until a new one is in it. */
const eventsOf = <const Rows extends readonly (readonly [DescMessage, string])[]>(topic: string, rows: Rows) =>
  rows.map(([desc, name]) => ({ desc, type: `curfew.${name}.v1`, topic })) as unknown as {
    readonly [At in keyof Rows]: EventType<Rows[At][0], Rows[At][1]>;
  };

const known = [
  ...eventsOf(topicNames.tokens, [
    [tokens.PolicyPublishedSchema, "policy.published"],
    [tokens.KeyRegisteredSchema, "key.registered"],
    [tokens.IdentityCreatedSchema, "identity.created"],
    [tokens.TokenIssuedSchema, "token.issued"],
    [tokens.TokenRotatedSchema, "token.rotated"],
    [tokens.SecretCollectedSchema, "secret.collected"],
    [tokens.SecretUncollectedSchema, "secret.uncollected"],
    [tokens.TokenExpiredSchema, "token.expired"],
  ]),
  ...eventsOf(topicNames.uses, [
    [uses.UseDecidedSchema, "use.decided"],
    [uses.UseCompletedSchema, "use.completed"],
    [uses.UnknownAttemptsDeniedSchema, "unknown-attempts.denied"],
    [subjects.ErasureAcknowledgedSchema, "erasure.acknowledged"],
  ]),
  ...eventsOf(topicNames.revocations, [
    [revocations.TokenRevokedSchema, "token.revoked"],
    [revocations.LeakReportedSchema, "leak.reported"],
    [revocations.SecretIdentifiedSchema, "secret.identified"],
    [revocations.RevocationAcknowledgedSchema, "revocation.acknowledged"],
    [revocations.RevocationEffectiveSchema, "revocation.effective"],
    [revocations.UseReportingGapSchema, "use-reporting.gap"],
  ]),
  ...eventsOf(topicNames.breaches, [
    [breaches.CaseOpenedSchema, "case.opened"],
    [breaches.SignalJoinedSchema, "signal.joined"],
    [breaches.AwarenessDecidedSchema, "awareness.decided"],
    [breaches.PageDueSchema, "page.due"],
    [breaches.PageSentSchema, "page.sent"],
    [breaches.PageFailedSchema, "page.failed"],
    [breaches.PageAcknowledgedSchema, "page.acknowledged"],
    [breaches.NotificationDraftedSchema, "notification.drafted"],
  ]),
  ...eventsOf(topicNames.evidence, [
    [evidence.EvidenceGapFoundSchema, "evidence-gap.found"],
    [evidence.ProducerEpochClosedSchema, "producer-epoch.closed"],
    [evidence.EvidenceDriftFoundSchema, "evidence-drift.found"],
    [evidence.EvidenceDriftEndedSchema, "evidence-drift.ended"],
    [evidence.EvidenceExportedSchema, "evidence.exported"],
    [evidence.LedgerKeyRotatedSchema, "ledger-key.rotated"],
  ]),
  ...eventsOf(topicNames.evidence, [
    [subjects.LegalHoldPlacedSchema, "legal-hold.placed"],
    [subjects.LegalHoldReleasedSchema, "legal-hold.released"],
    [subjects.ErasureRequestedSchema, "erasure.requested"],
    [subjects.DataSubjectErasedSchema, "data-subject.erased"],
    [subjects.ErasurePropagatedSchema, "erasure.propagated"],
    [subjects.EpochKeyDestroyedSchema, "epoch-key.destroyed"],
    [subjects.ErasureCompletedSchema, "erasure.completed"],
    [subjects.DataSubjectExportedSchema, "data-subject.exported"],
    [subjects.SealedFieldOpenedSchema, "sealed-field.opened"],
  ]),
] as const;

/** Every event there is. A type is never renamed or removed: old records must stay readable. */
export const eventTypes: readonly EventType[] = known;

/** The message of each event, by its CloudEvents type. */
export type EventByType = {
  readonly [Type in (typeof known)[number] as Type["type"]]: MessageShape<Type["desc"]>;
};

const byDesc = new Map(eventTypes.map((row) => [row.desc.typeName, row]));
const byType = new Map<string, EventType>(eventTypes.map((row) => [row.type, row]));

/** Throws for a message that is no event. */
export const eventTypeOf = (message: Message): EventType => {
  const row = byDesc.get(message.$typeName);
  if (!row) throw new TypeError(`${message.$typeName} is no event type`);
  return row;
};

/** Undefined for an unknown `ce_type`: a consumer stops loudly, it never skips. */
export const eventTypeNamed = (type: string): EventType | undefined => byType.get(type);
