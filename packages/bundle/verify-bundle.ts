import { hash } from "node:crypto";
import { fromBinary } from "@bufbuild/protobuf";
import { NotificationDraftedSchema } from "@curfew/contracts/gen/curfew/events/v1/breaches_pb.ts";
import { eventTypeNamed } from "@curfew/event-log/event-types.ts";
import { openProducerTrust, type ProducerTrust } from "@curfew/event-log/producer-key.ts";
import { parseAddCheckpoint } from "@curfew/ledger/add-checkpoint.ts";
import { type Checkpoint, type OpenedCheckpoint, parseCheckpoint } from "@curfew/ledger/checkpoint.ts";
import { leafHash, MAX_ENTRY_BYTES } from "@curfew/ledger/hash.ts";
import { decodeLeaf, NoLeaf, type SealedRecord } from "@curfew/ledger/leaf.ts";
import { parseNote } from "@curfew/ledger/note.ts";
import { NoteError } from "@curfew/ledger/note-error.ts";
import { openByPolicy, type Policy, type PolicyVerdict } from "@curfew/ledger/policy.ts";
import { verifyConsistency, verifyInclusion } from "@curfew/ledger/proof.ts";
import { MAX_PROOF_FILE_BYTES, parseProofFile } from "@curfew/ledger/proof-file.ts";
import {
  claimedTimestamp,
  MAX_TIMESTAMP_BYTES,
  openTimestamp,
  type Timestamp,
  TimestampRefused,
} from "@curfew/ledger/timestamp.ts";
import { BundleBroken } from "./broken.ts";
import { type ByteSource, readAhead } from "./byte-source.ts";
import { headerOf } from "./decoded.ts";
import { draftName, entryName, file, indexedFile, proofName, requiredFiles, stampFiles } from "./layout.ts";
import { isWholeRange, type Manifest, openManifestNote, parseManifest } from "./manifest.ts";
import { readZip, type StoredFile } from "./read-zip.ts";
import { missingText, openReport, type Report } from "./report.ts";

/** What a bundle says of the time before which its entries were there. */
export type Stamp = Timestamp & {
  /** Leaves of the checkpoint that was stamped: those after them are not bounded. */
  readonly size: number;
  /** Entries of the bundle among them. */
  readonly entries: number;
  /** Whether it was signed by an authority that was named as trusted; else anybody may have made it up. */
  readonly isTrusted: boolean;
};

/** A bundle whose every byte is accounted for. */
export interface IntactBundle {
  readonly manifest: Manifest;
  readonly checkpoint: PolicyVerdict;
  readonly first: OpenedCheckpoint;
  readonly drafts: number;
  /** Undefined: there is no timestamp in it. */
  readonly stamp: Stamp | undefined;
  /** What its entries say about their completeness, and the leaves of the range that are not there. */
  readonly report: Report;
}

const maxManifestBytes = 16 * 2 ** 20;
const maxNoteBytes = 65_536;

/** Files of the archive by name, each read again only if it still is what was read before. */
const openFiles = (source: ByteSource, stored: readonly StoredFile[]) => {
  const byName = new Map(stored.map((each) => [each.name, each]));
  const ahead = readAhead(source);
  return async (name: string, maxBytes: number): Promise<Uint8Array> => {
    const found = byName.get(name);
    if (!found) throw new BundleBroken(name, "it is missing");
    if (found.size > maxBytes) throw new BundleBroken(name, `over ${maxBytes} bytes`);
    const bytes = Uint8Array.from(await ahead.read(found.at, found.size));
    if (hash("sha256", bytes, "hex") !== found.sha256) throw new BundleBroken(name, "it changed while it was read");
    return bytes;
  };
};
type ReadFile = ReturnType<typeof openFiles>;

/** What `read` answers; an error of the formats inside becomes one of that file. */
const inFile = <T>(name: string, read: () => T): T => {
  try {
    return read();
  } catch (error) {
    if (!(error instanceof NoteError) && !(error instanceof NoLeaf)) throw error;
    throw new BundleBroken(name, error.message, { cause: error });
  }
};

const openManifest = async (read: ReadFile, stored: readonly StoredFile[], policy: Policy): Promise<Manifest> => {
  const bytes = await read(file.manifest, maxManifestBytes);
  const digest = hash("sha256", bytes, "buffer");
  const keys = policy.logs.map(({ key }) => key);
  const key = openManifestNote(await read(file.note, maxNoteBytes), digest, keys);
  const manifest = parseManifest(bytes);
  if (manifest.origin !== key.name) throw new BundleBroken(file.manifest, "it is of another log");
  const covered = stored.filter(({ name }) => name !== file.manifest && name !== file.note);
  for (const [i, { name, size, sha256 }] of covered.entries()) {
    const listed = manifest.files[i];
    if (listed?.name !== name)
      throw new BundleBroken(name, `${file.manifest} has ${listed?.name ?? "no file"} in its place`);
    if (listed.bytes !== size || listed.sha256 !== sha256)
      throw new BundleBroken(name, `not the file that ${file.manifest} lists`);
  }
  const absent = manifest.files[covered.length];
  if (absent) throw new BundleBroken(absent.name, "it is missing");
  return manifest;
};

