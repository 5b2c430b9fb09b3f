import { randomUUID } from "node:crypto";
import {
  type DescMethod,
  type DescService,
  fromBinary,
  type JsonValue,
  type Message,
  toJson,
} from "@bufbuild/protobuf";
import { AuditorService } from "@curfew/contracts/gen/curfew/auditor/v1/auditor_pb.ts";
import { DataSubjectService } from "@curfew/contracts/gen/curfew/auditor/v1/data_subjects_pb.ts";
import { BreachService } from "@curfew/contracts/gen/curfew/breach/v1/breach_pb.ts";
import { HoldGround } from "@curfew/contracts/gen/curfew/events/v1/data_subjects_pb.ts";
import { RevocationReason } from "@curfew/contracts/gen/curfew/events/v1/revocations_pb.ts";
import { IssuerService } from "@curfew/contracts/gen/curfew/issuer/v1/issuer_pb.ts";
import { RevocationService } from "@curfew/contracts/gen/curfew/revocation/v1/revocation_pb.ts";
import { VerifierService } from "@curfew/contracts/gen/curfew/verifier/v1/verifier_pb.ts";
import { generateKeyPair, open, registerKeyInfo } from "@curfew/keyring/hpke.ts";
import type { CallOptions } from "@curfew/rpc/client.ts";
import { parseRpcError } from "@curfew/rpc/errors.ts";
import { methodName } from "@curfew/rpc/service-definition.ts";
import { systemRandom } from "@curfew/runtime/random.ts";
import { secretHash } from "@curfew/token-format/digest.ts";
import { afterAll, beforeAll, expect, test } from "vitest";
import { generatedServices, grant, openRig, policyDocument, type Rig, trustDomain, until } from "./rig.ts";
import { sampleOf } from "./samples.ts";

/**
 * What the same request_id does when it comes again, written out for every method that takes one (design: architecture, "Idempotency";
 * AIP-155): at once and later, by the same caller, by another with the same right to call, and with another request.
 */

/** Events that name the caller: "once", however often he asks; "each time" that he learns something; "none": it was so already. */
type Events = "once" | "each time" | "none";

interface Row {
  readonly method: DescMethod;
  readonly server: string;
  readonly one: string;
  readonly other: string;
  /** By event type: those that name the one, and those that name the other, who asks the same after him. */
  readonly events: Readonly<Record<string, readonly [Events, Events]>>;
  /** The reason for which the other is refused. */
  readonly refused?: string;
  /** Put in place before, and what it makes of the method's sample (samples.ts). */
  readonly request?: () => Promise<object>;
  /** Makes it another request, which is refused under the same id; absent: it is not, see there. */
  readonly changed?: object | (() => Promise<object>);
  /** What of the answer stays the same; default: all but secrets, which are shown once, and how far the record has come. */
  readonly lasting?: (answer: Record<string, JsonValue>) => unknown;
}

const billing = "workload/billing";
const uri = (caller: string) => `spiffe://${trustDomain}/${caller}`;
const person = (n: number) => ({ subject: { who: { case: "pseudonym", value: `psn_${String(n).repeat(32)}` } } });
const transient = ["secret", "secretAlreadyShown", "published", "position"];
const whole = (answer: Record<string, JsonValue>) =>
  Object.fromEntries(Object.entries(answer).filter(([field]) => !transient.includes(field)));

let rig: Rig;
let caseId: string;
beforeAll(async () => {
  // Somebody is paged, although nobody is there: a page is due before it is sent.
  const target = "{ name: nobody, channel: smtp, host: 127.0.0.1, port: 1, from: a@acme.example, to: b@acme.example }";
  rig = await openRig(`paging: { allow: ["127.0.0.1:1"], targets: [${target}] }\n`);
  const { tokenId, secret } = await rig.token("billing");
  const sam = rig.cast.client(RevocationService, "revocation", "person/sam");
  const sighting = { kind: "git", location: "https://git.example/a" };
  await sam.reportLeak({ requestId: randomUUID(), secretSha256: secretHash(secret), sighting });
  const dana = rig.cast.client(BreachService, "breach-notifier", "person/dana");
  caseId = await until("the case", async () => (await dana.listCases({ tokenId })).cases[0]?.caseId);
  await until("a page is due", async () => (await rig.events("curfew.page.due.v1", caseId)) > 0 || undefined);
});
afterAll(() => rig.close());

