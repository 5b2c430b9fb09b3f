import { type Checkpoint, parseAnyCheckpoint } from "./checkpoint.ts";
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
 * Reads a request, stricter than the witnesses known to us: no sign, no leading zero, no more than 63 hashes, one text for
 * each value. `claimed` is what the checkpoint, of any log, says of itself; whether it is signed, and whether the proof
 * fits, is not looked at. Throws a `NoteError`: 400.
 */
export const parseAddCheckpoint = (body: string | Uint8Array): AddCheckpoint & { readonly claimed: Checkpoint } => {
  const { lines, checkpoint, claimed } = parseProofText(body, MAX_ADD_CHECKPOINT_BYTES, parseAnyCheckpoint);
  const [, decimal = ""] = /^old (.*)$/.exec(lines[0] ?? "") ?? [];
  const old = decodeDecimal(decimal);
  if (old === undefined) throw new NoteError('line 1: "old" and a canonical decimal below 2^53');
  return { old, proof: parseHashLines(lines, 2), checkpoint, claimed };
};

/** Writes a request that `parseAddCheckpoint` reads and no witness refuses for its form. Throws a `NoteError` for anything else. */
export const formatAddCheckpoint = ({ old, proof, checkpoint }: AddCheckpoint): string => {
  const body = `old ${old}\n${formatHashLines(proof)}\n${checkpoint}`;
  const { claimed } = parseAddCheckpoint(body);
  if (old === 0 && proof.length > 0) throw new NoteError("there is no proof from size 0");
  if (old > claimed.size) throw new NoteError("the old size is greater than that of the checkpoint");
  return body;
};
