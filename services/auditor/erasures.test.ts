import { mkdtempSync, readdirSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { create } from "@bufbuild/protobuf";
import { ErasureAcknowledgedSchema } from "@curfew/contracts/gen/curfew/events/v1/data_subjects_pb.ts";
import type { DocumentStore } from "@curfew/document-store/port.ts";
import { readEvent } from "@curfew/event-log/envelope.ts";
import type { EpochRow } from "@curfew/event-log/epochs.ts";
import { topicNames } from "@curfew/event-log/event-types.ts";
import { openAggregates } from "@curfew/event-log/handle-command.ts";
import { openOutbox } from "@curfew/event-log/outbox.ts";
import { encodeLeaf } from "@curfew/ledger/leaf.ts";
import { openPersonKeys } from "@curfew/personal-data/person-keys.ts";
import { openPersonalStore, type PersonalStore } from "@curfew/personal-data/personal-store.ts";
import { openPseudonyms } from "@curfew/personal-data/pseudonyms.ts";
import { openField, sealField } from "@curfew/personal-data/sealed-field.ts";
import { systemRandom } from "@curfew/runtime/random.ts";
import { type Fault, faultyStore } from "@curfew/simulation/faulty-store.ts";
import { memoryBus } from "@curfew/simulation/memory-bus.ts";
import { memoryStore } from "@curfew/simulation/memory-store.ts";
import { type VirtualClock, virtualClock } from "@curfew/simulation/virtual-clock.ts";
import { afterEach, describe, expect, it } from "vitest";
import { dataSubject, subjectStream } from "./domain/data-subject.ts";
import { openErasures } from "./erasures.ts";
import { type EntryRow, entryId } from "./projections.ts";
import { eventRecord, partitions, quiet } from "./testing/rig.ts";

const dayMs = 86_400_000;
const settings = { epochMs: 10 * dayMs, backupDays: 5, settleMs: 60_000 };
const place = { eventType: "curfew.use.decided.v1", field: "source.address", id: "use-1" };
const anna = { controller: "acme", identifierType: "address", value: "203.0.113.7" };
const bert = { ...anna, value: "203.0.113.8" };

const closers: (() => unknown)[] = [];
afterEach(async () => {
  for (const close of closers.splice(0).reverse()) await close();
});

/** Everything but the auditor: stores, bus, keys, the people, and a ledger of acknowledgements. */
const openWorld = async () => {
  const dir = mkdtempSync(join(tmpdir(), "curfew-erasures-"));
  closers.push(() => rmSync(dir, { recursive: true, force: true }));
  const keysDir = join(dir, "keys");
  const clock = virtualClock();
  const [store, personal] = [memoryStore(), memoryStore()];
  const epochs = await memoryStore().collection<EpochRow>("epochs");
  const bus = memoryBus({ epochs, clock, topics: partitions });
  const open = (on: DocumentStore) => openPersonalStore({ store: on, keysDir, random: systemRandom, clock });
  const people = await open(personal);
  const options = { random: systemRandom, cacheSize: 1, cacheMs: 0, clock, epochs: people.epochs };
  const pseudonyms = openPseudonyms({
    ...options,
    collection: people.identities,
    identifierKey: people.identifierKey,
  });
  const keys = openPersonKeys({ ...options, rows: people.persons });
  const sealedFor = async (identity: typeof anna) => {
    const pseudonym = await pseudonyms.pseudonymOf(identity);
    const key = await keys.keyOf(pseudonym);
    if (!key) throw new Error("they are erased");
    return { pseudonym, sealed: sealField(key, pseudonym, place, identity.value, systemRandom) };
  };
  const read = async ({ pseudonym, sealed }: Awaited<ReturnType<typeof sealedFor>>) => {
    const key = await keys.keyOf(pseudonym);
    return key && openField(key, sealed, place);
  };
  const entries = await store.collection<EntryRow>("entries", { indexes: ["type"] });
  let size = 0;
  const acknowledge = async (pseudonym: string, consumer: string) => {
    const sent = eventRecord(create(ErasureAcknowledgedSchema, { pseudonym, consumer }), { subject: "verifier/v" });
    const { partition, key, value, headers } = sent;
    const record = { topic: topicNames.uses, partition, key, value, headers: Object.entries(headers) };
    const { leaf } = encodeLeaf({ ...record, offset: size, timestampMs: clock.now() }, clock.now());
    const type = "curfew.erasure.acknowledged.v1";
    await entries.insert({ _id: entryId(size), batch: 1, leaf, nodes: new Uint8Array(), type });
    size += 1;
  };
  /** Each once: a relay that was killed may have sent one twice. */
  const events = async () => {
    const found = new Map<string, string>();
    let read = 0;
    const [end = 0] = await bus.ends(topicNames.evidence);
    const subscription = await bus.subscribe({
      name: "test",
      topics: [topicNames.evidence],
      start: () => 0,
      onRecords: (records) => {
        read += records.length;
        for (const { id, message } of records.map(readEvent))
          found.set(id, message.$typeName.replace("curfew.events.v1.", ""));
      },
    });
    for (let tries = 0; read < end && tries < 100; tries += 1) await clock.advance(10);
    await subscription.close();
    return [...found.values()];
  };
  return {
    dir,
    keysDir,
    clock,
    store,
    personal,
    bus,
    open,
    people,
    sealedFor,
    read,
    entries,
    acknowledge,
    events,
    sizeOf: () => size,
  };
};
type World = Awaited<ReturnType<typeof openWorld>>;

let instances = 0;
/** One auditor's erasures, at work on its own view of the personal store, until closed. */
const startErasures = async (
  world: World,
  personal: PersonalStore = world.people,
  own: DocumentStore = world.store,
) => {
  const { clock, bus } = world;
  instances += 1;
  const outbox = await openOutbox({
    ...{ store: own, bus, service: "auditor", instance: `a${instances}`, topic: topicNames.evidence, clock },
    ...{ random: systemRandom, log: quiet, exclusive: true, wake: async () => [] },
  });
  outbox.start("nowhere:1");
  const subjects = openAggregates({ streams: outbox.streams, decider: dataSubject, clock });
  const erasures = openErasures({
    ...{ personal, settings, outbox, subjects, models: { entries: world.entries }, sealedSize: world.sizeOf },
    ...{ bus, clock, random: systemRandom, log: quiet },
  });
  const stop = new AbortController();
  const working = erasures.work({ fence: 1, signal: stop.signal });
  const erase = async (pseudonym: string) => {
    const asked = { pseudonym, by: "spiffe://t/person/dana", nowMs: clock.now(), request: { key: "k", hash: "h" } };
    await subjects.handle(subjectStream(pseudonym), { type: "RequestErasure", reference: "", ...asked });
    erasures.wake(pseudonym);
  };
  const close = async () => {
    stop.abort();
    const closing = Promise.all([erasures.close(), working, outbox.close()]);
    for (let i = 0; i < 20; i += 1) await clock.advance(100);
    await closing;
  };
  return {
    erasures,
    erase,
    close,
    statusOf: async (p: string) => (await subjects.load(subjectStream(p))).erasure.status,
  };
};

/** Lets time pass, a long one at one stroke, and then what is due be done. */
const pass = async (clock: VirtualClock, ms: number) => {
  const longMs = Math.max(0, ms - 3_000);
  clock.jump(longMs);
  await clock.advance(ms - longMs);
};

/** The next epoch is begun, everything wrapped anew, and nothing found to be wrapped for a minute. */
const endEpoch = async (clock: VirtualClock) => {
  for (const ms of [10 * dayMs, 20_000, 70_000]) await pass(clock, ms);
};

describe("an erasure", () => {
  it("destroys key and mapping, waits for every consumer, for the epoch's key and for the last backup; others stay", async () => {
    const world = await openWorld();
    const { clock, people, keysDir } = world;
    const [hers, his] = [await world.sealedFor(anna), await world.sealedFor(bert)];
    expect([await world.read(hers), await world.read(his)]).toEqual([anna.value, bert.value]);
    for (const _id of ["v1", "v2", "v3"]) await people.holders.insert({ _id, seenMs: 1 });
    const auditor = await startErasures(world);
    await auditor.erase(hers.pseudonym);
    await pass(clock, 3_000);
    expect(await auditor.statusOf(hers.pseudonym)).toBe("destroyed");
    expect(await world.read(hers)).toBeUndefined();
    expect((await world.sealedFor(anna)).pseudonym).not.toBe(hers.pseudonym);

    await world.acknowledge(hers.pseudonym, "v1");
    await people.holders.delete("v2"); // ended in order
    await pass(clock, 3_000);
    expect(await auditor.statusOf(hers.pseudonym)).toBe("destroyed");
    await pass(clock, 350_000); // v3 says that it lives, until it does so no more
    await people.holders.set("v3", { seenMs: 2 });
    await pass(clock, 3_000);
    await pass(clock, 350_000);
    expect(await auditor.statusOf(hers.pseudonym)).toBe("destroyed");
    await pass(clock, 20_000);
    expect(await auditor.statusOf(hers.pseudonym)).toBe("propagated");

    await pass(clock, 8 * dayMs);
    expect(readdirSync(keysDir)).toContain("epoch-1.key");
    await pass(clock, dayMs);
    for (const ms of [20_000, 40_000]) await pass(clock, ms);
    expect(readdirSync(keysDir)).toContain("epoch-1.key");
    await pass(clock, 30_000);
    expect(readdirSync(keysDir)).not.toContain("epoch-1.key");
    expect(await world.read(his)).toBe(bert.value);
    expect(await auditor.statusOf(hers.pseudonym)).toBe("propagated");
    await pass(clock, 5 * dayMs);
    expect(await auditor.statusOf(hers.pseudonym)).toBe("completed");
    expect(await world.read(his)).toBe(bert.value);
    await auditor.close();
    expect(await world.events()).toEqual([
      "ErasureRequested",
      "DataSubjectErased",
      "ErasurePropagated",
      "EpochKeyDestroyed",
      "ErasureCompleted",
    ]);
  });

  it("is done again to a store that was restored, before anything else, and new people are left alone", async () => {
    const world = await openWorld();
    const { people, clock } = world;
    const hers = await world.sealedFor(anna);
    const backup = {
      identities: await people.identities.find({ limit: 10 }),
      persons: await people.persons.find({ limit: 10 }),
    };
    const auditor = await startErasures(world);
    await auditor.erase(hers.pseudonym);
    await pass(clock, 3_000);
    await auditor.close();
    for (const name of ["identities", "persons"] as const) {
      const rows = people[name] as PersonalStore["identities"];
      for (const { _id } of await rows.find({ limit: 10 })) await rows.delete(_id);
      for (const row of backup[name]) await rows.insert(row as never);
    }
    // The control: the backup has her.
    expect(await world.read(hers)).toBe(anna.value);
    const his = await world.sealedFor(bert);
    const again = await startErasures(world);
    await pass(clock, 1_000);
    await again.erasures.replayed;
    expect(await world.read(hers)).toBeUndefined();
    expect(await world.read(his)).toBe(bert.value);
    expect((await world.sealedFor(anna)).pseudonym).not.toBe(hers.pseudonym);
    await again.close();
  });

  it("is not undone by a store from before the epoch: what it has cannot be read, and is removed", async () => {
    const world = await openWorld();
    const { people, clock } = world;
    const his = await world.sealedFor(bert);
    const rows = {
      identities: await people.identities.find({ limit: 9 }),
      persons: await people.persons.find({ limit: 9 }),
    };
    const auditor = await startErasures(world);
    await endEpoch(clock);
    expect(await world.read(his)).toBe(bert.value);
    await auditor.close();
    for (const mark of await people.marks.find({ from: "rotated/", limit: 9 })) await people.marks.delete(mark._id);
    for (const name of ["identities", "persons"] as const) {
      const collection = people[name] as PersonalStore["identities"];
      for (const row of rows[name]) {
        await collection.delete(row._id);
        await collection.insert(row as never);
      }
    }
    await expect(world.sealedFor(bert)).rejects.toThrow("no key that is left");
    const again = await startErasures(world);
    await pass(clock, 1_000);
    await again.erasures.replayed;
    expect(await world.read(his)).toBeUndefined();
    const back = await world.sealedFor(bert);
    expect(back.pseudonym).not.toBe(his.pseudonym);
    expect(await world.read(back)).toBe(bert.value);
    expect((await people.marks.find({ from: "rotated/", limit: 9 })).length).toBe(1);
    await again.close();
  });
});

describe("killed at its nth write", () => {
  it.each([
    ["the personal store", "lost"],
    ["the personal store", "unacknowledged"],
    ["its own streams", "lost"],
    ["its own streams", "unacknowledged"],
  ] as [string, Fault][])("to %s, which is %s, it goes on where it was, whatever n", async (where, fault) => {
    const ofStreams = where === "its own streams";
    for (let n = 1; ; n += 1) {
      const world = await openWorld();
      const { clock } = world;
      const [hers, his] = [await world.sealedFor(anna), await world.sealedFor(bert)];
      let hit = false;
      let at = 0;
      const dying = faultyStore(ofStreams ? world.store : world.personal, ({ kind, collection }) => {
        if (kind !== "write" || (ofStreams && collection !== "commits")) return undefined;
        at += 1;
        if (at < n) return undefined;
        hit = true;
        // Dead from here on: every later write of this process is lost, too.
        return at === n ? fault : "lost";
      });
      const first = await (ofStreams
        ? startErasures(world, world.people, dying)
        : startErasures(world, await world.open(dying)));
      // One that was not accepted is asked for again.
      const asking = first.erase(hers.pseudonym).catch(() => undefined);
      await pass(clock, 3_000);
      await asking;
      await endEpoch(clock);
      await first.close();
      const second = await startErasures(world);
      await second.erase(hers.pseudonym);
      // The one that died may have begun an epoch: then the next one is the one to end.
      for (let epoch = 1; epoch <= 2; epoch += 1) await endEpoch(clock);
      for (const ms of [6 * dayMs, 3_000, 3_000]) await pass(clock, ms);
      expect(await second.statusOf(hers.pseudonym), `write ${n}`).toBe("completed");
      expect(await world.read(hers)).toBeUndefined();
      expect(await world.read(his)).toBe(bert.value);
      expect(await world.people.persons.get(hers.pseudonym)).toMatchObject({
        erased: true,
        known: true,
        destroyed: true,
      });
      const left = Object.keys((await world.people.persons.get(hers.pseudonym)) ?? {});
      expect(left.filter((name) => name.startsWith("w"))).toEqual([]);
      await second.close();
      const events = await world.events();
      expect(events.filter((name) => name === "DataSubjectErased")).toHaveLength(1);
      expect(events.filter((name) => name === "ErasureCompleted")).toHaveLength(1);
      if (!hit) {
        expect(n).toBeGreaterThan(ofStreams ? 4 : 10);
        return;
      }
    }
  });
});
