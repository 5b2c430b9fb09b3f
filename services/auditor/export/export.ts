import { hash } from "node:crypto";
import { create, isMessage } from "@bufbuild/protobuf";
import { type Timestamp, timestampFromMs, timestampMs } from "@bufbuild/protobuf/wkt";
import { MAX_BUNDLE_ENTRIES } from "@curfew/bundle/layout.ts";
import { signManifest } from "@curfew/bundle/manifest.ts";
import { type BundleEntry, BundleTooLarge, writeBundle } from "@curfew/bundle/write-bundle.ts";
import type { ExportBundleRequest } from "@curfew/contracts/gen/curfew/auditor/v1/auditor_pb.ts";
import { NotificationDraftedSchema } from "@curfew/contracts/gen/curfew/events/v1/breaches_pb.ts";
import type { Position } from "@curfew/contracts/gen/curfew/events/v1/common_pb.ts";
import { EvidenceExportedSchema } from "@curfew/contracts/gen/curfew/events/v1/evidence_pb.ts";
import type { Outbox } from "@curfew/event-log/outbox.ts";
import { leafHash } from "@curfew/ledger/hash.ts";
import { decodeLeaf } from "@curfew/ledger/leaf.ts";
import { countersigned } from "@curfew/ledger/note.ts";
import type { NoteSigner } from "@curfew/ledger/note-key.ts";
import { formatPolicy } from "@curfew/ledger/policy.ts";
import { verifyInclusion } from "@curfew/ledger/proof.ts";
import { policyOfLog } from "@curfew/ledger/shard.ts";
import { proveConsistency, proveInclusions, type ReadNodes } from "@curfew/ledger/tree.ts";
import { RpcError } from "@curfew/rpc/errors.ts";
import type { CallContext } from "@curfew/rpc/service-definition.ts";
import type { Clock } from "@curfew/runtime/clock.ts";
import { type Random, uuidV7 } from "@curfew/runtime/random.ts";
import { LedgerBroken } from "../domain.ts";
import { checkedRow, type Follower } from "../follower.ts";
import type { LedgerSeal } from "../ledger-keys.ts";
import { checkpointAt, type EntryRow, headerOf, messageOf, type ReadModels } from "../projections.ts";
import type { OutsideClocks } from "../public-log/outside-times.ts";
import { nearbyNodes } from "./nearby-nodes.ts";
import { shardToExport, tokenOfCase, type Wanted, wantedOf, wantedRows, within } from "./selection.ts";
import { type ShownTree, shownTree } from "./shown-tree.ts";
import { stampOver } from "./stamp.ts";
import { openTurns } from "./turns.ts";

export interface ExportParts {
  readonly models: ReadModels;
  readonly follower: Pick<Follower, "latest">;
  /** Waits until the positions are sealed; rejects with an RpcError when that takes too long. */
  readonly awaitSealed: (positions: readonly Position[]) => Promise<void>;
  readonly seal: LedgerSeal;
  /** Who vouches for the ledger from outside. */
  readonly clocks: OutsideClocks;
  /** Who certifies the keys of producers. */
  readonly authority: { readonly caPem: string; readonly trustDomain: string };
  readonly outbox: Pick<Outbox, "streams" | "relay">;
  readonly clock: Clock;
  readonly random: Random;
}

const pieceBytes = 128 * 1024;
/** Proofs made at a time. */
const provenTogether = 128;

const refused = (status: "INVALID_ARGUMENT" | "NOT_FOUND" | "FAILED_PRECONDITION", reason: string, message: string) =>
  new RpcError({ status, reason, message });
const tooLarge = (message: string) => refused("FAILED_PRECONDITION", "BUNDLE_TOO_LARGE", message);

async function* inGroups<T>(items: AsyncIterable<T>, size: number): AsyncGenerator<T[]> {
  let group: T[] = [];
  for await (const item of items) {
    group.push(item);
    if (group.length < size) continue;
    yield group;
    group = [];
  }
  if (group.length > 0) yield group;
}

/** Pieces of about the same size out of many small ones. */
async function* inPieces(parts: AsyncIterable<Uint8Array>): AsyncGenerator<{ piece: Uint8Array }> {
  let waiting: Uint8Array[] = [];
  let bytes = 0;
  for await (const part of parts)
    for (let at = 0; at < part.length; at += pieceBytes) {
      const slice = part.subarray(at, at + pieceBytes);
      if (bytes + slice.length > pieceBytes) {
        yield { piece: Buffer.concat(waiting) };
        waiting = [];
        bytes = 0;
      }
      waiting.push(slice);
      bytes += slice.length;
    }
  yield { piece: Buffer.concat(waiting) };
}