const openCheckpoint = async (read: ReadFile, name: string, policy: Policy): Promise<PolicyVerdict> => {
  const bytes = await read(name, maxNoteBytes);
  return inFile(name, () => openByPolicy(bytes, policy));
};

/** The bundle's checkpoint, opened and as it stands. */
type Last = OpenedCheckpoint & { readonly note: string };

/** That the tree of the last checkpoint begins with the tree of an older one, by the proof in the file `name`. */
const checkBeginning = async (
  read: ReadFile,
  name: string,
  older: Checkpoint & { readonly name: string },
  last: Last,
): Promise<void> => {
  const body = await read(name, maxNoteBytes);
  const { old, proof, checkpoint } = inFile(name, () => parseAddCheckpoint(body));
  if (checkpoint !== last.note) throw new BundleBroken(name, `its checkpoint is not that of ${file.checkpoint}`);
  if (old !== older.size || !verifyConsistency(old, last.size, proof, older.root, last.root))
    throw new BundleBroken(name, `the tree of ${file.checkpoint} does not begin with that of ${older.name}`);
};

/** The first checkpoint; the tree of the last one begins with its tree. */
const openFirst = async (read: ReadFile, last: Last, policy: Policy): Promise<OpenedCheckpoint> => {
  const name = file.firstCheckpoint;
  const { opened } = await openCheckpoint(read, name, policy);
  await checkBeginning(read, file.consistency, { ...opened, name }, last);
  return opened;
};

/**
 * The checkpoint that was stamped, and when. Who signed it does not matter, and the key may have been rotated since: its tree is the
 * beginning of the bundle's, so whoever had its hash had that of every leaf in it.
 */
const openStamp = async (
  read: ReadFile,
  last: Last,
  authorities: readonly Uint8Array[] | undefined,
): Promise<Omit<Stamp, "entries">> => {
  const name = file.stamped;
  const data = await read(name, maxNoteBytes);
  const stamped = inFile(name, () => parseCheckpoint(parseNote(data).text));
  if (stamped.origin !== last.origin) throw new BundleBroken(name, "it is of another log");
  await checkBeginning(read, file.stampedConsistency, { ...stamped, name }, last);
  const response = await read(file.stamp, MAX_TIMESTAMP_BYTES);
  try {
    const said = authorities
      ? await openTimestamp(response, { data, authorities })
      : await claimedTimestamp(response, data);
    return { ...said, size: stamped.size, isTrusted: authorities !== undefined };
  } catch (error) {
    if (!(error instanceof TimestampRefused)) throw error;
    throw new BundleBroken(file.stamp, error.message, { cause: error });
  }
};

/** The record in a leaf that the checkpoint's tree has at that index. */
const openEntry = async (read: ReadFile, index: number, last: Last): Promise<SealedRecord> => {
  const leaf = await read(entryName(index), MAX_ENTRY_BYTES);
  const name = proofName(index);
  const bytes = await read(name, MAX_PROOF_FILE_BYTES);
  const stated = inFile(name, () => parseProofFile(bytes));
  if (stated.index !== index || stated.extra) throw new BundleBroken(name, "it is not about this leaf alone");
  if (stated.checkpoint !== last.note) throw new BundleBroken(name, `its checkpoint is not that of ${file.checkpoint}`);
  if (!verifyInclusion(index, last.size, leafHash(leaf), stated.proof, last.root))
    throw new BundleBroken(name, `it does not lead from ${entryName(index)} to the root of ${file.checkpoint}`);
  return inFile(entryName(index), () => decodeLeaf(leaf));
};

/** By the authority in the bundle: the key of the ledger has vouched for it, and nobody else. */
const trustOf = (caPem: string, { trustDomain }: Manifest): ProducerTrust => {
  try {
    return openProducerTrust({ caPem, trustDomain });
  } catch (error) {
    throw new BundleBroken(file.authority, "it holds no certificate of an authority", { cause: error });
  }
};

/** The hash that a leaf holds of a draft; undefined: it holds none. */
const sealedHash = (record: SealedRecord): Uint8Array | undefined => {
  if (eventTypeNamed(headerOf(record, "ce_type"))?.desc !== NotificationDraftedSchema) return undefined;
  try {
    return fromBinary(NotificationDraftedSchema, record.value).draftSha256;
  } catch {
    return undefined; // sealed all the same, whatever it is
  }
};

