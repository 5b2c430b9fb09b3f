import { hash } from "node:crypto";
import { openNote, signNote } from "@curfew/ledger/note.ts";
import { NoteError } from "@curfew/ledger/note-error.ts";
import type { NoteSigner, NoteVerifier } from "@curfew/ledger/note-key.ts";
import { BundleBroken } from "./broken.ts";
import { file, MAX_BUNDLE_ENTRIES } from "./layout.ts";

/** First line of what is signed: no checkpoint begins so, since its second line is a number. */
const domain = "curfew-evidence-bundle/1";

/** What was asked for; an empty text narrows nothing. */
export interface Selection {
  readonly token: string;
  readonly case: string;
  /** Sealed at or after this, and before that: RFC 3339, UTC. */
  readonly from: string;
  readonly to: string;
}

export interface ManifestFile {
  readonly name: string;
  readonly bytes: number;
  /** Hex. */
  readonly sha256: string;
}

/** What the auditor vouches for with the ledger's key. */
export interface Manifest {
  readonly format: typeof domain;
  readonly origin: string;
  /** Whose services may be producers: the domain of their SPIFFE IDs. */
  readonly trustDomain: string;
  /** When it was made, by the auditor's clock: RFC 3339, UTC. */
  readonly madeAt: string;
  readonly selection: Selection;
  /** The leaves that were looked through: from `first`, before `end`. */
  readonly range: { readonly first: number; readonly end: number };
  /** Of the tree that the checkpoint is of. */
  readonly size: number;
  /** Entries of the ledger in the shards before this tree, which its leaves follow; absent: it is the first. */
  readonly before?: number;
  readonly entries: number;
  /** Every file but this one and its note, in order. */
  readonly files: readonly ManifestFile[];
}

export const isWholeRange = ({ token, case: caseId }: Selection): boolean => token === "" && caseId === "";

/** One line a file, so that people can read and compare it. */
export const formatManifest = ({ files, ...rest }: Omit<Manifest, "format">): Buffer => {
  const head = JSON.stringify({ format: domain, ...rest }, null, 2).slice(0, -2);
  return Buffer.from(
    `${head},\n  "files": [\n${files.map((each) => `    ${JSON.stringify(each)}`).join(",\n")}\n  ]\n}\n`,
  );
};

const isText = (value: unknown): value is string => typeof value === "string";
const isCount = (value: unknown): value is number => Number.isSafeInteger(value) && (value as number) >= 0;
const isObject = (value: unknown): value is Record<string, unknown> =>
  typeof value === "object" && value !== null && !Array.isArray(value);

const isFile = (value: unknown): value is ManifestFile =>
  isObject(value) && isText(value.name) && isCount(value.bytes) && isText(value.sha256);

const isManifest = (value: unknown): value is Manifest => {
  if (
    !isObject(value) ||
    value.format !== domain ||
    !isText(value.origin) ||
    !isText(value.madeAt) ||
    !isText(value.trustDomain)
  )
    return false;
  const { selection, range, size, before, entries, files } = value;
  if (!isObject(selection) || !isObject(range) || !isCount(size) || !isCount(entries) || !Array.isArray(files))
    return false;
  if (before !== undefined && !(isCount(before) && before > 0)) return false;
  const { token, case: caseId, from, to } = selection;
  if (![token, caseId, from, to].every(isText) || !files.every(isFile)) return false;
  return isCount(range.first) && isCount(range.end) && range.first <= range.end && range.end <= size;
};

/** Reads a manifest. Throws BundleBroken. */
export const parseManifest = (bytes: Uint8Array): Manifest => {
  let value: unknown;
  try {
    value = JSON.parse(new TextDecoder("utf-8", { fatal: true }).decode(bytes));
  } catch (error) {
    throw new BundleBroken(file.manifest, "it is no JSON", { cause: error });
  }
  if (!isManifest(value)) throw new BundleBroken(file.manifest, `it is no manifest of ${domain}`);
  if (value.entries > MAX_BUNDLE_ENTRIES) throw new BundleBroken(file.manifest, `over ${MAX_BUNDLE_ENTRIES} entries`);
  return value;
};

const noteText = (origin: string, digest: Uint8Array) =>
  `${domain}\n${origin}\n${Buffer.from(digest).toString("base64")}\n`;

export const manifestDigest = (manifest: Uint8Array): Buffer => hash("sha256", manifest, "buffer");

/** The note that binds a manifest, and through it every file, to the key of the ledger: a C2SP signed note of three lines. */
export const signManifest = (digest: Uint8Array, signer: NoteSigner): string =>
  signNote(noteText(signer.name, digest), [signer]);

/** Whose key has signed a manifest with that hash. Throws BundleBroken when it is none of `keys`. */
export const openManifestNote = (note: Uint8Array, digest: Uint8Array, keys: readonly NoteVerifier[]): NoteVerifier => {
  try {
    const { text, signatures } = openNote(note, keys);
    const key = keys.find(({ name, keyId }) => signatures.some((line) => line.name === name && line.keyId === keyId));
    if (key && text === noteText(key.name, digest)) return key;
  } catch (error) {
    if (!(error instanceof NoteError)) throw error;
    throw new BundleBroken(file.note, error.message, { cause: error });
  }
  throw new BundleBroken(file.note, `what is signed is not the hash of this ${file.manifest}`);
};
