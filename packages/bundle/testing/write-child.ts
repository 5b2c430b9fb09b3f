import { closeSync, openSync, writeSync } from "node:fs";
import { signCheckpoint } from "@curfew/ledger/checkpoint.ts";
import { encodeLeaf } from "@curfew/ledger/leaf.ts";
import { writeBundle } from "../write-bundle.ts";
import { origin, partsOf, sampleLog, sampleRecords, signer, startMs } from "./sample.ts";

/** Writes a bundle of as many large entries as it is told, made up while it is written, and prints how much memory that took (KiB). */
const [path = "", count = ""] = process.argv.slice(2);
const entries = Number(count);
const log = sampleLog(sampleRecords(1));
const [record] = sampleRecords(1);
if (!record) throw new Error("no record");
const parts = partsOf(log, [0]);
const file = openSync(path, "w");
let bytes = 0;
const pieces = writeBundle({
  ...parts,
  facts: { ...parts.facts, size: entries, range: { first: 0, end: entries } },
  checkpoint: signCheckpoint({ origin, size: entries, root: Buffer.alloc(32) }, [signer]),
  async *entries() {
    for (let index = 0; index < entries; index += 1) {
      const large = { ...record, offset: index, value: Buffer.alloc(60_000, index) };
      yield { index, leaf: encodeLeaf(large, startMs).leaf, proof: Array.from({ length: 20 }, () => Buffer.alloc(32)) };
    }
  },
  firstCheckpoint: async () => ({ checkpoint: parts.checkpoint, size: 1, proof: [] }),
  drafts: () => [],
});
for await (const piece of pieces) bytes += writeSync(file, piece);
closeSync(file);
process.stdout.write(JSON.stringify({ bytes, maxRssKiB: process.resourceUsage().maxRSS }));
