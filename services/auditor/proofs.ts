import { timestampFromMs } from "@bufbuild/protobuf/wkt";
import type {
  GetCheckpointRequest,
  GetEventRequest,
  ProveConsistencyRequest,
  ProveInclusionRequest,
} from "@curfew/contracts/gen/curfew/auditor/v1/auditor_pb.ts";
import type { Position } from "@curfew/contracts/gen/curfew/events/v1/common_pb.ts";
import type { Collection } from "@curfew/document-store/port.ts";
import { emptyRoot, leafHash } from "@curfew/ledger/hash.ts";
import { decodeLeaf } from "@curfew/ledger/leaf.ts";
import { countersigned } from "@curfew/ledger/note.ts";
import { verifyConsistency, verifyInclusion } from "@curfew/ledger/proof.ts";
import { yearOf } from "@curfew/ledger/shard.ts";
import { proveConsistency, proveInclusion, treeRoot } from "@curfew/ledger/tree.ts";
import { RpcError } from "@curfew/rpc/errors.ts";
import { leastOf } from "@curfew/runtime/halving.ts";
import { batchPast } from "./checks/sealed-places.ts";
import { type BatchDoc, LedgerBroken, nextOffset, type Shard } from "./domain.ts";
import { sealedEvent } from "./event-view.ts";
import { checkedRow, type Follower } from "./follower.ts";
import { batchAt } from "./ledger.ts";
import type { LedgerSeal } from "./ledger-keys.ts";
import { type CheckpointRow, checkpointAt, entryAt, eventKey, type ReadModels, readNodes } from "./projections.ts";
import { type OutsideClocks, outsideTimes } from "./public-log/outside-times.ts";

/** Proofs out of the read model. What leaves here was checked here: one that does not hold says that the store was changed. */
export interface ProofParts {
  readonly batches: Pick<Collection<BatchDoc>, "get">;
  readonly models: ReadModels;
  readonly follower: Pick<Follower, "latest">;
  readonly ledger: { readonly seal: Pick<LedgerSeal, "signerAt" | "verifierKeyAt" | "sign" | "open"> };
  readonly clocks: OutsideClocks;
  readonly clock: { now(): number };
}

const notFound = (message: string) => new RpcError({ status: "NOT_FOUND", reason: "EVENT_NOT_FOUND", message });
const notSoFar = (what: string, size: number) =>
  new RpcError({
    status: "OUT_OF_RANGE",
    reason: "LEDGER_SMALLER",
    message: `${what} is past the end: there are ${size} entries`,
  });

/** The leaf of a record: the batch is found by the positions of finished batches, the leaf by looking through it. */
const indexOfPosition = async (parts: ProofParts, latest: CheckpointRow, position: Position): Promise<number> => {
  const { topic, partition } = position;
  const offset = Number(position.offset);
  if (nextOffset(latest.positions, topic, partition) <= offset) throw notFound("no such record has been sealed");
  const low = await batchPast(parts.models.checkpoints, position, offset, { low: 1, latest: latest.batch });
  const doc = await batchAt(parts.batches, low);
  const at = doc.leaves.map(decodeLeaf).findIndex((r) => {
    return r.topic === topic && r.partition === partition && r.offset === offset;
  });
  if (at < 0) throw notFound("no such record has been sealed");
  return doc.first + at;
};

const indexOf = async (parts: ProofParts, latest: CheckpointRow, { which }: GetEventRequest): Promise<number> => {
  if (which.case === "position") return await indexOfPosition(parts, latest, which.value);
  if (which.case === "index") return Number(which.value);
  const row = await parts.models.keys.get(eventKey(which.value ?? ""));
  return row?.index ?? latest.size;
};

/** Of the tree, out of the rows; LedgerBroken where they do not have what it takes. */
const fromRows = async <T>(what: string, make: () => Promise<T>): Promise<T> => {
  try {
    return await make();
  } catch (error) {
    if ((error as Error).name === "StoreUnavailable") throw error;
    throw new LedgerBroken(`${what} cannot be proven`, { cause: error });
  }
};

