import { generateKeyPairSync } from "node:crypto";
import { cpSync, existsSync, mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { type LogFiles, openDirectory } from "@curfew/ledger/directory.ts";
import { formatSignature, parseNote } from "@curfew/ledger/note.ts";
import { cosignerKeyText, noteCosigner } from "@curfew/ledger/note-key.ts";
import { openByPolicy, parsePolicy } from "@curfew/ledger/policy.ts";
import { verifyConsistency } from "@curfew/ledger/proof.ts";
import { tilePath, tilesAt } from "@curfew/ledger/tile.ts";
import { verifiedNodes } from "@curfew/ledger/tile-nodes.ts";
import { treeRoot } from "@curfew/ledger/tree.ts";
import { verifyLog } from "@curfew/ledger/verify-log.ts";
import { systemRandom } from "@curfew/runtime/random.ts";
import { memoryStore } from "@curfew/simulation/memory-store.ts";
import { afterEach, beforeEach, describe, expect, it } from "vitest";
import { type BatchDoc, emptyHead, LedgerBroken, type LedgerHead } from "../domain.ts";
import { clock, growBy, quiet, seal, shard, verifierKey } from "../testing/rig.ts";
import { type CosignedRows, cosignedId, openCosigned } from "./cosigned.ts";
import { publishTiles } from "./tile-log.ts";
import type { Witnesses } from "./witnesses.ts";

const latest = () => Number.POSITIVE_INFINITY;
const machine = { clock, random: systemRandom };
let dir = "";
let batches: Awaited<ReturnType<typeof openBatches>>;
const openBatches = () => memoryStore().collection<BatchDoc>("batches");
beforeEach(async () => {
  dir = mkdtempSync(join(tmpdir(), "curfew-tiles-"));
  batches = await openBatches();
});
afterEach(() => rmSync(dir, { recursive: true, force: true }));

const checkpointIn = (of = dir) => seal.open(shard, readFileSync(join(of, "checkpoint"), "utf8"));
/** Publishes until the files are at `size`. */
const bound = { timeout: 20_000, interval: 5 };
const publishTo = async (size: number, files: LogFiles = openDirectory(dir, machine), last = latest) => {
  const stop = new AbortController();
  const parts = { files: () => files, batches, latest: last, seal, clock, log: quiet };
  const running = publishTiles(parts, stop.signal);
  const there = expect.poll(() => checkpointIn().size, { timeout: 20_000, interval: 5 }).toBe(size);
  try {
    await Promise.race([running, there]);
  } finally {
    stop.abort();
    there.catch(() => undefined);
  }
  await running;
};
const filesIn = (of: string) =>
  new Map(
    readdirSync(of, { recursive: true, withFileTypes: true })
      .filter((entry) => entry.isFile())
      .map((entry) => join(entry.parentPath, entry.name))
      .map((file) => [file.slice(of.length + 1), readFileSync(file, "base64")] as const),
  );
const stage = async (sizes: readonly number[], from: LedgerHead = emptyHead) => {
  let head = from;
  for (const size of sizes) head = await growBy(batches, head, size - head.size);
  return head;
};

/** Files whose writer stands still, once they have 100 entries, before it writes such a path. */
const stoppedAt = (isAt: (path: string) => boolean) => {
  const files = openDirectory(dir, machine);
  const [stopped, goOn] = [Promise.withResolvers<void>(), Promise.withResolvers<void>()];
  const slow: LogFiles = {
    read: files.read,
    async write(some) {
      if (isAt(some[0]?.path ?? "") && checkpointIn().size === 100) {
        stopped.resolve();
        await goOn.promise;
      }
      await files.write(some);
    },
  };
  return { slow, stopped, goOn };
};

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
    batches = await openBatches();
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

describe("with witnesses", () => {
  const { privateKey } = generateKeyPairSync("ed25519");
  const policy = parsePolicy(`log ${verifierKey}\nwitness w1 ${cosignerKeyText("w1", privateKey)}\nquorum w1\n`);
  let rows: CosignedRows;
  /** What was submitted, and whether it is cosigned. */
  let submitted: number[] = [];
  let isThere = true;
  let seconds = 1_795_000_000;
  beforeEach(async () => {
    rows = await openCosigned(memoryStore());
    submitted = [];
    isThere = true;
  });
  const witnesses: Witnesses = {
    due: () => true,
    async cosign({ size, checkpoint, prove }) {
      const last = submitted.findLast((each) => each > 0 && each < size);
      submitted.push(size);
      if (!isThere) return undefined;
      if (last !== undefined) {
        const root = seal.open(shard, (await batchOf(last)).checkpoint).root;
        expect(verifyConsistency(last, size, await prove(last), root, seal.open(shard, checkpoint).root)).toBe(true);
      }
      seconds += 1;
      const { keyId, sign } = noteCosigner("w1", privateKey, seconds);
      const { text } = parseNote(checkpoint);
      return `${checkpoint}${formatSignature({ name: "w1", keyId, signature: sign(text) })}`;
    },
    status: async () => ({ quorum: "unknown", answers: [] }),
  };
  const batchOf = async (size: number) =>
    (await batches.find({ limit: 100 })).find((doc) => doc.size === size) as BatchDoc;
  const run = (signal: AbortSignal, files: LogFiles = openDirectory(dir, machine), asked = witnesses) =>
    publishTiles(
      { files: () => files, batches, latest, seal, witnessed: { witnesses: asked, rows }, clock, log: quiet },
      signal,
    );
  const until = async (holds: () => unknown, ...of: [LogFiles?]) => {
    const stop = new AbortController();
    const running = run(stop.signal, ...of);
    try {
      await Promise.race([running, expect.poll(holds, bound).toBe(true)]);
    } finally {
      stop.abort();
    }
    await running;
  };
  const standing = () => (existsSync(join(dir, "checkpoint")) ? readFileSync(join(dir, "checkpoint"), "utf8") : "");
  const sizeThere = () => (standing() === "" ? -1 : seal.open(shard, standing()).size);
  const isCosigned = () => openByPolicy(standing(), policy).quorum;

  it("no checkpoint is public without them, not even that of the empty log; tiles go on", async () => {
    isThere = false;
    await stage([100, 300]);
    await until(() => submitted.includes(300));
    expect(standing()).toBe("");
    expect(filesIn(dir).has("tile/0/001.p/44")).toBe(true);
    isThere = true;
    await until(() => sizeThere() === 300);
    expect(isCosigned()).toBe(true);
    expect(await rows.find({ limit: 10 })).toMatchObject([{ size: 300, checkpoint: standing() }]);
  });

  it("what was published before there were any is cosigned as it stands, without waiting for more", async () => {
    await stage([300]);
    await publishTo(300);
    isThere = false;
    const alone = standing();
    await until(() => submitted.includes(300));
    expect(standing()).toBe(alone);
    isThere = true;
    await until(() => standing() !== alone);
    expect([sizeThere(), isCosigned()]).toEqual([300, true]);
    expect(standing().startsWith(alone)).toBe(true);
  });

  it("a restart keeps the cosignatures that stand there, and asks for none again", async () => {
    const head = await stage([300]);
    await until(() => sizeThere() === 300);
    const before = standing();
    submitted = [];
    let looks = 0;
    await until(() => ++looks > 30);
    expect([standing(), submitted]).toEqual([before, []]);
    await stage([400], head);
    await until(() => sizeThere() === 400);
    expect(submitted).toEqual([400]);
    expect(isCosigned()).toBe(true);
  });

  it("lines that nobody signed are dropped for those that were kept; where none were kept they stay", async () => {
    await stage([300]);
    await until(() => sizeThere() === 300);
    const before = standing();
    const line = before.slice(before.lastIndexOf("— "));
    writeFileSync(join(dir, "checkpoint"), before.replace(line, line.replace(/[A-Z]/, "z")));
    await until(() => standing() === before);
    writeFileSync(join(dir, "checkpoint"), `${before}${line.replace("w1", "w2")}`);
    await until(() => standing() === before);
    rows = await openCosigned(memoryStore());
    let looks = 0;
    await until(() => ++looks > 30);
    expect(standing()).toBe(before);
  });

  it("what was kept and not yet published when it was killed is published as it was kept", async () => {
    await stage([300]);
    const files = openDirectory(dir, machine);
    const dying: LogFiles = {
      read: files.read,
      async write(some) {
        if (some[0]?.path === "checkpoint") throw new LedgerBroken("killed");
        await files.write(some);
      },
    };
    await expect(until(() => false, dying)).rejects.toThrow("killed");
    const [kept] = await rows.find({ limit: 1 });
    isThere = false;
    await until(() => sizeThere() === 300);
    expect(standing()).toBe(kept?.checkpoint);
  });

  it("what was kept is published again where an older one came over it, also while no more is cosigned", async () => {
    const first = await stage([300]);
    await until(() => sizeThere() === 300);
    const old = standing();
    const second = await stage([400], first);
    await until(() => sizeThere() === 400);
    const newest = standing();
    await stage([500], second);
    isThere = false;
    let spoilt = false;
    await until(() => {
      if (spoilt) return standing() === newest;
      spoilt = submitted.includes(500);
      if (spoilt) writeFileSync(join(dir, "checkpoint"), old);
      return false;
    });
  });

  it("a row that was altered is not published", async () => {
    const head = await stage([300]);
    await rows.insert({
      _id: cosignedId(300),
      shard,
      size: 300,
      checkpoint: seal.sign(shard, 300, Buffer.alloc(32, 7)),
    });
    await expect(until(() => false)).rejects.toThrow("the cosigned checkpoint of size 300 is another than was staged");
    expect(head.size).toBe(300);
  });

  it("a head that was cosigned while another was published past it stays unpublished", async () => {
    const head = await stage([300]);
    const asked = Promise.withResolvers<void>();
    const goOn = Promise.withResolvers<void>();
    const slow: Witnesses = {
      ...witnesses,
      async cosign(submission, signal) {
        asked.resolve();
        await goOn.promise;
        return witnesses.cosign(submission, signal);
      },
    };
    const late = new AbortController();
    const lateEnd = run(late.signal, openDirectory(dir, machine), slow);
    await asked.promise;
    await stage([400], head);
    await until(() => sizeThere() === 400);
    goOn.resolve();
    await expect.poll(() => submitted).toContain(300);
    await expect.poll(() => rows.get(cosignedId(300))).toBeDefined();
    expect(sizeThere()).toBe(400);
    late.abort();
    await lateEnd;
    expect(sizeThere()).toBe(400);
  });
});
