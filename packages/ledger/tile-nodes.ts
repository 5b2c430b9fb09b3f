import { isCount, nodeHash, sameHash } from "./hash.ts";
import { NoteError } from "./note-error.ts";
import { decodeTile, type ReadTile, readTileItems, TILE_HEIGHT, TILE_WIDTH, tilePath } from "./tile.ts";
import { type NodeAddress, type ReadNodes, treeRoot } from "./tree.ts";

/** `rows[h]`: the hashes of the complete subtrees over 2^h hashes of a tile each; `rows[0]` is the tile itself. */
type Rows = readonly (readonly Uint8Array[])[];

type ReadRows = (level: number, index: number) => Promise<Rows>;

/** Tiles kept by `verifiedNodes`: neighbours share all but the lowest. */
const KEPT_TILES = 64;

const rowsOf = (hashes: readonly Uint8Array[]): Rows => {
  const rows = [hashes];
  for (let row = hashes; row.length > 1; rows.push(row)) {
    const below = row;
    row = Array.from({ length: Math.floor(below.length / 2) }, (_, i) =>
      nodeHash(below[2 * i] as Uint8Array, below[2 * i + 1] as Uint8Array),
    );
  }
  return rows;
};

/** How many hashes the tree of `size` leaves has at a level of tiles, and how many of them the tile `index` has. */
const rowWidth = (size: number, level: number): number => Math.floor(size / TILE_WIDTH ** level);
const tileWidth = (size: number, level: number, index: number): number =>
  Math.min(TILE_WIDTH, rowWidth(size, level) - index * TILE_WIDTH);

const nodesFrom =
  (size: number, readRows: ReadRows): ReadNodes =>
  async (nodes) => {
    // One read of each tile, however many of its nodes are asked for.
    const read = new Map<string, Promise<Rows>>();
    const nodeOf = async (node: NodeAddress): Promise<Uint8Array> => {
      if (!isCount(node.level) || !isCount(node.index) || (node.index + 1) * 2 ** node.level > size)
        throw new RangeError(`no complete node ${node.level}/${node.index} in a tree of size ${size}`);
      const level = Math.floor(node.level / TILE_HEIGHT);
      const height = node.level % TILE_HEIGHT;
      const perTile = TILE_WIDTH / 2 ** height;
      const index = Math.floor(node.index / perTile);
      const rows = read.get(`${level}/${index}`) ?? readRows(level, index);
      read.set(`${level}/${index}`, rows);
      return (await rows)[height]?.[node.index % perTile] as Uint8Array;
    };
    return Promise.all(nodes.map(nodeOf));
  };

const rowsIn =
  (size: number, readTile: ReadTile): ReadRows =>
  async (level, index) =>
    rowsOf(await readTileItems({ level, index, width: tileWidth(size, level, index) }, readTile, decodeTile));

/**
 * The nodes of the tree of `size` leaves out of its tiles, as they are: for a store that is trusted, or to be compared.
 * Rejects with a `NoteError` for a tile that is missing or has a wrong length, a RangeError for a node not in the tree.
 */
export const tileNodes = (size: number, readTile: ReadTile): ReadNodes => nodesFrom(size, rowsIn(size, readTile));

/**
 * The same, out of tiles that nobody vouches for: the partial tiles must lead to the trusted `root`, and every other tile
 * that is used, to its hash in the tile above it, which is checked likewise (CVE-2026-56865 left some tiles out). Rejects
 * with a `NoteError` that names the tile. Up to 64 checked tiles are kept in memory.
 */
export const verifiedNodes = (size: number, root: Uint8Array, readTile: ReadTile): ReadNodes => {
  const readRows = rowsIn(size, readTile);
  const kept = new Map<string, Promise<Rows>>();

  const keep = (key: string, make: () => Promise<Rows>): Promise<Rows> => {
    const rows = kept.get(key) ?? make();
    // Moved to the young end; one that failed is read again when it is asked for again.
    kept.delete(key);
    kept.set(key, rows);
    rows.catch(() => kept.get(key) === rows && kept.delete(key));
    if (kept.size > KEPT_TILES) kept.delete(kept.keys().next().value as string);
    return rows;
  };

  // The frontier is every hash of every partial tile, and its fold the root: all of them are checked in one.
  let edge: Promise<Map<string, Rows>> | undefined;
  const readEdge = async (): Promise<Map<string, Rows>> => {
    const partial = new Map<string, Rows>();
    const nodes = nodesFrom(size, async (level, index) => {
      const rows = await readRows(level, index);
      partial.set(`${level}/${index}`, rows);
      return rows;
    });
    if (!sameHash(await treeRoot(size, nodes), root))
      throw new NoteError(`the partial tiles do not lead to the root of size ${size}`);
    return partial;
  };

  const checkedRows: ReadRows = async (level, index) => {
    edge ??= readEdge();
    const partial = await edge.catch((error: unknown) => {
      edge = undefined;
      throw error;
    });
    const ofEdge = partial.get(`${level}/${index}`);
    if (ofEdge !== undefined) return ofEdge;
    return keep(`${level}/${index}`, async () => {
      const [above, rows] = await Promise.all([
        checkedRows(level + 1, Math.floor(index / TILE_WIDTH)),
        readRows(level, index),
      ]);
      const [own] = rows[TILE_HEIGHT] ?? [];
      const stated = above[0]?.[index % TILE_WIDTH];
      if (own === undefined || stated === undefined || !sameHash(own, stated))
        throw new NoteError(`${tilePath({ level, index, width: TILE_WIDTH })}: not what the tile above it says`);
      return rows;
    });
  };

  return nodesFrom(size, checkedRows);
};
