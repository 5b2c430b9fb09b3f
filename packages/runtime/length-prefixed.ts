/** Concatenates parts, each behind its length (u32 big-endian; text as UTF-8), so that no two lists of parts give the same bytes. */
export const lengthPrefixed = (...parts: readonly (string | Uint8Array)[]): Buffer => {
  let total = 0;
  for (const part of parts) total += 4 + Buffer.byteLength(part);
  const bytes = Buffer.allocUnsafe(total);
  let at = 0;
  for (const part of parts) {
    const length = Buffer.byteLength(part);
    bytes.writeUInt32BE(length, at);
    at += 4;
    if (typeof part === "string") bytes.write(part, at, "utf8");
    else bytes.set(part, at);
    at += length;
  }
  return bytes;
};
