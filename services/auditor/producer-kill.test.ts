import { spawnSync } from "node:child_process";
import { cpSync, existsSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { DatabaseSync } from "node:sqlite";
import { fromBinary } from "@bufbuild/protobuf";
import { GapCause, ProducerEpochClosedSchema } from "@curfew/contracts/gen/curfew/events/v1/evidence_pb.ts";
import { openSqliteStore } from "@curfew/document-store/sqlite.ts";
import type { InRecord } from "@curfew/event-log/bus.ts";
import { headerOf } from "@curfew/event-log/chain.ts";
import { openEpochs } from "@curfew/event-log/epochs.ts";
import { topicNames } from "@curfew/event-log/event-types.ts";
import { readTopic } from "@curfew/event-log/read-topic.ts";
import { openSqliteBus } from "@curfew/event-log/sqlite.ts";
import { memoryStore } from "@curfew/simulation/memory-store.ts";
import { virtualClock } from "@curfew/simulation/virtual-clock.ts";
import { afterEach, describe, expect, it } from "vitest";
import { watchEpochs } from "./epoch-watch.ts";
import { openFollower } from "./follower.ts";
import { listGaps } from "./gap-list.ts";
import { clock, identities, partitions, quiet, seal, startAuditor, untilSealed } from "./testing/rig.ts";

const { uses } = topicNames;
const folders: string[] = [];
afterEach(() => {
  for (const folder of folders.splice(0)) rmSync(folder, { recursive: true });
});
const newFolder = () => {
  const folder = mkdtempSync(join(tmpdir(), "curfew-producer-"));
  folders.push(folder);
  return folder;
};

/** Runs the producer until it dies; false when it came to its end. */
const dieAt = (folder: string, write: number, when: "before" | "after"): boolean => {
  writeFileSync(join(folder, "identity.json"), JSON.stringify(identities.identity("verifier")));
  writeFileSync(join(folder, "topics.json"), JSON.stringify(partitions));
  const child = join(import.meta.dirname, "testing/producer-process.ts");
  const { signal, status, stderr } = spawnSync(process.execPath, [child, folder, String(write), when]);
  if (signal !== "SIGKILL" && status !== 0) throw new Error(`the producer failed: ${stderr}`);
  return signal === "SIGKILL";
};

/** An auditor that begins after the producer's end, seals all there is, and lets a minute of silence pass. */
const audit = async (folder: string) => {
  const producers = await openSqliteStore({ file: join(folder, "producers.db") });
  const epochs = await openEpochs(producers);
  const { identity } = identities;
  const bus = await openSqliteBus({ file: join(folder, "bus.db"), epochs, clock, topics: partitions, identity });
  const world = { epochs, store: memoryStore(), bus };
  const auditor = await startAuditor(world);
  const { outbox, models } = auditor;
  outbox.start("localhost:1");
  const follower = await openFollower({ models, seal, clock, log: quiet });
  const time = virtualClock();
  const stop = new AbortController();
  const watching = watchEpochs({ epochs, outbox, bus, follower, clock: time, log: quiet }, stop.signal);
  const row = await epochs.get("verifier/a/1");
  const isClosed = async () => (await epochs.get("verifier/a/1"))?.open === undefined;
  for (let looks = 0; looks < 14 || !(await isClosed()); looks += 1) {
    await time.advance(5_000);
    await untilSealed(world);
    await clock.sleep(20);
    if (looks > 200) throw new Error("the epoch is not closed");
  }
  const { commits } = outbox.streams;
  const stream = "epochs/verifier/a/1";
  const closings = await commits.find({ from: `${stream}@`, below: `${stream}A`, limit: 10 });
  const records: InRecord[] = [];
  await readTopic({ bus, topic: uses, name: "test" }, (some) => void records.push(...some));
  // The closing is sealed, and with it checked.
  for (let waits = 0; row && waits < 500; waits += 1) {
    const sealed = await models.entries.find({ where: { type: "curfew.producer-epoch.closed.v1" }, limit: 1 });
    if (sealed.length > 0) break;
    await clock.sleep(20);
  }
  await untilSealed(world);
  const gaps = (await listGaps(commits, 100)).map(({ gap }) => gap);
  stop.abort();
  await watching;
  await follower.close();
  await auditor.close();
  await bus.close();
  await producers.close();
  return { row, gaps, records, closings: closings.flatMap(({ events }) => events) };
};

/** The last append to a partition is taken away, before anything is sealed: how many records are left there. */
const cutLast = (folder: string, partition: number): number => {
  const database = new DatabaseSync(join(folder, "bus.db"));
  const place = "topic = ? AND partition = ?";
  database
    .prepare(`DELETE FROM segments WHERE ${place} AND base = (SELECT max(base) FROM segments WHERE ${place})`)
    .run(uses, partition, uses, partition);
  const left = database.prepare(`SELECT coalesce(sum(count), 0) AS left FROM segments WHERE ${place}`);
  const answer = left.get(uses, partition) as { left: number };
  database.close();
  return answer.left;
};

/** What is found when its last append was taken away before anything was sealed; true where that must be a gap, and is. */
const auditCut = async (folder: string, stated: number, where: string): Promise<boolean> => {
  const left = cutLast(folder, 0);
  const { gaps } = await audit(folder);
  const told = gaps.map(({ cause, expectedSequence, seenSequence }) => [cause, expectedSequence, seenSequence]);
  // What the row does not state is the last second, of which nobody can tell.
  expect(told, where).toEqual(stated > left ? [[GapCause.SHORT, BigInt(stated), BigInt(left)]] : []);
  return stated > left;
};

describe("a producer killed at any of its writes", () => {
  for (const when of ["before", "after"] as const)
    it(`makes no gap that is none, and hides none that is: killed ${when} the write`, async () => {
      let write = 1;
      let short = 0;
      for (let killed = true; killed; write += 1) {
        const folder = newFolder();
        killed = dieAt(folder, write, when);
        const copy = newFolder();
        cpSync(folder, copy, { recursive: true });
        const where = `killed ${when} write ${write}`;
        const { row, gaps, records, closings } = await audit(folder);
        expect(gaps, where).toEqual([]);
        const file = join(folder, "acknowledged");
        const acknowledged = existsSync(file) ? readFileSync(file, "utf8").split("\n").slice(0, -1) : [];
        const there = records.map((record) => headerOf(record, "ce_id"));
        expect(there, where).toEqual(expect.arrayContaining(acknowledged));
        expect(closings.length, where).toBe(row ? 1 : 0);
        const [closing] = closings;
        if (closing)
          expect(fromBinary(ProducerEpochClosedSchema, closing.value).ended, where).toBe(row?.ended === true);
        // Before a write there is what was there after the one before it.
        if (when === "after" && (await auditCut(copy, row?.acknowledged[0] ?? 0, where))) short += 1;
      }
      expect(write).toBeGreaterThan(8);
      expect(short > 3).toBe(when === "after");
    }, 300_000);
});
