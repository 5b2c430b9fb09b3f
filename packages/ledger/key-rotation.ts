import { openNote, signNote } from "./note.ts";
import { NoteError } from "./note-error.ts";
import { type NoteSigner, parseVerifierKey } from "./note-key.ts";

/** That a log's key is followed by another: stated as a signed note by both. */
export interface KeyRotation {
  /** The log's, and the name of both keys. */
  readonly origin: string;
  /** Verifier key texts. */
  readonly oldKey: string;
  readonly newKey: string;
  /** Leaves of the log when it was stated. */
  readonly size: number;
}

/** Its first line is no key name, so it is never the text of a checkpoint that the same keys sign. */
const textOf = ({ origin, oldKey, newKey, size }: KeyRotation): string =>
  `curfew-ledger-key-rotation/v1\n${origin}\n${oldKey}\n${newKey}\n${size}\n`;

/** Throws a `NoteError` unless `signers` are of those keys. */
export const signKeyRotation = (rotation: KeyRotation, signers: readonly [NoteSigner, NoteSigner]): string => {
  const statement = signNote(textOf(rotation), signers);
  checkKeyRotation(rotation, statement);
  return statement;
};

/** Throws a `NoteError` unless `statement` says `rotation`, and both keys, which are two and the log's, have signed it. */
export const checkKeyRotation = (rotation: KeyRotation, statement: string): void => {
  const keys = [rotation.oldKey, rotation.newKey].map(parseVerifierKey);
  if (keys.some(({ name }) => name !== rotation.origin)) throw new NoteError("a key that rotates is the log's");
  const { text, signatures } = openNote(statement, keys);
  if (text !== textOf(rotation)) throw new NoteError("the statement is of another rotation");
  for (const { keyId } of keys)
    if (!signatures.some((signature) => signature.keyId === keyId))
      throw new NoteError("a rotation is signed by both keys");
};
