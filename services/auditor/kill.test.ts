import { spawn } from "node:child_process";
import { once } from "node:events";
import { cpSync, mkdtempSync, readFileSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { topicNames } from "@curfew/event-log/event-types.ts";
import { openDirectory } from "@curfew/ledger/directory.ts";
import { verifyLog } from "@curfew/ledger/verify-log.ts";
import { systemRandom } from "@curfew/runtime/random.ts";
import { afterAll, beforeAll, expect, it } from "vitest";
import { assertOneTree, clock, seal, sendOn, shard, use, type World } from "./testing/rig.ts";
import { ledgerIn, type Orders, openFiles, sealAll } from "./testing/sequencer-process.ts";

const scratch = mkdtempSync(join(tmpdir(), "curfew-sequencer-"));
afterAll(() => rmSync(scratch, { recursive: true, force: true }));
const template = join(scratch, "template");
const [first, second] = [250, 10];

const within = async <T>(dir: string, work: (world: World) => Promise<T>): Promise<T> => {
  const world = await openFiles(dir);
  try {
    return await work(world);
  } finally {
    await world.close();
  }
};
const produce = (world: World, count: number, from: number) =>
  sendOn(
    world.bus,
    topicNames.uses,
    `verifier/from${from}`,
    Array.from({ length: count }, (_, i) => use(from + i, i % 3)),
  );

/** A ledger that was published once, and records that fill its first tile. */
beforeAll(async () => {
  cpSync(mkdtempSync(join(scratch, "new-")), template, { recursive: true });
  await within(template, async (world) => {
    await produce(world, first, 0);
    await sealAll(template, world);
    await produce(world, second, first);
  });
});

const checkpointIn = (dir: string) => seal.open(shard, readFileSync(join(ledgerIn(dir), "checkpoint"), "utf8"));
/** Verifies all that is published, to the byte, and that it continues `before`. */
const assertPublished = async (dir: string, before: readonly ReturnType<typeof checkpointIn>[]) => {
  const { read } = openDirectory(ledgerIn(dir), { clock, random: systemRandom });
  await verifyLog({ read, tree: checkpointIn(dir), remembered: before });
};

const program = fileURLToPath(new URL("./testing/sequencer-process.ts", import.meta.url));
/** Whether it was killed; else it had fewer writes, and came to its end. */
const runUntil = async (orders: Orders): Promise<boolean> => {
  const child = spawn(process.execPath, [...process.execArgv, program, JSON.stringify(orders)], { stdio: "inherit" });
  const [code, signal] = await once(child, "exit");
  if (signal !== "SIGKILL") expect(code).toBe(0);
  return signal === "SIGKILL";
};

const killedAt = async (at: number, when: Orders["when"]): Promise<boolean> => {
  const dir = join(scratch, `${when}-${at}`);
  cpSync(template, dir, { recursive: true });
  const before = checkpointIn(dir);
  const killed = await runUntil({ dir, at, when });
  const then = checkpointIn(dir);
  expect([first, first + second]).toContain(then.size);
  await assertPublished(dir, [before]);
  await within(dir, async (world) => {
    await sealAll(dir, world);
    await assertOneTree(world);
  });
  expect(checkpointIn(dir).size).toBe(first + second);
  await assertPublished(dir, [before, then]);
  rmSync(dir, { recursive: true });
  return killed;
};

it("a sequencer killed with -9 at any write of its store or files leaves the old head or the new one, and goes on from there", async () => {
  let at = 1;
  // Sound at every moment for whoever reads the files, and every record sealed once in the end.
  while ((await Promise.all([killedAt(at, "before"), killedAt(at, "after")])).includes(true)) at += 1;
  // Six files of three writes each, two folders of partial tiles removed, and what the store is written.
  expect(at).toBeGreaterThan(24);
}, 600_000);
