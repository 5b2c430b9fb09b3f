import { DeliverySchema, EvidenceModeSchema, type Grant } from "@curfew/contracts/gen/curfew/events/v1/common_pb.ts";
import type { Generation } from "@curfew/contracts/gen/curfew/events/v1/tokens_pb.ts";
import type { EventByType } from "@curfew/event-log/event-types.ts";
import type { Told } from "./ocsf.ts";
import { actorOf, done, durationMs, entityOf, msOf, nameOf, said, tokenOf, userOf } from "./parts.ts";
import type { Tellers } from "./told.ts";

const grantOf = (grant: Grant | undefined) =>
  grant && {
    scopes: grant.scopes,
    resources: grant.resources,
    audiences: grant.audiences,
    purposes: grant.purposes,
    data_categories: grant.dataCategories,
    certificate_thumbprint: said(grant.certificateThumbprint),
    ttl_ms: durationMs(grant.ttl),
    evidence_mode: nameOf(EvidenceModeSchema, grant.evidenceMode),
  };

const generationOf = (generation: Generation | undefined) =>
  generation && {
    not_before: msOf(generation.notBefore),
    expires_at: msOf(generation.expiresAt),
    delivery: nameOf(DeliverySchema, generation.delivery),
  };

type Issued = EventByType["curfew.token.issued.v1"];

const issued = (event: Issued): Told => ({
  class: "entity_management",
  activity: "Create",
  severity: "Informational",
  message: `Token ${event.tokenId} was issued to ${event.subject}`,
  correlation: event.tokenId,
  attributes: {
    ...done,
    actor: actorOf(event.issuedBy),
    entity: tokenOf(
      event.tokenId,
      {
        subject: event.subject,
        grant: grantOf(event.grant),
        policy: event.policy,
        policy_version: event.policyVersion,
        policy_rule: event.policyRule,
        lineage_expires_at: msOf(event.lineageExpiresAt),
        ...generationOf(event.generation),
      },
      event.generation?.number,
    ),
  },
});

/** Derived from another token: its holder was authenticated by that one (RFC 8693). */
const exchanged = (event: Issued): Told => ({
  class: "authentication",
  activity: "Logon",
  severity: "Informational",
  message: `Token ${event.tokenId} was issued to ${event.subject} in exchange for ${event.ancestors[0]}`,
  correlation: event.tokenId,
  attributes: {
    ...done,
    auth_protocol_id: 6,
    auth_protocol: "OAUTH 2.0",
    actor: actorOf(event.issuedBy),
    user: userOf(event.subject, event.ancestors[0]),
    service: { name: "issuer" },
    session: {
      uid: event.tokenId,
      issuer: "issuer",
      credential_uid: event.ancestors[0],
      created_time: msOf(event.generation?.notBefore),
      expiration_time: msOf(event.generation?.expiresAt),
    },
    unmapped: {
      ancestors: event.ancestors,
      grant: grantOf(event.grant),
      policy: event.policy,
      policy_version: event.policyVersion,
      policy_rule: event.policyRule,
    },
  },
});

const changed = (
  activity: string,
  message: string,
  of: { tokenId: string; generation?: number; data?: object },
): Told => ({
  class: "entity_management",
  activity,
  severity: "Informational",
  message,
  correlation: of.tokenId,
  attributes: { ...done, entity: tokenOf(of.tokenId, of.data, of.generation) },
});

export const tokensTold = {
  "curfew.policy.published.v1": ({ policy, version, publishedBy }) => ({
    class: "entity_management",
    activity: version === 1 ? "Create" : "Update",
    severity: "Medium",
    message: `Version ${version} of policy ${policy} is in force`,
    attributes: {
      ...done,
      actor: actorOf(publishedBy),
      entity: { type_id: 5, type: "Policy", uid: policy, policy: { uid: policy, version: String(version) } },
    },
  }),
  "curfew.key.registered.v1": ({ subject, keySha256 }) => ({
    class: "entity_management",
    activity: "Enroll",
    severity: "Informational",
    message: `${subject} registered a key that secrets are sealed to`,
    attributes: {
      ...done,
      actor: { user: userOf(subject) },
      entity: entityOf("Public key", Buffer.from(keySha256).toString("hex"), { subject }),
    },
  }),
  "curfew.identity.created.v1": ({ spiffeId, certificateThumbprint, notAfter, createdAt }) => ({
    class: "entity_management",
    activity: "Create",
    severity: "Medium",
    message: `A certificate was made for ${spiffeId}`,
    attributes: {
      ...done,
      entity: entityOf("Certificate", certificateThumbprint, {
        subject: spiffeId,
        created_at: msOf(createdAt),
        expires_at: msOf(notAfter),
      }),
    },
  }),
  "curfew.token.issued.v1": (event) => (event.ancestors.length > 0 ? exchanged(event) : issued(event)),
  "curfew.token.rotated.v1": (event) => {
    const { tokenId, generation, previousEndsAt, policy, policyVersion, policyRule, subject } = event;
    const data = {
      subject: said(subject),
      policy,
      policy_version: policyVersion,
      policy_rule: policyRule,
      previous_ends_at: msOf(previousEndsAt),
      ...generationOf(generation),
    };
    const message = `Token ${tokenId} has a new secret, generation ${generation?.number ?? 0}`;
    const told = changed("Update", message, { tokenId, data, generation: generation?.number ?? 0 });
    return { ...told, attributes: { ...told.attributes, actor: actorOf(event.rotatedBy) } };
  },
  "curfew.secret.collected.v1": ({ tokenId, generation }) =>
    changed("Collect", `The secret of token ${tokenId}, generation ${generation}, was collected`, {
      tokenId,
      generation,
    }),
  "curfew.secret.uncollected.v1": ({ tokenId, generation, expiresAt }) => ({
    ...changed("Miss", `The secret of token ${tokenId}, generation ${generation}, was not collected`, {
      tokenId,
      generation,
      data: { expires_at: msOf(expiresAt) },
    }),
    severity: "Low",
  }),
  "curfew.token.expired.v1": ({ tokenId, expiredAt, lastUsedAt }) =>
    changed("Delete", `Token ${tokenId} has expired`, {
      tokenId,
      data: { reason: "EXPIRED", expired_at: msOf(expiredAt), last_used_at: msOf(lastUsedAt) },
    }),
} satisfies Partial<Tellers>;
