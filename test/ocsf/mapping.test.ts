import { create, type Message } from "@bufbuild/protobuf";
import { siemRecord } from "@curfew/auditor/siem/cloud-event.ts";
import { type OcsfClassName, ocsfClasses } from "@curfew/auditor/siem/ocsf.ts";
import { eventRecord } from "@curfew/auditor/testing/rig.ts";
import { ActorSchema, SealedFieldSchema } from "@curfew/contracts/gen/curfew/events/v1/common_pb.ts";
import {
  LeakReportedSchema,
  RevocationReason,
  TokenRevokedSchema,
} from "@curfew/contracts/gen/curfew/events/v1/revocations_pb.ts";
import { PolicyPublishedSchema, TokenIssuedSchema } from "@curfew/contracts/gen/curfew/events/v1/tokens_pb.ts";
import {
  Action,
  Outcome,
  Reason,
  UseCompletedSchema,
  UseDecidedSchema,
} from "@curfew/contracts/gen/curfew/events/v1/uses_pb.ts";
import { eventTypeOf, eventTypes } from "@curfew/event-log/event-types.ts";
import { decodeLeaf, encodeLeaf, type LogRecord } from "@curfew/ledger/leaf.ts";
import { describe, expect, it } from "vitest";
import { sampleOf } from "../wire/sample.ts";
import { ocsfProblems } from "./schema.ts";

const index = 7_654_321;
const sealedAtMs = 1_795_000_000_500;

const leafRecord = (topic: string, record: ReturnType<typeof eventRecord>): LogRecord => {
  const { partition, key, value, headers } = record;
  const fields = { partition, key, value, headers: Object.entries(headers) };
  return { topic, offset: 12, timestampMs: 1_795_000_000_100, ...fields };
};
/** The CloudEvent that is made of an event's leaf. */
const cloudEventOf = (message: Message) => {
  const sent = eventRecord(message, {
    subject: "tokens/tok_1",
    sequence: 3,
    id: "event-1",
    nowMs: 1_795_000_000_000,
  });
  const { leaf } = encodeLeaf(leafRecord(eventTypeOf(message).topic, sent), sealedAtMs);
  return JSON.parse(Buffer.from(siemRecord(index, decodeLeaf(leaf)).value).toString());
};
const ocsfOf = (message: Message) => cloudEventOf(message).data;

/** Design: evidence, "Kafka for compliance tooling". */
const classOf: Readonly<Record<string, readonly [OcsfClassName, activity: number]>> = {
  "curfew.token.rotated.v1": ["entity_management", 3],
  "curfew.token.revoked.v1": ["entity_management", 4],
  "curfew.leak.reported.v1": ["detection_finding", 1],
  "curfew.case.opened.v1": ["incident_finding", 1],
  "curfew.signal.joined.v1": ["incident_finding", 2],
  "curfew.evidence-drift.found.v1": ["detection_finding", 1],
  "curfew.evidence-drift.ended.v1": ["detection_finding", 3],
  "curfew.ledger-key.rotated.v1": ["entity_management", 3],
};

describe.each(eventTypes)("$type in OCSF", ({ desc, type, topic }) => {
  it("is an object of the published schema, with everything said and with nothing said", () => {
    expect(ocsfProblems(ocsfOf(sampleOf(desc)))).toEqual([]);
    const [field] = desc.fields;
    const least = create(desc, { [field?.localName ?? ""]: sampleOf(desc)[field?.localName as keyof Message] });
    expect(ocsfProblems(ocsfOf(least))).toEqual([]);
  });

  it("names its event, its place in the ledger and its class", () => {
    const { data, ...event } = cloudEventOf(sampleOf(desc));
    const name = Object.keys(ocsfClasses).find((c) => ocsfClasses[c as OcsfClassName].uid === data.class_uid);
    expect(event).toEqual({
      specversion: "1.0",
      id: "event-1",
      source: "/auditor",
      type: `curfew.siem.${name?.replace("_", "-")}.v1`,
      subject: "tokens/tok_1",
      time: new Date(1_795_000_000_000).toISOString(),
      datacontenttype: "application/json",
      dataschema: `https://schema.ocsf.io/1.8.0/classes/${name}`,
      ledgerindex: String(index),
      traceparent: expect.stringMatching(/^00-/),
    });
    expect(data.metadata).toMatchObject({
      version: "1.8.0",
      uid: "event-1",
      event_code: type,
      log_name: topic,
      logged_time: sealedAtMs,
      sequence: index,
    });
    expect(data.time).toBe(1_795_000_000_000);
    const wanted = classOf[type];
    if (wanted) expect([name, data.activity_id]).toEqual(wanted);
  });
});