const isoOf = (time: Timestamp | undefined): string => (time ? new Date(timestampMs(time)).toISOString() : "");

/** One export, of one shard. */
class Export {
  readonly #parts: ExportParts;
  readonly #request: ExportBundleRequest;
  /** Its leaves, by their indexes in the ledger. */
  readonly #wanted: Wanted;
  /** Entries in the ledger, which say whose key is in force. */
  readonly #ledgerSize: number;
  readonly #tree: ShownTree;
  readonly #readNodes: ReadNodes;
  /** Drafts by their hash, hex, until the leaf that holds it comes by. */
  readonly #drafts: Map<string, string>;
  readonly #placed: { index: number; json: string }[] = [];
  /** Number of the batch that the first entry was sealed in. */
  #firstBatch = 0;

  constructor(parts: ExportParts, request: ExportBundleRequest, wanted: Wanted, ledgerSize: number, tree: ShownTree) {
    this.#parts = parts;
    this.#request = request;
    this.#wanted = wanted;
    this.#ledgerSize = ledgerSize;
    this.#tree = tree;
    this.#readNodes = nearbyNodes(parts.models.entries, tree.shard);
    this.#drafts = new Map(request.drafts.map((json) => [hash("sha256", json, "hex"), json]));
  }

  async *bytes({ caller }: CallContext): AsyncGenerator<Uint8Array> {
    const { models, seal, authority, clocks, clock } = this.#parts;
    const { cosigning, stamped } = clocks;
    const { tokenId, caseId, from, to } = this.#request;
    const { shard, size, checkpoint } = this.#tree;
    const { year, first: before } = shard;
    const [signer, verifierKey] = [this.#signer(), seal.verifierKeyAt(year, this.#ledgerSize)];
    const wanted = this.#wanted;
    if (tokenId === "" && caseId === "" && wanted.end - wanted.first > MAX_BUNDLE_ENTRIES)
      throw tooLarge(`${wanted.end - wanted.first} entries, over ${MAX_BUNDLE_ENTRIES}: ask for a shorter time`);
    const groups = inGroups(wantedRows(models, wanted), provenTogether);
    const first = await groups.next();
    if (first.done) throw refused("NOT_FOUND", "NOTHING_SEALED", "nothing of that was sealed: a bundle would be empty");
    this.#firstBatch = first.value[0]?.batch ?? 0;
    const madeAtMs = clock.now();
    yield* writeBundle({
      facts: {
        origin: signer.name,
        trustDomain: authority.trustDomain,
        madeAt: new Date(madeAtMs).toISOString(),
        selection: { token: tokenId || tokenOfCase(caseId), case: caseId, from: isoOf(from), to: isoOf(to) },
        range: { first: wanted.first - before, end: wanted.end - before },
        size: size - before,
        ...(before > 0 && { before }),
      },
      verifierKey,
      caPem: authority.caPem,
      policy: cosigning
        ? formatPolicy(policyOfLog(cosigning.policy, signer.name))
        : `log ${verifierKey}\nquorum none\n`,
      checkpoint: countersigned(checkpoint, signer),
      entries: () => this.#entries(first.value, groups),
      firstCheckpoint: () => this.#firstCheckpoint(),
      stamp: async (from, to) => {
        const of = stamped && { rows: stamped, tree: this.#tree, readNodes: this.#readNodes };
        return of && (await stampOver(of, before + from, before + to));
      },
      drafts: () => this.#drafted(),
      sign: async (digest, { entries }) => {
        await this.#record(digest, entries, caller.uri, madeAtMs);
        return signManifest(digest, signer);
      },
    });
  }

  #signer(): NoteSigner {
    return this.#parts.seal.signerAt(this.#tree.shard.year, this.#ledgerSize);
  }

  /** The proofs of each group are made while the one before it is written. */
  async *#entries(first: EntryRow[], rest: AsyncIterable<EntryRow[]>): AsyncGenerator<BundleEntry> {
    const prove = (rows: EntryRow[]): Promise<BundleEntry[]> => {
      const proven = this.#proven(rows);
      proven.catch(() => undefined); // seen when it is this group's turn, if that still comes
      return proven;
    };
    let next = prove(first);
    for await (const group of rest) {
      const current = await next;
      next = prove(group);
      // A turn of the event loop: what is asked of the database leaves before the writing begins.
      await new Promise((resolve) => setImmediate(resolve));
      yield* current;
    }
    yield* await next;
  }

