import { create, type DescMessage, equals, type Message } from "@bufbuild/protobuf";
import { file_curfew_events_v1_breaches } from "@curfew/contracts/gen/curfew/events/v1/breaches_pb.ts";
import { file_curfew_events_v1_common, PositionSchema } from "@curfew/contracts/gen/curfew/events/v1/common_pb.ts";
import { file_curfew_events_v1_data_subjects } from "@curfew/contracts/gen/curfew/events/v1/data_subjects_pb.ts";
import { file_curfew_events_v1_evidence } from "@curfew/contracts/gen/curfew/events/v1/evidence_pb.ts";
import { file_curfew_events_v1_revocations } from "@curfew/contracts/gen/curfew/events/v1/revocations_pb.ts";
import {
  file_curfew_events_v1_tokens,
  PolicyPublishedSchema,
  SecretCollectedSchema,
} from "@curfew/contracts/gen/curfew/events/v1/tokens_pb.ts";
import { file_curfew_events_v1_uses } from "@curfew/contracts/gen/curfew/events/v1/uses_pb.ts";
import { seededRandom } from "@curfew/simulation/seeded-random.ts";
import { describe, expect, it } from "vitest";
import type { InRecord } from "./bus.ts";
import { type EncodeContext, encodeEvent, maxEventBytes, readEvent, UnreadableRecord } from "./envelope.ts";
import { eventTypeNamed, eventTypeOf, eventTypes, topicNames } from "./event-types.ts";

const nowMs = Date.UTC(2026, 10, 24, 13, 0, 0, 123);
const context: EncodeContext = {
  source: "/issuer",
  subject: "token/tok_1",
  nowMs,
  random: seededRandom(1).bytes,
  traceparent: "00-0123456789abcdef0123456789abcdef-0123456789abcdef-00",
  sequence: 7,
};
const message = create(SecretCollectedSchema, { tokenId: "tok_1", generation: 3 });
const asRecord = (of: Message, more: Partial<EncodeContext> = {}): InRecord => {
  const { headers, value } = encodeEvent(of, { ...context, ...more });
  const all = Object.entries(headers);
  return {
    topic: topicNames.tokens,
    partition: 0,
    offset: 5,
    timestampMs: nowMs,
    key: "token/tok_1",
    headers: all,
    value,
  };
};
const record = asRecord(message);
const withHeader = (name: string, value: string | undefined): InRecord => ({
  ...record,
  headers: [...record.headers.filter(([n]) => n !== name), ...(value === undefined ? [] : [[name, value] as const])],
});