const checkDraft = async (read: ReadFile, index: number, record: SealedRecord): Promise<void> => {
  const name = draftName(index);
  const draftSha256 = sealedHash(record);
  if (!draftSha256) throw new BundleBroken(name, `${entryName(index)} is not about a draft`);
  if (Buffer.compare(hash("sha256", await read(name, maxManifestBytes), "buffer"), draftSha256) !== 0)
    throw new BundleBroken(name, `not the draft whose hash was sealed as leaf ${index}`);
};

/** Leaves of the range that a bundle over all of it lacks; sentences, at most one for each entry. */
const absentLeaves = ({ range, selection }: Manifest, present: readonly number[]): string[] => {
  if (!isWholeRange(selection)) return [];
  const absent: string[] = [];
  let expected = range.first;
  for (const index of [...present, range.end]) {
    if (index > expected) absent.push(`of the range ${missingText("leaf number", expected, index - 1)}`);
    expected = index + 1;
  }
  return absent;
};

/** What a verifier has from elsewhere, besides the log's key. */
export interface Trusted {
  /** Who may have produced what; absent: whom the authority in the bundle certified. */
  readonly producers?: ProducerTrust;
  /** DER of the certificates to one of which that of the time-stamp authority must lead; absent: its signature is not checked. */
  readonly timestamps?: readonly Uint8Array[];
}

/**
 * Checks everything in a bundle against the keys of `policy`, offline: every byte of the archive, the signed manifest, the checkpoints,
 * the timestamp, and the proof of every leaf. Throws NotABundle, or BundleBroken for the first thing that does not hold.
 */
export const openBundle = async (
  source: ByteSource,
  policy: Policy,
  { producers, timestamps }: Trusted = {},
  progress: (done: number, all: number) => void = () => undefined,
): Promise<IntactBundle> => {
  const stored = await readZip(source);
  const read = openFiles(source, stored);
  for (const name of requiredFiles)
    if (!stored.some((each) => each.name === name)) throw new BundleBroken(name, "it is missing");
  const manifest = await openManifest(read, stored, policy);
  const checkpoint = await openCheckpoint(read, file.checkpoint, policy);
  if (!checkpoint.quorum) throw new BundleBroken(file.checkpoint, "the quorum of the policy has not cosigned it");
  const { opened } = checkpoint;
  if (opened.origin !== manifest.origin || opened.size !== manifest.size)
    throw new BundleBroken(file.checkpoint, `it is not of the tree that ${file.manifest} names`);
  const last = { ...opened, note: Buffer.from(await read(file.checkpoint, maxNoteBytes)).toString() };
  const first = await openFirst(read, last, policy);
  const isStamped = stored.some(({ name }) => stampFiles.includes(name));
  const stamp = isStamped ? await openStamp(read, last, timestamps) : undefined;

  const authority = Buffer.from(await read(file.authority, maxNoteBytes)).toString();
  const vouched = trustOf(authority, manifest);
  const report = openReport(manifest, producers ?? vouched);
  const drafts = new Set(
    stored.flatMap(({ name }) => (name.startsWith("drafts/") ? (indexedFile(name)?.index ?? []) : [])),
  );
  const present: number[] = [];
  for (const { name } of stored) {
    const about = indexedFile(name);
    if (about === undefined || about.kind !== 0) continue;
    const { index } = about;
    if (index < manifest.range.first || index >= manifest.range.end)
      throw new BundleBroken(name, "it lies outside of the range");
    const record = await openEntry(read, index, last);
    report.add(index, record);
    if (drafts.has(index)) await checkDraft(read, index, record);
    present.push(index);
    progress(present.length, manifest.entries);
  }
  const sets = new Set(present);
  for (const { name } of stored) {
    const about = indexedFile(name);
    if (about && !sets.has(about.index)) throw new BundleBroken(name, `there is no ${entryName(about.index)}`);
  }
  if (present.length !== manifest.entries || present.length === 0)
    throw new BundleBroken(file.manifest, `it says ${manifest.entries} entries, and there are ${present.length}`);
  const entries = present.filter((index) => index < (stamp?.size ?? 0)).length;
  if (stamp && entries === 0) throw new BundleBroken(file.stamped, "it has none of the entries");
  const found = report.result();
  const missing = [...absentLeaves(manifest, present), ...found.missing];
  return {
    manifest,
    checkpoint,
    first,
    drafts: drafts.size,
    stamp: stamp && { ...stamp, entries },
    report: { ...found, missing },
  };
};