  async #proven(rows: readonly EntryRow[]): Promise<BundleEntry[]> {
    const { shard, root } = this.#tree;
    const size = this.#tree.size - shard.first;
    const indexes = rows.map(({ _id }) => Number(_id) - shard.first);
    const proofs = await proveInclusions(indexes, size, this.#readNodes).catch((error: unknown) => {
      if ((error as Error).name === "StoreUnavailable") throw error;
      throw new LedgerBroken(`leaves ${indexes[0]} to ${indexes.at(-1)} cannot be proven`, { cause: error });
    });
    return rows.map(({ leaf }, i) => {
      const [index, proof] = [indexes[i] as number, proofs[i] as Uint8Array[]];
      // What leaves here was checked here: a proof that does not hold says that the store was changed.
      if (!verifyInclusion(index, size, leafHash(leaf), proof, root))
        throw new LedgerBroken(`leaf ${index} is not the one that was sealed`);
      if (this.#drafts.size > 0) this.#placeDraft(index, leaf);
      return { index, leaf, proof };
    });
  }

  #placeDraft(index: number, leaf: Uint8Array): void {
    const record = decodeLeaf(leaf);
    if (headerOf(record, "ce_subject") !== this.#request.caseId) return;
    const message = messageOf(record);
    if (!message || !isMessage(message, NotificationDraftedSchema)) return;
    const key = Buffer.from(message.draftSha256).toString("hex");
    const json = this.#drafts.get(key);
    if (json === undefined) return;
    this.#drafts.delete(key);
    this.#placed.push({ index, json });
  }

  #drafted() {
    if (this.#drafts.size > 0)
      throw refused("NOT_FOUND", "DRAFT_UNKNOWN", "a draft is none of this case whose hash is in the ledger");
    return this.#placed.sort((a, b) => a.index - b.index);
  }

  async #firstCheckpoint() {
    const { models, seal } = this.#parts;
    const row = checkedRow(seal, await checkpointAt(models.checkpoints, this.#firstBatch));
    const { first } = this.#tree.shard;
    const size = row.size - first;
    const proof = await proveConsistency(size, this.#tree.size - first, this.#readNodes);
    // Signed before the key rotated, perhaps: the bundle is checked by one key.
    return { checkpoint: countersigned(row.checkpoint, this.#signer()), size, proof };
  }

  async #record(digest: Uint8Array, entries: number, by: string, atMs: number): Promise<void> {
    const { outbox, clock, random } = this.#parts;
    const { tokenId, caseId, from, to } = this.#request;
    const event = create(EvidenceExportedSchema, {
      exportedBy: { spiffeId: by },
      tokenId,
      caseId,
      ...(from && { from }),
      ...(to && { to }),
      entries: BigInt(entries),
      ledgerSize: BigInt(this.#tree.size),
      manifestSha256: digest,
      exportedAt: timestampFromMs(atMs),
    });
    const stream = `exports/${uuidV7(clock.now(), random)}`;
    const commit = await outbox.streams.append(stream, { version: 0, sequence: 0 }, [event]);
    if (!commit) throw new Error("an export was recorded under a number that is taken");
    // Not waited for: the relay's scan finds it otherwise.
    void outbox.relay.published(commit);
  }
}

/** The method ExportBundle. */
export const openExports = (parts: ExportParts) => {
  const turns = openTurns();
  return async function* exportBundle(
    request: ExportBundleRequest,
    ctx: CallContext,
  ): AsyncGenerator<{ piece: Uint8Array }> {
    const { tokenId, caseId } = request;
    if (tokenId !== "" && caseId !== "")
      throw refused("INVALID_ARGUMENT", "SELECTION_INVALID", "a token and a case: name one of them");
    if (caseId === "" && request.drafts.length > 0)
      throw refused("INVALID_ARGUMENT", "SELECTION_INVALID", "drafts belong to a case: name it");
    await turns.take(ctx.signal);
    try {
      await parts.awaitSealed(request.atLeast);
      const latest = parts.follower.latest();
      if (!latest) throw refused("NOT_FOUND", "NOTHING_SEALED", "nothing has been sealed yet");
      const wanted = await wantedOf(parts.models, request, latest);
      const end = await shardToExport({ ...parts, ledger: parts }, request, wanted, latest);
      const tree = await shownTree(end, { ...parts, ...parts.clocks }, ctx.signal);
      const inTree = within({ ...end, ...tree }, request.to ? wanted : { ...wanted, end: tree.size });
      yield* inPieces(new Export(parts, request, inTree, latest.size, tree).bytes(ctx));
    } catch (error) {
      if (error instanceof BundleTooLarge) throw tooLarge(error.message);
      throw error;
    } finally {
      turns.leave();
    }
  };
};
