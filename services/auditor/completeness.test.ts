import { fromBinary } from "@bufbuild/protobuf";
import {
  EvidenceGapFoundSchema,
  GapCause,
  GapCauseSchema,
} from "@curfew/contracts/gen/curfew/events/v1/evidence_pb.ts";
import type { Collection, DocumentStore } from "@curfew/document-store/port.ts";
import type { Bus, InRecord, OutRecord } from "@curfew/event-log/bus.ts";
import { headerOf, openChain, signatureHeader } from "@curfew/event-log/chain.ts";
import type { EpochRow } from "@curfew/event-log/epochs.ts";
import { beginEpoch } from "@curfew/event-log/epochs.ts";
import { topicNames } from "@curfew/event-log/event-types.ts";
import { createProducerKey } from "@curfew/event-log/producer-key.ts";
import { decodeLeaf } from "@curfew/ledger/leaf.ts";
import { memoryBus } from "@curfew/simulation/memory-bus.ts";
import { memoryStore } from "@curfew/simulation/memory-store.ts";
import { afterEach, describe, expect, it, vi } from "vitest";
import { closingOfRow } from "./checks/epoch-watch.ts";
import { openReadModels } from "./projections.ts";
import {
  bound,
  clock,
  identities,
  openWorld,
  partitions,
  replayAll,
  startAuditor,
  tokenEvent,
  untilSealed,
  use,
} from "./testing/rig.ts";

const closers: (() => Promise<unknown>)[] = [];
afterEach(async () => {
  for (const close of closers.splice(0).reverse()) await close();
});

/**
 * A bus whose records a test writes itself, chain headers and offsets included; the auditor's own producer is a real one. On the stores
 * of a world before it, as a new process finds them, or on new ones.
 */
const openForgedWorld = async (before?: { epochs: Collection<EpochRow>; store: DocumentStore }) => {
  const epochs = before?.epochs ?? (await memoryStore().collection<EpochRow>("epochs"));
  const store = before?.store ?? memoryStore();
  const own = memoryBus({ epochs, clock, topics: { ...partitions }, identity: identities.identity });
  const forged: InRecord[] = [];
  const tell = new Set<() => void>();
  const bus: Bus = {
    ...own,
    // Of a topic written here only what a test puts is there, so it never looks shrunken.
    ends: async (topic) => {
      const ends = await own.ends(topic);
      return topic === topicNames.evidence ? ends : ends.map(() => Number.MAX_SAFE_INTEGER);
    },
    describe: async (topic) => {
      const state = await own.describe(topic);
      return { ...state, ends: await bus.ends(topic) };
    },
    async subscribe(options) {
      let next = 0;
      let busy = Promise.resolve();
      const pump = () => {
        busy = busy.then(async () => {
          const fresh = forged.slice(next);
          next = forged.length;
          for (const record of fresh)
            if (record.offset >= options.start(record.topic, record.partition)) await options.onRecords([record]);
        });
      };
      tell.add(pump);
      pump();
      const inner = await own.subscribe({ ...options, topics: [topicNames.evidence] });
      return {
        failed: inner.failed,
        close: async () => {
          tell.delete(pump);
          await busy;
          await inner.close();
        },
      };
    },
  };
  const auditor = await startAuditor({ epochs, store, bus });
  auditor.outbox.start("localhost:1");
  closers.push(() => auditor.close());
  const gaps = () => {
    const seen = new Map<string, InRecord>();
    for (const record of own.records(topicNames.evidence).filter(isGap))
      seen.set(record.headers.find(([name]) => name === "ce_id")?.[1] ?? "", record);
    return [...seen.values()].map((record) => fromBinary(EvidenceGapFoundSchema, record.value));
  };
  const ends = new Map<string, number>();
  const sealed = async () => (await replayAll(store)).batches.flatMap((batch) => batch.records);
  return {
    epochs,
    store,
    outbox: auditor.outbox,
    gaps,
    sealed,
    /** Puts records on a topic, each at the next offset of its partition unless it says otherwise. */
    put(topic: string, ...records: readonly (OutRecord & { offset?: number })[]) {
      for (const { partition, key, headers, value, offset } of records) {
        const place = `${topic}/${partition}`;
        const at = offset ?? ends.get(place) ?? 0;
        ends.set(place, at + 1);
        const pairs = Object.entries(headers);
        forged.push({ topic, partition, offset: at, timestampMs: clock.now(), key, headers: pairs, value });
      }
      for (const pump of tell) pump();
    },
    /** Until the leaves are as many, and have been checked. */
    until: async (count: number) => {
      const { checkpoints } = await openReadModels(store);
      const size = async () => (await checkpoints.find({ order: -1, limit: 1 }))[0]?.size;
      await vi.waitFor(async () => expect(await size()).toBeGreaterThanOrEqual(count), bound);
    },
    untilGaps: (count: number) => vi.waitFor(() => expect(gaps().length).toBe(count), bound),
  };
};

