import { hash } from "node:crypto";
import { readFileSync } from "node:fs";
import { openProducerTrust } from "@curfew/event-log/producer-key.ts";
import { formatAddCheckpoint } from "@curfew/ledger/add-checkpoint.ts";
import { decodeLeaf } from "@curfew/ledger/leaf.ts";
import { formatProofFile } from "@curfew/ledger/proof-file.ts";
import { decodedEntry, decodedText } from "./decoded.ts";
import { decodedName, draftName, entryName, file, MAX_BUNDLE_ENTRIES, MAX_FILE_BYTES, proofName } from "./layout.ts";
import { formatManifest, type Manifest, type ManifestFile, manifestDigest } from "./manifest.ts";
import { openReport } from "./report.ts";
import { type TimelineRow, timelineHtml, timelineRow } from "./timeline.ts";
import { localHeader, MAX_ZIP_BYTES, type ZipFile, zipEnd, zipFileOf } from "./zip.ts";

/** What is asked for does not fit into one bundle. The message says what to do. */
export class BundleTooLarge extends Error {
  override readonly name = "BundleTooLarge";
}

export interface BundleEntry {
  readonly index: number;
  readonly leaf: Uint8Array;
  /** Inclusion proof in the tree of the bundle's checkpoint. */
  readonly proof: readonly Uint8Array[];
}

/** A checkpoint of the same ledger that a time-stamp authority has seen. */
export interface BundleStamp {
  /** The bytes that were stamped; its size is at most that of the bundle's checkpoint. */
  readonly checkpoint: string;
  readonly size: number;
  /** That the bundle's checkpoint is consistent with it. */
  readonly proof: readonly Uint8Array[];
  /** DER of a TimeStampResp (RFC 3161) over `checkpoint`. */
  readonly response: Uint8Array;
  /** When it says that the authority saw it, in ms since the Unix epoch. */
  readonly timeMs: number;
}

export interface BundleParts {
  readonly facts: Omit<Manifest, "format" | "files" | "entries">;
  readonly verifierKey: string;
  /** c2sp.org/tlog-policy. */
  readonly policy: string;
  /** PEM of the authority that certifies the keys of producers. */
  readonly caPem: string;
  /** Signed checkpoint of `facts.size`. */
  readonly checkpoint: string;
  /** Ascending by index, at least one. */
  readonly entries: () => AsyncIterable<BundleEntry>;
  /** The signed checkpoint of the batch that sealed this leaf, its size, and the proof that the bundle's own is consistent with it. */
  readonly firstCheckpoint: (
    index: number,
  ) => Promise<{ readonly checkpoint: string; readonly size: number; readonly proof: readonly Uint8Array[] }>;
  /** Over a checkpoint with all leaves up to `last`, or with as many of them as can be; undefined: there is none that has leaf `first`. */
  readonly stamp: (first: number, last: number) => Promise<BundleStamp | undefined>;
  /** After the entries: documents whose hash a leaf holds, ascending by its index. */
  readonly drafts: () => readonly { readonly index: number; readonly json: string }[];
  /** Signs the hash of the manifest; what it waits for is done before anybody has a whole bundle. */
  readonly sign: (digest: Uint8Array, manifest: Pick<Manifest, "entries">) => Promise<string>;
}

const asset = (name: string) => readFileSync(new URL(name, import.meta.url));
const readMe = asset("verify.md");
const script = asset("verify.py");

/** The archive as it grows. */
const openArchive = () => {
  const zip: ZipFile[] = [];
  const listed: ManifestFile[] = [];
  let total = 0;
  return {
    zip,
    listed,
    /** Its bytes in the archive. */
    add(name: string, bytes: Uint8Array): Uint8Array[] {
      const header = zipFileOf(name, bytes);
      total += 2 * (64 + name.length) + bytes.length;
      if (bytes.length > MAX_FILE_BYTES || total > MAX_ZIP_BYTES)
        throw new BundleTooLarge("the bundle would be too large: ask for a shorter time with --from and --to");
      zip.push(header);
      listed.push({ name, bytes: bytes.length, sha256: hash("sha256", bytes, "hex") });
      return [localHeader(header), bytes];
    },
  };
};

/**
 * The bytes of a bundle, in order, made while they are read: what is kept in memory is a line for each entry and each file. Throws
 * BundleTooLarge.
 */
export async function* writeBundle(parts: BundleParts): AsyncGenerator<Uint8Array> {
  const { verifierKey, checkpoint } = parts;
  const archive = openArchive();
  const text = (name: string, content: string) => archive.add(name, Buffer.from(content));
  yield* archive.add(file.readMe, readMe);
  yield* archive.add(file.script, script);
  yield* text(file.key, `${verifierKey}\n`);
  yield* text(file.policy, parts.policy);
  yield* text(file.authority, parts.caPem);
  yield* text(file.checkpoint, checkpoint);

  const { caPem, facts: about } = parts;
  const trust = openProducerTrust({ caPem, trustDomain: about.trustDomain });
  const report = openReport(about, trust);
  const rows: TimelineRow[] = [];
  for await (const { index, leaf, proof } of parts.entries()) {
    if (rows.length >= MAX_BUNDLE_ENTRIES)
      throw new BundleTooLarge(`more than ${MAX_BUNDLE_ENTRIES} entries: ask for a shorter time with --from and --to`);
    const record = decodeLeaf(leaf);
    const decoded = decodedEntry(index, record);
    report.add(index, record);
    rows.push(timelineRow(decoded, record));
    yield* archive.add(entryName(index), leaf);
    yield* text(proofName(index), formatProofFile({ index, proof, checkpoint }));
    yield* text(decodedName(index), decodedText(decoded));
  }

  for (const { index, json } of parts.drafts()) yield* text(draftName(index), json);
  const first = await parts.firstCheckpoint(rows[0]?.index ?? 0);
  yield* text(file.firstCheckpoint, first.checkpoint);
  yield* text(file.consistency, formatAddCheckpoint({ old: first.size, proof: first.proof, checkpoint }));
  const stamp = await parts.stamp(rows[0]?.index ?? 0, rows.at(-1)?.index ?? 0);
  if (stamp) {
    yield* text(file.stamped, stamp.checkpoint);
    yield* text(file.stampedConsistency, formatAddCheckpoint({ old: stamp.size, proof: stamp.proof, checkpoint }));
    yield* archive.add(file.stamp, stamp.response);
  }
  const facts = { ...parts.facts, entries: rows.length };
  const found = report.result();
  yield* text(file.completeness, `${JSON.stringify(found, null, 2)}\n`);
  yield* archive.add(file.timeline, timelineHtml(facts, verifierKey, found, rows, stamp));
  const manifest = formatManifest({ ...facts, files: archive.listed });
  yield* archive.add(file.manifest, manifest);
  yield* text(file.note, await parts.sign(manifestDigest(manifest), facts));
  yield* zipEnd(archive.zip);
}
