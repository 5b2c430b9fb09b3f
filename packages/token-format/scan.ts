import { parseSecret, SECRET_LENGTH, SECRET_PATTERN, type SecretKind } from "./secret.ts";

/** Larger pieces are refused: they belong through a `SecretScanner`, in parts. */
export const MAX_CHUNK_LENGTH = 64 * 1024 * 1024;

/** A secret found in plain text. `offset` counts bytes for bytes, UTF-16 units for a string. Hash it, then forget it. */
export type FoundSecret = { readonly offset: number; readonly kind: SecretKind; readonly secret: string };

const textOf = (chunk: string | Uint8Array): string => {
  if (chunk.length > MAX_CHUNK_LENGTH) throw new RangeError(`a chunk to scan has at most ${MAX_CHUNK_LENGTH} bytes`);
  // Latin-1 keeps one character a byte, so offsets hold in any encoding that contains ASCII.
  return typeof chunk === "string"
    ? chunk
    : Buffer.from(chunk.buffer, chunk.byteOffset, chunk.byteLength).toString("latin1");
};

/** Every secret lying whole in `chunk`, in order. What surrounds it does not matter: the checksum tells, not a word boundary. */
export const findSecrets = (chunk: string | Uint8Array): FoundSecret[] => {
  const text = textOf(chunk);
  const pattern = new RegExp(SECRET_PATTERN, "g");
  const found: FoundSecret[] = [];
  for (let match = pattern.exec(text); match !== null; match = pattern.exec(text)) {
    const parsed = parseSecret(match[0]);
    if (parsed.ok) found.push({ offset: match.index, kind: parsed.kind, secret: match[0] });
    // Noise of the right shape may end in the first letters of a real one.
    else pattern.lastIndex = match.index + 1;
  }
  return found;
};

/** `findSecrets` over a stream: finds each secret once, also across chunks of any size; offsets are bytes from the stream's start. */
export class SecretScanner {
  #tail = "";
  #tailOffset = 0;

  /** The secrets that end in this chunk. */
  push(chunk: Uint8Array): FoundSecret[] {
    const text = this.#tail + textOf(chunk);
    const base = this.#tailOffset;
    // One character short of a secret: nothing already reported can be found again.
    const keep = Math.min(text.length, SECRET_LENGTH - 1);
    this.#tail = text.slice(text.length - keep);
    this.#tailOffset = base + text.length - keep;
    return findSecrets(text).map((hit) => ({ ...hit, offset: base + hit.offset }));
  }
}
