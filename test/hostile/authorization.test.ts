import { create, type DescMethod, fromBinary, toBinary } from "@bufbuild/protobuf";
import {
  ServerReflection,
  ServerReflectionRequestSchema,
  ServerReflectionResponseSchema,
} from "@curfew/contracts/gen/grpc/reflection/v1/reflection_pb.ts";
import { createAuthority, issueCertificate } from "@curfew/rpc/identity-authority.ts";
import { methodName } from "@curfew/rpc/service-definition.ts";
import { systemClock } from "@curfew/runtime/clock.ts";
import { type Client, credentials, Client as GrpcClient } from "@grpc/grpc-js";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { type Answer, call } from "./raw-call.ts";
import { generatedServices, openRig, type Rig, serviceNames, trustDomain } from "./rig.ts";
import { sampleOf } from "./samples.ts";

/**
 * Who may call what, written out a second time: every method that any of the five servers answers × every kind of caller. `yes`: let
 * in; `no`: PERMISSION_DENIED with details; `x`: no connection at all.
 */
const callers = [
  "no certificate",
  "a stranger's CA",
  "expired certificate",
  "workload/billing", // a workload
  "workload/invoices", // a resource service
  "person/sam", // security
  "person/olga", // oncall
  "person/dana", // dpo
  "person/udo", // auditor
  "person/ada", // admin
  "person/nina", // a person without roles
  "service/issuer",
  "service/verifier",
  "service/revocation",
  "service/auditor",
  "service/breach-notifier",
  "service/gateway",
] as const;

