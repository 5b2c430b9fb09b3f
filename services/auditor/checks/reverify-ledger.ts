import { hash } from "node:crypto";
import { DriftCause } from "@curfew/contracts/gen/curfew/events/v1/evidence_pb.ts";
import { CHECKPOINT_PATH, type LogFiles } from "@curfew/ledger/directory.ts";
import { sameHash } from "@curfew/ledger/hash.ts";
import { parseTilePath, TILE_WIDTH, tilePath } from "@curfew/ledger/tile.ts";
import { emptyEdge, growTiles, type TileFile } from "@curfew/ledger/tile-writer.ts";
import type { BatchDoc, Seal, Shard } from "../domain.ts";
import type { Ledger } from "../ledger.ts";
import type { ShardFiles } from "../public-log/shard-files.ts";
import type { Drift } from "./drift.ts";
import type { DriftLog } from "./drift-log.ts";
import type { Compared } from "./passes.ts";

const hex = (bytes: Uint8Array) => Buffer.from(bytes).toString("hex");
const sha256 = (bytes: Uint8Array) => hash("sha256", bytes, "hex");

/** Whether a tree of `size` has the full tile of a partial one, which may go then. */
const isOutgrown = (path: string, size: number): boolean => {
  const { level, index, width } = parseTilePath(path);
  const below = level === "entries" ? size : Math.floor(size / TILE_WIDTH ** level);
  return width < TILE_WIDTH && (index + 1) * TILE_WIDTH <= below;
};

const driftOfFile = ({ year }: Shard, path: string, expected: string, seen: string): Drift => {
  return { cause: DriftCause.LEDGER_FILE, topic: "", setting: `${year}/${path}`, expected, seen };
};

/** The checkpoint that is published of a shard, or what is wrong with it. */
const openPublished = async (files: LogFiles, seal: Seal, shard: Shard) => {
  const bytes = (await files.read(CHECKPOINT_PATH)) ?? new Uint8Array();
  if (bytes.length === 0) return undefined;
  try {
    return seal.open(shard, Buffer.from(bytes).toString());
  } catch {
    return driftOfFile(shard, CHECKPOINT_PATH, "a checkpoint that this ledger signed", sha256(bytes));
  }
};

/** Whether the full tile stands there: the log has grown since the pass began, and the partial one went before the checkpoint told. */
const isReplaced = async (files: LogFiles, path: string): Promise<boolean> => {
  const { level, index, width } = parseTilePath(path);
  return width < TILE_WIDTH && (await files.read(tilePath({ level, index, width: TILE_WIDTH }))) !== undefined;
};

/** Undefined where the file is as the staged batches lead to; `size`: of the shard's published tree. */
const compareFile = async (
  files: LogFiles,
  { path, bytes }: TileFile,
  shard: Shard,
  size: number,
): Promise<Drift | undefined> => {
  const there = await files.read(path);
  if (there ? Buffer.compare(there, bytes) === 0 : isOutgrown(path, size) || (await isReplaced(files, path)))
    return undefined;
  return driftOfFile(shard, path, sha256(bytes), there ? sha256(there) : "");
};

/**
 * One pass over every staged batch: each is made again and compared with itself, its checkpoint and the batch before it, and the published files
 * with what the batches lead to, up to the checkpoint that is published as the pass comes to the shard. Answers the entries compared. Rejects with
 * LedgerBroken.
 */
export const reverifyLedger = async (
  parts: {
    readonly ledger: Pick<Ledger, "verifyAll">;
    readonly seal: Seal;
    readonly files: ShardFiles | undefined;
    readonly drifts: Pick<DriftLog, "found" | "settle">;
  },
  compared: Compared,
  signal: AbortSignal,
): Promise<number> => {
  const { ledger, seal, files, drifts } = parts;
  let found: Drift | undefined;
  const report = async (drift: Drift | undefined) => {
    if (drift && !found) await drifts.found(drift);
    found ??= drift;
  };
  let before: BatchDoc | undefined;
  let upTo: ReturnType<Seal["open"]> | undefined;
  let edge = emptyEdge;
  let size = 0;
  const enter = async (next: Shard, from: LogFiles) => {
    const published = await openPublished(from, seal, next);
    if (published && "seen" in published) await report(published);
    upTo = published && "root" in published ? published : undefined;
    edge = emptyEdge;
  };
  /** What is published of a shard says that the one before it, which ended with `last`, is whole: nobody will mend its checkpoint. */
  const assertWhole = async ({ shard, size, root }: BatchDoc, its: LogFiles) => {
    const standing = await openPublished(its, seal, shard);
    if (standing && "seen" in standing) return await report(standing);
    if (standing?.size === size && sameHash(standing.root, root)) return;
    await report(driftOfFile(shard, CHECKPOINT_PATH, hex(root), standing ? hex(standing.root) : ""));
  };
  await ledger.verifyAll(async ({ doc, nodes, head, number }) => {
    const last = before;
    before = doc;
    size = head.size;
    await compared(doc.leaves.length, `batch ${number}`);
    if (!files) return;
    const its = files(head.shard.year);
    if (last?.shard.year !== head.shard.year) {
      await enter(head.shard, its);
      if (last && upTo) await assertWhole(last, files(last.shard.year));
    }
    if (!upTo || head.size > upTo.size) return;
    if (head.size === upTo.size && !sameHash(upTo.root, doc.root))
      await report(driftOfFile(head.shard, CHECKPOINT_PATH, hex(doc.root), hex(upTo.root)));
    const grown = growTiles(edge, doc.leaves, nodes);
    edge = grown.edge;
    const inShard = upTo.size - head.shard.first;
    for (const file of grown.files) await report(await compareFile(its, file, head.shard, inShard));
  }, signal);
  signal.throwIfAborted();
  await drifts.settle(({ cause }) => cause === DriftCause.LEDGER_FILE, found ? [found] : []);
  return size;
};
