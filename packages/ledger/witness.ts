import { type AddCheckpoint, parseAddCheckpoint } from "./add-checkpoint.ts";
import type { Checkpoint } from "./checkpoint.ts";
import { emptyRoot, sameHash } from "./hash.ts";
import { formatSignature, type NoteSignature, openNote } from "./note.ts";
import { NoteError } from "./note-error.ts";
import type { NoteSigner, NoteVerifier } from "./note-key.ts";
import { verifyConsistency } from "./proof.ts";

/*
 * What a witness decides (c2sp.org/tlog-witness, add-checkpoint): it cosigns a checkpoint only if it extends the one of
 * this log that it cosigned before. Pure: the state is read before and must be written, as one, before the answer goes out.
 */

/** Further than this behind its last cosignature, a clock is wrong, and nothing is cosigned until somebody has looked. */
export const MAX_CLOCK_BACK_SECONDS = 60;

/** The keys that may sign for a log, by its origin. */
export type WitnessedLogs = ReadonlyMap<string, readonly NoteVerifier[]>;

/** The last checkpoint of a log that was cosigned, and when (POSIX seconds). */
export type Witnessed = { readonly size: number; readonly root: Uint8Array; readonly seconds: number };

/** `said` is for people and repeats nothing of the request; a 409 states the size that was cosigned instead. */
export type Refusal = {
  readonly status: 400 | 403 | 404 | 409 | 422 | 503;
  readonly said: string;
  readonly size?: number;
  /** The log has signed two roots of one size. */
  readonly isFork?: true;
};

/** A request whose checkpoint a known log has signed. */
export type Submission = {
  readonly claimed: Checkpoint;
  readonly old: number;
  readonly proof: readonly Uint8Array[];
  /** What is signed. */
  readonly text: string;
  /** Good ones of the log's keys. */
  readonly signatures: readonly NoteSignature[];
};

export const isRefusal = (what: object): what is Refusal => "status" in what;

const parse = (body: Uint8Array): Refusal | (AddCheckpoint & { readonly claimed: Checkpoint }) => {
  try {
    return parseAddCheckpoint(body);
  } catch (error) {
    if (!(error instanceof NoteError)) throw error;
    return { status: 400, said: error.message };
  }
};

/** Reads the body of a request. Refused: what is malformed (400), of an unknown origin (404), or not signed by a key of it (403). */
export const readSubmission = (body: Uint8Array, logs: WitnessedLogs): Submission | Refusal => {
  const request = parse(body);
  if (isRefusal(request)) return request;
  const { claimed, old, proof, checkpoint } = request;
  const keys = logs.get(claimed.origin);
  if (keys === undefined) return { status: 404, said: "this log is not known here" };
  try {
    const { text, signatures } = openNote(checkpoint, keys);
    if (old > claimed.size) return { status: 400, said: "the old size is greater than that of the checkpoint" };
    return { claimed, old, proof, text, signatures };
  } catch (error) {
    if (!(error instanceof NoteError)) throw error;
    return { status: 403, said: error.message };
  }
};

const proves = ({ old, proof, claimed }: Submission, before: Witnessed | undefined): boolean => {
  if (old === 0) return proof.length === 0 && (claimed.size > 0 || sameHash(claimed.root, emptyRoot()));
  return before !== undefined && verifyConsistency(old, claimed.size, proof, before.root, claimed.root);
};

/**
 * Whether `submission` may be cosigned at `nowSeconds`, after `before` (undefined: nothing of this log was): the new state, whose
 * time is that of the cosignature, or why not. The time never goes back: within `MAX_CLOCK_BACK_SECONDS` the last one is repeated,
 * a clock further back is refused (503).
 */
export const decideCosigning = (
  submission: Submission,
  before: Witnessed | undefined,
  nowSeconds: number,
): Witnessed | Refusal => {
  const { claimed, old } = submission;
  const size = before?.size ?? 0;
  const isFork = before !== undefined && size === claimed.size && !sameHash(before.root, claimed.root);
  const fork = isFork ? ({ isFork } as const) : {};
  if (old !== size) return { status: 409, said: "another size was cosigned", size, ...fork };
  if (!proves(submission, before))
    return { status: 422, said: "it is not proven that the checkpoint extends the one before it", ...fork };
  const last = before?.seconds ?? 1;
  if (!Number.isSafeInteger(nowSeconds) || nowSeconds < last - MAX_CLOCK_BACK_SECONDS)
    return { status: 503, said: "the clock of this witness stands before its last cosignature" };
  return { size: claimed.size, root: claimed.root, seconds: Math.max(nowSeconds, last) };
};

/** The checkpoint as the log has signed it: lines of others left out. */
export const signedByLog = ({ text, signatures }: Submission): string =>
  `${text}\n${signatures.map(formatSignature).join("")}`;

/** The cosignature line that is the answer, and the checkpoint with it and with the log's own signatures. */
export const cosign = (submission: Submission, cosigner: NoteSigner): { line: string; checkpoint: string } => {
  const { name, keyId, sign } = cosigner;
  const line = formatSignature({ name, keyId, signature: sign(submission.text) });
  return { line, checkpoint: `${signedByLog(submission)}${line}` };
};
