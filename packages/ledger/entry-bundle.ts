import { MAX_ENTRY_BYTES } from "./hash.ts";
import { NoteError } from "./note-error.ts";
import { TILE_WIDTH } from "./tile.ts";

const LENGTH_BYTES = 2;

/** One entry as it stands in a bundle: its length in 16 bits, big-endian, and its bytes. Throws a RangeError past `MAX_ENTRY_BYTES`. */
export const encodeEntry = (entry: Uint8Array): Buffer => {
  if (entry.length > MAX_ENTRY_BYTES) throw new RangeError(`a ledger entry has at most ${MAX_ENTRY_BYTES} bytes`);
  const bytes = Buffer.allocUnsafe(LENGTH_BYTES + entry.length);
  bytes.writeUInt16BE(entry.length, 0);
  bytes.set(entry, LENGTH_BYTES);
  return bytes;
};

/** The entry bundle (c2sp.org/tlog-tiles) of 1 to 256 entries. Throws a RangeError for anything else. */
export const encodeBundle = (entries: readonly Uint8Array[]): Buffer => {
  if (entries.length === 0 || entries.length > TILE_WIDTH)
    throw new RangeError(`an entry bundle has 1 to ${TILE_WIDTH} entries`);
  return Buffer.concat(entries.map(encodeEntry));
};

/** The entries of a bundle of exactly `width`. They share its bytes. Throws a `NoteError`. */
export const decodeBundle = (bundle: Uint8Array, width: number): Uint8Array[] => {
  const entries: Uint8Array[] = [];
  let at = 0;
  while (entries.length < width) {
    const where = `entry ${entries.length + 1} of ${width}`;
    if (at === bundle.length) throw new NoteError(`${where} is missing`);
    if (at + LENGTH_BYTES > bundle.length) throw new NoteError(`${where} ends within its length`);
    const length = ((bundle[at] as number) << 8) | (bundle[at + 1] as number);
    at += LENGTH_BYTES;
    if (at + length > bundle.length) throw new NoteError(`${where} ends within its bytes`);
    entries.push(bundle.subarray(at, at + length));
    at += length;
  }
  if (at !== bundle.length) throw new NoteError(`${bundle.length - at} surplus bytes after entry ${width} of ${width}`);
  return entries;
};