// biome-ignore format: a table
const matrix: Record<string, string> = {
  //                                                    no stra expi | work reso | secu onca dpo  audi admi none | issu veri revo audi brea gate
  "issuer IssuerService/PublishPolicy":               "  x   x    x     no   no     no   no   no   no   yes  no     no   no   no   no   no   no",
  "issuer IssuerService/RegisterKey":                 "  x   x    x     yes  yes    no   no   no   no   no   no     no   no   no   no   no   no",
  "issuer IssuerService/CreateToken":                 "  x   x    x     yes  yes    no   no   no   no   no   no     no   no   no   no   no   no",
  "issuer IssuerService/CollectSecret":               "  x   x    x     yes  yes    no   no   no   no   no   no     no   no   no   no   no   no",
  "issuer IssuerService/ConfirmSecret":               "  x   x    x     yes  yes    no   no   no   no   no   no     no   no   no   no   no   no",
  "issuer IssuerService/RotateToken":                 "  x   x    x     yes  yes    no   no   no   no   no   no     no   no   no   no   no   no",
  "issuer IssuerService/GetToken":                    "  x   x    x     yes  yes    yes  no   no   no   no   no     no   no   no   no   no   no",
  "issuer IssuerService/ListTokens":                  "  x   x    x     yes  yes    yes  no   no   no   no   no     no   no   no   no   no   no",
  "issuer RelayService/WakeRelay":                    "  x   x    x     no   no     no   no   no   no   no   no     yes  no   no   no   no   no",
  "verifier VerifierService/VerifyToken":             "  x   x    x     no   yes    no   no   no   no   no   no     no   no   no   no   no   yes",
  "verifier VerifierService/BatchVerifyTokens":       "  x   x    x     no   yes    no   no   no   no   no   no     no   no   no   no   no   yes",
  "verifier VerifierService/ReportUses":              "  x   x    x     no   yes    no   no   no   no   no   no     no   no   no   no   no   no",
  "revocation RevocationService/RevokeToken":         "  x   x    x     no   no     yes  no   no   no   no   no     no   no   no   no   no   no",
  "revocation RevocationService/RevokeBySecret":      "  x   x    x     yes  yes    yes  no   no   no   no   no     no   no   no   no   no   yes",
  "revocation RevocationService/ReportLeak":          "  x   x    x     no   no     yes  no   no   no   no   no     no   no   no   no   no   yes",
  "revocation RevocationService/IdentifySecret":      "  x   x    x     no   no     yes  no   no   no   no   no     no   no   no   no   no   yes",
  "revocation RevocationService/WatchRevocations":    "  x   x    x     no   yes    no   no   no   no   no   no     no   yes  no   no   no   no",
  "revocation RevocationService/GetRevocation":       "  x   x    x     no   no     yes  no   yes  yes  no   no     no   no   no   no   no   no",
  "revocation RelayService/WakeRelay":                "  x   x    x     no   no     no   no   no   no   no   no     no   no   yes  no   no   no",
  "auditor AuditorService/ListEvents":                "  x   x    x     no   no     no   no   no   yes  no   no     no   no   no   no   no   no",
  "auditor AuditorService/GetEvent":                  "  x   x    x     no   no     no   no   no   yes  no   no     no   no   no   no   no   no",
  "auditor AuditorService/GetCheckpoint":             "  x   x    x     no   no     no   no   no   yes  no   no     no   no   no   no   no   no",
  "auditor AuditorService/ProveInclusion":            "  x   x    x     no   no     no   no   no   yes  no   no     no   no   no   no   no   no",
  "auditor AuditorService/ProveConsistency":          "  x   x    x     no   no     no   no   no   yes  no   no     no   no   no   no   no   no",
  "auditor AuditorService/WatchEvents":               "  x   x    x     no   no     no   no   no   yes  no   no     no   no   no   no   no   no",
  "auditor AuditorService/GetHealth":                 "  x   x    x     no   no     no   no   no   yes  no   no     no   no   no   no   no   no",
  "auditor AuditorService/ExportBundle":              "  x   x    x     no   no     no   no   no   yes  no   no     no   no   no   no   no   no",
  "auditor DataSubjectService/EraseDataSubject":      "  x   x    x     no   no     no   no   yes  no   no   no     no   no   no   no   no   no",
  "auditor DataSubjectService/GetDataSubject":        "  x   x    x     no   no     no   no   yes  no   no   no     no   no   no   no   no   no",
  "auditor DataSubjectService/PlaceLegalHold":        "  x   x    x     no   no     no   no   yes  no   no   no     no   no   no   no   no   no",
  "auditor DataSubjectService/ReleaseLegalHold":      "  x   x    x     no   no     no   no   yes  no   no   no     no   no   no   no   no   no",
  "auditor DataSubjectService/ExportDataSubject":     "  x   x    x     no   no     no   no   yes  no   no   no     no   no   no   no   no   no",
  "auditor DataSubjectService/OpenSealedField":       "  x   x    x     no   no     no   no   yes  yes  no   no     no   no   no   no   no   no",
  "auditor RelayService/WakeRelay":                   "  x   x    x     no   no     no   no   no   no   no   no     no   no   no   yes  no   no",
  "breach-notifier BreachService/ListCases":          "  x   x    x     no   no     no   yes  yes  no   no   no     no   no   no   no   no   no",
  "breach-notifier BreachService/GetCase":            "  x   x    x     no   no     no   yes  yes  no   no   no     no   no   no   no   no   no",
  "breach-notifier BreachService/DecideAwareness":    "  x   x    x     no   no     no   no   yes  no   no   no     no   no   no   no   no   no",
  "breach-notifier BreachService/AcknowledgePage":    "  x   x    x     no   no     yes  yes  yes  no   no   no     no   no   no   no   no   no",
  "breach-notifier BreachService/DraftNotification":  "  x   x    x     no   no     no   no   yes  no   no   no     no   no   no   no   no   no",
  "breach-notifier BreachService/ListDrafts":         "  x   x    x     no   no     no   no   yes  yes  no   no     no   no   no   no   no   no",
  "breach-notifier RelayService/WakeRelay":           "  x   x    x     no   no     no   no   no   no   no   no     no   no   no   no   yes  no",
  // Whether it works, and what there is to call, anybody with a certificate of ours may ask, of every server.
  "* Health/Check":                                   "  x   x    x     yes  yes    yes  yes  yes  yes  yes  yes    yes  yes  yes  yes  yes  yes",
  "* Health/List":                                    "  x   x    x     yes  yes    yes  yes  yes  yes  yes  yes    yes  yes  yes  yes  yes  yes",
  "* Health/Watch":                                   "  x   x    x     yes  yes    yes  yes  yes  yes  yes  yes    yes  yes  yes  yes  yes  yes",
  "* v1.ServerReflection/ServerReflectionInfo":       "  x   x    x     yes  yes    yes  yes  yes  yes  yes  yes    yes  yes  yes  yes  yes  yes",
  "* v1alpha.ServerReflection/ServerReflectionInfo":  "  x   x    x     yes  yes    yes  yes  yes  yes  yes  yes    yes  yes  yes  yes  yes  yes",
};

const packages: Record<string, string> = {
  IssuerService: "curfew.issuer.v1",
  VerifierService: "curfew.verifier.v1",
  RevocationService: "curfew.revocation.v1",
  AuditorService: "curfew.auditor.v1",
  DataSubjectService: "curfew.auditor.v1",
  BreachService: "curfew.breach.v1",
  RelayService: "curfew.relay.v1",
  Health: "grpc.health.v1",
  "v1.ServerReflection": "grpc.reflection",
  "v1alpha.ServerReflection": "grpc.reflection",
};

/** The matrix by `issuer curfew.issuer.v1.IssuerService/PublishPolicy`, `*` written out. */
const rows = new Map<string, readonly string[]>(
  Object.entries(matrix).flatMap(([row, cells]) => {
    const [server = "", method = ""] = row.split(" ");
    const name = `${packages[method.slice(0, method.indexOf("/"))]}.${method}`;
    const verdicts = cells.trim().split(/\s+/);
    return (server === "*" ? [...serviceNames] : [server]).map((each): [string, string[]] => [
      `${each} ${name}`,
      verdicts,
    ]);
  }),
);

let rig: Rig;
const clients = new Map<string, Client>();
let served: { readonly server: string; readonly method: DescMethod; readonly row: string }[];

