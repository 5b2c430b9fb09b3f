/**
 * A note, key, checkpoint, proof, policy, tile or bundle that is malformed or fails its check. The message says where
 * (a line, counted from 1, or an entry) and which rule was broken, and repeats no content.
 */
export class NoteError extends Error {
  override readonly name = "NoteError";
}

/** What `read` answers; a `NoteError` of its own says `where` first. */
export const within = <T>(where: string, read: () => T): T => {
  try {
    return read();
  } catch (error) {
    if (!(error instanceof NoteError)) throw error;
    throw new NoteError(`${where}: ${error.message}`, { cause: error });
  }
};

/** The bytes of canonical, padded standard base64, or undefined: one text for each value, so nothing hides in spare bits. */
export const decodeBase64 = (text: string): Buffer | undefined => {
  const bytes = Buffer.from(text, "base64");
  return bytes.toString("base64") === text ? bytes : undefined;
};

/** The number that `text` is the canonical decimal of, or undefined; below 2^53. */
export const decodeDecimal = (text: string): number | undefined => {
  const value = /^(?:0|[1-9][0-9]{0,15})$/.test(text) ? Number(text) : undefined;
  return Number.isSafeInteger(value) ? value : undefined;
};