describe("an envelope", () => {
  it("comes back as it went in", () => {
    const event = readEvent(record);
    expect(equals(SecretCollectedSchema, event.message as typeof message, message)).toBe(true);
    expect(event).toMatchObject({
      type: "curfew.secret.collected.v1",
      source: "/issuer",
      subject: "token/tok_1",
      timeMs: nowMs,
      sequence: 7,
      traceparent: context.traceparent,
      record,
    });
    expect(event.id).toMatch(/^[0-9a-f]{8}-[0-9a-f]{4}-7[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}$/);
  });

  it("writes CloudEvents headers in a fixed order, and no sequence where there is none", () => {
    expect(record.headers.map(([name]) => name)).toEqual([
      "content-type",
      "ce_specversion",
      "ce_id",
      "ce_source",
      "ce_type",
      "ce_subject",
      "ce_time",
      "ce_dataschema",
      "ce_partitionkey",
      "ce_sequence",
      "traceparent",
    ]);
    const { sequence: _, ...unnumbered } = context;
    const { headers } = encodeEvent(message, { ...unnumbered, id: "use-1" });
    expect(headers).not.toHaveProperty("ce_sequence");
    expect(headers.ce_id).toBe("use-1");
  });

  it("refuses to write what could not be published, sealed or read", () => {
    expect(() => asRecord(create(SecretCollectedSchema))).toThrow("tombstone");
    expect(() => asRecord(create(PositionSchema, { topic: "t" }))).toThrow("no event type");
    const document = "x".repeat(maxEventBytes);
    expect(() => asRecord(create(PolicyPublishedSchema, { document }))).toThrow(RangeError);
    for (const subject of ["", "tökén", "a b", "a\nb", "x".repeat(481)])
      expect(() => asRecord(message, { subject })).toThrow(RangeError);
  });

  it.each([
    ["ce_type", undefined],
    ["ce_type", ""],
    ["ce_type", "curfew.token.issued.v2"],
    ["ce_type", "__proto__"],
    ["ce_type", `curfew.${"x".repeat(10_000)}`],
    ["ce_type", "curfew.case.opened.v1"], // of another topic
    ["ce_time", undefined],
    ["ce_time", "yesterday"],
    ["ce_time", "2026"],
    ["ce_time", "2026-99-01T00:00:00Z"],
    ["ce_id", undefined],
    ["ce_id", ""],
    ["ce_id", "x".repeat(201)],
    ["ce_subject", undefined],
    ["ce_subject", "x".repeat(481)],
    ["ce_sequence", "0"],
    ["ce_sequence", "-1"],
    ["ce_sequence", "1e3"],
    ["ce_sequence", "9".repeat(30)],
  ])("does not read a record whose %s is %j", (name, value) => {
    const reading = () => readEvent(withHeader(name, value));
    expect(reading).toThrow(UnreadableRecord);
    expect(reading).toThrow(/^curfew\.tokens\.v1\/0@5: .{1,150}$/);
  });

  it("does not read a header that comes twice, an empty value, or bytes that are no message", () => {
    const twice = { ...record, headers: [...record.headers, ["ce_sequence", "8"] as const] };
    for (const hostile of [
      twice,
      { ...record, value: new Uint8Array(0) },
      { ...record, value: Uint8Array.of(0xff, 0xff, 0xff) },
      { ...record, value: record.value.subarray(0, 3) },
    ])
      expect(() => readEvent(hostile)).toThrow(UnreadableRecord);
  });

  it("names the place of an unreadable record and never its content", () => {
    const secret = "cfwx_secret";
    const hostile = { ...record, key: secret, value: Buffer.from(secret) };
    expect(() => readEvent(hostile)).toThrow(
      /^curfew.tokens.v1\/0@5: the value is not a curfew.events.v1.SecretCollected$/,
    );
  });
});

const files = [
  file_curfew_events_v1_breaches,
  file_curfew_events_v1_common,
  file_curfew_events_v1_data_subjects,
  file_curfew_events_v1_evidence,
  file_curfew_events_v1_revocations,
  file_curfew_events_v1_tokens,
  file_curfew_events_v1_uses,
];

describe("event types", () => {
  it("are every message of curfew.events.v1 that is no part of another, and no other", () => {
    const messages = files.flatMap((file) => file.messages);
    const parts = new Set(messages.flatMap((m) => m.fields.map((f) => f.message?.typeName)));
    const alone = messages.filter((m: DescMessage) => !parts.has(m.typeName)).map((m) => m.typeName);
    expect(eventTypes.map((row) => row.desc.typeName).sort()).toEqual(alone.sort());
  });

  it("have one name each, on one of the five topics, of the file they stand in", () => {
    expect(new Set(eventTypes.map((row) => row.type)).size).toBe(eventTypes.length);
    for (const { desc, type, topic } of eventTypes) {
      expect(type).toMatch(/^curfew\.[a-z-]+\.[a-z]+\.v1$/);
      // What concerns people's data stands beside the service's own events: the auditor's, or the verifiers'.
      const file = desc.file.name.split("/").at(-1) ?? "";
      expect(file === "data_subjects" ? ["curfew.evidence.v1", "curfew.uses.v1"] : [`curfew.${file}.v1`]).toContain(
        topic,
      );
      expect(eventTypeNamed(type)?.desc).toBe(desc);
      expect(eventTypeOf(create(desc)).type).toBe(type);
    }
  });
});
