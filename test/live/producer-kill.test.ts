import { spawn } from "node:child_process";
import { randomUUID } from "node:crypto";
import { once } from "node:events";
import { existsSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { auditProducer } from "@curfew/auditor/testing/audit-producer.ts";
import { identities, partitions } from "@curfew/auditor/testing/rig.ts";
import { openSqliteStore } from "@curfew/document-store/sqlite.ts";
import { headerOf } from "@curfew/event-log/chain.ts";
import { openEpochs } from "@curfew/event-log/epochs.ts";
import { openKafkaBus } from "@curfew/event-log/kafka.ts";
import { systemClock } from "@curfew/runtime/clock.ts";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { type KafkaServer, startKafka } from "../../deploy/dev/servers.ts";
import { createTopics } from "./bus-rig.ts";

const child = join(import.meta.dirname, "../../services/auditor/testing/producer-process.ts");

describe("a producer on Kafka, killed at any of its writes", { timeout: 580_000 }, () => {
  let kafka: KafkaServer;
  let folder = "";
  beforeAll(async () => {
    kafka = await startKafka();
    folder = mkdtempSync(join(tmpdir(), "curfew-kafka-producer-"));
  });
  afterAll(async () => {
    rmSync(folder, { recursive: true });
    await kafka.stop();
  });

  /** One producer's life and what an auditor makes of it; false when it was not killed. */
  const killAt = async (write: number, when: string): Promise<boolean> => {
    const dir = mkdtempSync(join(folder, "p-"));
    const at = { brokers: kafka.brokers, topicPrefix: `t${randomUUID().slice(0, 8)}.` };
    const names = Object.entries(partitions).map(([topic, count]) => [at.topicPrefix + topic, count] as const);
    await createTopics(kafka.brokers, Object.fromEntries(names));
    writeFileSync(join(dir, "identity.json"), JSON.stringify(identities.identity("verifier")));
    writeFileSync(join(dir, "kafka.json"), JSON.stringify(at));
    const producer = spawn(process.execPath, [child, dir, String(write), when], {
      stdio: ["ignore", "ignore", "inherit"],
    });
    const [status, signal] = await once(producer, "exit");
    expect(signal === "SIGKILL" || status === 0).toBe(true);

    const producers = await openSqliteStore({ file: join(dir, "producers.db") });
    const epochs = await openEpochs(producers);
    const { identity } = identities;
    const bus = await openKafkaBus({ ...at, clientId: "auditor", epochs, clock: systemClock, identity });
    const { row, gaps, records, closings } = await auditProducer({ epochs, bus }, "verifier/a/1");
    await bus.close();
    await producers.close();
    const where = `killed ${when} write ${write}`;
    expect(gaps, where).toEqual([]);
    const file = join(dir, "acknowledged");
    const acknowledged = existsSync(file) ? readFileSync(file, "utf8").split("\n").slice(0, -1) : [];
    expect(
      records.map((record) => headerOf(record, "ce_id")),
      where,
    ).toEqual(expect.arrayContaining(acknowledged));
    expect(closings.length, where).toBe(row ? 1 : 0);
    return signal === "SIGKILL";
  };

  for (const when of ["during", "after"])
    it(`makes no gap that is none: killed ${when} the write`, async () => {
      let write = 1;
      while (await killAt(write, when)) write += 1;
      expect(write).toBeGreaterThan(8);
    });
});
