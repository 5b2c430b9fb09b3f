/** A note, checkpoint or note key that is malformed or fails its check. The message says why and repeats no content. */
export class NoteError extends Error {
  override readonly name = "NoteError";
}

/** The bytes of canonical, padded standard base64, or undefined: one text for each value, so nothing hides in spare bits. */
export const decodeBase64 = (text: string): Buffer | undefined => {
  const bytes = Buffer.from(text, "base64");
  return bytes.toString("base64") === text ? bytes : undefined;
};
