import { readFileSync, writeFileSync } from "node:fs";
import { fileURLToPath } from "node:url";
import { siemDataSchema, siemType } from "@curfew/auditor/siem/cloud-event.ts";
import { type OcsfClassName, ocsfClasses } from "@curfew/auditor/siem/ocsf.ts";
import { type EventType, eventTypes, siemTopic, topicNames } from "@curfew/event-log/event-types.ts";
import { topics } from "@curfew/event-log/topics.ts";
import { stringify } from "yaml";

/** The topics for readers of other making: docs/asyncapi.yaml, an AsyncAPI 3 document made of the code and the protos (`npm run gen`). */
export const documentFile = fileURLToPath(new URL("../docs/asyncapi.yaml", import.meta.url));

type TopicName = keyof typeof topicNames;
/** A proto file of events, by its path without ".proto". */
const protoOf = (path: string) => readFileSync(new URL(`../proto/${path}.proto`, import.meta.url), "utf8");
const schemaNameOf = (path: string) => path.slice(path.lastIndexOf("/") + 1);

const about: Readonly<Record<TopicName, string>> = {
  tokens: "What issuer did: tokens, policies, identities.",
  uses: "What verifiers answered, and what the accesses touched. The key is the token, where one was recognised.",
  revocations: "What revocation did: leaks, revocations, and when they took effect.",
  breaches: "What breach-notifier did: cases, pages, decisions, drafts.",
  evidence: "What auditor found about the other topics.",
};

/** Header values are UTF-8 text. */
const text = (description: string, more: object = {}) => ({ type: "string", description, ...more });

const headers = {
  type: "object",
  required: [
    "content-type",
    "ce_specversion",
    "ce_id",
    "ce_source",
    "ce_type",
    "ce_subject",
    "ce_time",
    "ce_dataschema",
  ],
  properties: {
    "content-type": { const: "application/protobuf" },
    ce_specversion: { const: "1.0" },
    ce_id: text("UUIDv7. A record with an id that was seen before is the same event, sent twice."),
    ce_source: text("The service that wrote it, e.g. /issuer."),
    ce_subject: text("The stream: what it is about, e.g. tokens/<id>."),
    ce_time: text("RFC 3339, by the clock of the writer.", { format: "date-time" }),
    ce_partitionkey: text("The record's key, which is the subject."),
    ce_sequence: text("Number of the event in its stream, from 1 without gaps; absent on uses.", {
      pattern: "^[1-9][0-9]*$",
    }),
    traceparent: text("W3C Trace Context."),
    "curfew-producer": text("The chain of records that this one belongs to: service/instance/epoch."),
    "curfew-seq": text("Number of the record in its chain and partition, from 1 without gaps."),
    "curfew-prev": text("SHA-256 of the record before it in its chain, base64url."),
    "curfew-sig": text("Ed25519 signature over the chain so far, on the last record of a send."),
  },
};

const topicOf = (name: string) => {
  const topic = topics.find((each) => each.name === name);
  if (!topic) throw new TypeError(`no topic ${name}`);
  const { "cleanup.policy": policy = "", "retention.ms": ms, "retention.bytes": bytes } = topic.config;
  const kept = { "cleanup.policy": [policy], "retention.ms": Number(ms), "retention.bytes": Number(bytes) };
  return { kafka: { topic: name, partitions: topic.partitions, topicConfiguration: kept, bindingVersion: "0.5.0" } };
};

const refs = (kind: string, names: readonly string[]) =>
  Object.fromEntries(names.map((name) => [name, { $ref: `#/components/${kind}/${name}` }]));
const key = (description: string) => ({ kafka: { key: text(description), bindingVersion: "0.5.0" } });

/** The comment above a message in its proto. */
const summaryOf = ({ desc }: EventType, proto: string) =>
  new RegExp(`((?://[^\n]*\n)+)message ${desc.name} `)
    .exec(proto)?.[1]
    ?.replace(/\/\/ ?|\n(?=.)/g, (c) => (c === "\n" ? " " : ""))
    .trim();

const eventMessage = (type: EventType) => [
  type.type,
  {
    name: type.type,
    title: type.desc.name,
    summary: summaryOf(type, protoOf(type.desc.file.name)),
    contentType: "application/protobuf",
    headers: {
      allOf: [
        { $ref: "#/components/schemas/headers" },
        { properties: { ce_type: { const: type.type }, ce_dataschema: { const: type.desc.typeName } } },
      ],
    },
    payload: { $ref: `#/components/schemas/${schemaNameOf(type.desc.file.name)}` },
    bindings: key("ce_subject"),
    "x-protobuf-message": type.desc.typeName,
  },
];

