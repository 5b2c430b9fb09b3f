import { leafHash } from "./hash.ts";
import { emptyEdge, growTiles, type RightEdge } from "./tile-writer.ts";
import { Frontier } from "./tree.ts";

/** Where tiles begin, end and are one over, on two levels. */
export const edgeSizes = [0, 1, 2, 255, 256, 257, 65_535, 65_536, 65_537, 70_001];

/** Entry `i` of the log that Tessera's driver was made to write: its roots at 70,000 and 70,500 are known. */
export const entryOf = (i: number): Buffer => Buffer.from(`entry ${String(i).padStart(8, "0")} of the test log`);

/** Adds `leaves` as one batch: the files to write, and everything after it. */
export const growLog = (edge: RightEdge, before: Frontier, leaves: readonly Uint8Array[]) => {
  const frontier = before.copy();
  const nodes = leaves.map((leaf) => {
    const completed: Uint8Array[] = [];
    frontier.append(leafHash(leaf), (_level, _index, node) => completed.push(node));
    return Buffer.concat(completed);
  });
  return { ...growTiles(edge, leaves, nodes), frontier };
};

/** The files of a log of test entries that published each of `sizes` (ascending), with the root and the edge at each. */
export const writeLog = (sizes: readonly number[], entry = entryOf) => {
  const files = new Map<string, Uint8Array>();
  const roots = new Map<number, Uint8Array>();
  const edges = new Map<number, RightEdge>();
  let edge = emptyEdge;
  let frontier = new Frontier();
  for (const size of sizes) {
    const leaves = Array.from({ length: size - edge.size }, (_, i) => entry(edge.size + i));
    const grown = growLog(edge, frontier, leaves);
    for (const { path, bytes } of grown.files) {
      if (files.has(path)) throw new Error(`${path} is written twice`);
      files.set(path, bytes);
    }
    edge = grown.edge;
    frontier = grown.frontier;
    edges.set(size, edge);
    roots.set(size, frontier.root());
  }
  return {
    files,
    read: (path: string) => files.get(path),
    rootAt: (size: number) => roots.get(size) as Uint8Array,
    edgeAt: (size: number) => edges.get(size) as RightEdge,
  };
};