/** The first batch with which the ledger has `size` leaves or more; `latest` has. */
const rowReaching = async ({ models }: Pick<ProofParts, "models">, latest: CheckpointRow, size: number) => {
  const rowOf = (batch: number) => checkpointAt(models.checkpoints, batch);
  const batch = await leastOf(1, latest.batch, async (each) => (await rowOf(each)).size >= size);
  return batch === latest.batch ? latest : await rowOf(batch);
};

/** The last batch of each shard, the newest first. Throws LedgerBroken for one that is not as it was signed. */
export async function* shardEnds(
  parts: Pick<ProofParts, "models" | "ledger">,
  latest: CheckpointRow,
): AsyncGenerator<CheckpointRow> {
  for (let end = latest; ; ) {
    yield end;
    const { first } = end.shard;
    if (first === 0) return;
    end = checkedRow(parts.ledger.seal, await rowReaching(parts, end, first));
  }
}

/** The last batch of the shard of `year`; undefined: there is no such shard. */
export const endOfShard = async (
  parts: Pick<ProofParts, "models" | "ledger">,
  latest: CheckpointRow,
  year: number,
): Promise<CheckpointRow | undefined> => {
  for await (const end of shardEnds(parts, latest)) if (end.shard.year === year) return end;
  return undefined;
};

const shardView = ({ ledger }: ProofParts, { year, first }: Shard, size: number) => ({
  year,
  first: BigInt(first),
  verifierKey: ledger.seal.verifierKeyAt(year, size),
});

/**
 * A checkpoint, vouched for by the key that signs now: whoever asks has that one. What is countersigned was signed before, or whoever can
 * write to the store had us sign what he likes.
 */
const vouched = ({ ledger }: ProofParts, row: CheckpointRow, latest: CheckpointRow): string => {
  const { shard, checkpoint } = checkedRow(ledger.seal, row);
  return countersigned(checkpoint, ledger.seal.signerAt(shard.year, latest.size));
};

export const getEvent = async (parts: ProofParts, request: GetEventRequest) => {
  const latest = parts.follower.latest();
  if (!latest) throw notFound("nothing has been sealed yet");
  const index = await indexOf(parts, latest, request);
  if (index >= latest.size) throw notFound("no such event has been sealed");
  const row = await entryAt(parts.models.entries, index);
  const { shard } = await checkpointAt(parts.models.checkpoints, row.batch);
  const end = await endOfShard(parts, latest, shard.year);
  if (!end) throw new LedgerBroken(`leaf ${index} is of no shard`);
  const [leaf, size] = [index - shard.first, end.size - shard.first];
  const nodes = readNodes(parts.models.entries, shard);
  const inclusionProof = await fromRows(`leaf ${index}`, () => proveInclusion(leaf, size, nodes));
  if (!verifyInclusion(leaf, size, leafHash(row.leaf), inclusionProof, end.root))
    throw new LedgerBroken(`leaf ${index} is not the one that was sealed`);
  const { notBeforeMs, notAfterMs, stampedMs } = await outsideTimes(parts.clocks, index);
  const outside = {
    ...(notBeforeMs !== undefined && { notBefore: timestampFromMs(notBeforeMs) }),
    ...(notAfterMs !== undefined && { notAfter: timestampFromMs(notAfterMs) }),
    ...(stampedMs !== undefined && { stamped: timestampFromMs(stampedMs) }),
  };
  const view = shardView(parts, shard, latest.size);
  const checkpoint = vouched(parts, end, latest);
  return { event: sealedEvent(row), leaf: row.leaf, inclusionProof, checkpoint, outside, shard: view };
};

export const noShard = (year: number) =>
  new RpcError({ status: "NOT_FOUND", reason: "SHARD_NOT_FOUND", message: `the ledger has no shard of ${year}` });

/** The newest checkpoint of a shard. Before anything was sealed it is of the empty tree. */
export const newestCheckpoint = async (parts: ProofParts, { shard: year }: GetCheckpointRequest) => {
  const latest = parts.follower.latest();
  if (!latest) {
    const shard = { year: yearOf(parts.clock.now()), first: 0 };
    if (year !== 0 && year !== shard.year) throw noShard(year);
    const root = emptyRoot();
    const checkpoint = parts.ledger.seal.sign(shard, 0, root);
    return { checkpoint, size: 0n, root, shard: shardView(parts, shard, 0) };
  }
  const end = year === 0 ? latest : await endOfShard(parts, latest, year);
  if (!end) throw noShard(year);
  const { shard, size, root } = end;
  const checkpoint = vouched(parts, end, latest);
  return { checkpoint, size: BigInt(size - shard.first), root, shard: shardView(parts, shard, latest.size) };
};

