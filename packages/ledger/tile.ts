import { HASH_BYTES, isCount, isHash } from "./hash.ts";
import { decodeDecimal, NoteError, within } from "./note-error.ts";

/** The most hashes of a tile and entries of a bundle. */
export const TILE_WIDTH = 256;
/** A tile stands for a subtree of this height: row 0 of level L are the tree's nodes of level 8·L. */
export const TILE_HEIGHT = 8;
const MAX_LEVEL = 63;
const MAX_PATH_LENGTH = 64;

/**
 * A tile of hashes, or under level "entries" the bundle of the entries that tile `index` of level 0 has the hashes of.
 * `width` 1 to 256: fewer than 256 is a partial tile, at the right edge of the tree of some size.
 */
export type TileAddress = { readonly level: number | "entries"; readonly index: number; readonly width: number };

/** The bytes under a path of c2sp.org/tlog-tiles; undefined: there is no such file. */
export type ReadTile = (path: string) => Uint8Array | undefined | Promise<Uint8Array | undefined>;

/** `tile/<L>/<N>[.p/<W>]` of c2sp.org/tlog-tiles. Throws a RangeError for what is no address. */
export const tilePath = ({ level, index, width }: TileAddress): string => {
  const isLevel = level === "entries" || (isCount(level) && level <= MAX_LEVEL);
  if (!isLevel || !isCount(index) || !isCount(width) || width === 0 || width > TILE_WIDTH)
    throw new RangeError("not the address of a tile");
  const digits = String(index);
  const groups = digits.padStart(Math.ceil(digits.length / 3) * 3, "0").replace(/.{3}(?=.)/g, "x$&/");
  return `tile/${level}/${groups}${width === TILE_WIDTH ? "" : `.p/${width}`}`;
};

const pathPattern = /^tile\/(entries|[0-9]{1,2})\/((?:x[0-9]{3}\/)*[0-9]{3})(?:\.p\/([0-9]{1,3}))?$/;

/** Reads exactly what `tilePath` writes. Throws a `NoteError`. */
export const parseTilePath = (path: string): TileAddress => {
  const match = path.length <= MAX_PATH_LENGTH ? pathPattern.exec(path) : null;
  if (match === null) throw new NoteError("a tile's path is tile/<L>/<N> or tile/<L>/<N>.p/<W>");
  const [, levelText = "", groups = "", widthText] = match;
  const level = levelText === "entries" ? levelText : decodeDecimal(levelText);
  if (level === undefined || (level !== "entries" && level > MAX_LEVEL))
    throw new NoteError(`a tile's level is "entries" or 0 to ${MAX_LEVEL}, without leading zeros`);
  const index = Number(groups.replace(/[x/]/g, ""));
  if (!isCount(index)) throw new NoteError("a tile's index is below 2^53");
  if (groups.startsWith("x000/")) throw new NoteError("a tile's index has no more groups of digits than it needs");
  const width = widthText === undefined ? TILE_WIDTH : decodeDecimal(widthText);
  if (width === undefined || width === 0 || (widthText !== undefined && width >= TILE_WIDTH))
    throw new NoteError(`a partial tile's width is 1 to ${TILE_WIDTH - 1}, without leading zeros`);
  return { level, index, width };
};

/**
 * The tiles and bundles that a tree of `newer` leaves has and one of `older` has not, each level from left to right,
 * "entries" first: full ones that the growth completes and the partial ones of the new size. Throws a RangeError.
 */
export function* tilesWritten(older: number, newer: number): Generator<TileAddress> {
  if (!isCount(older) || !isCount(newer) || older > newer) throw new RangeError(`no growth from ${older} to ${newer}`);
  yield* tilesOfRow("entries", older, newer);
  for (let [level, from, to] = [0, older, newer]; to > 0; level += 1) {
    yield* tilesOfRow(level, from, to);
    from = Math.floor(from / TILE_WIDTH);
    to = Math.floor(to / TILE_WIDTH);
  }
}

function* tilesOfRow(level: TileAddress["level"], older: number, newer: number): Generator<TileAddress> {
  if (older === newer) return;
  const full = Math.floor(newer / TILE_WIDTH);
  for (let index = Math.floor(older / TILE_WIDTH); index < full; index += 1) yield { level, index, width: TILE_WIDTH };
  if (newer % TILE_WIDTH > 0) yield { level, index: full, width: newer % TILE_WIDTH };
}

/** All tiles and bundles of a tree of `size` leaves, in the order of `tilesWritten`. */
export const tilesAt = (size: number): Generator<TileAddress> => tilesWritten(0, size);

/** The bytes of a tile of 1 to 256 hashes. Throws a RangeError for anything else. */
export const encodeTile = (hashes: readonly Uint8Array[]): Buffer => {
  if (hashes.length === 0 || hashes.length > TILE_WIDTH || !hashes.every(isHash))
    throw new RangeError(`a tile has 1 to ${TILE_WIDTH} hashes`);
  return Buffer.concat(hashes);
};

/** The hashes of a tile that is exactly `width` wide. They share its bytes. Throws a `NoteError`. */
export const decodeTile = (bytes: Uint8Array, width: number): Uint8Array[] => {
  if (bytes.length !== width * HASH_BYTES)
    throw new NoteError(`a tile ${width} wide has ${width * HASH_BYTES} bytes, not ${bytes.length}`);
  return Array.from({ length: width }, (_, i) => bytes.subarray(i * HASH_BYTES, (i + 1) * HASH_BYTES));
};

/**
 * What `decode` makes of the file at `address`, of its first `width` items. Where the partial file is gone, out of the
 * full one, which may replace it; its surplus is dropped only after it was read whole. Rejects with a `NoteError` that names the path.
 */
export const readTileItems = async (
  address: TileAddress,
  readTile: ReadTile,
  decode: (bytes: Uint8Array, width: number) => Uint8Array[],
): Promise<Uint8Array[]> => {
  for (const width of new Set([address.width, TILE_WIDTH])) {
    const path = tilePath({ ...address, width });
    const bytes = await readTile(path);
    if (bytes !== undefined) return within(path, () => decode(bytes, width)).slice(0, address.width);
  }
  throw new NoteError(`${tilePath(address)}: missing`);
};
