import { cpSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { type LogFiles, openDirectory } from "@curfew/ledger/directory.ts";
import { tilePath, tilesAt } from "@curfew/ledger/tile.ts";
import { verifiedNodes } from "@curfew/ledger/tile-nodes.ts";
import { treeRoot } from "@curfew/ledger/tree.ts";
import { verifyLog } from "@curfew/ledger/verify-log.ts";
import { beforeEach, describe, expect, it } from "vitest";
import type { BatchDoc } from "../domain.ts";
import { bound, clock, quiet, seal, shard } from "../testing/rig.ts";
import {
  batches,
  checkpointIn,
  dir,
  filesIn,
  latest,
  machine,
  openBatches,
  publishTo,
  stage,
  stoppedAt,
} from "../testing/tiles.ts";
import { publishTiles } from "./tile-log.ts";

describe("the ledger's files", () => {
  it("have every tile and bundle of the published size, which lead to the signed root", async () => {
    await publishTo(0);
    expect([...filesIn(dir).keys()]).toEqual(["checkpoint"]);
    const head = await stage([1, 3, 255, 256, 900, 1_300]);
    await publishTo(1_300);
    for (const address of tilesAt(1_300)) expect(filesIn(dir).has(tilePath(address)), tilePath(address)).toBe(true);
    const { root } = checkpointIn();
    expect(root).toEqual(head.frontier.root());
    expect(await treeRoot(1_300, verifiedNodes(1_300, root, openDirectory(dir, machine).read))).toEqual(root);
  });

  it("go on where they were after a stop, and come out the same as written in one go", async () => {
    const head = await stage([5, 300]);
    await publishTo(300);
    await stage([301, 700], head);
    await publishTo(700);
    const inOneGo = filesIn(dir);
    rmSync(dir, { recursive: true });
    await publishTo(700);
    expect(filesIn(dir)).toEqual(inOneGo);
  });

  it("come out the same, whichever write a kill cut off", async () => {
    await stage([250, 300, 700]);
    await publishTo(700);
    const whole = filesIn(dir);
    for (let survived = 0; ; survived += 1) {
      rmSync(dir, { recursive: true });
      const files = openDirectory(dir, machine);
      let left = survived;
      const stop = new AbortController();
      const dying: LogFiles = {
        read: files.read,
        async write(some) {
          for (const file of some) {
            left -= 1;
            if (left < 0) {
              stop.abort();
              throw new Error("killed");
            }
            await files.write([file]);
          }
          if (checkpointIn().size === 700) stop.abort();
        },
      };
      await publishTiles({ files: () => dying, batches, latest, seal, clock, log: quiet }, stop.signal);
      await publishTo(700);
      expect(filesIn(dir), `after ${survived} writes`).toEqual(whole);
      if (left >= 0) break;
    }
  });

  for (const fault of ["lost", "applied"] as const)
    it(`come out the same where one write is ${fault} and reported as failed, and are sound at that moment`, async () => {
      await stage([250, 300, 700]);
      await publishTo(700);
      const whole = filesIn(dir);
      let writes = 0;
      for (let failing = 1; failing === 1 || failing <= writes; failing += 1) {
        rmSync(dir, { recursive: true });
        const files = openDirectory(dir, machine);
        writes = 0;
        const faulty: LogFiles = {
          read: files.read,
          async write(some) {
            for (const file of some) {
              writes += 1;
              if (writes !== failing || fault === "applied") await files.write([file]);
              if (writes !== failing) continue;
              const isThere = (await files.read("checkpoint")) !== undefined;
              if (isThere) await verifyLog({ read: files.read, tree: checkpointIn() });
              throw Object.assign(new Error("simulated"), { code: "EIO" });
            }
          },
        };
        await publishTo(700, faulty);
        expect(filesIn(dir), `write ${failing} of ${writes}`).toEqual(whole);
      }
      expect(writes).toBeGreaterThan(14);
    });

  it("written by two at once, one of them stopped in between, never go back", async () => {
    const head = await stage([100, 200]);
    const { slow, stopped, goOn } = stoppedAt((path) => path !== "checkpoint");
    const late = publishTo(400, slow);
    await stopped.promise;
    await stage([400], head);
    await publishTo(400);
    goOn.resolve();
    await late;
    expect(checkpointIn().size).toBe(400);
  });

  it("are put right by the one ahead where the other was stopped between its look and its write", async () => {
    const head = await stage([100, 200]);
    const files = openDirectory(dir, machine);
    const { slow, stopped, goOn } = stoppedAt((path) => path === "checkpoint");
    await publishTo(100, files, () => 1);
    const late = new AbortController();
    const parts = { batches, latest: () => 2, seal, clock, log: quiet };
    const lateEnd = publishTiles({ ...parts, files: () => slow }, late.signal);
    await stopped.promise;
    await stage([400], head);
    const ahead = new AbortController();
    const aheadEnd = publishTiles({ ...parts, files: () => files, latest: () => 3 }, ahead.signal);
    await expect.poll(() => checkpointIn().size, bound).toBe(400);
    goOn.resolve();
    late.abort();
    await lateEnd;
    await expect.poll(() => checkpointIn().size, bound).toBe(400);
    ahead.abort();
    await aheadEnd;
    expect(checkpointIn().size).toBe(400);
  });

  it("stop loudly where the checkpoint is spoilt while they are written", async () => {
    const head = await stage([100]);
    const stop = new AbortController();
    const files = openDirectory(dir, machine);
    const running = publishTiles({ files: () => files, batches, latest, seal, clock, log: quiet }, stop.signal);
    await expect.poll(async () => (await files.read("checkpoint")) && checkpointIn().size, bound).toBe(100);
    writeFileSync(join(dir, "checkpoint"), "no checkpoint\n");
    await stage([200], head);
    await expect(running).rejects.toMatchObject({ name: "LedgerBroken" });
  });

  it("wait for a disk that is full, and go on when there is space", async () => {
    await stage([10]);
    const files = openDirectory(dir, machine);
    let failures = 3;
    const full: LogFiles = {
      read: files.read,
      async write(some) {
        failures -= 1;
        if (failures >= 0) throw Object.assign(new Error("no space left on device"), { code: "ENOSPC" });
        await files.write(some);
      },
    };
    await publishTo(10, full);
    expect(failures).toBeLessThan(0);
  });
});

describe("files that contradict what was staged stop the publisher", () => {
  beforeEach(async () => {
    await stage([300, 600]);
    await publishTo(600);
  });
  const alter = (path: string, at = 0) => {
    const bytes = readFileSync(join(dir, path));
    bytes[at] = (bytes[at] as number) ^ 1;
    writeFileSync(join(dir, path), bytes);
  };

  it.each([
    ["a bit of the partial tile", () => alter("tile/0/002.p/88", 40)],
    ["a bit of an entry in the partial bundle", () => alter("tile/entries/002.p/88", 9)],
    ["the partial tile cut short", () => writeFileSync(join(dir, "tile/0/002.p/88"), "")],
    ["the partial bundle gone", () => rmSync(join(dir, "tile/entries/002.p/88"))],
    ["a bit of the checkpoint", () => alter("checkpoint", 30)],
    [
      "a checkpoint of the right key and another tree",
      () => writeFileSync(join(dir, "checkpoint"), seal.sign(shard, 600, Buffer.alloc(32, 7))),
    ],
    [
      "a checkpoint past what was staged",
      () => writeFileSync(join(dir, "checkpoint"), seal.sign(shard, 601, Buffer.alloc(32, 7))),
    ],
  ])("%s", async (_what, damage) => {
    damage();
    const before = filesIn(dir);
    await expect(publishTo(-1)).rejects.toMatchObject({ name: "LedgerBroken" });
    expect(filesIn(dir)).toEqual(before);
  });

  it("a store that was put back from a backup", async () => {
    await openBatches();
    await stage([300]);
    await expect(publishTo(-1)).rejects.toThrow("the ledger's files have 600 entries and its store fewer");
  });

  it("but an older state of the same files grows again to the same", async () => {
    const whole = filesIn(dir);
    const old = mkdtempSync(join(tmpdir(), "curfew-tiles-old-"));
    const first = {
      get: (id: string) => batches.get(id === "seal/0000000002" ? "none" : id),
      findLatest: async () => [(await batches.get("seal/0000000001")) as BatchDoc],
    };
    const stop = new AbortController();
    const running = publishTiles(
      { files: () => openDirectory(old, machine), batches: first, latest, seal, clock, log: quiet },
      stop.signal,
    );
    await expect.poll(() => checkpointIn(old).size, { timeout: 20_000 }).toBe(300);
    stop.abort();
    await running;
    rmSync(dir, { recursive: true });
    cpSync(old, dir, { recursive: true });
    rmSync(old, { recursive: true });
    await publishTo(600);
    expect(filesIn(dir)).toEqual(whole);
  });
});
