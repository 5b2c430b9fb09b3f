import { spawn } from "node:child_process";
import { once } from "node:events";
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { connect } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { createInterface } from "node:readline";
import { setTimeout as sleep } from "node:timers/promises";
import { type ConnectionOptions, connect as connectTls } from "node:tls";
import { prepareFerret, prepareKafka, startFerret, startKafka } from "@curfew/deploy/dev/servers.ts";
import { applyTopics, checkTopics, topics } from "@curfew/event-log/topics.ts";
import { createAuthority, issueCertificate } from "@curfew/rpc/identity-authority.ts";
import { systemClock } from "@curfew/runtime/clock.ts";
import kafkajs from "kafkajs";
import { MongoClient } from "mongodb";
import { afterEach, beforeAll, describe, expect, test } from "vitest";

const one = { replicationFactor: 1, minInsync: 1 };

const cleanups: (() => unknown)[] = [];
const later = (cleanup: () => unknown) => cleanups.push(cleanup);
afterEach(async () => {
  for (const cleanup of cleanups.splice(0).reverse()) await cleanup();
});
const started = async <T extends { stop(): Promise<void> }>(starting: Promise<T>) => {
  const server = await starting;
  later(() => server.stop());
  return server;
};
const scratch = () => {
  const dir = mkdtempSync(join(tmpdir(), "curfew-servers-test-"));
  later(() => rmSync(dir, { recursive: true, force: true }));
  return dir;
};
const clientOf = (brokers: string[]) =>
  new kafkajs.Kafka({ brokers, logLevel: kafkajs.logLevel.NOTHING, retry: { retries: 30, maxRetryTime: 1000 } });

/** The values of a topic from its beginning, once there are `count`; the test's own limit bounds the wait. */
const read = async (brokers: string[], topic: string, count: number) => {
  const consumer = clientOf(brokers).consumer({ groupId: `read-${process.hrtime.bigint()}`, maxWaitTimeInMs: 250 });
  await consumer.connect();
  const values: string[] = [];
  try {
    await consumer.subscribe({ topic, fromBeginning: true });
    await new Promise<void>((resolve, reject) => {
      const eachMessage = async ({ message }: { message: { value: Buffer | null } }) => {
        values.push(String(message.value));
        if (values.length === count) resolve();
      };
      consumer.run({ eachMessage }).catch(reject);
    });
  } finally {
    await consumer.disconnect();
  }
  return values;
};