/** What a proof is made in: sizes and leaves are the shard's. */
interface Tree {
  readonly latest: CheckpointRow;
  /** The last batch of the shard. */
  readonly end: CheckpointRow;
  readonly size: number;
}

/** Root and checkpoint of the tree of `size`, which is shown to be the beginning of the shard's newest. */
const treeOf = async (parts: ProofParts, size: number, { latest, end }: Tree) => {
  const { shard } = end;
  const newest = end.size - shard.first;
  if (size === newest) return { root: end.root, checkpoint: vouched(parts, end, latest) };
  const nodes = readNodes(parts.models.entries, shard);
  const { root, proof } = await fromRows(`the tree of ${size}`, async () => ({
    root: await treeRoot(size, nodes),
    proof: await proveConsistency(size, newest, nodes),
  }));
  if (!verifyConsistency(size, newest, proof, root, end.root))
    throw new LedgerBroken(`the tree of ${size} in the read model is not the beginning of the newest`);
  const row = await rowReaching(parts, end, shard.first + size);
  return { root, checkpoint: row.size === shard.first + size ? vouched(parts, row, latest) : "" };
};

/** The shard's newest batch, and `wanted` or its size. Throws NOT_FOUND, or OUT_OF_RANGE past it. */
const treeFor = async (parts: ProofParts, year: number, wanted: bigint, field: string): Promise<Tree> => {
  const latest = parts.follower.latest();
  if (!latest) throw notSoFar(`${field} ${wanted}`, 0);
  const end = year === 0 ? latest : await endOfShard(parts, latest, year);
  if (!end) throw noShard(year);
  const size = end.size - end.shard.first;
  if (wanted > BigInt(size)) throw notSoFar(`${field} ${wanted}`, size);
  return { latest, end, size: Number(wanted) || size };
};

const invalidField = (field: string, message: string) =>
  new RpcError({
    status: "INVALID_ARGUMENT",
    reason: "OUTSIDE_TREE",
    message,
    fieldViolations: [{ field, description: message, reason: "OUTSIDE_TREE" }],
  });

export const answerInclusion = async (parts: ProofParts, request: ProveInclusionRequest) => {
  const tree = await treeFor(parts, request.shard, request.size, "size");
  const { size, end } = tree;
  if (request.index >= BigInt(size)) {
    if (request.size === 0n) throw notSoFar(`index ${request.index}`, size);
    throw invalidField("index", `index ${request.index} is not in a tree of ${size}`);
  }
  const index = Number(request.index);
  const hash = leafHash((await entryAt(parts.models.entries, end.shard.first + index)).leaf);
  const { root, checkpoint } = await treeOf(parts, size, tree);
  const nodes = readNodes(parts.models.entries, end.shard);
  const proof = await fromRows(`leaf ${index}`, () => proveInclusion(index, size, nodes));
  if (!verifyInclusion(index, size, hash, proof, root))
    throw new LedgerBroken(`leaf ${index} is not the one that was sealed`);
  return { leafHash: hash, proof, size: BigInt(size), root, checkpoint };
};

export const answerConsistency = async (parts: ProofParts, request: ProveConsistencyRequest) => {
  const tree = await treeFor(parts, request.shard, request.to, "to");
  const { size: to, end } = tree;
  if (request.from > BigInt(to)) {
    if (request.to === 0n) throw notSoFar(`from ${request.from}`, to);
    throw invalidField("from", `from ${request.from} is after to ${to}`);
  }
  const from = Number(request.from);
  const [older, newer] = [await treeOf(parts, from, tree), await treeOf(parts, to, tree)];
  const nodes = readNodes(parts.models.entries, end.shard);
  const proof = await fromRows(`the trees of ${from} and ${to}`, () => proveConsistency(from, to, nodes));
  if (!verifyConsistency(from, to, proof, older.root, newer.root))
    throw new LedgerBroken(`the tree of ${from} in the read model is not the beginning of that of ${to}`);
  return { proof, fromRoot: older.root, to: BigInt(to), toRoot: newer.root, checkpoint: newer.checkpoint };
};
