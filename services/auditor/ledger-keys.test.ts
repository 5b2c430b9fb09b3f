import { generateKeyPairSync } from "node:crypto";
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { create } from "@bufbuild/protobuf";
import { sourceOf } from "@curfew/bundle/byte-source.ts";
import { openBundle } from "@curfew/bundle/verify-bundle.ts";
import {
  ExportBundleRequestSchema,
  ProveInclusionRequestSchema,
} from "@curfew/contracts/gen/curfew/auditor/v1/auditor_pb.ts";
import { LedgerKeyRotatedSchema } from "@curfew/contracts/gen/curfew/events/v1/evidence_pb.ts";
import type { Doc, DocumentStore } from "@curfew/document-store/port.ts";
import type { Bus, OutRecord } from "@curfew/event-log/bus.ts";
import { topicNames } from "@curfew/event-log/event-types.ts";
import { openKeyring } from "@curfew/keyring/keyring.ts";
import { openCheckpoint, signCheckpoint } from "@curfew/ledger/checkpoint.ts";
import { emptyRoot } from "@curfew/ledger/hash.ts";
import { signKeyRotation } from "@curfew/ledger/key-rotation.ts";
import type { LogRecord } from "@curfew/ledger/leaf.ts";
import { type NoteSigner, noteSigner, parseVerifierKey, verifierKeyText } from "@curfew/ledger/note-key.ts";
import { parsePolicy } from "@curfew/ledger/policy.ts";
import { shardOrigin } from "@curfew/ledger/shard.ts";
import type { CallContext } from "@curfew/rpc/service-definition.ts";
import { systemRandom } from "@curfew/runtime/random.ts";
import { faultyStore } from "@curfew/simulation/faulty-store.ts";
import { afterEach, beforeEach, describe, expect, it, vi } from "vitest";
import {
  type Batch,
  type BatchDoc,
  emptyHead,
  headOf,
  LedgerBroken,
  type LedgerHead,
  makeBatch,
  replayBatch,
} from "./domain.ts";
import { openExports } from "./export/export.ts";
import { openFollower } from "./follower.ts";
import { rotationStream, watchKeyRotation } from "./key-rotation.ts";
import { type LedgerSeal, ledgerKeys, sealOf } from "./ledger-keys.ts";
import { openReadModels } from "./projections.ts";
import { answerInclusion } from "./proofs.ts";
import {
  bound,
  clock,
  eventRecord,
  identities,
  ledgerName,
  openWorld,
  origin,
  quiet,
  replayAll,
  sendOn,
  shard,
  startAuditor,
  tokenEvent,
  tokenId,
  untilSealed,
  use,
} from "./testing/rig.ts";

let dir = "";
let offset = 0;
beforeEach(() => {
  dir = mkdtempSync(join(tmpdir(), "curfew-ledger-keys-"));
  offset = 0;
});
afterEach(() => rmSync(dir, { recursive: true }));

/** As a replica on its own, or with another, has it. */
const replica = () => {
  const keyring = openKeyring({ dir: join(dir, "keys"), random: systemRandom, clock });
  const keys = ledgerKeys(keyring, ledgerName);
  return { keyring, keys, seal: sealOf(ledgerName, keys) };
};
type Replica = ReturnType<typeof replica>;

const read = (topic: string, { partition, key, headers, value }: OutRecord): LogRecord => {
  offset += 1;
  return {
    topic,
    partition,
    offset,
    timestampMs: clock.now(),
    key: key ?? "",
    headers: Object.entries(headers),
    value,
  };
};
const token = (n: number) => read(topicNames.tokens, tokenEvent(n, 1));
const verifierOf = ({ keys }: Replica, number: number) => {
  const key = keys.all("now")[number - 1];
  return key && parseVerifierKey(verifierKeyText(origin, key.publicKey));
};
const signerOf = ({ keys }: Replica, number: number, name: string = ledgerName): NoteSigner => {
  const { privateKey } = keys.all("now")[number - 1] ?? {};
  if (!privateKey) throw new Error(`there is no key ${number}`);
  return noteSigner(name, privateKey);
};
/** Under the ledger's name, by which keys rotate, or a shard's, by which they sign. */
const textOf = (of: Replica, number: number, name: string = ledgerName) =>
  verifierKeyText(name, of.keys.all("now")[number - 1]?.publicKey as never);

