import type { Checkpoint } from "./checkpoint.ts";
import { decodeDecimal, NoteError } from "./note-error.ts";
import { formatHashLines, parseHashLines, parseProofText } from "./proof-lines.ts";

/** Far more than 63 hashes and a checkpoint with every witness's line. */
export const MAX_ADD_CHECKPOINT_BYTES = 65_536;

/** Body of `POST <prefix>/add-checkpoint` (c2sp.org/tlog-witness). */
export type AddCheckpoint = {
  /** Size up to which the client believes that the witness has cosigned this log; 0: never. */
  readonly old: number;
  /** Consistency proof from `old` to the checkpoint; none from 0. */
  readonly proof: readonly Uint8Array[];
  /** The signed checkpoint, verbatim. */
  readonly checkpoint: string;
};

/**
 * Reads a request, stricter than the witnesses known to us: no proof with `old 0`, no sign, no leading zero. `claimed` is
 * what the checkpoint says of itself; neither signature nor proof is checked. Throws a `NoteError`: 400.
 */
export const parseAddCheckpoint = (body: string | Uint8Array): AddCheckpoint & { readonly claimed: Checkpoint } => {
  const { lines, checkpoint, claimed } = parseProofText(body, MAX_ADD_CHECKPOINT_BYTES);
  const [, decimal = ""] = /^old (.*)$/.exec(lines[0] ?? "") ?? [];
  const old = decodeDecimal(decimal);
  if (old === undefined) throw new NoteError('line 1: "old" and a canonical decimal below 2^53');
  const proof = parseHashLines(lines, 2);
  if (old === 0 && proof.length > 0) throw new NoteError("line 2: there is no proof from size 0");
  if (old > claimed.size) throw new NoteError("line 1: the old size is greater than that of the checkpoint");
  return { old, proof, checkpoint, claimed };
};

/** Writes a request that `parseAddCheckpoint` reads. Throws a `NoteError` for anything else. */
export const formatAddCheckpoint = ({ old, proof, checkpoint }: AddCheckpoint): string => {
  const body = `old ${old}\n${formatHashLines(proof)}\n${checkpoint}`;
  parseAddCheckpoint(body);
  return body;
};
