import { execFile } from "node:child_process";
import { existsSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { type BatchDoc, batchId, emptyHead, type LedgerHead } from "@curfew/auditor/domain.ts";
import { newestCosigned, openCosigned } from "@curfew/auditor/public-log/cosigned.ts";
import { publishTiles } from "@curfew/auditor/public-log/tile-log.ts";
import { openWitnesses } from "@curfew/auditor/public-log/witnesses.ts";
import { clock, growBy, origin, seal, shard, verifierKey } from "@curfew/auditor/testing/rig.ts";
import { formatAddCheckpoint } from "@curfew/ledger/add-checkpoint.ts";
import { openDirectory } from "@curfew/ledger/directory.ts";
import { openByPolicy, parsePolicy } from "@curfew/ledger/policy.ts";
import { tileNodes } from "@curfew/ledger/tile-nodes.ts";
import { proveConsistency } from "@curfew/ledger/tree.ts";
import { openLog } from "@curfew/runtime/log.ts";
import { openOutbound } from "@curfew/runtime/outbound.ts";
import { systemRandom } from "@curfew/runtime/random.ts";
import { memoryStore } from "@curfew/simulation/memory-store.ts";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { type OwnWitness, openOwnWitness } from "../tools/own-witness.ts";
import {
  builtTools,
  fsck,
  type Litewitness,
  type LogKey,
  mklog,
  newLogKey,
  openLitewitness,
  policyOf,
  tlogcheck,
} from "../tools/tools.ts";

/** Our log before a witness of others' making, their log before ours, and both before both. */

const scratch = mkdtempSync(join(tmpdir(), "curfew-witnesses-"));
const bound = { timeout: 60_000, interval: 50 };
const machine = { clock, random: systemRandom };
const main = fileURLToPath(new URL("../../packages/cli/main.ts", import.meta.url));
let lite: Litewitness;
let own: OwnWitness;
let tessera: LogKey;
let policy = "";

beforeAll(async () => {
  await builtTools("verify");
  tessera = await newLogKey("log.example/tessera");
  lite = await openLitewitness({ origin, vkey: verifierKey });
  own = await openOwnWitness(join(scratch, "own"), [verifierKey, tessera.vkey]);
  policy = policyOf(verifierKey, [lite, own]);
});
afterAll(async () => {
  await lite.stop();
  await own.stop();
  rmSync(scratch, { recursive: true, force: true });
});

/** A ledger in memory with its files in `dir`, whose publisher asks the witnesses of `text`. */
const openLedger = async (dir: string, text: string) => {
  const batches = await memoryStore().collection<BatchDoc>("batches");
  const rows = await openCosigned(memoryStore());
  const lines: string[] = [];
  const log = openLog({ service: "test", level: "warn", write: (line) => void lines.push(line) });
  const parsed = parsePolicy(text);
  const allow = parsed.witnesses.map(({ url = "" }) => new URL(url).host);
  const witnesses = openWitnesses({ policy: parsed, outbound: openOutbound({ allow, clock }), rows, clock, log });
  const files = openDirectory(dir, machine);
  const stop = new AbortController();
  const latest = () => Number.POSITIVE_INFINITY;
  const witnessed = { witnesses, rows };
  const publishing = publishTiles({ files: () => files, batches, latest, seal, witnessed, clock, log }, stop.signal);
  publishing.catch(() => undefined);
  let head: LedgerHead = emptyHead;
  const standing = () =>
    existsSync(join(dir, "checkpoint")) ? readFileSync(join(dir, "checkpoint"), "utf8") : undefined;
  const sizeThere = () => {
    const note = standing();
    return note === undefined ? -1 : seal.open(shard, note).size;
  };
  return {
    dir,
    lines,
    witnesses,
    files,
    rows,
    batches,
    sizeThere,
    note: () => openByPolicy(standing() ?? "", parsed),
    seal: async (size: number) => {
      head = await growBy(batches, head, size - head.size);
    },
    until: (size: number) => Promise.race([publishing, expect.poll(sizeThere, bound).toBe(size)]),
    async close() {
      stop.abort();
      await publishing;
    },
  };
};

const verified = (dir: string, text: string) =>
  new Promise<string>((done) => {
    writeFileSync(join(scratch, "policy"), text);
    const args = [main, "verify", dir, "--policy", join(scratch, "policy"), "-o", "json"];
    execFile(process.execPath, args, (_error, out) => done(out));
  });

describe("our log", () => {
  it("is cosigned by litewitness and by ours at every step, and accepted under the policy that asks for both", async () => {
    const ledger = await openLedger(join(scratch, "ledger"), policy);
    try {
      let times = 0;
      for (const size of [0, 1, 2, 3, 255, 256, 257, 300, 513, 1_000, 2_049, 5_000]) {
        await ledger.seal(size);
        await ledger.until(size);
        const { quorum, witnesses, opened } = ledger.note();
        expect([quorum, witnesses.map(({ name }) => name)]).toEqual([true, ["w1", "w2"]]);
        const latest = Math.max(...witnesses.map(({ seconds }) => seconds));
        expect(latest).toBeGreaterThanOrEqual(times);
        times = latest;
        expect(await tlogcheck.log(ledger.dir, policy)).toMatchObject({ sound: true });
        const root = Buffer.from(opened.root).toString("base64");
        expect(await fsck(ledger.dir, verifierKey, { size, root })).toMatchObject({ sound: true });
        expect(await newestCosigned(ledger.rows)).toMatchObject({ size });
      }
      expect(JSON.parse(await verified(ledger.dir, policy))).toMatchObject({
        size: 5_000,
        cosigned: [{ name: "w1" }, { name: "w2" }],
        integrity: { holds: true },
      });
      expect(await tlogcheck.log(ledger.dir, policyOf(verifierKey, [own]))).toMatchObject({ sound: true });

      // The log goes on where a witness was stopped and started again, and both where ours was killed.
      await lite.down();
      await lite.up();
      await own.stop("SIGKILL");
      own = await openOwnWitness(join(scratch, "own"), [verifierKey, tessera.vkey], [], new URL(own.url).host);
      await ledger.seal(5_001);
      await ledger.until(5_001);
      expect(ledger.note().quorum).toBe(true);

      // Lost: the log goes on being sealed, what is public waits, and the suite says so; then it is made good.
      await lite.down();
      await ledger.seal(5_100);
      await expect.poll(async () => (await ledger.witnesses.status()).quorum, bound).toBe("missing");
      await ledger.seal(5_400);
      expect(ledger.sizeThere()).toBe(5_001);
      expect(await ledger.witnesses.status()).toMatchObject({
        cosigned: { size: 5_001 },
        answers: [
          { name: "w1", outcome: "unreachable" },
          { name: "w2", outcome: "cosigned" },
        ],
      });
      expect(ledger.lines.filter((line) => line.includes("the quorum of witnesses is missing"))).toHaveLength(1);
      await lite.up();
      await ledger.until(5_400);
      expect(await tlogcheck.log(ledger.dir, policy)).toMatchObject({ sound: true });
      expect((await ledger.witnesses.status()).quorum).toBe("held");
      expect(ledger.lines.filter((line) => line.includes("quorum"))).toHaveLength(2);
    } finally {
      await ledger.close();
    }
  });

  const post = async (to: { url: string }, body: string) => {
    const response = await fetch(`${to.url}add-checkpoint`, { method: "POST", body });
    return { status: response.status, body: await response.text() };
  };

  it("rolled back to an older checkpoint of its own is cosigned by neither (threat: rollback)", async () => {
    const { batches, dir } = await openLedger(join(scratch, "rolled-back"), policyOf(verifierKey, [own]));
    await growBy(batches, emptyHead, 1_000);
    await expect.poll(() => existsSync(join(dir, "tile/0/003.p/232")), bound).toBe(true);
    const { checkpoint } = (await batches.get(batchId(1))) as BatchDoc;
    for (const witness of [lite, own])
      for (const [old, status, size] of [
        [0, 409, "5400\n"],
        [500, 409, "5400\n"],
        [5_400, 400, expect.anything()],
      ] as const)
        expect(await post(witness, `old ${old}\n\n${checkpoint}`)).toEqual({ status, body: size });
  });

  it("rolled back, or forked with the real key, is not published: the witness contradicts it (threats: rollback, split view)", async () => {
    const ledger = await openLedger(join(scratch, "fork"), policyOf(verifierKey, [own]));
    await ledger.seal(1_000);
    await expect
      .poll(async () => (await ledger.witnesses.status()).answers, bound)
      .toMatchObject([
        {
          outcome: "contradicts",
          said: "has cosigned 5400 entries, and there are 1000: the ledger was put back, or there are two",
        },
      ]);
    // The same key, other entries: grown past what was cosigned, every proof of the fork's own.
    await ledger.seal(6_000);
    await expect
      .poll(async () => (await ledger.witnesses.status()).answers, bound)
      .toMatchObject([{ outcome: "contradicts", said: "has cosigned another ledger of 5400 entries than this one" }]);
    expect(ledger.sizeThere()).toBe(-1);
    expect(ledger.lines.join("")).toContain("a witness contradicts this ledger");
    await ledger.close();
    const { checkpoint } = (await ledger.batches.find({ order: -1, limit: 1 }))[0] as BatchDoc;
    const proof = await proveConsistency(5_400, 6_000, tileNodes(6_000, ledger.files.read));
    const fork = formatAddCheckpoint({ old: 5_400, proof, checkpoint });
    for (const witness of [lite, own]) expect(await post(witness, fork)).toMatchObject({ status: 422 });
  });
});

describe("a log of Tessera's", () => {
  const dir = join(scratch, "tessera");
  const policyFor = () => policyOf(tessera.vkey, [own]);

  it("is cosigned by our witness while it grows, and accepted under the policy that asks for it", async () => {
    for (const [from, to] of [
      [0, 300],
      [300, 301],
      [301, 70_000],
      [70_000, 70_500],
    ] as const) {
      const checkpoint = await mklog(dir, tessera, from, to, policyFor());
      const { quorum, opened } = openByPolicy(checkpoint, parsePolicy(policyFor()));
      expect([quorum, opened.size]).toEqual([true, to]);
      expect(await tlogcheck.log(dir, policyFor())).toMatchObject({ sound: true });
    }
  });

  it("is answered by the statuses of the specification, and stricter than by the tools", async () => {
    const plain = policyOf(tessera.vkey);
    const body = (old: number) => tlogcheck.addCheckpoint(dir, plain, old);
    const statusOf = async (text: string) => {
      const response = await fetch(`${own.url}add-checkpoint`, { method: "POST", body: text });
      return `${response.status} ${response.status === 409 ? `${response.headers.get("content-type")} ${await response.text()}`.trim() : ""}`.trim();
    };
    const growth = await body(70_000);
    const refresh = await body(70_500);
    const [hash = ""] = growth.split("\n").slice(1);
    const conflict = "409 text/x.tlog.size 70500";
    const rows: [string, string, string][] = [
      ["same-size refresh", refresh, "200"],
      ["repeat of a done growth", growth, conflict],
      ["old 0", await body(0), conflict],
      ["old 69999", await body(69_999), conflict],
      ["old 0 with a proof line", (await body(0)).replace("\n", `\n${hash}\n`), conflict],
      ["refresh with a proof line", refresh.replace("\n", `\n${hash}\n`), "422"],
      ["old greater than the size", refresh.replace("old 70500", "old 70501"), "400"],
      ["old with a leading zero", refresh.replace("old 70500", "old 070500"), "400"],
      ["old with a plus sign", refresh.replace("old 70500", "old +70500"), "400"],
      ["old -1", refresh.replace("old 70500", "old -1"), "400"],
      ["no old line", refresh.replace("old 70500\n", ""), "400"],
      ["bad base64 hash", growth.replace(hash, `${hash.slice(1)}`), "400"],
      ["64 hash lines", refresh.replace("\n", `\n${`${hash}\n`.repeat(64)}`), "400"],
      ["CRLF", growth.replaceAll("\n", "\r\n"), "400"],
      ["no blank line", growth.replace("\n\n", "\n"), "400"],
      ["nothing", "", "400"],
      ["trailing data", `${refresh}x`, "400"],
      ["size with a leading zero", refresh.replace("\n70500\n", "\n070500\n"), "400"],
      ["size changed, signature not", refresh.replace("\n70500\n", "\n70501\n"), "403"],
      ["another origin", refresh.replace("\nlog.example/tessera\n", "\nlog.example/other\n"), "404"],
      ["no signature", refresh.slice(0, refresh.indexOf("— ")), "400"],
      ["over the limit", `${refresh}${"x".repeat(65_536)}`, "413"],
    ];
    for (const [what, text, expected] of rows) expect(`${what}: ${await statusOf(text)}`).toBe(`${what}: ${expected}`);
  });

  it("a fork of it, grown by Tessera with the real key, is refused", async () => {
    const fork = join(scratch, "tessera-fork");
    // Entry numbers, and so the entries, differ from the first.
    const checkpoint = await mklog(fork, tessera, 1, 70_602);
    expect(openByPolicy(checkpoint, parsePolicy(policyOf(tessera.vkey))).opened.size).toBe(70_601);
    const body = await tlogcheck.addCheckpoint(fork, policyOf(tessera.vkey), 70_500);
    const response = await fetch(`${own.url}add-checkpoint`, { method: "POST", body });
    expect(response.status).toBe(422);
  });
});
