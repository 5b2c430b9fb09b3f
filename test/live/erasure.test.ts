import { randomUUID } from "node:crypto";
import { mkdtempSync, readdirSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { dataSubject, subjectStream } from "@curfew/auditor/domain/data-subject.ts";
import { openErasures } from "@curfew/auditor/people/erasures.ts";
import type { EntryRow } from "@curfew/auditor/projections.ts";
import { partitions, quiet } from "@curfew/auditor/testing/rig.ts";
import { openMongoStore } from "@curfew/document-store/mongo.ts";
import type { EpochRow } from "@curfew/event-log/epochs.ts";
import { topicNames } from "@curfew/event-log/event-types.ts";
import { openAggregates } from "@curfew/event-log/handle-command.ts";
import { openKafkaBus } from "@curfew/event-log/kafka.ts";
import { openOutbox } from "@curfew/event-log/outbox.ts";
import { openPersonKeys } from "@curfew/personal-data/person-keys.ts";
import { openPersonalStore } from "@curfew/personal-data/personal-store.ts";
import { openPseudonyms } from "@curfew/personal-data/pseudonyms.ts";
import { systemClock as clock } from "@curfew/runtime/clock.ts";
import { systemRandom as random } from "@curfew/runtime/random.ts";
import { afterAll, expect, it, vi } from "vitest";
import { startFerret, startKafka } from "../../deploy/dev/servers.ts";
import { createTopics } from "./bus-rig.ts";

const closers: (() => unknown)[] = [];
afterAll(async () => {
  for (const close of closers.splice(0).reverse()) await close();
});
const anna = { controller: "acme", identifierType: "address", value: "203.0.113.7" };
const bert = { ...anna, value: "203.0.113.8" };

it("a person is erased from a MongoDB-protocol database, to the end of an epoch of seconds; others stay", {
  timeout: 180_000,
}, async () => {
  const dir = mkdtempSync(join(tmpdir(), "curfew-live-erasure-"));
  closers.push(() => rmSync(dir, { recursive: true, force: true }));
  const [kafka, ferret] = await Promise.all([startKafka(), startFerret()]);
  closers.push(
    () => kafka.stop(),
    () => ferret.stop(),
  );
  const { brokers } = kafka;
  await createTopics(brokers, partitions);
  const open = (name: string) => openMongoStore({ url: ferret.url, database: `${name}-${randomUUID()}` });
  const [store, own] = [await open("personal"), await open("auditor")];
  const keysDir = join(dir, "keys");
  const personal = await openPersonalStore({ store, keysDir, random, clock });
  const epochs = await own.collection<EpochRow>("epochs");
  const entries = await own.collection<EntryRow>("entries", { indexes: ["type"] });
  const bus = await openKafkaBus({ brokers, clientId: "test", epochs, clock });
  closers.push(
    () => store.close(),
    () => own.close(),
    () => bus.close(),
  );
  const outbox = await openOutbox({
    ...{ store: own, bus, service: "auditor", instance: "a1", topic: topicNames.evidence, clock },
    ...{ random, log: quiet, exclusive: true, wake: async () => [] },
  });
  outbox.start("nowhere:1");
  closers.push(() => outbox.close());

  const common = { epochs: personal.epochs, random, cacheSize: 1, cacheMs: 0, clock };
  const { identities: collection, identifierKey, persons: rows } = personal;
  const pseudonyms = openPseudonyms({ ...common, collection, identifierKey });
  const keys = openPersonKeys({ ...common, rows });
  const personOf = async (who: typeof anna) => {
    const pseudonym = await pseudonyms.pseudonymOf(who);
    return { pseudonym, key: (await keys.keyOf(pseudonym))?.export().toString("hex") };
  };
  const [her, him] = [await personOf(anna), await personOf(bert)];

  const subjects = openAggregates({ streams: outbox.streams, decider: dataSubject, clock });
  const settings = { epochMs: 5_000, backupDays: 0, settleMs: 1_000 };
  const erasures = openErasures({
    ...{ personal, settings, outbox, subjects, models: { entries }, sealedSize: () => 0 },
    ...{ bus, clock, random, log: quiet },
  });
  const stop = new AbortController();
  const working = erasures.work({ fence: 1, signal: stop.signal });
  closers.push(async () => {
    stop.abort();
    await erasures.close();
    await working;
  });
  const asked = { pseudonym: her.pseudonym, by: "spiffe://t/person/dana", nowMs: clock.now() };
  const request = { key: "k", hash: "h" };
  await subjects.handle(subjectStream(her.pseudonym), { type: "RequestErasure", reference: "", ...asked, request });
  erasures.wake(her.pseudonym);
  const stateOf = async () => (await subjects.load(subjectStream(her.pseudonym))).erasure;
  await vi.waitFor(async () => expect(await stateOf()).toMatchObject({ status: "completed" }), {
    timeout: 120_000,
    interval: 250,
  });
  const gone = await stateOf();
  expect(gone).toMatchObject({ known: true, epoch: 1 });
  expect(readdirSync(keysDir)).not.toContain("epoch-1.key");
  expect(await keys.keyOf(her.pseudonym)).toBeUndefined();
  expect((await personOf(anna)).pseudonym).not.toBe(her.pseudonym);
  expect(await personOf(bert)).toEqual(him);
  expect(await personal.persons.get(her.pseudonym)).toEqual({
    ...{ _id: her.pseudonym, erased: true, known: true, destroyed: true },
  });
});
