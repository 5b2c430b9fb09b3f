import { spawnSync } from "node:child_process";
import { cpSync, existsSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { DatabaseSync } from "node:sqlite";
import { GapCause } from "@curfew/contracts/gen/curfew/events/v1/evidence_pb.ts";
import { openSqliteStore } from "@curfew/document-store/sqlite.ts";
import { headerOf } from "@curfew/event-log/chain.ts";
import { openEpochs } from "@curfew/event-log/epochs.ts";
import { topicNames } from "@curfew/event-log/event-types.ts";
import { openSqliteBus } from "@curfew/event-log/sqlite.ts";
import { afterEach, describe, expect, it } from "vitest";
import { auditProducer } from "./testing/audit-producer.ts";
import { clock, identities, partitions } from "./testing/rig.ts";

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

const audit = async (folder: string) => {
  const producers = await openSqliteStore({ file: join(folder, "producers.db") });
  const epochs = await openEpochs(producers);
  const { identity } = identities;
  const bus = await openSqliteBus({ file: join(folder, "bus.db"), epochs, clock, topics: partitions, identity });
  try {
    return await auditProducer({ epochs, bus }, "verifier/a/1");
  } finally {
    await bus.close();
    await producers.close();
  }
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
        if (closing) expect(closing.ended, where).toBe(row?.ended === true);
        // Before a write there is what was there after the one before it.
        if (when === "after" && (await auditCut(copy, row?.acknowledged[0] ?? 0, where))) short += 1;
      }
      expect(write).toBeGreaterThan(8);
      expect(short > 3).toBe(when === "after");
    }, 300_000);
});
