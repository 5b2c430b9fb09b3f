import { createPrivateKey, createPublicKey, hash } from "node:crypto";
import { create, type Message } from "@bufbuild/protobuf";
import { TokenExpiredSchema } from "@curfew/contracts/gen/curfew/events/v1/tokens_pb.ts";
import { UseDecidedSchema } from "@curfew/contracts/gen/curfew/events/v1/uses_pb.ts";
import type { Collection, DocumentStore } from "@curfew/document-store/port.ts";
import type { Bus, OutRecord } from "@curfew/event-log/bus.ts";
import { encodeEvent } from "@curfew/event-log/envelope.ts";
import { type EpochRow, openEpochs } from "@curfew/event-log/epochs.ts";
import { topicNames, topicWriters } from "@curfew/event-log/event-types.ts";
import { openOutbox } from "@curfew/event-log/outbox.ts";
import { openIdentities } from "@curfew/event-log/testing/producer-identity.ts";
import { leafHash } from "@curfew/ledger/hash.ts";
import { decodeLeaf, type LogRecord } from "@curfew/ledger/leaf.ts";
import { noteSigner } from "@curfew/ledger/note-key.ts";
import { verifyInclusion } from "@curfew/ledger/proof.ts";
import { shardOrigin, yearOf } from "@curfew/ledger/shard.ts";
import { proveInclusion } from "@curfew/ledger/tree.ts";
import { type Clock, systemClock } from "@curfew/runtime/clock.ts";
import { openLog } from "@curfew/runtime/log.ts";
import { systemRandom } from "@curfew/runtime/random.ts";
import { memoryBus } from "@curfew/simulation/memory-bus.ts";
import { memoryStore } from "@curfew/simulation/memory-store.ts";
import { expect } from "vitest";
import { openDriftLog } from "../checks/drift-log.ts";
import { openTopicWatch } from "../checks/topic-watch.ts";
import {
  type BatchDoc,
  batchId,
  emptyHead,
  type LedgerHead,
  makeBatch,
  maxBatchRecords,
  replayBatch,
  type Shard,
} from "../domain.ts";
import { openLedger } from "../ledger.ts";
import { type LedgerSeal, sealOf } from "../ledger-keys.ts";
import { entryId, openProjection, openReadModels, readNodes } from "../projections.ts";
import { openGapReporter } from "../reactions.ts";
import { sealUntil } from "../sealer.ts";

export const clock = systemClock;
export const quiet = openLog({ service: "test", level: "error", write: () => undefined });
/** Of every service. */
export const identities = await openIdentities(systemClock, Object.values(topicWriters));
export const ledgerName = "test.example/ledger";
/** Of all that a test seals. */
const startedMs = clock.now();
export const shard: Shard = { year: yearOf(startedMs), first: 0 };
export const origin = shardOrigin(ledgerName, shard.year);
/** The same in every process of a test. */
const seed = Buffer.from(`302e020100300506032b657004220420${"07".repeat(32)}`, "hex");
const privateKey = createPrivateKey({ key: seed, format: "der", type: "pkcs8" });
const signingKey = { number: 1, privateKey, publicKey: createPublicKey(privateKey), after: -1 };
export const seal = sealOf(ledgerName, { all: () => [signingKey], follow: () => undefined });
export const verifierKey = seal.verifierKeyAt(shard.year, 0);
/** Signs whatever it is given as the ledger. */
export const signer = noteSigner(origin, privateKey);
export const bound = { timeout: 20_000, interval: 10 };

export const tokenId = (n: number) => `tok_00000000-0000-8000-8000-${String(n).padStart(12, "0")}`;

