import { timestampFromMs } from "@bufbuild/protobuf/wkt";
import type {
  GetEventRequest,
  ProveConsistencyRequest,
  ProveInclusionRequest,
} from "@curfew/contracts/gen/curfew/auditor/v1/auditor_pb.ts";
import type { Position } from "@curfew/contracts/gen/curfew/events/v1/common_pb.ts";
import type { Collection } from "@curfew/document-store/port.ts";
import { leafHash } from "@curfew/ledger/hash.ts";
import { decodeLeaf } from "@curfew/ledger/leaf.ts";
import { countersigned } from "@curfew/ledger/note.ts";
import { verifyConsistency, verifyInclusion } from "@curfew/ledger/proof.ts";
import { proveConsistency, proveInclusion, treeRoot } from "@curfew/ledger/tree.ts";
import { RpcError } from "@curfew/rpc/errors.ts";
import { batchPast } from "./checks/sealed-places.ts";
import { type BatchDoc, batchId, LedgerBroken, nextOffset } from "./domain.ts";
import { sealedEvent } from "./event-view.ts";
import type { Follower } from "./follower.ts";
import type { LedgerSeal } from "./ledger-keys.ts";
import { type CheckpointRow, checkpointId, entryId, eventKey, type ReadModels, readNodes } from "./projections.ts";
import { type OutsideClocks, outsideTimes } from "./public-log/outside-times.ts";

/** Proofs out of the read model. What leaves here was checked here: one that does not hold says that the store was changed. */
export interface ProofParts {
  readonly batches: Pick<Collection<BatchDoc>, "get">;
  readonly models: ReadModels;
  readonly follower: Pick<Follower, "latest">;
  readonly ledger: { readonly seal: Pick<LedgerSeal, "signerAt"> };
  readonly clocks: OutsideClocks;
}

const notFound = (message: string) => new RpcError({ status: "NOT_FOUND", reason: "EVENT_NOT_FOUND", message });
const notSoFar = (what: string, size: number) =>
  new RpcError({
    status: "OUT_OF_RANGE",
    reason: "LEDGER_SMALLER",
    message: `${what} is past the ledger, which has ${size} entries`,
  });