interface Stated {
  readonly origin?: string;
  readonly oldKey?: string;
  readonly newKey?: string;
  readonly size?: number;
  readonly signers?: readonly [NoteSigner, NoteSigner];
  readonly statement?: string;
}
const rotation = (of: Replica, stated: Stated = {}, topic: string = topicNames.evidence) => {
  const fields = { origin: ledgerName, oldKey: textOf(of, 1), newKey: textOf(of, 2), size: 0, ...stated };
  const signers = stated.signers ?? ([signerOf(of, 1), signerOf(of, 2)] as const);
  const event = create(LedgerKeyRotatedSchema, {
    ...fields,
    ledgerSize: BigInt(fields.size),
    statement: stated.statement ?? signKeyRotation(fields, signers),
  });
  return read(topic, eventRecord(event, { subject: rotationStream(ledgerName), source: "/auditor", sequence: 1 }));
};

/** A record as it was given to a producer. */
const sendable = ({ key, headers, value }: LogRecord): OutRecord => ({
  partition: 0,
  key,
  value,
  headers: Object.fromEntries(headers.filter(([h]) => h.startsWith("ce_"))),
});

/** As the sealer goes on: staged, then derived. */
const growAt = (seal: LedgerSeal, before: LedgerHead, atMs: number, ...records: readonly LogRecord[]): Batch => {
  const batch = makeBatch(before, records, atMs, seal);
  seal.turned(before.size, batch.records).keep();
  return batch;
};
const grow = (seal: LedgerSeal, before: LedgerHead, ...records: readonly LogRecord[]): Batch =>
  growAt(seal, before, clock.now(), ...records);
const isSignedBy = (of: Replica, checkpoint: string) =>
  of.keys.all("now").map(({ number }) => {
    try {
      return openCheckpoint(checkpoint, verifierOf(of, number) as never).size > 0;
    } catch {
      return false;
    }
  });

/** Three leaves under the first key, the rotation as leaf 3, two more; and what the store has of it. */
const rotated = () => {
  const one = replica();
  one.keys.all();
  const first = grow(one.seal, emptyHead, token(1), token(2), token(3));
  one.keyring.rotateSigningKey(ledgerName);
  const second = grow(one.seal, first.head, rotation(one), token(4));
  const third = grow(one.seal, second.head, token(5));
  return { one, first, second, third };
};