/** A key that billing proves to hold. */
const provenKey = async () => {
  const { publicKey, privateKey } = generateKeyPair(systemRandom);
  const issuer = rig.cast.client(IssuerService, "issuer", billing);
  const { challenge } = await issuer.registerKey({ requestId: randomUUID(), publicKey });
  if (!challenge) throw new Error("no challenge");
  const { enc, ciphertext } = challenge;
  return { publicKey, proof: open(privateKey, enc, ciphertext, registerKeyInfo(uri(billing)), Buffer.alloc(0)) };
};
const newToken = async () => {
  const { tokenId, secret } = await rig.token("billing");
  return { tokenId, secret, secretSha256: secretHash(secret) };
};
const inCase = async () => ({ caseId });
/** A hold on person 4's data. */
const placed = async () => {
  const dana = rig.cast.client(DataSubjectService, "auditor", "person/dana");
  const ground = HoldGround.LEGAL_CLAIMS;
  const asked = { requestId: randomUUID(), ...person(4), ground, reference: "claim/7" };
  const { subject } = await dana.placeLegalHold(asked as Parameters<typeof dana.placeLegalHold>[0]);
  return { ...person(4), holdId: subject?.holds[0]?.holdId };
};
/** A sealed use with the address that it came from. */
const sealedUse = async () => {
  const { secret } = await newToken();
  const verifier = rig.cast.client(VerifierService, "verifier", "workload/invoices");
  const use = { scope: "invoices:read", resource: "invoices/1", purpose: "billing", controller: "acme" };
  const credential = { case: "secret" as const, value: secret };
  const useId = await until("a use is allowed", async () => {
    const answer = await verifier.verifyToken({ credential, use: { ...use, sourceAddress: "203.0.113.9" } });
    return answer.allowed ? answer.useId : undefined;
  });
  const udo = rig.cast.client(AuditorService, "auditor", "person/udo");
  const which = { case: "eventId" as const, value: `${useId}/decided` };
  await until("the use is sealed", () =>
    udo.getEvent({ which }).then(
      () => true,
      () => undefined,
    ),
  );
  return { useId };
};

const [issuer, revocation, breach, subjects] = [
  IssuerService.method,
  RevocationService.method,
  BreachService.method,
  DataSubjectService.method,
];
const admins = { server: "issuer", one: "person/ada", other: "person/adam" };
const workloads = { server: "issuer", one: billing, other: "workload/crm" };
const security = { server: "revocation", one: "person/sam", other: "person/stella" };
const dposOfCase = { server: "breach-notifier", one: "person/dana", other: "person/dora", request: inCase };
const dpos = { server: "auditor", one: "person/dana", other: "person/dora" };

const table: readonly Row[] = [
  {
    ...{ ...admins, method: issuer.publishPolicy },
    // The document is in force already, whoever brings it again.
    events: { "curfew.policy.published.v1": ["once", "none"] },
    changed: { document: `${policyDocument}# changed\n` },
  },
  {
    ...{ ...workloads, method: issuer.registerKey, request: provenKey, changed: provenKey },
    events: { "curfew.key.registered.v1": ["once", "none"] },
    refused: "WRONG_PROOF",
  },
  {
    ...{ ...workloads, method: issuer.createToken },
    events: { "curfew.token.issued.v1": ["once", "once"] },
    changed: { grant: { ...grant, ttl: { seconds: 1_800n, nanos: 0 } } },
  },
  {
    ...{ ...workloads, method: issuer.rotateToken, request: newToken },
    events: { "curfew.token.rotated.v1": ["once", "none"] },
    refused: "TOKEN_NOT_FOUND",
    changed: { overlap: { seconds: 30n, nanos: 0 } },
  },
  {
    ...{ ...security, method: revocation.revokeToken, request: newToken },
    events: { "curfew.token.revoked.v1": ["once", "none"] },
    changed: { reason: RevocationReason.COMPROMISED },
  },
  {
    // Another secret under the same id is another token, and its end is not put off for a mistake in the id: no answer tells them apart.
    ...{ ...security, method: revocation.revokeBySecret, request: newToken },
    events: { "curfew.token.revoked.v1": ["once", "none"] },
  },
  {
    ...{ ...security, method: revocation.reportLeak, request: newToken },
    // Who else has seen it is evidence; the token has ended.
    events: { "curfew.leak.reported.v1": ["once", "once"], "curfew.token.revoked.v1": ["once", "none"] },
    changed: { sighting: { kind: "chat", location: "channel/7" } },
  },
  {
    ...{ ...dposOfCase, method: breach.decideAwareness, changed: { reason: "another" } },
    events: { "curfew.awareness.decided.v1": ["once", "once"] },
  },
  {
    ...{ ...dposOfCase, method: breach.acknowledgePage, changed: { milestone: "overdue" } },
    events: { "curfew.page.acknowledged.v1": ["once", "once"] },
  },
  {
    ...{ ...dposOfCase, method: breach.draftNotification, changed: { controller: "" } },
    events: { "curfew.notification.drafted.v1": ["once", "once"] },
  },
  {
    ...{ ...dpos, method: subjects.eraseDataSubject, request: async () => person(1), changed: { reference: "dsr/8" } },
    // It is under way, and goes on meanwhile.
    events: { "curfew.erasure.requested.v1": ["once", "none"] },
    lasting: ({ subject }) => {
      const { pseudonym, erasure } = subject as { pseudonym: string; erasure: { requestedAt: string } };
      return [pseudonym, erasure.requestedAt];
    },
  },
  {
    ...{ ...dpos, method: subjects.placeLegalHold, request: async () => person(3), changed: { reference: "claim/8" } },
    events: { "curfew.legal-hold.placed.v1": ["once", "once"] },
  },
  {
    ...{ ...dpos, method: subjects.releaseLegalHold, request: placed, changed: { holdId: `hold_${"0".repeat(32)}` } },
    events: { "curfew.legal-hold.released.v1": ["once", "none"] },
    refused: "HOLD_UNKNOWN",
  },
  {
    // Each export is recorded, whatever its id: so it is for the opening below.
    ...{ ...dpos, method: subjects.exportDataSubject, request: async () => person(5) },
    // Personal data is handed out again: that is another access, under whatever id, and recorded.
    events: { "curfew.data-subject.exported.v1": ["each time", "each time"] },
    lasting: ({ subject }) => subject,
  },
  {
    ...{ ...dpos, method: subjects.openSealedField, request: sealedUse },
    events: { "curfew.sealed-field.opened.v1": ["each time", "each time"] },
  },
];

