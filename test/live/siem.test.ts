import { execFile } from "node:child_process";
import { existsSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { promisify } from "node:util";
import type { BatchDoc } from "@curfew/auditor/domain.ts";
import { publishSiem } from "@curfew/auditor/siem/publisher.ts";
import { eventRecord, quiet, startAuditor, use } from "@curfew/auditor/testing/rig.ts";
import { openServerProcess } from "@curfew/deploy/dev/server-process.ts";
import { type KafkaServer, startKafka } from "@curfew/deploy/dev/servers.ts";
import type { Bus, OutRecord } from "@curfew/event-log/bus.ts";
import { eventTypes, siemTopic, topicNames } from "@curfew/event-log/event-types.ts";
import { applyTopics } from "@curfew/event-log/topics.ts";
import { createAuthority, issueCertificate } from "@curfew/rpc/identity-authority.ts";
import { systemClock } from "@curfew/runtime/clock.ts";
import { memoryStore } from "@curfew/simulation/memory-store.ts";
import { afterAll, beforeAll, describe, expect, it, vi } from "vitest";
import { ocsfProblems } from "../ocsf/schema.ts";
import { sampleOf } from "../wire/sample.ts";
import { bound, cleanUp, later, openBus } from "./bus-rig.ts";

/**
 * What compliance tools of others read of curfew.siem.v1 from a broker that asks for mutual TLS, each as docs/siem.md says, where the
 * programs stand.
 */
const run = promisify(execFile);
const docs = readFileSync(join(import.meta.dirname, "../../docs/siem.md"), "utf8");
const exampleIn = (language: string) => {
  const found = new RegExp(`\`\`\`${language}\n([\\s\\S]*?)\`\`\``).exec(docs)?.[1];
  if (!found) throw new Error(`docs/siem.md has no example in ${language}`);
  return found;
};

const works = (command: string, args: readonly string[]) =>
  run(command, args).then(
    () => true,
    () => false,
  );
/** Debian's own where there are others: the package is for that one. */
const python = existsSync("/usr/bin/python3") ? "/usr/bin/python3" : "python3";
const tools = {
  kcat: { there: await works("kcat", ["-V"]), package: "kcat" },
  python: { there: await works(python, ["-c", "import confluent_kafka"]), package: "python3-confluent-kafka" },
  rsyslog: {
    there: (await works("rsyslogd", ["-v"])) && (await works("sh", ["-c", "test -f /usr/lib/*/rsyslog/imkafka.so"])),
    package: "rsyslog rsyslog-kafka",
  },
};
for (const tool of Object.values(tools).filter(({ there }) => !there)) {
  const how = `the readers of curfew.siem.v1 need ${tool.package} (Debian: apt-get install ${tool.package})`;
  if (process.env.CI) throw new Error(`in CI nothing may be left out: ${how}`);
  process.stdout.write(`\nLEFT OUT: ${how}\n`);
}

const dir = mkdtempSync(join(tmpdir(), "curfew-siem-"));
const file = (name: string, text = "") => {
  writeFileSync(join(dir, name), text, { mode: 0o600 });
  return join(dir, name);
};
let kafka: KafkaServer;
let bus: Bus;
let sent = 0;

/** Every kind of event there is, and 500 uses; none comes from the service that it says, so gaps are found and told too. */
const produce = async () => {
  for (const topic of Object.values(topicNames)) {
    const samples = eventTypes
      .filter((type) => type.topic === topic)
      .map(({ desc, type }) => eventRecord(sampleOf(desc), { subject: `samples/${type}`, sequence: 1 }));
    const uses = topic === topicNames.uses ? Array.from({ length: 500 }, (_, n) => use(n, n % 12)) : [];
    const records: OutRecord[] = [...samples, ...uses];
    const producer = await bus.openProducer({ topic, name: "test/siem" });
    await producer.send(records);
    await producer.close();
  }
};

beforeAll(async () => {
  const authority = await createAuthority({ trustDomain: "test.example", clock: systemClock });
  const request = { spiffePath: "/service/auditor", commonName: "auditor", validMs: 3_600_000 };
  const broker = await issueCertificate(authority, { ...request, dnsNames: ["localhost"] });
  const client = await issueCertificate(authority, request);
  const ca = file("ca.pem", authority.certPem);
  file("cert.pem", client.certPem);
  file("key.pem", client.keyPem);
  kafka = await startKafka({ tls: { ca, keystore: file("broker.pem", `${broker.keyPem}\n${broker.certPem}`) } });
  later(() => kafka.stop());
  const ssl = { ca: authority.certPem, cert: client.certPem, key: client.keyPem };
  await applyTopics(kafka.brokers, { replicationFactor: 1, minInsync: 1, ssl });
  const opened = await openBus(kafka.brokers, { ssl });
  bus = opened.bus;
  const store = memoryStore();
  await produce();
  const auditor = await startAuditor({ store, bus, epochs: opened.epochs });
  later(() => auditor.close());
  const stop = new AbortController();
  const batches = await store.collection<BatchDoc>("batches");
  const latest = () => Number.POSITIVE_INFINITY;
  const publishing = publishSiem(
    { bus, batches, latest, instance: "siem", clock: systemClock, log: quiet },
    stop.signal,
  );
  const endOf = async (topic: string) => (await bus.ends(topic)).reduce((sum, end) => sum + end, 0);
  const produced = async () => {
    let all = 0;
    for (const topic of Object.values(topicNames)) all += await endOf(topic);
    return all;
  };
  // What sealing itself finds is told too, and sealed in its turn.
  await vi.waitFor(async () => expect((await produced()) - (await endOf(siemTopic))).toBe(0), bound);
  stop.abort();
  await publishing;
  sent = await endOf(siemTopic);
});
afterAll(async () => {
  await cleanUp();
  rmSync(dir, { recursive: true, force: true });
});

/** An example with the hosts and files of this test. */
const here = (example: string) =>
  example
    .replaceAll("kafka.example:9093", kafka.brokers[0] ?? "")
    .replaceAll("/etc/curfew", dir)
    .replaceAll("/var/log", dir);

/** Every entry once, in order, each an object of the published schema, every class among them. */
const assertWhole = (lines: readonly string[]) => {
  const events = lines.map((line) => JSON.parse(line));
  expect(sent).toBeGreaterThan(500 + eventTypes.length - 1);
  expect(events.map(({ ledgerindex }) => Number(ledgerindex))).toEqual(Array.from({ length: sent }, (_, i) => i));
  for (const { data, specversion } of events) {
    expect(specversion).toBe("1.0");
    expect(ocsfProblems(data)).toEqual([]);
  }
  expect(new Set(events.map(({ data }) => data.class_uid))).toEqual(new Set([3004, 3002, 6003, 2004, 2005]));
  expect(new Set(events.map(({ data }) => data.metadata.event_code))).toEqual(new Set(eventTypes.map((t) => t.type)));
};
const linesOf = (text: string) => text.split("\n").filter((line) => line !== "");
const limits = { timeout: 120_000, maxBuffer: 64 * 2 ** 20 };

describe("curfew.siem.v1 over mutual TLS", () => {
  it.runIf(tools.kcat.there)("is read by kcat", async () => {
    const { stdout } = await run("sh", ["-c", here(exampleIn("sh"))], limits);
    assertWhole(linesOf(stdout));
  });

  it.runIf(tools.kcat.there)("has the content type of structured CloudEvents, as kcat shows it", async () => {
    const { stdout } = await run("sh", ["-c", here(exampleIn("sh")).replace("-f '%s\\n'", "-J -c 1")], limits);
    const { headers, payload, partition } = JSON.parse(stdout);
    expect(headers.slice(0, 2)).toEqual(["content-type", "application/cloudevents+json; charset=UTF-8"]);
    expect([partition, JSON.parse(payload).ledgerindex]).toEqual([0, "0"]);
  });

  it.runIf(tools.python.there)("is read by Python's confluent-kafka, and gone on with in its group", async () => {
    const script = file("read.py", here(exampleIn("python")));
    const { stdout } = await run(python, [script], limits);
    assertWhole(linesOf(stdout));
    expect((await run(python, [script], limits)).stdout).toBe("");
  });

  it.runIf(tools.rsyslog.there)("is read by rsyslog's imkafka", async () => {
    const out = file("curfew.jsonl");
    const rsyslog = await openServerProcess({
      command: [
        "rsyslogd",
        "-n",
        "-i",
        join(dir, "rsyslog.pid"),
        "-f",
        file("rsyslog.conf", here(exampleIn("rsyslog"))),
      ],
      // It listens nowhere: the broker's port is one that answers already.
      port: Number(kafka.brokers[0]?.split(":")[1]),
      logFile: join(dir, "rsyslog.log"),
      goodCodes: [0],
    });
    try {
      await expect.poll(() => linesOf(readFileSync(out, "utf8")).length, bound).toBeGreaterThanOrEqual(sent);
    } finally {
      // Not asked to end: it has crashed in that, with everything read and written.
      await rsyslog.kill();
    }
    assertWhole(linesOf(readFileSync(out, "utf8")));
  });
});