describe("a ledger's keys", () => {
  it("sign each their own sizes: from the tree that holds the rotation on the new one, and the old one beside it until it is retired", () => {
    const { one, first, second, third } = rotated();
    expect([first, second, third].map(({ doc }) => isSignedBy(one, doc.checkpoint))).toEqual([
      [true, false],
      [true, true],
      [true, true],
    ]);
    expect([3, 4, 6].map((size) => one.seal.verifierKeyAt(shard.year, size))).toEqual([
      textOf(one, 1, origin),
      textOf(one, 2, origin),
      textOf(one, 2, origin),
    ]);
    expect(one.seal.verifierKeys(shard.year)).toEqual([textOf(one, 2, origin), textOf(one, 1, origin)]);
    expect(one.keyring.retireSigningKeys(ledgerName)).toBe(1);
    const fourth = grow(one.seal, third.head, token(6));
    expect(isSignedBy(one, fourth.doc.checkpoint)).toEqual([false, true]);
    for (const from of [one, replica()]) {
      let head = emptyHead;
      for (const { doc } of [first, second, third, fourth]) head = replayBatch(head, doc, from.seal).head;
      expect(head.size).toBe(7);
      expect(headOf(first.doc, 1, from.seal).size).toBe(3);
      expect(from.seal.open(shard, from.seal.sign(shard, 0, emptyRoot())).size).toBe(0);
    }
  });

  it.each(["last of its year", "first of the next"])("rotate by a leaf that is the %s", (place) => {
    const [ending, beginning] = [Date.UTC(shard.year, 11, 31), Date.UTC(shard.year + 1, 0, 1)];
    const one = replica();
    one.keys.all();
    const first = growAt(one.seal, emptyHead, ending, token(1), token(2));
    one.keyring.rotateSigningKey(ledgerName);
    const isLast = place === "last of its year";
    const second = isLast
      ? growAt(one.seal, first.head, ending, rotation(one))
      : growAt(one.seal, first.head, beginning, rotation(one), token(3));
    one.keyring.retireSigningKeys(ledgerName);
    const third = growAt(one.seal, second.head, beginning, token(4));
    expect(one.keys.all("now")[1]?.after).toBe(2);
    const next = shardOrigin(ledgerName, shard.year + 1);
    const verifier = parseVerifierKey(textOf(one, 2, next));
    expect(openCheckpoint(third.doc.checkpoint, verifier).size).toBe(isLast ? 1 : 3);
    for (const from of [one, replica()]) {
      let head = emptyHead;
      for (const { doc } of [first, second, third]) head = replayBatch(head, doc, from.seal).head;
      expect([head.shard.first, head.size]).toEqual(isLast ? [3, 4] : [2, 5]);
      expect(headOf(second.doc, 2, from.seal).size).toBe(second.doc.size);
    }
  });

  it("are picked up by a replica that opened before, whoever of the two seals", () => {
    const [one, other] = [replica(), replica()];
    other.keys.all();
    const first = grow(one.seal, emptyHead, token(1));
    one.keyring.rotateSigningKey(ledgerName);
    const record = rotation(one);
    const second = grow(other.seal, first.head, record);
    const third = grow(one.seal, replayBatch(first.head, second.doc, one.seal).head, token(2));
    expect([second, third].map(({ doc }) => isSignedBy(one, doc.checkpoint))).toEqual([
      [true, true],
      [true, true],
    ]);
    expect(other.keys.all("now")[1]?.after).toBe(1);
  });

  it("a batch that another sequencer was first to stage leaves no trace: the rotation holds where the ledger has it", () => {
    const one = replica();
    const first = grow(one.seal, emptyHead, token(1));
    one.keyring.rotateSigningKey(ledgerName);
    const record = rotation(one);
    // Staged under its number by nobody: made, and given up.
    makeBatch(first.head, [record], clock.now(), one.seal);
    const second = grow(one.seal, first.head, token(2), record);
    expect(one.keys.all("now")[1]?.after).toBe(2);
    expect(replayBatch(first.head, second.doc, replica().seal).head.size).toBe(3);
  });
});

describe("a stolen old key", () => {
  const forge = (of: Replica, { doc, head }: Batch) => ({
    ...doc,
    checkpoint: signCheckpoint({ origin, size: doc.size, root: head.frontier.root() }, [signerOf(of, 1, origin)]),
  });

  it("signs nothing newer that sealer, follower or files' publisher would open", async () => {
    const { one, second, third } = rotated();
    const forged = forge(one, third);
    expect(() => replayBatch(second.head, forged, one.seal)).toThrow(LedgerBroken);
    expect(() => headOf(forged, 3, replica().seal)).toThrow("not signed by this ledger's key");
    expect(() => one.seal.open(shard, forged.checkpoint)).toThrow("no known key has signed the note");
    // Nor the batch of the rotation itself.
    expect(() => one.seal.open(shard, forge(one, second).checkpoint)).toThrow("no known key has signed the note");
    const { store } = await openWorld();
    const models = await openReadModels(store);
    const { _id, first: _, leaves: __, frontier: ___, ...row } = { ...forged, batch: 3 };
    await models.checkpoints.insert({ ...row, _id: "0000000003" } as never);
    await expect(openFollower({ models, seal: one.seal, clock, log: quiet })).rejects.toThrow(LedgerBroken);
  });

  it("rewrites no history: not by leaving the rotation out, nor by moving it", () => {
    const { one, first } = rotated();
    const without = makeBatch(
      first.head,
      [token(4), token(5)],
      clock.now(),
      sealOf(ledgerName, { ...one.keys, all: () => [one.keys.all()[0]] }),
    );
    expect(() => replayBatch(first.head, without.doc, replica().seal)).toThrow(LedgerBroken);
    const moved = [token(1), rotation(one)];
    expect(() => makeBatch(emptyHead, moved, clock.now(), replica().seal)).toThrow("which follows after 3");
  });

  const stranger = generateKeyPairSync("ed25519");
  const strangers = verifierKeyText(ledgerName, stranger.publicKey);
  it.each<[string, (of: Replica) => LogRecord]>([
    [
      "to a key of his own",
      (of) =>
        rotation(of, { newKey: strangers, signers: [signerOf(of, 1), noteSigner(ledgerName, stranger.privateKey)] }),
    ],
    [
      "to our next key, without it",
      (of) =>
        rotation(of, {
          statement: signKeyRotation({ origin: ledgerName, oldKey: textOf(of, 1), newKey: strangers, size: 0 }, [
            signerOf(of, 1),
            noteSigner(ledgerName, stranger.privateKey),
          ]),
        }),
    ],
    [
      "of another size than is signed",
      (of) =>
        rotation(of, {
          statement: signKeyRotation({ origin: ledgerName, oldKey: textOf(of, 1), newKey: textOf(of, 2), size: 1 }, [
            signerOf(of, 1),
            signerOf(of, 2),
          ]),
        }),
    ],
    ["that lies in the future", (of) => rotation(of, { size: 100 })],
    ["of another topic", (of) => rotation(of, {}, topicNames.breaches)],
    ["that is no message", (of) => ({ ...rotation(of), value: Buffer.from([255]) })],
  ])("puts no key in force by a rotation %s, and cannot stop the sealing", (_what, forged) => {
    const one = replica();
    one.keys.all();
    one.keyring.rotateSigningKey(ledgerName);
    const first = grow(one.seal, emptyHead, token(1), forged(one), token(2));
    expect(isSignedBy(one, first.doc.checkpoint)).toEqual([true, false]);
    expect(replayBatch(emptyHead, first.doc, replica().seal).head.size).toBe(3);
    const second = grow(one.seal, first.head, rotation(one));
    expect(isSignedBy(one, second.doc.checkpoint)).toEqual([true, true]);
  });
});

