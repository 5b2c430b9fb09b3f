import type { Checkpoint } from "./checkpoint.ts";
import { isHash } from "./hash.ts";
import { decodeUtf8, parseNote } from "./note.ts";
import { decodeBase64, NoteError, within } from "./note-error.ts";
import { MAX_PROOF_HASHES } from "./proof.ts";

/** What a proof file and an add-checkpoint request have in common: lines, a blank line, a signed checkpoint verbatim. */
export type ProofText = {
  readonly lines: readonly string[];
  readonly checkpoint: string;
  /** What the checkpoint says; nobody's signature was checked. */
  readonly claimed: Checkpoint;
};

/** Takes `text` apart at its first blank line; `read` takes the text of the checkpoint. Throws a `NoteError` also for one that is malformed. */
export const parseProofText = (
  text: string | Uint8Array,
  maxBytes: number,
  read: (text: string) => Checkpoint,
): ProofText => {
  // As in `parseNote`: a string has no fewer bytes than units.
  if (text.length > maxBytes || Buffer.byteLength(text) > maxBytes) throw new NoteError(`over ${maxBytes} bytes`);
  const whole = decodeUtf8(text);
  const lineOf = (at: number) => whole.slice(0, at).split("\n").length;
  const wrongEnd = whole.indexOf("\r");
  if (wrongEnd >= 0) throw new NoteError(`line ${lineOf(wrongEnd)}: lines end in a line feed alone`);
  const blank = whole.indexOf("\n\n");
  if (blank < 0) throw new NoteError("there is no blank line before the checkpoint");
  const checkpoint = whole.slice(blank + 2);
  const claimed = within(`checkpoint from line ${lineOf(blank + 2)}`, () => read(parseNote(checkpoint).text));
  return { lines: whole.slice(0, blank).split("\n"), checkpoint, claimed };
};

/** The hashes that stand one a line in `lines` from line `first` (counted from 1) on. Throws a `NoteError`. */
export const parseHashLines = (lines: readonly string[], first: number): Uint8Array[] => {
  const hashLines = lines.slice(first - 1);
  if (hashLines.length > MAX_PROOF_HASHES)
    throw new NoteError(`line ${first + MAX_PROOF_HASHES}: a proof has at most ${MAX_PROOF_HASHES} hashes`);
  return hashLines.map((line, i) => {
    const hash = decodeBase64(line);
    if (!isHash(hash)) throw new NoteError(`line ${first + i}: a hash is 32 bytes in canonical base64`);
    return hash;
  });
};

export const formatHashLines = (proof: readonly Uint8Array[]): string =>
  proof.map((hash) => `${Buffer.from(hash).toString("base64")}\n`).join("");