describe("a Kafka broker for development", () => {
  beforeAll(() => prepareKafka(console.log));

  test("topics apply creates the table once, and the broker has every setting", async () => {
    const { brokers } = await started(startKafka());
    const options = { ...one, prefix: "a." };
    expect(await applyTopics(brokers, options)).toEqual(topics.map((t) => `a.${t.name}`));
    expect(await applyTopics(brokers, options)).toEqual([]);
    expect(await checkTopics(brokers, options)).toEqual([]);

    const admin = clientOf(brokers).admin();
    await admin.connect();
    later(() => admin.disconnect());
    const found = await admin.fetchTopicMetadata({ topics: topics.map((t) => `a.${t.name}`) });
    const partitions = Object.fromEntries(found.topics.map((t) => [t.name, t.partitions.length]));
    expect(partitions).toEqual({
      "a.curfew.tokens.v1": 1,
      "a.curfew.revocations.v1": 1,
      "a.curfew.breaches.v1": 1,
      "a.curfew.evidence.v1": 1,
      "a.curfew.siem.v1": 1,
      "a.curfew.uses.v1": 12,
    });
    const { resources } = await admin.describeConfigs({
      includeSynonyms: false,
      resources: [...found.topics.map((t) => ({ type: kafkajs.ConfigResourceTypes.TOPIC, name: t.name }))],
    });
    expect(resources).toHaveLength(topics.length);
    for (const { configEntries } of resources) {
      expect(Object.fromEntries(configEntries.map((c) => [c.configName, c.configValue]))).toMatchObject({
        "cleanup.policy": "delete",
        "retention.ms": "-1",
        "retention.bytes": "-1",
        "unclean.leader.election.enable": "false",
        "message.timestamp.type": "LogAppendTime",
        "min.insync.replicas": "1",
      });
    }
  });

  test("topics check names what is absent and what differs, and apply leaves it as it is", async () => {
    const { brokers } = await started(startKafka());
    const admin = clientOf(brokers).admin();
    await admin.connect();
    later(() => admin.disconnect());
    await admin.createTopics({
      topics: [
        { topic: "curfew.tokens.v1", numPartitions: 2, configEntries: [{ name: "retention.ms", value: "5000" }] },
      ],
    });
    const differing = [
      "curfew.tokens.v1: partitions is 2, not 1",
      "curfew.tokens.v1: retention.ms is 5000, not -1",
      "curfew.tokens.v1: message.timestamp.type is CreateTime, not LogAppendTime",
    ];
    const absent = topics.slice(1).map((t) => `${t.name}: absent`);
    const before = await checkTopics(brokers, one);
    expect(before).toEqual(expect.arrayContaining([...differing, ...absent]));
    expect(await applyTopics(brokers, one)).toEqual(topics.slice(1).map((t) => t.name));
    const after = await checkTopics(brokers, one);
    expect(after).toEqual(before.filter((line) => !line.endsWith(": absent")));
  });

  test("topics apply says the broker's reason for every topic it refuses", async () => {
    const { brokers } = await started(startKafka());
    const refused = applyTopics(brokers, { replicationFactor: 3, minInsync: 2 });
    await expect(refused).rejects.toThrow(/curfew\.uses\.v1: INVALID_REPLICATION_FACTOR/);
    await expect(applyTopics(brokers, { replicationFactor: 1, minInsync: 2 })).rejects.toThrow(RangeError);
  });

  test("a topic that was not created is refused, not made on the way", async () => {
    const { brokers } = await started(startKafka());
    const kafka = new kafkajs.Kafka({ brokers, logLevel: kafkajs.logLevel.NOTHING, retry: { retries: 1 } });
    const producer = kafka.producer({ allowAutoTopicCreation: true });
    await producer.connect();
    later(() => producer.disconnect());
    const sent = producer.send({ topic: "nobody-made-this", messages: [{ key: "k", value: "v" }] });
    await expect(sent).rejects.toThrow("does not host this topic-partition");
  });

  test("acknowledged records, topics and settings survive kill -9 and a restart on the same port", async () => {
    const kafka = await started(startKafka());
    await applyTopics(kafka.brokers, one);
    const producer = clientOf(kafka.brokers).producer({ idempotent: true, maxInFlightRequests: 1 });
    await producer.connect();
    later(() => producer.disconnect());
    const values = Array.from({ length: 20 }, (_, i) => `record ${i}`);
    await producer.send({ topic: "curfew.tokens.v1", messages: values.map((value) => ({ key: "k", value })) });
    const [pid, brokers] = [kafka.pid, [...kafka.brokers]];
    await kafka.kill();
    await kafka.restart();
    expect(kafka.pid).not.toBe(pid);
    expect(kafka.brokers).toEqual(brokers);
    await producer.send({ topic: "curfew.tokens.v1", messages: [{ key: "k", value: "after" }] });
    expect(await read(brokers, "curfew.tokens.v1", 21)).toEqual([...values, "after"]);
    expect(await checkTopics(brokers, one)).toEqual([]);
  });

  test("a paused broker acknowledges only after it is resumed", async () => {
    const kafka = await started(startKafka());
    await applyTopics(kafka.brokers, one);
    const producer = clientOf(kafka.brokers).producer({ idempotent: true, maxInFlightRequests: 1 });
    await producer.connect();
    later(() => producer.disconnect());
    await producer.send({ topic: "curfew.tokens.v1", messages: [{ key: "k", value: "before" }] });
    kafka.pause();
    let resumed = false;
    const sent = producer.send({ topic: "curfew.tokens.v1", messages: [{ key: "k", value: "during" }] });
    const acknowledgedAfterResume = sent.then(() => resumed);
    await expect(stateOf(kafka.pid)).resolves.toBe("T");
    resumed = true;
    kafka.resume();
    expect(await acknowledgedAfterResume).toBe(true);
  });

  test("data in a folder of the caller's outlives stop, and is there on the next start", async () => {
    const dir = scratch();
    const first = await started(startKafka({ dir }));
    await applyTopics(first.brokers, one);
    await first.stop();
    const second = await started(startKafka({ dir }));
    expect(await checkTopics(second.brokers, one)).toEqual([]);
  });

  test("with mutual TLS, only a client with a certificate of our authority gets in, and only over TLS 1.3", async () => {
    const dir = scratch();
    const file = (name: string, text: string) => {
      writeFileSync(join(dir, name), text, { mode: 0o600 });
      return join(dir, name);
    };
    const trust = { trustDomain: "test.example", clock: systemClock };
    const [ours, theirs] = [await createAuthority(trust), await createAuthority(trust)];
    const request = { spiffePath: "/service/issuer", commonName: "issuer", validMs: 3_600_000 };
    const broker = await issueCertificate(ours, { ...request, dnsNames: ["localhost"] });
    const client = await issueCertificate(ours, request);
    const stranger = await issueCertificate(theirs, request);
    const tls = {
      ca: file("ca.pem", ours.certPem),
      keystore: file("broker.pem", `${broker.keyPem}\n${broker.certPem}`),
    };
    const { brokers } = await started(startKafka({ tls }));

    const ssl = { ca: ours.certPem, cert: client.certPem, key: client.keyPem };
    expect(await applyTopics(brokers, { ...one, ssl })).toEqual(topics.map((t) => t.name));
    expect(await refusalOf(brokers, ssl)).toBe("none");
    expect(await refusalOf(brokers, { ca: ours.certPem })).toMatch(/ALERT_BAD_CERTIFICATE/);
    const foreign = { ca: ours.certPem, cert: stranger.certPem, key: stranger.keyPem };
    expect(await refusalOf(brokers, foreign)).toMatch(/ALERT_CERTIFICATE_UNKNOWN/);
    expect(await refusalOf(brokers, { ...ssl, maxVersion: "TLSv1.2" })).toMatch(/alert protocol version/);
  });
});