describe("the auditor", () => {
  it("states a rotation once, seals it, and goes on under the new key; the record once more changes nothing", async () => {
    const world = await openWorld();
    const one = replica();
    const auditor = await startAuditor(world, world.store, world.bus, one.seal);
    const stop = new AbortController();
    const size = () => 0;
    const parts = { outbox: auditor.outbox, keys: one.keys, origin: ledgerName, size, clock, log: quiet };
    const watching = [parts, { ...parts, keys: replica().keys }].map((each) => watchKeyRotation(each, stop.signal));
    auditor.outbox.start("nowhere:1");
    const send = (n: number) => sendOn(world.bus, topicNames.tokens, `issuer/a${n}`, [tokenEvent(n, 1)]);
    await send(1);
    await untilSealed(world);
    one.keyring.rotateSigningKey(ledgerName);
    await vi.waitFor(() => expect(one.keys.all("now")[1]?.after).toBe(1), bound);
    await send(2);
    const [record, ...more] = world.bus.records(topicNames.evidence);
    expect(more).toEqual([]);
    await sendOn(world.bus, topicNames.evidence, "auditor/again", [sendable(record as LogRecord)]);
    await send(3);
    await untilSealed(world);
    // A bundle of what was sealed before is checked by the new key alone.
    const follower = await openFollower({ models: auditor.models, seal: one.seal, clock, log: quiet });
    const awaitSealed = async () => undefined;
    const exportBundle = openExports({
      ...auditor,
      clocks: { cosigning: undefined, stamped: undefined },
      authority: identities,
      follower,
      seal: one.seal,
      clock,
      random: systemRandom,
      awaitSealed,
    });
    const ctx = { caller: { uri: "spiffe://test.example/person/paula" }, signal: stop.signal } as CallContext;
    const pieces: Uint8Array[] = [];
    for await (const { piece } of exportBundle(create(ExportBundleRequestSchema, { tokenId: tokenId(1) }), ctx))
      pieces.push(piece);
    const policy = parsePolicy(`log ${textOf(one, 2, origin)}\nquorum none\n`);
    const { manifest } = await openBundle(sourceOf(Buffer.concat(pieces)), policy);
    expect(manifest).toMatchObject({ entries: 1 });
    expect(manifest.size).toBeGreaterThan(3);
    // So is the checkpoint that goes with a proof in a tree of before.
    const batches = await world.store.collection<BatchDoc>("batches");
    const asked = create(ProveInclusionRequestSchema, { index: 0n, size: 1n });
    const answer = await answerInclusion(
      { ...auditor, batches, follower, clocks: { cosigning: undefined, stamped: undefined }, clock },
      asked,
    );
    expect(openCheckpoint(answer.checkpoint, verifierOf(one, 2) as never).size).toBe(1);
    await follower.close();
    stop.abort();
    await Promise.all(watching);
    await auditor.close();
    const replayed = await replayAll(world.store, replica().seal);
    expect(
      replayed.batches.map(({ doc: { size: leaves, checkpoint } }) => isSignedBy(one, checkpoint)[1] === leaves > 1),
    ).not.toContain(false);
    expect(one.keys.all("now")).toHaveLength(2);
  });

  it("of another replica, sealed at another place than this one would have, is no broken ledger", async () => {
    const world = await openWorld();
    const one = replica();
    one.keys.all();
    one.keyring.rotateSigningKey(ledgerName);
    const other = await startAuditor(world, world.store, world.bus, replica().seal);
    await sendOn(world.bus, topicNames.tokens, "issuer/a", [tokenEvent(1, 1), tokenEvent(2, 1)]);
    await untilSealed(world);
    await sendOn(world.bus, topicNames.evidence, "auditor/a", [sendable(rotation(one))]);
    await untilSealed(world);
    await other.close();
    // One that looked before there was a batch, and reads everything from the beginning: the tokens last.
    const bus: Bus = {
      ...world.bus,
      subscribe: (options) =>
        world.bus.subscribe({
          ...options,
          async onRecords(records) {
            const isLast = records[0]?.topic === topicNames.tokens;
            if (isLast) void clock.sleep(300).then(() => options.onRecords(records));
            else await options.onRecords(records);
          },
        }),
    };
    let hidden = 1;
    const blind = {
      ...world.store,
      collection: async <D extends Doc>(name: string, ...more: []) => {
        const inner = await world.store.collection<D>(name, ...more);
        const isHidden = () => name === "batches" && hidden-- > 0;
        const find = async (...query: Parameters<typeof inner.find>) =>
          name === "checkpoints" && hidden > 0 ? [] : inner.find(...query);
        const getLatest = async (id: string) => (isHidden() ? undefined : inner.getLatest(id));
        return { ...inner, find, getLatest };
      },
    } as DocumentStore;
    const late = await startAuditor(world, blind, bus, replica().seal);
    await sendOn(world.bus, topicNames.tokens, "issuer/b", [tokenEvent(3, 1)]);
    await Promise.race([untilSealed(world), late.running]);
    await late.close();
    expect(hidden).toBeLessThanOrEqual(0);
    const { batches } = await replayAll(world.store, replica().seal);
    expect(batches.at(-1)?.head.size).toBe(4);
  });

  it("signs by the new key what it makes while the batch with the rotation is being staged", async () => {
    const world = await openWorld();
    const one = replica();
    one.keys.all();
    one.keyring.rotateSigningKey(ledgerName);
    const signing = vi.spyOn(Object.getPrototypeOf(one.seal) as LedgerSeal, "sign");
    let held = false;
    const store = faultyStore(world.store, async ({ collection, method }) => {
      if (held || collection !== "batches" || method !== "insert") return undefined;
      held = true;
      await vi.waitFor(() => expect(signing.mock.calls.map(([, size]) => size)).toEqual([1_000, 2_000]), bound);
      expect(one.keys.all("now")[1]?.after).toBeUndefined();
      return undefined;
    });
    const records = [sendable(rotation(one)), ...Array.from({ length: 2_000 }, (_, i) => use(i))];
    for (const from of [0, 1_000, 2_000])
      await sendOn(world.bus, topicNames.evidence, `auditor/from${from}`, records.slice(from, from + 1_000));
    const auditor = await startAuditor(world, store, world.bus, one.seal);
    await untilSealed(world);
    await auditor.close();
    signing.mockRestore();
    expect(one.keys.all("now")[1]?.after).toBe(0);
    const { batches } = await replayAll(world.store, replica().seal);
    expect(batches.map(({ doc }) => doc.size)).toEqual([1_000, 2_000, 2_001]);
    expect(batches.map(({ doc }) => isSignedBy(one, doc.checkpoint))).toEqual(Array(3).fill([true, true]));
  });
});
