import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { clock, origin, seal, shard, verifierKey } from "@curfew/auditor/testing/rig.ts";
import { openChain } from "@curfew/event-log/chain.ts";
import { topicNames } from "@curfew/event-log/event-types.ts";
import { CHECKPOINT_PATH, openDirectory } from "@curfew/ledger/directory.ts";
import { encodeLeaf } from "@curfew/ledger/leaf.ts";
import { growLog } from "@curfew/ledger/log.test-data.ts";
import { emptyEdge } from "@curfew/ledger/tile-writer.ts";
import { Frontier } from "@curfew/ledger/tree.ts";
import { systemRandom } from "@curfew/runtime/random.ts";
import { afterAll, expect, it } from "vitest";
import { curfewUnder } from "../tools/curfew.ts";

const dir = mkdtempSync(join(tmpdir(), "curfew-large-ledger-"));
afterAll(() => rmSync(dir, { recursive: true, force: true }));

const entryBytes = 50_000;
const entries = 20_500;
const batch = 256;
const mostResidentMb = 300;

/** One GB of linked records, of one producer; the last bundle is a partial one. */
const writeLedger = async (): Promise<void> => {
  const files = openDirectory(dir, { clock, random: systemRandom });
  const chain = openChain(topicNames.uses, "verifier/large/1");
  let [edge, frontier] = [emptyEdge, new Frontier()];
  while (edge.size < entries) {
    const leaves = Array.from({ length: Math.min(batch, entries - edge.size) }, (_, i) => {
      const value = systemRandom(entryBytes);
      const { partition, key, headers } = chain.link({ partition: 0, key: "k", headers: {}, value });
      const place = { topic: topicNames.uses, partition, offset: edge.size + i, timestampMs: 1_795_000_000_000 };
      return encodeLeaf({ ...place, key, headers: Object.entries(headers), value }, 1_795_000_000_000).leaf;
    });
    const grown = growLog(edge, frontier, leaves);
    await files.write(grown.files);
    ({ edge, frontier } = grown);
  }
  const checkpoint = seal.sign(shard, edge.size, frontier.root());
  await files.write([{ path: CHECKPOINT_PATH, bytes: Buffer.from(checkpoint) }]);
};

/** Says, in the process that it is loaded into, the most memory that it ever had resident, in KB. */
const tellPeak = `data:text/javascript,${encodeURIComponent(
  'process.on("exit", () => console.error("peak %d KB", process.resourceUsage().maxRSS))',
)}`;

it(`1 GB is verified with less than ${mostResidentMb} MB of memory`, async () => {
  await writeLedger();
  const { code, out, err } = await curfewUnder(
    ["--import", tellPeak],
    "verify",
    dir,
    "--key",
    verifierKey,
    "-o",
    "json",
  );
  // Nothing but the peak: there is no terminal to show progress on.
  const peakMb = Number(/^peak (\d+) KB\n$/.exec(err)?.[1]) / 1024;
  process.stdout.write(
    `curfew verify of ${entries} entries of ${entryBytes} bytes: ${Math.round(peakMb)} MB resident\n`,
  );
  expect({ code, err }).toEqual({ code: 0, err: expect.stringMatching(/^peak \d+ KB\n$/) });
  expect(JSON.parse(out)).toMatchObject({
    origin,
    size: entries,
    integrity: { holds: true },
    completeness: { verdict: "holds" },
  });
  expect(peakMb).toBeLessThan(mostResidentMb);
});
