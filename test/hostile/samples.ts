import { randomUUID } from "node:crypto";
import { create, type DescMessage, type DescMethod, type MessageInitShape, toBinary } from "@bufbuild/protobuf";
import { timestampFromMs } from "@bufbuild/protobuf/wkt";
import { AuditorService } from "@curfew/contracts/gen/curfew/auditor/v1/auditor_pb.ts";
import { DataSubjectService } from "@curfew/contracts/gen/curfew/auditor/v1/data_subjects_pb.ts";
import { BreachService } from "@curfew/contracts/gen/curfew/breach/v1/breach_pb.ts";
import { Delivery } from "@curfew/contracts/gen/curfew/events/v1/common_pb.ts";
import { AccessGround, HoldGround } from "@curfew/contracts/gen/curfew/events/v1/data_subjects_pb.ts";
import { RevocationReason } from "@curfew/contracts/gen/curfew/events/v1/revocations_pb.ts";
import { Outcome, Reason } from "@curfew/contracts/gen/curfew/events/v1/uses_pb.ts";
import { IssuerService } from "@curfew/contracts/gen/curfew/issuer/v1/issuer_pb.ts";
import { RelayService } from "@curfew/contracts/gen/curfew/relay/v1/relay_pb.ts";
import { RevocationService } from "@curfew/contracts/gen/curfew/revocation/v1/revocation_pb.ts";
import { VerifierService } from "@curfew/contracts/gen/curfew/verifier/v1/verifier_pb.ts";
import { Health } from "@curfew/contracts/gen/grpc/health/v1/health_pb.ts";
import { ServerReflection } from "@curfew/contracts/gen/grpc/reflection/v1/reflection_pb.ts";
import { ServerReflection as ServerReflectionAlpha } from "@curfew/contracts/gen/grpc/reflection/v1alpha/reflection_pb.ts";
import { mintSecret } from "@curfew/token-format/secret.ts";
import { grant, policyDocument } from "./rig.ts";

/** Things that exist, for requests that get past the first check. */
export interface Things {
  readonly tokenId: string;
  readonly secret: string;
  readonly sha256: Uint8Array;
  /** A token that leaked, about which the case is, and when it was still good. */
  readonly leakedId: string;
  readonly usedAtMs: number;
  readonly caseId: string;
  readonly eventId: string;
}

/** Secrets that nobody may find again: in no log line, message or record. */
export const canary = mintSecret("s", (n) => new Uint8Array(n).fill(0).map((_, i) => (i * 37) % 248));
export const canaryBytes = Buffer.from("canary-bytes-nobody-may-repeat-1");
const nothing: Things = {
  tokenId: "tok_00000000-0000-8000-8000-000000000000",
  secret: canary,
  sha256: canaryBytes,
  leakedId: "tok_00000000-0000-8000-8000-000000000000",
  usedAtMs: Date.UTC(2026, 0, 1),
  caseId: "case/tok_00000000-0000-8000-8000-000000000000/1",
  eventId: "00000000-0000-7000-8000-000000000000",
};

const use = {
  scope: "invoices:read",
  resource: "invoices/2026",
  purpose: "billing",
  dataCategories: ["contact"],
  controller: "acme",
  maxPeople: 10n,
  maxRecords: 10n,
  sourceAddress: "203.0.113.9",
  sourceCountry: "DE",
};

type Make = (things: Things) => MessageInitShape<DescMessage>;
const makers = new Map<DescMethod, Make>();
const sample = <M extends DescMethod>(method: M, make: (things: Things) => MessageInitShape<M["input"]>) =>
  void makers.set(method, make as Make);

const issuer = IssuerService.method;
sample(issuer.publishPolicy, () => ({ requestId: randomUUID(), policy: "other", document: policyDocument }));
sample(issuer.registerKey, () => ({
  requestId: randomUUID(),
  publicKey: new Uint8Array(32).fill(9),
  proof: canaryBytes,
}));
sample(issuer.createToken, () => ({ requestId: randomUUID(), grant, delivery: Delivery.DIRECT }));
sample(issuer.collectSecret, ({ tokenId }) => ({ tokenId }));
sample(issuer.confirmSecret, ({ tokenId }) => ({ tokenId, generation: 1 }));
sample(issuer.rotateToken, ({ tokenId }) => ({
  requestId: randomUUID(),
  tokenId,
  overlap: { seconds: 60n, nanos: 0 },
}));
sample(issuer.getToken, ({ tokenId }) => ({ tokenId }));
sample(issuer.listTokens, () => ({ pageSize: 10 }));

const verifier = VerifierService.method;
const verify = ({ secret }: Things) => ({ credential: { case: "secret", value: secret } as const, use });
sample(verifier.verifyToken, verify);
sample(verifier.batchVerifyTokens, (things) => ({ requests: [verify(things), verify(things)] }));
sample(verifier.reportUses, ({ leakedId: tokenId, usedAtMs }) => ({
  instance: "sdk-1",
  cachedUses: [
    {
      useId: randomUUID(),
      instanceSequence: 1n,
      decidedAt: timestampFromMs(usedAtMs),
      tokenId,
      generation: 1,
      reason: Reason.OK,
      use,
      ended: {
        outcome: Outcome.COMPLETED,
        records: 1n,
        people: [{ controller: "acme", identifierType: "customer-id", value: canary }],
      },
    },
  ],
  completedUses: [
    {
      useId: randomUUID(),
      tokenId,
      outcome: Outcome.COMPLETED,
      records: 3n,
      people: [{ controller: "acme", identifierType: "customer-id", value: canary }],
      part: 1,
      parts: 1,
    },
  ],
}));

