import { randomUUID } from "node:crypto";
import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { type Bus, BusRefused } from "@curfew/event-log/bus.ts";
import { busContract } from "@curfew/event-log/contract.ts";
import { type KafkaTls, openKafkaBus } from "@curfew/event-log/kafka.ts";
import { createAuthority, issueCertificate } from "@curfew/rpc/identity-authority.ts";
import { systemClock } from "@curfew/runtime/clock.ts";
import kafkajs from "kafkajs";
import { afterAll, afterEach, beforeAll, describe, expect, it, vi } from "vitest";
import { type KafkaServer, startKafka } from "../../deploy/dev/servers.ts";
import { cleanUp, collect, createTopics, idOf, openAdmin, openBus, openEpochs, record } from "./bus-rig.ts";

const given = process.env.CURFEW_TEST_KAFKA_BROKERS?.split(",");

const contract = (name: string, cluster: () => { brokers: string[]; ssl?: KafkaTls }) =>
  busContract(name, async (topics) => {
    const { brokers, ssl } = cluster();
    const topicPrefix = `t${randomUUID().slice(0, 8)}.`;
    const prefixed = Object.entries(topics).map(([topic, partitions]) => [topicPrefix + topic, partitions] as const);
    await createTopics(brokers, Object.fromEntries(prefixed), ssl);
    const { store, epochs } = await openEpochs();
    const settings = { brokers, clientId: "contract", epochs, clock: systemClock, topicPrefix, ...(ssl && { ssl }) };
    let bus: Bus = await openKafkaBus(settings);
    return {
      bus,
      epochs,
      async reopen() {
        await bus.close();
        bus = await openKafkaBus(settings);
        return bus;
      },
      async close() {
        await bus.close();
        await store.close();
      },
    };
  });

describe("the Kafka adapter", () => {
  let server: KafkaServer | undefined;
  beforeAll(async () => {
    if (!given) server = await startKafka();
  });
  afterAll(() => server?.stop());
  contract("Kafka", () => ({ brokers: given ?? server?.brokers ?? [] }));
});

describe("the Kafka adapter on mutual TLS, with access lists", () => {
  let server: KafkaServer | undefined;
  let dir: string;
  let ssl: { broker: KafkaTls; verifier: KafkaTls };
  beforeAll(async () => {
    dir = mkdtempSync(join(tmpdir(), "curfew-bus-test-"));
    const authority = await createAuthority({ trustDomain: "test.example", clock: systemClock });
    const identityOf = async (name: string) => {
      const request = { spiffePath: `/service/${name}`, commonName: name, validMs: 3_600_000, dnsNames: ["localhost"] };
      const { certPem, keyPem } = await issueCertificate(authority, request);
      return { ca: authority.certPem, cert: certPem, key: keyPem };
    };
    ssl = { broker: await identityOf("broker"), verifier: await identityOf("verifier") };
    const file = (name: string, text: string) => {
      writeFileSync(join(dir, name), text, { mode: 0o600 });
      return join(dir, name);
    };
    const keystore = file("broker.pem", `${ssl.broker.key}\n${ssl.broker.cert}`);
    server = await startKafka({
      tls: { ca: file("ca.pem", ssl.broker.ca), keystore },
      settings: {
        "authorizer.class.name": "org.apache.kafka.metadata.authorizer.StandardAuthorizer",
        "super.users": "User:CN=broker,OU=svc,O=curfew",
      },
    });
  });
  afterAll(async () => {
    await server?.stop();
    rmSync(dir, { recursive: true, force: true });
  });
  afterEach(cleanUp);

  const brokers = () => server?.brokers ?? [];
  contract("Kafka with mutual TLS", () => ({ brokers: brokers(), ssl: ssl.broker }));

  it("refuses a send without the right to write, at once and for that send alone", async () => {
    await createTopics(brokers(), { uses: 1, other: 1 }, ssl.broker);
    const admin = await openAdmin(brokers(), ssl.broker);
    const write = {
      resourceType: kafkajs.AclResourceTypes.TOPIC,
      resourceName: "uses",
      resourcePatternType: kafkajs.ResourcePatternTypes.LITERAL,
      principal: "User:CN=verifier,OU=svc,O=curfew",
      host: "*",
      operation: kafkajs.AclOperationTypes.WRITE,
      permissionType: kafkajs.AclPermissionTypes.ALLOW,
    };
    // The broker answers before it goes by the change.
    const inForce = (count: number) =>
      vi.waitFor(async () => expect((await admin.describeAcls(write)).resources).toHaveLength(count), 20_000);
    try {
      await admin.createAcls({ acl: [write] });
      await inForce(1);
      const { bus } = await openBus(brokers(), { ssl: ssl.verifier });
      const producer = await bus.openProducer({ topic: "uses", name: "verifier/1" });
      await producer.send([record("allowed")]);
      await admin.deleteAcls({ filters: [write] });
      await inForce(0);
      await expect(producer.send([record("refused")])).rejects.toBeInstanceOf(BusRefused);
      await admin.createAcls({ acl: [write] });
      await inForce(1);
      expect(await producer.send([record("allowed again")])).toEqual([1]);
      await expect(bus.openProducer({ topic: "other", name: "verifier/1" })).rejects.toThrow("authorization failed");
      const { bus: reading } = await openBus(brokers(), { ssl: ssl.broker });
      const reader = await collect(reading, "uses");
      await reader.count(2);
      expect(reader.records.map(idOf)).toEqual(["allowed", "allowed again"]);
    } finally {
      await admin.disconnect();
    }
  });
});
