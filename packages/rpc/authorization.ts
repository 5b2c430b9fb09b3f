import type { Caller } from "./identity.ts";

export type Role = "security" | "oncall" | "dpo" | "auditor" | "admin";

export type CallerRule =
  | { readonly kind: "workload" }
  /** A workload that configuration lists as an audience: a resource service. */
  | { readonly kind: "audience" }
  | { readonly kind: "person"; readonly role: Role }
  | { readonly kind: "service"; readonly name: string }
  /** Another instance of the service that is asked. */
  | { readonly kind: "replica" }
  /** Any valid certificate of the trust domain. */
  | { readonly kind: "any" };

/** Who may call what, by `curfew.issuer.v1.IssuerService/CreateToken`. A method without a row is refused to everybody. */
export type AuthorizationTable = Readonly<Record<string, readonly CallerRule[]>>;

/** What configuration knows about names in certificates. Asked at every call, so it may change while running. */
export interface Directory {
  rolesOf(personName: string): ReadonlySet<Role>;
  isAudience(workloadName: string): boolean;
}

const matches = (rule: CallerRule, caller: Caller, directory: Directory, self: Caller): boolean => {
  switch (rule.kind) {
    case "any":
      return true;
    case "workload":
      return caller.kind === "workload";
    case "audience":
      return caller.kind === "workload" && directory.isAudience(caller.name);
    case "service":
      return caller.kind === "service" && caller.name === rule.name;
    case "replica":
      return caller.kind === "service" && caller.uri === self.uri;
    case "person":
      return caller.kind === "person" && directory.rolesOf(caller.name).has(rule.role);
  }
};

/** Whether one of the rules lets the caller in; `self` is whom the server's own certificate names. No rules: nobody. */
export const allows = (
  rules: readonly CallerRule[] | undefined,
  caller: Caller,
  directory: Directory,
  self: Caller,
): boolean => rules?.some((rule) => matches(rule, caller, directory, self)) ?? false;

const named = (rule: CallerRule): string => {
  switch (rule.kind) {
    case "any":
      return "everybody";
    case "workload":
      return "workloads";
    case "audience":
      return "workloads that are resource services";
    case "service":
      return `service/${rule.name}`;
    case "replica":
      return "replicas of the service";
    case "person":
      return `people with the role ${rule.role}`;
  }
};

/** Whom the rules let in, in words: what somebody who was refused needs to know. */
export const allowedCallers = (rules: readonly CallerRule[] | undefined): string =>
  rules?.map(named).join(", ") || "nobody";

const any: readonly CallerRule[] = [{ kind: "any" }];
const workload: CallerRule = { kind: "workload" };
const audience: CallerRule = { kind: "audience" };
const replica: CallerRule = { kind: "replica" };
const verifier: CallerRule = { kind: "service", name: "verifier" };
const gateway: CallerRule = { kind: "service", name: "gateway" };
const security: CallerRule = { kind: "person", role: "security" };
const oncall: CallerRule = { kind: "person", role: "oncall" };
const dpo: CallerRule = { kind: "person", role: "dpo" };
const auditor: CallerRule = { kind: "person", role: "auditor" };
const admin: CallerRule = { kind: "person", role: "admin" };

/** The table of the design ("Identity"). What a caller may see of others' rows is the handlers' matter. */
export const authorization = {
  "curfew.issuer.v1.IssuerService/PublishPolicy": [admin],
  "curfew.issuer.v1.IssuerService/RegisterKey": [workload],
  "curfew.issuer.v1.IssuerService/CreateToken": [workload],
  "curfew.issuer.v1.IssuerService/CollectSecret": [workload],
  "curfew.issuer.v1.IssuerService/ConfirmSecret": [workload],
  "curfew.issuer.v1.IssuerService/RotateToken": [workload],
  "curfew.issuer.v1.IssuerService/GetToken": [workload, security],
  "curfew.issuer.v1.IssuerService/ListTokens": [workload, security],

  "curfew.revocation.v1.RevocationService/RevokeToken": [security],
  "curfew.revocation.v1.RevocationService/RevokeBySecret": [workload, security, gateway],
  "curfew.revocation.v1.RevocationService/ReportLeak": [security, gateway],
  "curfew.revocation.v1.RevocationService/IdentifySecret": [security, gateway],
  "curfew.revocation.v1.RevocationService/WatchRevocations": [audience, verifier],
  "curfew.revocation.v1.RevocationService/GetRevocation": [security, dpo, auditor],

  "curfew.verifier.v1.VerifierService/VerifyToken": [audience, gateway],
  "curfew.verifier.v1.VerifierService/BatchVerifyTokens": [audience, gateway],
  "curfew.verifier.v1.VerifierService/ReportUses": [audience],

  "curfew.breach.v1.BreachService/ListCases": [oncall, dpo],
  "curfew.breach.v1.BreachService/GetCase": [oncall, dpo],
  "curfew.breach.v1.BreachService/DecideAwareness": [dpo],
  "curfew.breach.v1.BreachService/AcknowledgePage": [security, oncall, dpo],
  "curfew.breach.v1.BreachService/DraftNotification": [dpo],
  "curfew.breach.v1.BreachService/ListDrafts": [dpo, auditor],

  "curfew.auditor.v1.AuditorService/ListEvents": [auditor],
  "curfew.auditor.v1.AuditorService/GetEvent": [auditor],
  "curfew.auditor.v1.AuditorService/GetCheckpoint": [auditor],
  "curfew.auditor.v1.AuditorService/ProveInclusion": [auditor],
  "curfew.auditor.v1.AuditorService/ProveConsistency": [auditor],
  "curfew.auditor.v1.AuditorService/WatchEvents": [auditor],
  "curfew.auditor.v1.AuditorService/GetHealth": [auditor],
  "curfew.auditor.v1.AuditorService/ExportBundle": [auditor],

  "curfew.auditor.v1.DataSubjectService/EraseDataSubject": [dpo],
  "curfew.auditor.v1.DataSubjectService/GetDataSubject": [dpo],
  "curfew.auditor.v1.DataSubjectService/PlaceLegalHold": [dpo],
  "curfew.auditor.v1.DataSubjectService/ReleaseLegalHold": [dpo],
  "curfew.auditor.v1.DataSubjectService/ExportDataSubject": [dpo],
  "curfew.auditor.v1.DataSubjectService/OpenSealedField": [dpo, auditor],

  "curfew.relay.v1.RelayService/WakeRelay": [replica],

  "grpc.health.v1.Health/Check": any,
  "grpc.health.v1.Health/List": any,
  "grpc.health.v1.Health/Watch": any,
  "grpc.reflection.v1.ServerReflection/ServerReflectionInfo": any,
  "grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo": any,
} as const satisfies AuthorizationTable;
