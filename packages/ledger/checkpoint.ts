import { emptyRoot, isCount, isHash, sameHash } from "./hash.ts";
import { type NoteSignature, openNote, signNote } from "./note.ts";
import { decodeBase64, decodeDecimal, NoteError } from "./note-error.ts";
import { isKeyName, type NoteSigner, type NoteVerifier } from "./note-key.ts";

/** What a log says of itself: under `origin`, `size` leaves have the RFC 6962 `root` (32 bytes). */
export type Checkpoint = { readonly origin: string; readonly size: number; readonly root: Uint8Array };

const check = ({ origin, size, root }: Checkpoint): void => {
  if (!isKeyName(origin)) throw new NoteError("a checkpoint's origin is a key name");
  if (!isCount(size)) throw new NoteError("a checkpoint's size is a whole number below 2^53");
  if (!isHash(root)) throw new NoteError("a checkpoint's root has 32 bytes");
  if (size === 0 && !sameHash(root, emptyRoot())) throw new NoteError("the empty tree has one root only");
};

/** The C2SP checkpoint text: origin, decimal size and base64 root, a line each, no extension lines. Throws a `NoteError`. */
export const formatCheckpoint = (checkpoint: Checkpoint): string => {
  check(checkpoint);
  return `${checkpoint.origin}\n${checkpoint.size}\n${Buffer.from(checkpoint.root).toString("base64")}\n`;
};

/**
 * Reads what c2sp.org/tlog-checkpoint allows any log to write: an origin that need not be a key name, and extension lines, which say
 * nothing to us. Sizes from 2^53 are refused; that the empty tree has one root only is not looked at. Throws a `NoteError`.
 */
export const parseAnyCheckpoint = (text: string): Checkpoint & { readonly extensions: readonly string[] } => {
  const [origin = "", decimal = "", encoded = "", ...extensions] = text.split("\n");
  if (extensions.pop() !== "" || origin === "" || extensions.includes(""))
    throw new NoteError("a checkpoint has three lines or more, none of them empty");
  const size = decodeDecimal(decimal);
  if (size === undefined) throw new NoteError("a checkpoint's size is a canonical decimal below 2^53");
  const root = decodeBase64(encoded);
  if (!isHash(root)) throw new NoteError("a checkpoint's root is 32 bytes in canonical base64");
  return { origin, size, root, extensions };
};

/** Reads exactly what `formatCheckpoint` writes: canonical numbers and base64, no extension lines. Throws a `NoteError`. */
export const parseCheckpoint = (text: string): Checkpoint => {
  const { extensions, ...checkpoint } = parseAnyCheckpoint(text);
  if (extensions.length > 0) throw new NoteError("a checkpoint has three lines");
  check(checkpoint);
  return checkpoint;
};

/**
 * The signed note of a checkpoint; the first of `signers` is the log and its name the origin. It does not know what was
 * signed before: never to sign a root that is inconsistent with an earlier one is the caller's duty.
 */
export const signCheckpoint = (checkpoint: Checkpoint, signers: readonly NoteSigner[]): string => {
  if (signers[0]?.name !== checkpoint.origin) throw new NoteError("a checkpoint's origin is the name of its log's key");
  return signNote(formatCheckpoint(checkpoint), signers);
};

export type OpenedCheckpoint = Checkpoint & {
  /** The text that the signatures cover. */
  readonly text: string;
  /** The good signatures of `log` and `others`, in order. */
  readonly signatures: readonly NoteSignature[];
};

/**
 * Reads a signed checkpoint of the log whose key is `log`: its signature must be there and hold, and the origin be its
 * name; signatures of `others` (witnesses) must hold if they are there. Throws a `NoteError`.
 */
export const openCheckpoint = (
  note: string | Uint8Array,
  log: NoteVerifier,
  others: readonly NoteVerifier[] = [],
): OpenedCheckpoint => {
  const { text, signatures } = openNote(note, [log, ...others]);
  if (!signatures.some(({ name, keyId }) => name === log.name && keyId === log.keyId))
    throw new NoteError("the log has not signed the checkpoint");
  const checkpoint = parseCheckpoint(text);
  if (checkpoint.origin !== log.name) throw new NoteError("the checkpoint is of another log");
  return { ...checkpoint, text, signatures };
};