describe("the checker", () => {
  const good = () => ocsfOf(sampleOf(TokenRevokedSchema));
  it.each<[string, (event: Record<string, unknown>) => void]>([
    ["a required attribute that is not there", (e) => delete e.entity],
    ["an attribute that the class does not have", (e) => Object.assign(e, { api: { operation: "x" } })],
    ["an attribute that only a profile brings", (e) => Object.assign(e, { cloud: { provider: "x" } })],
    ["a number where a text belongs", (e) => Object.assign(e, { message: 7 })],
    ["a value that the enum does not have", (e) => Object.assign(e, { severity_id: 42 })],
    ["an unknown attribute deep inside", (e) => Object.assign(e.metadata as object, { colour: "red" })],
    ["an entity with no name of any kind", (e) => Object.assign(e, { entity: { type: "API token" } })],
    ["a caption of another id", (e) => Object.assign(e, { severity: "Fatal" })],
    ["a class that is not ours", (e) => Object.assign(e, { class_uid: 1001 })],
    [
      "a type that is not of its class and activity",
      (e) => Object.assign(e, { activity_id: 1, activity_name: "Create" }),
    ],
  ])("refuses %s", (_what, spoil) => {
    expect(ocsfProblems(good())).toEqual([]);
    const spoilt = good();
    spoil(spoilt);
    expect(ocsfProblems(spoilt)).not.toEqual([]);
  });
});