type Call = (request: object, options: CallOptions) => Promise<Message>;

/** Calls as `caller`: the whole answer as JSON, or the reason for which it is refused. */
const asker = ({ method, server }: Row, caller: string) => {
  const client = rig.cast.client(method.parent as DescService, server, caller) as Readonly<Record<string, Call>>;
  return async (request: object): Promise<Record<string, JsonValue> | string> => {
    try {
      const answer = await (client[method.localName] as Call)(request, { deadlineMs: 10_000 });
      return toJson(method.output, answer) as Record<string, JsonValue>;
    } catch (error) {
      const { reason } = parseRpcError(error);
      if (reason === "") throw error;
      return reason;
    }
  };
};

const expected = { once: () => 1, "each time": (times: number) => times, none: () => 0 };

test("the table has a row for every method that takes a request_id, and no other", async () => {
  const taking = (await generatedServices()).flatMap(({ methods }) => methods).filter((m) => m.input.field.requestId);
  expect(table.map(({ method }) => methodName(method)).sort()).toEqual(taking.map(methodName).sort());
});

test.each(table.map((row) => ({ name: row.method.name, row })))("$name", async ({ row }) => {
  const { method, one, other, refused, changed, events, request: prepare, lasting = whole } = row;
  // As fields: a whole message takes no plain objects in its place.
  const { $typeName, ...sample } = fromBinary(method.input, sampleOf(method));
  const requestId = randomUUID();
  const prepared = await prepare?.();
  const request = { ...sample, ...prepared, requestId };
  const [askOne, askOther] = [asker(row, one), asker(row, other)];
  const count = async () => {
    const counted: Record<string, readonly [number, number]> = {};
    for (const type of Object.keys(events))
      counted[type] = [await rig.events(type, uri(one)), await rig.events(type, uri(other))];
    return counted;
  };
  const before = await count();
  const expectEvents = async (times: readonly [number, number]) => {
    const wanted = Object.entries(events).map(([type, kinds]) => [
      type,
      kinds.map((kind, i) => (before[type]?.[i] ?? 0) + (times[i] === 0 ? 0 : expected[kind](times[i] as number))),
    ]);
    expect(await count()).toEqual(Object.fromEntries(wanted));
  };

  const answers = await Promise.all([askOne(request), askOne(request), askOne(request)]);
  answers.push(await askOne({ ...request, requestId: requestId.toUpperCase() }));
  for (const answer of answers) {
    expect(answer).toBeTypeOf("object");
    expect(lasting(answer as Record<string, JsonValue>)).toEqual(lasting(answers[0] as Record<string, JsonValue>));
  }
  // A secret is shown once, and nobody has two different ones.
  expect(answers.filter((answer) => (answer as Record<string, JsonValue>).secret).length).toBeLessThanOrEqual(1);
  await expectEvents([4, 0]);

  const theirs = await Promise.all([askOther(request), askOther(request)]);
  for (const answer of theirs)
    if (refused) expect(answer).toBe(refused);
    else expect(answer).toBeTypeOf("object");
  const nothingNew = !refused && Object.values(events).every(([, kind]) => kind === "none");
  if (nothingNew)
    for (const answer of theirs)
      expect(lasting(answer as Record<string, JsonValue>)).toEqual(lasting(answers[0] as Record<string, JsonValue>));
  await expectEvents([4, 2]);

  if (!changed) return;
  const differing = typeof changed === "function" ? await changed() : changed;
  expect(await askOne({ ...request, ...differing })).toBe("REQUEST_ID_REUSED");
  await expectEvents([4, 2]);
});
