import { mkdtempSync, readFileSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { type BatchDoc, emptyHead, type LedgerHead } from "@curfew/auditor/domain.ts";
import { publishTiles } from "@curfew/auditor/public-log/tile-log.ts";
import { openTileServer, type TileServer } from "@curfew/auditor/public-log/tile-server.ts";
import { clock, growBy, quiet, seal, shard, verifierKey } from "@curfew/auditor/testing/rig.ts";
import { openDirectory } from "@curfew/ledger/directory.ts";
import { systemRandom } from "@curfew/runtime/random.ts";
import { memoryStore } from "@curfew/simulation/memory-store.ts";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { curfew } from "../tools/curfew.ts";
import { builtTools, fsck, policyOf, type Tree, tlogcheck } from "../tools/tools.ts";

/** The files that the auditor derives, before verifiers that are not ours. */

const policy = policyOf(verifierKey);
const latest = () => Number.POSITIVE_INFINITY;
const machine = { clock, random: systemRandom };
const scratch = mkdtempSync(join(tmpdir(), "curfew-ledger-"));
const dir = join(scratch, "ledger");
const bound = { timeout: 60_000, interval: 10 };
let head: LedgerHead = emptyHead;
let batches: Awaited<ReturnType<typeof openBatches>>;
const openBatches = () => memoryStore().collection<BatchDoc>("batches");
const stop = new AbortController();
let publishing: Promise<void>;
let server: TileServer;

beforeAll(async () => {
  await builtTools("verify");
  batches = await openBatches();
  server = await openTileServer(() => openDirectory(dir, machine), { host: "localhost", port: 0 }, quiet);
  publishing = publishTiles(
    { files: () => openDirectory(dir, machine), batches, latest, seal, clock, log: quiet },
    stop.signal,
  );
});
afterAll(async () => {
  await server.close();
  stop.abort();
  await publishing;
  rmSync(scratch, { recursive: true, force: true });
});

const treeIn = (of: string): Tree => {
  const { size, root } = seal.open(shard, readFileSync(join(of, "checkpoint"), "utf8"));
  return { size, root: Buffer.from(root).toString("base64") };
};
const grownTo = async (size: number): Promise<Tree> => {
  head = await growBy(batches, head, size - head.size);
  // The first checkpoint comes with the directory.
  const sizeThere = () =>
    openDirectory(dir, machine)
      .read("checkpoint")
      .then((bytes) => (bytes ? treeIn(dir).size : -1));
  await expect.poll(sizeThere, bound).toBe(size);
  return treeIn(dir);
};

describe("our ledger's files", () => {
  it("are accepted by fsck, by tlogcheck and by ours at every size, from files and over HTTP, while the log grows, each with the tree before it", async () => {
    const logUrl = `${server.url}${shard.year}/`;
    let before: Tree | undefined;
    for (const size of [0, 1, 2, 3, 255, 256, 257, 65_535, 65_536, 65_537, 70_001]) {
      const tree = await grownTo(size);
      expect(tree.root).toBe(Buffer.from(head.frontier.root()).toString("base64"));
      expect(await fsck(dir, verifierKey, tree)).toMatchObject({ sound: true });
      expect(await fsck(logUrl, verifierKey, tree)).toMatchObject({ sound: true });
      const remembered = before?.size ? before : undefined;
      expect(await tlogcheck.log(dir, policy, remembered)).toMatchObject({ sound: true });
      expect(await tlogcheck.log(logUrl, policy, remembered)).toMatchObject({ sound: true });
      for (const from of [dir, logUrl]) {
        const args = ["--key", verifierKey, "--remember", join(scratch, "seen"), "-o", "json"];
        const verified = await curfew("verify", from, ...args);
        // The uses were made without a producer: of completeness it says so, and that is all.
        expect(verified, verified.err).toMatchObject({ code: size === 0 ? 0 : 3 });
        expect(JSON.parse(verified.out)).toMatchObject({ ...tree, integrity: { holds: true } });
        expect(readFileSync(join(scratch, "seen"), "utf8")).toBe(readFileSync(join(dir, "checkpoint"), "utf8"));
      }
      before = tree;
    }
  });

  it("prove an entry to others", async () => {
    const { proof, entry } = await tlogcheck.prove(dir, policy, 65_536);
    expect(await tlogcheck.proof(proof, policy, entry)).toMatchObject({ sound: true });
    entry[9] = (entry[9] as number) ^ 1;
    expect(await tlogcheck.proof(proof, policy, entry)).toMatchObject({ sound: false });
  });
});