const isGap = (record: InRecord) => headerOf(record, "ce_type") === "curfew.evidence-gap.found.v1";
const { tokens, uses } = topicNames;

it("finds no gap where another replica has sealed between two tenures of one", async () => {
  const world = await openWorld();
  const producer = await world.bus.openProducer({ topic: topicNames.tokens, name: "issuer/a" });
  closers.push(() => producer.close());
  const one = await startAuditor(world);
  closers.push(() => one.close());
  await producer.send([tokenEvent(1, 1), tokenEvent(2, 1)]);
  await untilSealed(world);
  const resume = await one.pause();
  const other = await startAuditor(world);
  await producer.send([tokenEvent(1, 2), tokenEvent(2, 2)]);
  await untilSealed(world);
  await other.close();
  resume();
  await producer.send([tokenEvent(1, 3), tokenEvent(3, 1)]);
  await untilSealed(world);
  one.outbox.start("localhost:1");
  await clock.sleep(500);
  await untilSealed(world);
  const { batches } = await replayAll(world.store);
  const types = batches.flatMap(({ records }) => records.map((record) => headerOf(record, "ce_type")));
  expect(types.filter((type) => type?.includes("gap"))).toEqual([]);
  expect(types).toHaveLength(6);
});

describe("completeness", () => {
  it("finds nothing wrong with whole chains of several epochs and partitions", async () => {
    const world = await openForgedWorld();
    for (let epoch = 1; epoch <= 2; epoch += 1) {
      const chain = openChain(uses, await beginEpoch(world.epochs, "verifier/a", uses));
      for (let n = 0; n < 9; n += 1) world.put(uses, chain.link(use(n, n % 3)));
    }
    await world.until(18);
    expect(world.gaps()).toEqual([]);
  });

  it("takes the same record twice in a row for what it is: a repetition by the broker", async () => {
    const world = await openForgedWorld();
    const chain = openChain(tokens, await beginEpoch(world.epochs, "issuer/a", tokens));
    const first = chain.link(tokenEvent(1, 1));
    world.put(tokens, first, first, chain.link(tokenEvent(1, 2)));
    await world.until(3);
    expect(world.gaps()).toEqual([]);
  });

  it("records a hole once, however many there are, and seals the record of it", async () => {
    const world = await openForgedWorld();
    const producer = await beginEpoch(world.epochs, "verifier/a", uses);
    const chain = openChain(uses, producer);
    const linked = [0, 1, 2, 3, 4, 5, 6].map((n) => chain.link(use(n)));
    world.put(uses, ...[0, 2, 4].map((n) => linked[n] as OutRecord));
    await world.untilGaps(1);
    world.put(uses, linked[6] as OutRecord);
    await world.until(5);
    expect(world.gaps()).toMatchObject([
      {
        producer,
        cause: GapCause.HOLE,
        position: { topic: uses, partition: 0, offset: 1n },
        expectedSequence: 2n,
        seenSequence: 3n,
      },
    ]);
    expect((await world.sealed()).map((record) => record.topic)).toContain(topicNames.evidence);
  });

  it("sees a hole across a restart: the head of the chain is read from what was sealed", async () => {
    const world = await openForgedWorld();
    const chain = openChain(uses, await beginEpoch(world.epochs, "verifier/a", uses));
    const linked = [0, 1, 2, 3].map((n) => chain.link(use(n)));
    world.put(uses, ...linked.slice(0, 2));
    await world.until(2);
    const { entries } = await openReadModels(world.store);
    const rows = await entries.find({ where: { chain: "verifier/a/1 curfew.uses.v1/0" }, order: -1, limit: 1 });
    expect(rows).toMatchObject([{ chainSequence: 2 }]);
    for (const close of closers.splice(0)) await close();
    const again = await openForgedWorld(world);
    again.put(uses, { ...(linked[3] as OutRecord), offset: 2 });
    await again.untilGaps(1);
    expect(again.gaps()).toMatchObject([{ cause: GapCause.HOLE, expectedSequence: 3n, seenSequence: 4n }]);
  });

  it("records a fork: two records that follow the same one, or one that was changed", async () => {
    const world = await openForgedWorld();
    const producer = await beginEpoch(world.epochs, "verifier/a", uses);
    const chain = openChain(uses, producer);
    const other = openChain(uses, producer);
    world.put(uses, chain.link(use(1)), chain.link(use(2)));
    other.link(use(3));
    world.put(uses, other.link(use(4)));
    await world.untilGaps(1);
    expect(world.gaps()).toMatchObject([{ producer, cause: GapCause.FORK, position: { offset: 2n } }]);
  });

  it("records a producer that nobody registered, one registered for another topic, and records without any", async () => {
    const world = await openForgedWorld();
    const foreign = await beginEpoch(world.epochs, "verifier/foreign", uses);
    world.put(
      tokens,
      openChain(tokens, "issuer/nobody/1").link(tokenEvent(1, 1)),
      openChain(tokens, foreign).link(tokenEvent(2, 1)),
      tokenEvent(3, 1),
    );
    await world.untilGaps(3);
    expect(world.gaps().map(({ producer, cause }) => [producer, cause])).toEqual([
      ["issuer/nobody/1", GapCause.UNKNOWN_PRODUCER],
      [foreign, GapCause.UNKNOWN_PRODUCER],
      ["", GapCause.UNKNOWN_PRODUCER],
    ]);
  });

  describe("of a producer that signs", () => {
    /** An epoch with its row, as a producer of uses begins it. */
    const signing = async (epochs: Collection<EpochRow>, name = "verifier/a") => {
      const keys = new Map<string, ReturnType<typeof createProducerKey>>();
      const producer = await beginEpoch(epochs, name, uses, (id) => {
        keys.set(
          id,
          createProducerKey(id, uses, () => identities.identity("verifier")),
        );
        return { key: keys.get(id)?.certification() ?? "" };
      });
      const key = keys.get(producer) as ReturnType<typeof createProducerKey>;
      return { producer, key, chain: openChain(uses, producer, key) };
    };
    const found = (world: { gaps(): { producer: string; cause: GapCause }[] }) =>
      world.gaps().map(({ producer, cause }) => `${producer} ${GapCauseSchema.value[cause]?.localName}`);

    it("records a signature that is not its own, also where the auditor has been started anew in between", async () => {
      const world = await openForgedWorld();
      const { producer, chain } = await signing(world.epochs);
      world.put(uses, ...chain.linkSend([use(1), use(2)]), ...chain.linkSend([use(3)]));
      await world.until(3);
      expect(world.gaps()).toEqual([]);
      for (const close of closers.splice(0)) await close();
      const again = await openForgedWorld(world);
      // The right number and the right hash before it: whoever may write to the topic knows both.
      const forged = chain.link(use(4));
      const other = await signing(world.epochs, "verifier/other");
      const headers = { ...forged.headers, [signatureHeader]: other.key.sign(["ab".repeat(32)]) };
      again.put(uses, { ...forged, headers, offset: 3 });
      await again.untilGaps(1);
      expect(found(again)).toEqual([`${producer} BAD_SIGNATURE`]);
    });

    it("records a chain of its service that begins without signatures, also by a row without a key", async () => {
      const world = await openForgedWorld();
      const { chain } = await signing(world.epochs);
      world.put(uses, ...chain.linkSend([use(1)]));
      await world.until(1);
      for (const close of closers.splice(0)) await close();
      const again = await openForgedWorld(world);
      const forged = openChain(uses, await beginEpoch(world.epochs, "verifier/forged", uses));
      again.put(uses, { ...forged.link(use(2)), offset: 1 });
      await again.untilGaps(1);
      expect(found(again)).toEqual(["verifier/forged/1 MISSING_SIGNATURE"]);
    });

    it("records a chain without signatures of a producer whose row has a key, and a name that another service uses", async () => {
      const world = await openForgedWorld();
      const { producer } = await signing(world.epochs);
      world.put(uses, openChain(uses, producer).link(use(1)));
      const stolen = await beginEpoch(world.epochs, "verifier/stolen", uses);
      const key = createProducerKey(stolen, uses, () => identities.identity("issuer"));
      world.put(uses, ...openChain(uses, stolen, key).linkSend([use(2)]));
      await world.untilGaps(2);
      expect(found(world)).toEqual([`${producer} MISSING_SIGNATURE`, `${stolen} UNKNOWN_PRODUCER`]);
    });

    it("records what was put unsigned behind the end of a chain, once anything follows, also after a restart", async () => {
      const world = await openForgedWorld();
      const one = await signing(world.epochs, "verifier/one");
      const two = await signing(world.epochs, "verifier/two");
      // In turns, as replicas write: that is no fault.
      world.put(uses, ...one.chain.linkSend([use(1), use(2)]), ...two.chain.linkSend([use(3)]));
      world.put(uses, ...one.chain.linkSend([use(4)]), ...two.chain.linkSend([use(5)]));
      await world.until(5);
      world.put(uses, one.chain.link(use(6)));
      await world.until(6);
      expect(world.gaps()).toEqual([]);
      for (const close of closers.splice(0)) await close();
      const again = await openForgedWorld(world);
      again.put(uses, ...two.chain.linkSend([use(7)]).map((record) => ({ ...record, offset: 6 })));
      await again.untilGaps(1);
      expect(found(again)).toEqual([`${one.producer} MISSING_SIGNATURE`]);
      expect(again.gaps()).toMatchObject([{ position: { topic: uses, partition: 0, offset: 5n } }]);
    });

    it("records that its last record is unsigned when it is closed, and a closing that is not its own", async () => {
      const world = await openForgedWorld();
      const one = await signing(world.epochs, "verifier/one");
      const two = await signing(world.epochs, "verifier/two");
      world.put(
        uses,
        ...one.chain.linkSend([use(1, 0)]),
        one.chain.link(use(2, 0)),
        ...two.chain.linkSend([use(3, 1)]),
      );
      const state = { acknowledged: { 0: 1 } };
      for (const { producer } of [one, two]) {
        const row = (await world.epochs.get(producer)) as EpochRow;
        // Of both the word of the first.
        const closing = closingOfRow({ ...row, ...state, signature: one.key.signState(state) }, [2, 1, 0]);
        await world.outbox.streams.append(`epochs/${producer}`, { version: 0, sequence: 0 }, [closing]);
      }
      await world.untilGaps(2);
      expect(new Set(found(world))).toEqual(
        new Set(["verifier/one/1 MISSING_SIGNATURE", "verifier/two/1 BAD_SIGNATURE"]),
      );
    });
  });

  it("records a gap in a stream's own numbers, and none where an event comes twice", async () => {
    const world = await openForgedWorld();
    const producer = await beginEpoch(world.epochs, "issuer/a", tokens);
    const chain = openChain(tokens, producer);
    world.put(tokens, ...[1, 2, 1, 2, 3].map((n) => chain.link(tokenEvent(1, n, `event-${n}`))));
    await world.until(5);
    expect(world.gaps()).toEqual([]);
    world.put(tokens, chain.link(tokenEvent(1, 5)));
    await world.untilGaps(1);
    expect(world.gaps()).toMatchObject([
      { producer, cause: GapCause.STREAM_GAP, expectedSequence: 4n, seenSequence: 5n },
    ]);
  });

  it("records a jump of offsets and goes on", async () => {
    const world = await openForgedWorld();
    const chain = openChain(tokens, await beginEpoch(world.epochs, "issuer/a", tokens));
    world.put(tokens, chain.link(tokenEvent(1, 1)), { ...chain.link(tokenEvent(1, 2)), offset: 7 });
    world.put(tokens, chain.link(tokenEvent(1, 3)));
    await world.untilGaps(1);
    await world.until(4);
    expect(world.gaps()).toMatchObject([
      { producer: "", cause: GapCause.OFFSET_JUMP, position: { offset: 7n }, expectedSequence: 1n, seenSequence: 7n },
    ]);
  });

  it("seals the hash of a record that is too large for a leaf, and says so", async () => {
    const world = await openForgedWorld();
    const chain = openChain(tokens, await beginEpoch(world.epochs, "issuer/a", tokens));
    const large = { ...tokenEvent(1, 1), value: new Uint8Array(70_000).fill(7) };
    world.put(tokens, chain.link(large), { ...tokenEvent(2, 1), headers: { "x-large": "x".repeat(66_000) } });
    await world.until(3);
    await world.untilGaps(1);
    expect(world.gaps()).toMatchObject([{ cause: GapCause.OVERSIZE, position: { topic: tokens, offset: 0n } }]);
    const { batches } = await replayAll(world.store);
    const leaves = batches.flatMap((batch) => batch.doc.leaves.map(decodeLeaf)).filter((leaf) => leaf.topic === tokens);
    expect(leaves).toMatchObject([
      { oversize: true, offset: 0, key: "", headers: [] },
      { oversize: true, offset: 1 },
    ]);
  });

  it("seals what is no event of ours, and what has strange keys", async () => {
    const world = await openForgedWorld();
    const strange = { ce_id: "\u0000".repeat(5_000), ce_subject: "s".repeat(5_000), ce_sequence: "3", ce_type: "x" };
    world.put(tokens, { partition: 0, key: "", headers: strange, value: new Uint8Array([255]) });
    world.put(tokens, { partition: 0, key: "\u0000", headers: {}, value: new Uint8Array([1]) });
    await world.until(2);
    expect((await world.sealed()).filter((record) => record.topic === tokens).length).toBe(2);
  });
});
