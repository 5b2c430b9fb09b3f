import { decodeBase64, NoteError } from "./note-error.ts";
import { isKeyName, type NoteSigner, type NoteVerifier } from "./note-key.ts";

/** As in Go's `note` package, so that no note is valid for one of us only. */
export const MAX_NOTE_BYTES = 1_000_000;
export const MAX_NOTE_SIGNATURES = 100;
const KEY_ID_BYTES = 4;

/** One signature line: who says to have signed, and the bytes after the 4-byte key id. */
export type NoteSignature = { readonly name: string; readonly keyId: number; readonly signature: Uint8Array };

/** A note taken apart, nothing checked. `text` ends in a line feed. */
export type Note = { readonly text: string; readonly signatures: readonly NoteSignature[] };

const decoder = new TextDecoder("utf-8", { fatal: true, ignoreBOM: true });

/** Text out of UTF-8 bytes, or a string that has such. Throws a `NoteError`. */
export const decodeUtf8 = (text: string | Uint8Array): string => {
  if (typeof text === "string") {
    if (!text.isWellFormed()) throw new NoteError("not UTF-8");
    return text;
  }
  try {
    return decoder.decode(text);
  } catch {
    throw new NoteError("not UTF-8");
  }
};

const checkText = (text: string): void => {
  // biome-ignore lint/suspicious/noControlCharactersInRegex: they are what the format forbids
  if (/[\x00-\x09\x0b-\x1f]/.test(text)) throw new NoteError("a note has no control characters");
};

const parseSignatureLine = (line: string, at: number): NoteSignature => {
  const [dash, name = "", encoded = "", ...more] = line.split(" ", 4);
  const bytes = decodeBase64(encoded);
  if (dash !== "—" || !isKeyName(name) || more.length > 0 || bytes === undefined || bytes.length <= KEY_ID_BYTES)
    throw new NoteError(`signature line ${at + 1} is malformed`);
  return { name, keyId: bytes.readUInt32BE(0), signature: bytes.subarray(KEY_ID_BYTES) };
};

/** Takes a C2SP signed note apart at its last blank line. Throws a `NoteError` for anything malformed or too large. */
export const parseNote = (note: string | Uint8Array): Note => {
  // A string never has fewer bytes than UTF-16 units: checked first, an oversized one is not even encoded.
  if (note.length > MAX_NOTE_BYTES || Buffer.byteLength(note) > MAX_NOTE_BYTES)
    throw new NoteError(`a note has at most ${MAX_NOTE_BYTES} bytes`);
  const whole = decodeUtf8(note);
  checkText(whole);
  const split = whole.lastIndexOf("\n\n");
  if (split < 0 || !whole.endsWith("\n")) throw new NoteError("a note is text, a blank line, and signature lines");
  const lines = whole.slice(split + 2, -1).split("\n", MAX_NOTE_SIGNATURES + 1);
  if (lines.length > MAX_NOTE_SIGNATURES) throw new NoteError(`a note has at most ${MAX_NOTE_SIGNATURES} signatures`);
  return { text: whole.slice(0, split + 1), signatures: lines.map(parseSignatureLine) };
};

/** The signature line that `parseNote` reads as `signature`, with its line feed. Throws a `NoteError`. */
export const formatSignature = ({ name, keyId, signature }: NoteSignature): string => {
  if (!isKeyName(name)) throw new NoteError("not a key name");
  const id = Buffer.alloc(KEY_ID_BYTES);
  id.writeUInt32BE(keyId);
  return `— ${name} ${Buffer.concat([id, signature]).toString("base64")}\n`;
};

/** Signs `text` (ending in a line feed) by each of `signers`, and returns the whole note. Throws a `NoteError`. */
export const signNote = (text: string, signers: readonly NoteSigner[]): string => {
  checkText(decodeUtf8(text));
  if (!text.endsWith("\n")) throw new NoteError("a note's text ends in a line feed");
  if (signers.length === 0 || signers.length > MAX_NOTE_SIGNATURES)
    throw new NoteError(`a note has 1 to ${MAX_NOTE_SIGNATURES} signatures`);
  const lines = signers.map(({ name, keyId, sign }) => formatSignature({ name, keyId, signature: sign(text) }));
  const note = `${text}\n${lines.join("")}`;
  if (Buffer.byteLength(note) > MAX_NOTE_BYTES) throw new NoteError(`a note has at most ${MAX_NOTE_BYTES} bytes`);
  return note;
};

/** The note with a signature line of `signer` at its end, unless it has one. Throws a `NoteError`. */
export const countersigned = (note: string, signer: NoteSigner): string => {
  const { text, signatures } = parseNote(note);
  const { name, keyId } = signer;
  if (signatures.some((line) => line.name === name && line.keyId === keyId)) return note;
  return `${note}${formatSignature({ name, keyId, signature: signer.sign(text) })}`;
};

const mostNamed = 4;

/** Whose signatures a note says that it has, unchecked, so that people see which key they should have: `NAME+ID`, as keys begin. */
export const claimedSigners = (signatures: readonly NoteSignature[]): string =>
  signatures
    .slice(0, mostNamed)
    .map(({ name, keyId }) => `${name}+${keyId.toString(16).padStart(8, "0")}`)
    .join(", ");

/** A note with at least one good signature; `signatures` are the good ones, in order, and nobody else's. */
export type OpenedNote = Note;

/**
 * Takes a note apart and checks it against the keys we know. Signatures of unknown keys are ignored; one of a known key
 * that fails refuses the whole note, and so does a note that nobody known has signed. Throws a `NoteError`.
 */
export const openNote = (note: string | Uint8Array, verifiers: readonly NoteVerifier[]): OpenedNote => {
  const { text, signatures } = parseNote(note);
  const known = new Map(verifiers.map((verifier) => [`${verifier.name} ${verifier.keyId}`, verifier]));
  if (known.size !== verifiers.length) throw new NoteError("two verifiers have the same name and key id");
  const good: NoteSignature[] = [];
  for (const line of signatures) {
    const verifier = known.get(`${line.name} ${line.keyId}`);
    if (verifier === undefined) continue;
    if (!verifier.verify(text, line.signature)) throw new NoteError("a signature of a known key does not hold");
    good.push(line);
  }
  if (good.length === 0)
    throw new NoteError(`no known key has signed the note; it names ${claimedSigners(signatures)}`);
  return { text, signatures: good };
};