const revocation = RevocationService.method;
sample(revocation.revokeToken, ({ tokenId }) => ({
  requestId: randomUUID(),
  tokenId,
  reason: RevocationReason.REQUESTED,
}));
sample(revocation.revokeBySecret, ({ secret }) => ({ requestId: randomUUID(), secret }));
sample(revocation.reportLeak, ({ sha256 }) => ({
  requestId: randomUUID(),
  secretSha256: sha256,
  sighting: { kind: "git", location: "https://git.example/a", exposedSince: timestampFromMs(Date.UTC(2026, 0, 1)) },
}));
sample(revocation.identifySecret, ({ sha256 }) => ({ secretSha256: sha256 }));
sample(revocation.getRevocation, ({ tokenId }) => ({ tokenId }));
sample(revocation.watchRevocations, () => ({
  kind: { case: "hello" as const, value: { instance: `sdk-${randomUUID()}`, reportsUses: false } },
}));

const breach = BreachService.method;
sample(breach.listCases, ({ leakedId: tokenId }) => ({ pageSize: 10, tokenId }));
sample(breach.getCase, ({ caseId }) => ({ caseId }));
sample(breach.decideAwareness, ({ caseId, eventId }) => ({
  requestId: randomUUID(),
  caseId,
  awareAt: timestampFromMs(Date.UTC(2026, 0, 2)),
  reason: "seen by the team",
  evidenceEventIds: [eventId],
}));
sample(breach.acknowledgePage, ({ caseId }) => ({ requestId: randomUUID(), caseId, milestone: "opened" }));
sample(breach.listDrafts, ({ caseId }) => ({ caseId }));
sample(breach.draftNotification, ({ caseId }) => ({ requestId: randomUUID(), caseId, controller: "acme" }));

const auditor = AuditorService.method;
sample(auditor.listEvents, ({ tokenId }) => ({
  pageSize: 10,
  tokenId,
  from: timestampFromMs(Date.UTC(2026, 0, 1)),
  to: timestampFromMs(Date.UTC(2100, 0, 1)),
}));
sample(auditor.getEvent, ({ eventId }) => ({ which: { case: "eventId" as const, value: eventId } }));
sample(auditor.getCheckpoint, () => ({}));
sample(auditor.proveInclusion, () => ({ index: 0n }));
sample(auditor.proveConsistency, () => ({ from: 1n }));
sample(auditor.watchEvents, ({ tokenId }) => ({ fromIndex: 0n, tokenId }));
sample(auditor.getHealth, () => ({}));
sample(auditor.exportBundle, ({ caseId }) => ({
  caseId,
  from: timestampFromMs(Date.UTC(2026, 0, 1)),
  to: timestampFromMs(Date.UTC(2100, 0, 1)),
}));

const subjects = DataSubjectService.method;
/** Nobody is known by it: what is asked about them comes to nothing, and must say so without repeating it. */
const subject = {
  who: {
    case: "identity" as const,
    value: { controller: "acme", identifierType: "customer-id", value: `x${canary}` },
  },
};
const pseudonym = { who: { case: "pseudonym" as const, value: `psn_${"0".repeat(32)}` } };
const ground = AccessGround.INCIDENT;
sample(subjects.eraseDataSubject, () => ({ requestId: randomUUID(), subject, reference: "dsr/7" }));
sample(subjects.getDataSubject, () => ({ subject }));
sample(subjects.placeLegalHold, () => ({
  ...{ requestId: randomUUID(), subject: pseudonym, ground: HoldGround.LEGAL_CLAIMS, reference: "claim/7" },
}));
sample(subjects.releaseLegalHold, () => ({
  ...{ requestId: randomUUID(), subject: pseudonym, holdId: `hold_${"0".repeat(32)}` },
}));
sample(subjects.exportDataSubject, () => ({ requestId: randomUUID(), subject: pseudonym, ground, reference: "dsr/7" }));
sample(subjects.openSealedField, () => ({ requestId: randomUUID(), useId: randomUUID(), ground, reference: "case/7" }));

sample(RelayService.method.wakeRelay, ({ tokenId }) => ({ commitIds: [`tokens/${tokenId}@0000000001`] }));
sample(Health.method.check, () => ({ service: "" }));
sample(Health.method.list, () => ({}));
sample(Health.method.watch, () => ({ service: "" }));
for (const { method } of [ServerReflection, ServerReflectionAlpha])
  sample(method.serverReflectionInfo, () => ({
    host: "localhost",
    messageRequest: { case: "fileContainingSymbol" as const, value: "curfew.events.v1.Grant" },
  }));

/** A request that the method takes, as bytes; under a request id of its own. Throws for a method that has none: write it here. */
export const sampleOf = (method: DescMethod, things: Partial<Things> = {}): Uint8Array => {
  const make = makers.get(method);
  if (!make) throw new Error(`no sample request for ${method.parent.typeName}/${method.name}`);
  return toBinary(method.input, create(method.input, make({ ...nothing, ...things })));
};
