/** Which files a bundle has, and in which order: fixed, so that the same evidence makes the same bytes (docs/evidence.md). */
export const file = {
  readMe: "VERIFY.md",
  script: "verify.py",
  key: "log.vkey",
  policy: "policy",
  authority: "authority.pem",
  checkpoint: "checkpoint",
  firstCheckpoint: "checkpoints/first",
  consistency: "checkpoints/consistency",
  stamped: "timestamp/checkpoint",
  stampedConsistency: "timestamp/consistency",
  stamp: "timestamp/response.tsr",
  completeness: "completeness.json",
  timeline: "timeline.html",
  manifest: "manifest.json",
  note: "manifest.note",
} as const;

/** Files about one leaf stand together; `entries/<index>.bin` has its bytes. */
export const entryName = (index: number) => `entries/${padded(index)}.bin`;
export const proofName = (index: number) => `entries/${padded(index)}.tlog-proof`;
export const decodedName = (index: number) => `decoded/${padded(index)}.json`;
/** The draft whose hash the leaf `index` holds. */
export const draftName = (index: number) => `drafts/${padded(index)}.json`;

const indexDigits = 16;
const padded = (index: number) => String(index).padStart(indexDigits, "0");

const before: readonly string[] = [file.readMe, file.script, file.key, file.policy, file.authority, file.checkpoint];
/** All or none. */
export const stampFiles: readonly string[] = [file.stamped, file.stampedConsistency, file.stamp];
const after: readonly string[] = [
  file.firstCheckpoint,
  file.consistency,
  ...stampFiles,
  file.completeness,
  file.timeline,
  file.manifest,
  file.note,
];
/** What a bundle always has. */
export const requiredFiles: readonly string[] = [...before, ...after].filter((name) => !stampFiles.includes(name));
const kinds: readonly string[] = ["entries bin", "entries tlog-proof", "decoded json", "drafts json"];

const indexed = /^(entries|decoded|drafts)\/(\d{16})\.(bin|tlog-proof|json)$/;

/** The leaf that a file is about, and what of it. Undefined: about none. */
export const indexedFile = (name: string): { readonly index: number; readonly kind: number } | undefined => {
  const [, folder, digits, extension] = indexed.exec(name) ?? [];
  const kind = kinds.indexOf(`${folder} ${extension}`);
  const index = Number(digits);
  return kind < 0 || !Number.isSafeInteger(index) ? undefined : { index, kind };
};

/** Where a name stands: files are in ascending order of these, compared item by item. Undefined: no bundle has such a file. */
export const placeOf = (name: string): readonly number[] | undefined => {
  const about = indexedFile(name);
  if (about) return about.kind === kinds.indexOf("drafts json") ? [2, about.index] : [1, about.index, about.kind];
  if (before.includes(name)) return [0, before.indexOf(name)];
  return after.includes(name) ? [3, after.indexOf(name)] : undefined;
};

export const comparePlaces = (a: readonly number[], b: readonly number[]): number => {
  const at = a.findIndex((item, i) => item !== b[i]);
  return at < 0 ? 0 : (a[at] as number) - (b[at] ?? -1);
};

/** Three files each, and what else there is, stay below what a ZIP without extensions may hold. */
export const MAX_BUNDLE_ENTRIES = 20_000;
export const MAX_DRAFTS = 16;
/** Of one file; the timeline is the largest by far. */
export const MAX_FILE_BYTES = 64 * 2 ** 20;
