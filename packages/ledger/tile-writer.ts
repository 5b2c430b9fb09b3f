import { decodeBundle, encodeEntry } from "./entry-bundle.ts";
import { HASH_BYTES, isHash, leafHash, sameHash } from "./hash.ts";
import { NoteError } from "./note-error.ts";
import {
  decodeTile,
  type ReadTile,
  readTileItems,
  TILE_HEIGHT,
  TILE_WIDTH,
  type TileAddress,
  tilePath,
} from "./tile.ts";
import { tileNodes } from "./tile-nodes.ts";
import { treeRoot } from "./tree.ts";

/** The partial tiles of a tree of `size` leaves: all that it takes to write the next ones. At most 17 MB, with entries of 64 KB. */
export type RightEdge = {
  readonly size: number;
  /** Bytes of the partial entry bundle; none where there is no such bundle. */
  readonly entries: Uint8Array;
  /** Bytes of the partial tile of each level; likewise. */
  readonly tiles: readonly Uint8Array[];
};

/** A file to write: never with other bytes than these under this path, whoever writes it. */
export type TileFile = { readonly path: string; readonly bytes: Uint8Array };

const nothing = Buffer.alloc(0);

export const emptyEdge: RightEdge = { size: 0, entries: nothing, tiles: [] };

/** Items go after the `count` that a row has, of which `tail` is the partial tile. */
const growRow = (level: TileAddress["level"], count: number, tail: Uint8Array, items: readonly Uint8Array[]) => {
  const files: TileFile[] = [];
  let index = Math.floor(count / TILE_WIDTH);
  let open = tail;
  let start = 0;
  for (let end = TILE_WIDTH - (count % TILE_WIDTH); end <= items.length; end += TILE_WIDTH) {
    const bytes = Buffer.concat([open, ...items.slice(start, end)]);
    files.push({ path: tilePath({ level, index, width: TILE_WIDTH }), bytes });
    open = nothing;
    start = end;
    index += 1;
  }
  if (start < items.length) {
    open = Buffer.concat([open, ...items.slice(start)]);
    files.push({ path: tilePath({ level, index, width: (count + items.length) % TILE_WIDTH }), bytes: open });
  }
  return { files, tail: open };
};

/**
 * The files by which a tree grows by `leaves`, those of `tilesWritten`, and the edge after it. `nodes`: for each leaf the
 * hashes of the subtrees that it completes, its own first, joined, as `Frontier.append` reports them; they are believed.
 * A function of the leaves and of the sizes at which it was called: all writers of the same batches write the same bytes.
 * Throws a RangeError where `nodes` are not of as many subtrees as `leaves` complete.
 */
export const growTiles = (
  edge: RightEdge,
  leaves: readonly Uint8Array[],
  nodes: readonly Uint8Array[],
): { readonly files: TileFile[]; readonly edge: RightEdge } => {
  // Of the nodes that a leaf completes, every eighth is a hash of a tile, one level up each.
  const hashOf = (joined: Uint8Array, level: number) =>
    joined.subarray(level * TILE_HEIGHT * HASH_BYTES).subarray(0, HASH_BYTES);
  const size = edge.size + leaves.length;
  const bundles = growRow("entries", edge.size, edge.entries, leaves.map(encodeEntry));
  const files = bundles.files;
  const tiles: Uint8Array[] = [];
  for (let [level, before, after] = [0, edge.size, size]; after > 0; level += 1) {
    const added = nodes.map((joined) => hashOf(joined, level)).filter(isHash);
    if (added.length !== after - before) throw new RangeError("these are not the nodes that the leaves complete");
    const grown = growRow(level, before, edge.tiles[level] ?? nothing, added);
    files.push(...grown.files);
    tiles.push(grown.tail);
    before = Math.floor(before / TILE_WIDTH);
    after = Math.floor(after / TILE_WIDTH);
  }
  return { files, edge: { size, entries: bundles.tail, tiles } };
};

/**
 * Reads the edge of the tree of `size` leaves back from its files: the partial tiles, or the full ones that replaced them.
 * Rejects with a `NoteError` unless they lead to `root` and the entries of the bundle to their hashes.
 */
export const readEdge = async (size: number, root: Uint8Array, readTile: ReadTile): Promise<RightEdge> => {
  const read = new Map<string, Uint8Array>();
  const readRow = async (level: TileAddress["level"], count: number): Promise<Uint8Array[]> => {
    const address = { level, index: Math.floor(count / TILE_WIDTH), width: count % TILE_WIDTH };
    if (address.width === 0) return [];
    const items = await readTileItems(address, readTile, level === "entries" ? decodeBundle : decodeTile);
    read.set(tilePath(address), Buffer.concat(items));
    return items;
  };
  const tiles: Uint8Array[] = [];
  for (let count = size; count > 0; count = Math.floor(count / TILE_WIDTH))
    tiles.push(Buffer.concat(await readRow(tiles.length, count)));
  if (
    !sameHash(
      await treeRoot(
        size,
        tileNodes(size, (path) => read.get(path)),
      ),
      root,
    )
  )
    throw new NoteError(`the partial tiles do not lead to the root of size ${size}`);
  const entries = await readRow("entries", size);
  if (!sameHash(Buffer.concat(entries.map(leafHash)), tiles[0] ?? nothing))
    throw new NoteError("the entries of the partial bundle are not those of its tile");
  return { size, entries: Buffer.concat(entries.map(encodeEntry)), tiles };
};