/** An event as a record to send, on its stream's number `sequence`; without one a use. */
export const eventRecord = (
  message: Message,
  o: { subject: string; source?: string; sequence?: number; id?: string; partition?: number; nowMs?: number },
): OutRecord => {
  const { subject, partition = 0 } = o;
  const encoded = encodeEvent(message, {
    source: o.source ?? "/issuer",
    subject,
    nowMs: o.nowMs ?? clock.now(),
    random: systemRandom,
    traceparent: `00-${"a".repeat(32)}-${"b".repeat(16)}-00`,
    ...(o.sequence !== undefined && { sequence: o.sequence }),
    ...(o.id !== undefined && { id: o.id }),
  });
  return { partition, key: subject, headers: encoded.headers, value: encoded.value };
};

export const tokenEvent = (token: number, sequence: number, id?: string): OutRecord =>
  eventRecord(create(TokenExpiredSchema, { tokenId: tokenId(token) }), {
    subject: `tokens/${tokenId(token)}`,
    sequence,
    ...(id !== undefined && { id }),
  });

export const use = (token: number, partition = 0, id?: string): OutRecord =>
  eventRecord(
    create(UseDecidedSchema, { useId: `use-${token}`, tokenId: tokenId(token), resourceService: "invoices" }),
    {
      subject: tokenId(token),
      source: "/verifier",
      partition,
      ...(id !== undefined && { id }),
    },
  );

export const partitions = {
  [topicNames.tokens]: 1,
  [topicNames.revocations]: 1,
  [topicNames.breaches]: 1,
  [topicNames.evidence]: 1,
  [topicNames.uses]: 3,
};

/** What all auditors of a test share. */
export interface World {
  readonly epochs: Collection<EpochRow>;
  readonly store: DocumentStore;
  readonly bus: Bus;
}

/** Sends by a producer of its own. */
export const sendOn = async (
  bus: Bus,
  topic: string,
  producer: string,
  records: readonly OutRecord[],
): Promise<void> => {
  const open = await bus.openProducer({ topic, name: producer });
  await open.send(records);
  await open.close();
};

/** All of it in memory. */
export const openWorld = async () => {
  const epochs = await openEpochs(memoryStore());
  return {
    epochs,
    store: memoryStore(),
    bus: memoryBus({ epochs, clock, topics: partitions, identity: identities.identity }),
  };
};
export type MemoryWorld = Awaited<ReturnType<typeof openWorld>>;

/** One auditor without its server, on its own view of the store. It seals until stopped; no lease holds it back. */
export const startAuditor = async (
  world: World,
  store: DocumentStore = world.store,
  bus: Bus = world.bus,
  sealing: LedgerSeal = seal,
  sealingClock: Clock = clock,
) => {
  const models = await openReadModels(store);
  const outbox = await openOutbox({
    store,
    bus,
    service: "auditor",
    instance: `a${hash("sha256", systemRandom(8), "hex").slice(0, 8)}`,
    topic: topicNames.evidence,
    clock,
    random: systemRandom,
    log: quiet,
    exclusive: true,
    wake: async () => [],
  });
  const projection = openProjection({
    models,
    epochs: world.epochs,
    trust: identities.trust,
    report: openGapReporter(outbox, { epochs: world.epochs, clock, log: quiet }),
  });
  const batches = await store.collection<BatchDoc>("batches");
  const ledger = openLedger({
    batches,
    models,
    projection,
    seal: sealing,
    clock,
    published: () => undefined,
  });
  let stop = new AbortController();
  const drifts = openDriftLog(outbox, quiet);
  const topics = openTopicWatch({ bus, drifts, latest: () => undefined, wanted: {}, clock, log: quiet });
  const begin = () =>
    sealUntil({ ledger, bus, topics, clock: sealingClock, log: quiet }, { fence: 1, signal: stop.signal });
  let running = begin();
  running.catch(() => undefined);
  return {
    ledger,
    models,
    outbox,
    drifts,
    /** Rejects when the sealer has ended with an error. */
    running,
    /** Ends its tenure; what it answers begins the next one. */
    async pause() {
      stop.abort();
      await running;
      return () => {
        stop = new AbortController();
        running = begin();
      };
    },
    async close() {
      stop.abort();
      await running;
      await outbox.close();
    },
  };
};