describe("events in OCSF", () => {
  const holder = "spiffe://test.example/workload/billing";

  it("tell an issued token as an entity, and one got for another as an authentication", () => {
    const issued = create(TokenIssuedSchema, { tokenId: "tok_1", subject: holder });
    expect(ocsfOf(issued)).toMatchObject({ class_uid: 3004, activity_id: 1, entity: { uid: "tok_1" } });
    const exchanged = ocsfOf(create(TokenIssuedSchema, { ...issued, ancestors: ["tok_0"] }));
    expect(exchanged).toMatchObject({
      class_uid: 3002,
      activity_id: 1,
      user: { uid: holder, credential_uid: "tok_0" },
    });
    expect(exchanged.session).toMatchObject({ uid: "tok_1" });
    expect(ocsfProblems(exchanged)).toEqual([]);
  });

  it.each([
    [Action.UNSPECIFIED, 2],
    [Action.READ, 2],
    [Action.WRITE, 3],
    [Action.DELETE, 4],
    [99 as Action, 99],
  ])("tell a use of action %s as API activity %s", (action, activity) => {
    const event = ocsfOf(create(UseDecidedSchema, { useId: "u", reason: Reason.OK, details: { action } }));
    expect(event).toMatchObject({ class_uid: 6003, activity_id: activity, status_id: 1 });
    expect(ocsfProblems(event)).toEqual([]);
  });

  it("tell a denied use as a failure with its reason", () => {
    const event = ocsfOf(create(UseDecidedSchema, { useId: "u", tokenId: "tok_1", reason: Reason.REVOKED }));
    expect(event).toMatchObject({ status_id: 2, status_code: "REVOKED", severity_id: 3 });
    expect(ocsfProblems(event)).toEqual([]);
  });

  it.each([
    [Outcome.COMPLETED, 1],
    [Outcome.FAILED, 2],
    [Outcome.UNANSWERED, 99],
    [77 as Outcome, 99],
  ])("tell an access that ended as %s with status %s", (outcome, status) => {
    const event = ocsfOf(create(UseCompletedSchema, { useId: "u", outcome }));
    expect(event.status_id).toBe(status);
    expect(ocsfProblems(event)).toEqual([]);
  });

  it("are urgent where someone else may have used a token", () => {
    const of = (reason: RevocationReason) => ocsfOf(create(TokenRevokedSchema, { tokenId: "t", reason })).severity;
    expect([of(RevocationReason.LEAKED), of(RevocationReason.COMPROMISED)]).toEqual(["High", "High"]);
    expect(of(RevocationReason.SUPERSEDED)).toBe("Low");
  });

  it("tell persons from machines", () => {
    const by = (spiffeId: string) => create(ActorSchema, { spiffeId });
    const of = (spiffeId: string) =>
      ocsfOf(create(TokenRevokedSchema, { tokenId: "t", revokedBy: by(spiffeId) })).actor.user.type;
    expect(of("spiffe://test.example/person/p7")).toBe("User");
    expect(of("spiffe://test.example/workload/person/p7")).toBe("Service");
  });

  it("keep back what a person wrote, where a secret was seen, what a policy says, and who was reached", () => {
    const canary = "canary-4711";
    const texts = ["reason", "error", "location", "document", "people", "channelMessageId"];
    const planted = (message: Record<string, unknown>): number => {
      let count = 0;
      for (const [name, value] of Object.entries(message)) {
        if (texts.includes(name) && typeof value === "string") message[name] = canary;
        else if (texts.includes(name) && Array.isArray(value)) message[name] = [canary];
        else if (value && typeof value === "object" && "$typeName" in value) {
          count += planted(value as Record<string, unknown>);
          continue;
        } else continue;
        count += 1;
      }
      return count;
    };
    let count = 0;
    for (const { desc } of eventTypes) {
      const message = sampleOf(desc);
      count += planted(message as unknown as Record<string, unknown>);
      expect(JSON.stringify(cloudEventOf(message)), desc.typeName).not.toContain(canary);
    }
    // reason of an awareness, error of a page, location of a leak, a policy's document, a page's message id, people twice.
    expect(count).toBe(7);
  });

  it("keep back sealed fields whole, sealed or not", () => {
    const ciphertext = Buffer.from("ciphertext-4711");
    const sealed = create(SealedFieldSchema, { pseudonym: "pseudonym-4711", ciphertext });
    let count = 0;
    const planted = (message: Record<string, unknown>): void => {
      for (const [name, value] of Object.entries(message)) {
        if (!value || typeof value !== "object" || !("$typeName" in value)) continue;
        if (value.$typeName !== sealed.$typeName) {
          planted(value as Record<string, unknown>);
          continue;
        }
        message[name] = sealed;
        count += 1;
      }
    };
    for (const { desc } of eventTypes) {
      const message = sampleOf(desc);
      planted(message as unknown as Record<string, unknown>);
      const text = JSON.stringify(cloudEventOf(message));
      for (const form of [
        "pseudonym-4711",
        ...(["base64", "base64url", "hex", "utf8"] as const).map((e) => ciphertext.toString(e)),
      ])
        expect(text, desc.typeName).not.toContain(form);
    }
    expect(count).toBeGreaterThan(0);
  });

  it("say of a record that is no event where it stands, and nothing of what it says", () => {
    const topic = "curfew.tokens.v1";
    const forged = {
      ...eventRecord(create(LeakReportedSchema, { tokenId: "evil" }), { subject: "evil" }),
      key: "evil\n",
    };
    const { leaf } = encodeLeaf(leafRecord(topic, forged), sealedAtMs);
    const record = siemRecord(index, decodeLeaf(leaf));
    const event = JSON.parse(Buffer.from(record.value).toString());
    expect(ocsfProblems(event.data)).toEqual([]);
    expect(event).toMatchObject({ id: `${topic}/0@12`, ledgerindex: String(index), data: { class_uid: 2004 } });
    expect(record.key).toBe(`${topic}/0@12`);
    expect(JSON.stringify(event)).not.toContain("evil");
  });

  it("of which one grew past what the bus takes is told as such a record", () => {
    const bytes = "\u0001".repeat(50_000);
    const { leaf } = encodeLeaf(
      leafRecord("curfew.tokens.v1", eventRecord(create(PolicyPublishedSchema, { policy: bytes }), { subject: "p" })),
      sealedAtMs,
    );
    const { value } = siemRecord(index, decodeLeaf(leaf));
    expect(value.length).toBeLessThan(10_000);
    expect(ocsfProblems(JSON.parse(Buffer.from(value).toString()).data)).toEqual([]);
  });
});