const clientOf = async (server: string, caller: string): Promise<Client> => {
  const caPem = rig.suite.identities.caPem;
  if (caller === "no certificate") {
    const tls = credentials.createSsl(Buffer.from(caPem), null, null, { checkServerIdentity: () => undefined });
    return new GrpcClient(rig.address(server), tls);
  }
  if (caller === "a stranger's CA") {
    const stranger = await createAuthority({ trustDomain, clock: systemClock });
    const request = { spiffePath: "/person/ada", validMs: 3_600_000, commonName: "ada" };
    return rig.channel(server, await issueCertificate(stranger, request));
  }
  if (caller === "expired certificate")
    return rig.channel(server, await rig.certificate("/person/ada", 3_600_000, Date.now() - 7_200_000));
  return rig.channel(server, caller);
};

/** What a server itself says it serves. */
const servicesOf = async (server: string): Promise<string[]> => {
  const request = create(ServerReflectionRequestSchema, { messageRequest: { case: "listServices", value: "" } });
  const method = ServerReflection.method.serverReflectionInfo;
  const bytes = toBinary(ServerReflectionRequestSchema, request);
  const answer = await call(rig.client(server, "person/nina"), method, [bytes]);
  const { messageResponse } = fromBinary(ServerReflectionResponseSchema, answer.messages[0] as Buffer);
  return messageResponse.case === "listServicesResponse" ? messageResponse.value.service.map((s) => s.name) : [];
};

beforeAll(async () => {
  rig = await openRig();
  const generated = new Map((await generatedServices()).map((desc) => [desc.typeName, desc]));
  served = [];
  for (const server of serviceNames)
    for (const typeName of await servicesOf(server))
      for (const method of generated.get(typeName)?.methods ?? [])
        served.push({ server, method, row: `${server} ${methodName(method)}` });
  for (const server of serviceNames)
    for (const caller of callers) clients.set(`${server} ${caller}`, await clientOf(server, caller));
});

afterAll(async () => {
  for (const client of clients.values()) client.close();
  await rig.close();
});

/** Calls by every caller with that verdict; `requests` as the method wants them. */
const answersTo = async (verdict: string, requestOf: (method: DescMethod) => Uint8Array) => {
  const asked = served.flatMap(({ server, method, row }) =>
    callers
      .filter((_, i) => rows.get(row)?.[i] === verdict)
      .map(async (caller): Promise<readonly [string, Answer]> => {
        const client = clients.get(`${server} ${caller}`) as Client;
        return [`${row} by ${caller}`, await call(client, method, [requestOf(method)])];
      }),
  );
  return await Promise.all(asked);
};

describe("the matrix", () => {
  test("has a row for every method of every server, and for nothing else", async () => {
    expect([...rows.keys()].sort()).toEqual(served.map(({ row }) => row).sort());
    for (const [row, verdicts] of rows) expect(verdicts.length, row).toBe(callers.length);
    const known = new Set(served.map(({ method }) => method.parent.typeName));
    expect((await generatedServices()).map((s) => s.typeName).filter((name) => !known.has(name))).toEqual([]);
  });

  test("refuses those it denies, says why, and nothing is written", async () => {
    const before = await rig.written();
    const answers = await answersTo("no", sampleOf);
    const wrong = answers.filter(
      ([, { status, reason, domain }]) =>
        status !== "PERMISSION_DENIED" || reason !== "CALLER_NOT_ALLOWED" || domain !== "curfew",
    );
    expect(wrong).toEqual([]);
    expect(answers.length).toBeGreaterThan(300);
    expect(await rig.written()).toEqual(before);
  });

  test("lets in nobody without a certificate of ours that is good now, and nothing is written", async () => {
    const before = await rig.written();
    const answers = await answersTo("x", sampleOf);
    expect(answers.filter(([, { status }]) => status !== "UNAVAILABLE")).toEqual([]);
    expect(answers).toHaveLength(served.length * 3);
    expect(await rig.written()).toEqual(before);
  });

  test("lets in those it allows", async () => {
    const answers = await answersTo("yes", () => new Uint8Array());
    const never = ["PERMISSION_DENIED", "UNAUTHENTICATED", "UNIMPLEMENTED", "INTERNAL", "UNKNOWN", "DEADLINE_EXCEEDED"];
    expect(answers.filter(([, { status }]) => never.includes(status))).toEqual([]);
    // What takes an empty request really answers it.
    const answered = answers.filter(([, { status }]) => status === "OK").map(([what]) => what);
    expect(answered).toContain("auditor curfew.auditor.v1.AuditorService/GetCheckpoint by person/udo");
    expect(answered).toContain("issuer grpc.health.v1.Health/Watch by person/nina");
  });

  test("lets in nobody whom a certificate of our authority puts in another trust domain", async () => {
    const answers = await Promise.all(
      serviceNames.map(async (server) => {
        const foreign = await rig.certificate("/person/ada", 3_600_000, Date.now(), "other.example");
        const client = rig.channel(server, foreign);
        return call(client, served.find((s) => s.server === server)?.method as DescMethod, [new Uint8Array()]);
      }),
    );
    for (const answer of answers)
      expect(answer).toMatchObject({ status: "UNAUTHENTICATED", reason: "UNAUTHENTICATED", domain: "curfew" });
  });
});
