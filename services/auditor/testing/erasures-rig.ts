import { mkdtempSync, rmSync } from "node:fs";
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
import { memoryBus } from "@curfew/simulation/memory-bus.ts";
import { memoryStore } from "@curfew/simulation/memory-store.ts";
import { type VirtualClock, virtualClock } from "@curfew/simulation/virtual-clock.ts";
import { onTestFinished } from "vitest";
import { dataSubject, subjectStream } from "../domain/data-subject.ts";
import { openErasures } from "../people/erasures.ts";
import { type EntryRow, entryId } from "../projections.ts";
import { eventRecord, partitions, quiet } from "./rig.ts";

export const dayMs = 86_400_000;
export const settings = { epochMs: 10 * dayMs, backupDays: 5, settleMs: 60_000 };
const place = { eventType: "curfew.use.decided.v1", field: "source.address", id: "use-1" };
export const anna = { controller: "acme", identifierType: "address", value: "203.0.113.7" };
export const bert = { ...anna, value: "203.0.113.8" };

/** Everything but the auditor: stores, bus, keys, the people, and a ledger of acknowledgements. */
export const openWorld = async () => {
  const dir = mkdtempSync(join(tmpdir(), "curfew-erasures-"));
  onTestFinished(() => rmSync(dir, { recursive: true, force: true }));
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
export type World = Awaited<ReturnType<typeof openWorld>>;

let instances = 0;
/** One auditor's erasures, at work on its own view of the personal store, until closed. */
export const startErasures = async (
  world: World,
  personal: PersonalStore = world.people,
  own: DocumentStore = world.store,
  declared = settings,
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
    ...{ personal, settings: declared, outbox, subjects, models: { entries: world.entries }, sealedSize: world.sizeOf },
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
    stateOf: (p: string) => subjects.load(subjectStream(p)),
    statusOf: async (p: string) => (await subjects.load(subjectStream(p))).erasure.status,
  };
};

/** Lets time pass, a long one at one stroke, and then what is due be done. */
export const pass = async (clock: VirtualClock, ms: number) => {
  const longMs = Math.max(0, ms - 3_000);
  clock.jump(longMs);
  await clock.advance(ms - longMs);
};

/** The next epoch is begun, everything wrapped anew, and nothing found to be wrapped for a minute. */
export const endEpoch = async (clock: VirtualClock) => {
  for (const ms of [10 * dayMs, 20_000, 70_000]) await pass(clock, ms);
};