const siemMessage = (name: OcsfClassName) => [
  siemType(name),
  {
    name: siemType(name),
    title: `OCSF ${ocsfClasses[name].caption}`,
    contentType: "application/cloudevents+json",
    headers: {
      type: "object",
      properties: { "content-type": { const: "application/cloudevents+json; charset=UTF-8" } },
    },
    payload: {
      type: "object",
      required: ["specversion", "id", "source", "type", "subject", "time", "dataschema", "ledgerindex", "data"],
      properties: {
        specversion: { const: "1.0" },
        id: text("Id of the event that it tells."),
        source: { const: "/auditor" },
        type: { const: siemType(name) },
        subject: text("ce_subject of the event."),
        time: text("When it happened, RFC 3339.", { format: "date-time" }),
        datacontenttype: { const: "application/json" },
        dataschema: { const: siemDataSchema(name) },
        ledgerindex: text("Index of the ledger's entry, from 0 without gaps.", { pattern: "^(0|[1-9][0-9]*)$" }),
        traceparent: text("W3C Trace Context."),
        data: {
          type: "object",
          description: `OCSF 1.8 ${ocsfClasses[name].caption}: ${siemDataSchema(name)}`,
          required: ["class_uid", "category_uid", "activity_id", "type_uid", "severity_id", "time", "metadata"],
          properties: { class_uid: { const: ocsfClasses[name].uid } },
        },
      },
    },
    bindings: key("Key of the record that it tells."),
  },
];

const names = Object.keys(topicNames) as TopicName[];
const classes = Object.keys(ocsfClasses) as OcsfClassName[];
const protoFiles = new Set(
  eventTypes
    .flatMap(({ desc: { file } }) => [file, ...file.dependencies])
    .map(({ name }) => name)
    .filter((name) => name.startsWith("curfew/")),
);
const typesOf = (name: TopicName) => eventTypes.filter(({ topic }) => topic === topicNames[name]);

const channel = (address: string, description: string, messages: readonly string[]) => ({
  address,
  description,
  messages: refs("messages", messages),
  bindings: topicOf(address),
});

const protobuf = (schema: string) => ({ schemaFormat: "application/vnd.google.protobuf;version=3", schema });

/** The document, YAML. */
export const asyncApi = (): string => {
  const document = {
    asyncapi: "3.0.0",
    info: {
      title: "Curfew",
      version: "1.0.0",
      description:
        "Topics that Curfew writes and others read: CloudEvents 1.0. Events are in binary mode, their values protobuf; curfew.siem.v1 tells the same in OCSF 1.8, in structured mode. Delivery is at least once.",
    },
    defaultContentType: "application/protobuf",
    servers: {
      kafka: {
        host: "kafka.example:9093",
        protocol: "kafka-secure",
        description: "Mutual TLS, version 1.3.",
        security: [{ $ref: "#/components/securitySchemes/mutualTls" }],
      },
    },
    channels: {
      ...Object.fromEntries(
        names.map((name) => [
          name,
          channel(
            topicNames[name],
            about[name],
            typesOf(name).map(({ type }) => type),
          ),
        ]),
      ),
      siem: channel(
        siemTopic,
        "The ledger, entry by entry, for compliance tooling: docs/siem.md.",
        classes.map(siemType),
      ),
    },
    operations: Object.fromEntries(
      [...names, "siem"].map((name) => [`write-${name}`, { action: "send", channel: { $ref: `#/channels/${name}` } }]),
    ),
    components: {
      securitySchemes: {
        mutualTls: { type: "X509", description: "A client certificate of the installation's authority." },
      },
      messages: Object.fromEntries([...eventTypes.map(eventMessage), ...classes.map(siemMessage)]),
      schemas: {
        headers,
        ...Object.fromEntries([...protoFiles].sort().map((path) => [schemaNameOf(path), protobuf(protoOf(path))])),
      },
    },
  };
  return `# Made by deploy/asyncapi.ts (npm run gen); do not edit.\n${stringify(document, { lineWidth: 0 })}`;
};

if (import.meta.main) writeFileSync(documentFile, asyncApi());