/** Stages batches of uses on top of `head`, `count` leaves in all, without a bus. */
export const growBy = async (
  batches: Pick<Collection<BatchDoc>, "insert">,
  head: LedgerHead,
  count: number,
  sealedAtMs = startedMs,
  by: LedgerSeal = seal,
) => {
  let at = head;
  for (let left = count; left > 0; left -= maxBatchRecords) {
    const records = Array.from({ length: Math.min(left, maxBatchRecords) }, (_, i): LogRecord => {
      const { partition, key, headers, value } = use(at.size + i);
      const fields = { partition, key, value, headers: Object.entries(headers) };
      return { topic: topicNames.uses, offset: at.size + i, timestampMs: 1_795_000_000_000, ...fields };
    });
    const batch = makeBatch(at, records, sealedAtMs, by);
    await batches.insert(batch.doc);
    at = batch.head;
  }
  return at;
};

const placeOf = (r: { topic: string; partition: number; offset: number }) => `${r.topic}/${r.partition}@${r.offset}`;

/** Every place of every topic that has a record. */
const allPlaces = async ({ bus }: World): Promise<string[]> => {
  const places: string[] = [];
  for (const topic of Object.keys(partitions))
    for (const [partition, end] of (await bus.ends(topic)).entries())
      for (let offset = 0; offset < end; offset += 1) places.push(placeOf({ topic, partition, offset }));
  return places;
};

export const sorted = (texts: readonly string[]) => [...texts].sort((a, b) => (a < b ? -1 : 1));

/** Every batch, made again from the first. */
export const replayAll = async (store: DocumentStore, sealed: LedgerSeal = seal) => {
  const batches = await store.collection<BatchDoc>("batches");
  const found = [];
  for (let head = emptyHead; ; ) {
    const doc = await batches.get(batchId(head.batch + 1));
    if (!doc) return { batches: found, head };
    const batch = replayBatch(head, doc, sealed);
    found.push(batch);
    head = batch.head;
  }
};

/**
 * One tree: every batch follows the one before it, each record of the bus is exactly one leaf, rows and checkpoints are those of the
 * batches, and every leaf has a proof under the last root.
 */
export const assertOneTree = async (world: World): Promise<void> => {
  const { batches, head } = await replayAll(world.store);
  const places = batches.flatMap((batch) => batch.records.map(placeOf));
  expect(sorted(places)).toEqual(sorted(await allPlaces(world)));
  const { entries, checkpoints } = await openReadModels(world.store);
  expect((await checkpoints.find({ limit: 10_000 })).map((row) => row.checkpoint)).toEqual(
    batches.map((batch) => batch.doc.checkpoint),
  );
  const rows = await entries.find({ limit: 10_000 });
  expect(rows.map((row) => placeOf(decodeLeaf(row.leaf)))).toEqual(places);
  const byId = new Map(rows.map((row) => [row._id, row]));
  const nodes = readNodes({ get: async (id) => byId.get(id) }, head.shard);
  const root = head.frontier.root();
  for (const [index, row] of rows.entries()) {
    expect(row._id).toBe(entryId(index));
    const proof = await proveInclusion(index, head.size, nodes);
    expect(verifyInclusion(index, head.size, leafHash(row.leaf), proof, root)).toBe(true);
  }
};

/** Waits until everything on the bus is sealed and published. */
export const untilSealed = async (world: World): Promise<void> => {
  const { checkpoints } = await openReadModels(world.store);
  const deadline = clock.monotonicMs() + bound.timeout;
  for (;;) {
    const [last] = await checkpoints.find({ order: -1, limit: 1 });
    const wanted = (await allPlaces(world)).length;
    if ((last?.size ?? 0) >= wanted) return;
    if (clock.monotonicMs() > deadline) throw new Error(`sealed ${last?.size ?? 0} of ${wanted} records`);
    await clock.sleep(bound.interval);
  }
};
