import { generateKeyPairSync } from "node:crypto";
import { existsSync, readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { type LogFiles, openDirectory } from "@curfew/ledger/directory.ts";
import { formatSignature, parseNote } from "@curfew/ledger/note.ts";
import { cosignerKeyText, noteCosigner } from "@curfew/ledger/note-key.ts";
import { openByPolicy, parsePolicy } from "@curfew/ledger/policy.ts";
import { verifyConsistency } from "@curfew/ledger/proof.ts";
import { memoryStore } from "@curfew/simulation/memory-store.ts";
import { beforeEach, describe, expect, it } from "vitest";
import { type BatchDoc, LedgerBroken } from "../domain.ts";
import { bound, clock, quiet, seal, shard, verifierKey } from "../testing/rig.ts";
import { batches, dir, filesIn, latest, machine, publishTo, stage } from "../testing/tiles.ts";
import { type CosignedRows, cosignedId, openCosigned } from "./cosigned.ts";
import { publishTiles } from "./tile-log.ts";
import type { Witnesses } from "./witnesses.ts";

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
