/** Concatenates parts, each behind its length (u32 big-endian; text as UTF-8), so that no two lists of parts give the same bytes. */
export const lengthPrefixed = (...parts: readonly (string | Uint8Array)[]): Buffer => {
  const pieces: Uint8Array[] = [];
  for (const part of parts) {
    const bytes = typeof part === "string" ? Buffer.from(part, "utf8") : part;
    const length = Buffer.alloc(4);
    length.writeUInt32BE(bytes.length);
    pieces.push(length, bytes);
  }
  return Buffer.concat(pieces);
};
