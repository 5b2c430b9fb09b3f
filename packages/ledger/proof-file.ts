import { parseCheckpoint } from "./checkpoint.ts";
import { decodeBase64, decodeDecimal, NoteError } from "./note-error.ts";
import { openByPolicy, type Policy, type PolicyVerdict } from "./policy.ts";
import { verifyInclusion } from "./proof.ts";
import { formatHashLines, parseHashLines, parseProofText } from "./proof-lines.ts";

export const MAX_PROOF_FILE_BYTES = 1_000_000;
const HEADER = "c2sp.org/tlog-proof@v1";

/** A `.tlog-proof` file: that an entry is in the tree of a checkpoint. */
export type ProofFile = {
  /** Whatever the writer added; nothing vouches for it. */
  readonly extra?: Uint8Array;
  readonly index: number;
  /** Inclusion proof, leaf to root. */
  readonly proof: readonly Uint8Array[];
  /** The signed checkpoint, verbatim. */
  readonly checkpoint: string;
};

const parseExtra = (line: string): Uint8Array => {
  const extra = decodeBase64(line.slice("extra ".length));
  if (extra === undefined) throw new NoteError("line 2: extra data is canonical base64");
  return extra;
};

/** Reads a c2sp.org/tlog-proof@v1 file; nothing in it is verified. Throws a `NoteError`. */
export const parseProofFile = (file: string | Uint8Array): ProofFile => {
  const { lines, checkpoint, claimed } = parseProofText(file, MAX_PROOF_FILE_BYTES, parseCheckpoint);
  if (lines[0] !== HEADER) throw new NoteError(`line 1: the header is not ${HEADER}`);
  const extra = lines[1]?.startsWith("extra ") ? parseExtra(lines[1]) : undefined;
  const at = extra === undefined ? 2 : 3;
  const [, decimal = ""] = /^index (.*)$/.exec(lines[at - 1] ?? "") ?? [];
  const index = decodeDecimal(decimal);
  if (index === undefined) throw new NoteError(`line ${at}: "index" and a canonical decimal below 2^53`);
  if (index >= claimed.size) throw new NoteError(`line ${at}: the index is not below the checkpoint's size`);
  return { ...(extra && { extra }), index, proof: parseHashLines(lines, at + 1), checkpoint };
};

/** Writes a file that `parseProofFile` reads. Throws a `NoteError` for anything else. */
export const formatProofFile = ({ extra, index, proof, checkpoint }: ProofFile): string => {
  const extraLine = extra === undefined ? "" : `extra ${Buffer.from(extra).toString("base64")}\n`;
  const file = `${HEADER}\n${extraLine}index ${index}\n${formatHashLines(proof)}\n${checkpoint}`;
  parseProofFile(file);
  return file;
};

/**
 * Verifies that the entry with `leaf` hash is in the log: the checkpoint is signed as `policy` demands, quorum included,
 * and the proof leads from the leaf to its root. Answers who signed; throws a `NoteError` that says what does not hold.
 */
export const verifyProofFile = (
  file: string | Uint8Array,
  leaf: Uint8Array,
  policy: Policy,
): ProofFile & PolicyVerdict => {
  const parsed = parseProofFile(file);
  const verdict = openByPolicy(parsed.checkpoint, policy);
  const { size, root } = verdict.opened;
  if (!verdict.quorum) throw new NoteError("the quorum of the policy has not cosigned the checkpoint");
  if (!verifyInclusion(parsed.index, size, leaf, parsed.proof, root))
    throw new NoteError("the proof does not lead from the leaf to the root of the checkpoint");
  return { ...parsed, ...verdict };
};