/** The TLS alert with which the broker ends a connection, or "none" if it answers a request for its API versions. */
const refusalOf = (brokers: string[], options: ConnectionOptions) =>
  new Promise<string>((resolve, reject) => {
    const [host = "", port = ""] = (brokers[0] ?? "").split(":");
    const socket = connectTls({ ...options, host, port: Number(port), servername: "localhost" });
    later(() => socket.destroy());
    socket.once("error", (e: NodeJS.ErrnoException) => resolve(`${e.code}: ${e.message}`));
    socket.once("data", () => resolve("none"));
    socket.once("close", () => reject(new Error("closed without an alert")));
    // ApiVersions v0: length, api key 18, version 0, correlation id, empty client id.
    socket.write(Buffer.from([0, 0, 0, 10, 0, 18, 0, 0, 0, 0, 0, 1, 0, 0]));
  });

describe("FerretDB for development", () => {
  beforeAll(() => prepareFerret(console.log));

  const documents = (url: string) => {
    const client = new MongoClient(url);
    later(() => client.close());
    return client.db("curfew").collection<{ _id: string; n?: number }>("things");
  };

  test("what was inserted survives kill -9 and a restart, unique ids included", async () => {
    const ferret = await started(startFerret());
    const things = documents(ferret.url);
    await things.insertMany(Array.from({ length: 50 }, (_, n) => ({ _id: `t${n}`, n })));
    await ferret.kill();
    await ferret.restart();
    expect(await things.countDocuments({})).toBe(50);
    await expect(things.insertOne({ _id: "t7" })).rejects.toMatchObject({ code: 11000 });
  });

  test("stop removes a folder made here", async () => {
    const ferret = await startFerret();
    expect(readFileSync(join(ferret.dir, "ferretdb.log"), "utf8")).toBeTypeOf("string");
    await ferret.stop();
    expect(() => readFileSync(join(ferret.dir, "ferretdb.log"))).toThrow("ENOENT");
  });
});

describe("the servers of a process", () => {
  test("die with it even when it is killed with -9, and are out of reach of its terminal's Ctrl-C", async () => {
    const dir = scratch();
    const code = `
      const { startFerret, startKafka } = await import(${JSON.stringify(import.meta.resolve("@curfew/deploy/dev/servers.ts"))});
      const ferret = await startFerret({ dir: ${JSON.stringify(join(dir, "ferret"))} });
      const kafka = await startKafka({ dir: ${JSON.stringify(join(dir, "kafka"))} });
      const ports = [new URL(ferret.url).port, kafka.brokers[0].split(":")[1]].map(Number);
      console.log(JSON.stringify({ pids: [ferret.pid, kafka.pid], ports }));
    `;
    const parent = spawn(process.execPath, ["--input-type=module", "-e", code], {
      stdio: ["ignore", "pipe", "inherit"],
    });
    later(() => parent.kill("SIGKILL"));
    const [line] = (await once(createInterface(parent.stdout), "line")) as [string];
    const { pids, ports } = JSON.parse(line) as { pids: number[]; ports: number[] };
    for (const port of ports) expect(await accepts(port)).toBe(true);
    for (const pid of pids) expect(await groupOf(pid)).toBe(pid);
    parent.kill("SIGKILL");
    for (const port of ports) while (await accepts(port)) await sleep(20);
  }, 60_000);
});

const accepts = (port: number) =>
  new Promise<boolean>((resolve) => {
    const socket = connect(port, "127.0.0.1", () => resolve(true));
    socket.once("error", () => resolve(false));
    socket.once("connect", () => socket.destroy());
  });

const ps = async (field: string, pid: number) => {
  const child = spawn("ps", ["-o", `${field}=`, "-p", String(pid)], { stdio: ["ignore", "pipe", "inherit"] });
  const chunks: Buffer[] = [];
  child.stdout.on("data", (chunk: Buffer) => chunks.push(chunk));
  await once(child, "close");
  return Buffer.concat(chunks).toString().trim();
};
const groupOf = async (pid: number) => Number(await ps("pgid", pid));
/** "T" for a stopped process. */
const stateOf = async (pid: number) => (await ps("state", pid)).slice(0, 1);