/** The leaf of a record: the batch is found by the positions of finished batches, the leaf by looking through it. */
const indexOfPosition = async (parts: ProofParts, latest: CheckpointRow, position: Position): Promise<number> => {
  const { topic, partition } = position;
  const offset = Number(position.offset);
  if (nextOffset(latest.positions, topic, partition) <= offset) throw notFound("no such record has been sealed");
  const low = await batchPast(parts.models.checkpoints, position, offset, { low: 1, latest: latest.batch });
  const doc = await parts.batches.get(batchId(low));
  if (!doc) throw new LedgerBroken(`${batchId(low)} has vanished`);
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

const leafAt = async ({ models }: ProofParts, index: number) => {
  const row = await models.entries.get(entryId(index));
  if (!row) throw new LedgerBroken(`leaf ${index} has vanished from the read model`);
  return row;
};

export const getEvent = async (parts: ProofParts, request: GetEventRequest) => {
  const latest = parts.follower.latest();
  if (!latest) throw notFound("nothing has been sealed yet");
  const index = await indexOf(parts, latest, request);
  if (index >= latest.size) throw notFound("no such event has been sealed");
  const row = await leafAt(parts, index);
  const { size, root, checkpoint } = latest;
  const nodes = readNodes(parts.models.entries);
  const inclusionProof = await fromRows(`leaf ${index}`, () => proveInclusion(index, size, nodes));
  if (!verifyInclusion(index, size, leafHash(row.leaf), inclusionProof, root))
    throw new LedgerBroken(`leaf ${index} is not the one that was sealed`);
  const { notBeforeMs, notAfterMs, stampedMs } = await outsideTimes(parts.clocks, index);
  const outside = {
    ...(notBeforeMs !== undefined && { notBefore: timestampFromMs(notBeforeMs) }),
    ...(notAfterMs !== undefined && { notAfter: timestampFromMs(notAfterMs) }),
    ...(stampedMs !== undefined && { stamped: timestampFromMs(stampedMs) }),
  };
  return { event: sealedEvent(row), leaf: row.leaf, inclusionProof, checkpoint, outside };
};

/** A batch that ended at `size`, by halving; undefined: none did. */
const checkpointAt = async ({ models }: ProofParts, size: number, latest: CheckpointRow): Promise<string> => {
  let low = 1;
  let high = latest.batch;
  while (low < high) {
    const middle = Math.floor((low + high) / 2);
    const row = await models.checkpoints.get(checkpointId(middle));
    if (!row) throw new LedgerBroken(`checkpoint ${middle} has vanished`);
    if (row.size < size) low = middle + 1;
    else high = middle;
  }
  const row = await models.checkpoints.get(checkpointId(low));
  return row?.size === size ? row.checkpoint : "";
};

/** Root and checkpoint of the tree of `size`, which is shown to be the beginning of the newest. */
const treeOf = async (parts: ProofParts, size: number, latest: CheckpointRow) => {
  if (size === latest.size) return { root: latest.root, checkpoint: latest.checkpoint };
  const nodes = readNodes(parts.models.entries);
  const { root, proof } = await fromRows(`the tree of ${size}`, async () => ({
    root: await treeRoot(size, nodes),
    proof: await proveConsistency(size, latest.size, nodes),
  }));
  if (!verifyConsistency(size, latest.size, proof, root, latest.root))
    throw new LedgerBroken(`the tree of ${size} in the read model is not the beginning of the newest`);
  const checkpoint = await checkpointAt(parts, size, latest);
  // Whoever asks has the key that signs now: from before a rotation it vouches for what the one before has signed.
  return { root, checkpoint: checkpoint && countersigned(checkpoint, parts.ledger.seal.signerAt(latest.size)) };
};

/** The newest batch, and `wanted` or its size. Throws OUT_OF_RANGE past it. */
const sizeOf = ({ follower }: ProofParts, wanted: bigint, field: string) => {
  const latest = follower.latest();
  if (!latest || wanted > BigInt(latest.size)) throw notSoFar(`${field} ${wanted}`, latest?.size ?? 0);
  return { latest, size: Number(wanted) || latest.size };
};

const invalidField = (field: string, message: string) =>
  new RpcError({
    status: "INVALID_ARGUMENT",
    reason: "OUTSIDE_TREE",
    message,
    fieldViolations: [{ field, description: message, reason: "OUTSIDE_TREE" }],
  });

export const answerInclusion = async (parts: ProofParts, request: ProveInclusionRequest) => {
  const { latest, size } = sizeOf(parts, request.size, "size");
  if (request.index >= BigInt(size)) {
    if (request.size === 0n) throw notSoFar(`index ${request.index}`, size);
    throw invalidField("index", `index ${request.index} is not in a tree of ${size}`);
  }
  const index = Number(request.index);
  const hash = leafHash((await leafAt(parts, index)).leaf);
  const { root, checkpoint } = await treeOf(parts, size, latest);
  const proof = await fromRows(`leaf ${index}`, () => proveInclusion(index, size, readNodes(parts.models.entries)));
  if (!verifyInclusion(index, size, hash, proof, root))
    throw new LedgerBroken(`leaf ${index} is not the one that was sealed`);
  return { leafHash: hash, proof, size: BigInt(size), root, checkpoint };
};

export const answerConsistency = async (parts: ProofParts, request: ProveConsistencyRequest) => {
  const { latest, size: to } = sizeOf(parts, request.to, "to");
  if (request.from > BigInt(to)) {
    if (request.to === 0n) throw notSoFar(`from ${request.from}`, to);
    throw invalidField("from", `from ${request.from} is after to ${to}`);
  }
  const from = Number(request.from);
  const [older, newer] = [await treeOf(parts, from, latest), await treeOf(parts, to, latest)];
  const nodes = readNodes(parts.models.entries);
  const proof = await fromRows(`the trees of ${from} and ${to}`, () => proveConsistency(from, to, nodes));
  if (!verifyConsistency(from, to, proof, older.root, newer.root))
    throw new LedgerBroken(`the tree of ${from} in the read model is not the beginning of that of ${to}`);
  return { proof, fromRoot: older.root, to: BigInt(to), toRoot: newer.root, checkpoint: newer.checkpoint };
};
