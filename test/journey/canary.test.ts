import { openSqliteStore } from "@curfew/document-store/sqlite.ts";
import type { EpochRow } from "@curfew/event-log/epochs.ts";
import { openSqliteBus } from "@curfew/event-log/sqlite.ts";
import { topics } from "@curfew/event-log/topics.ts";
import { systemClock } from "@curfew/runtime/clock.ts";
import { systemRandom } from "@curfew/runtime/random.ts";
import { mintSecret } from "@curfew/token-format/secret.ts";
import { secretVariants } from "@curfew/token-format/variants.ts";
import { afterEach, expect, test } from "vitest";
import { openCanary } from "./canary.ts";
import { playJourney } from "./demo.ts";
import { lookAtTopics } from "./places.ts";
import { everyPlace, plantEverywhere, plantedPlaces } from "./planting.ts";
import { openStage } from "./stage.ts";

const closers: (() => Promise<void>)[] = [];
afterEach(async () => {
  for (const close of closers.splice(0).toReversed()) await close();
});

test("after the whole main job no secret stands anywhere but where it leaked, and one that is planted is found in each place", {
  timeout: 120_000,
}, async () => {
  const stage = await openStage({ live: false });
  closers.push(stage.close);
  const { found, canary } = await playJourney(stage, () => undefined);
  expect(found).toEqual([]);
  for (const kind of ["key", "header", "record", "row", "file", "log line", "span", "mail", "webhook", "printed"])
    expect(canary.read, kind).toHaveProperty(
      [kind],
      expect.toSatisfy((n) => n > 0),
    );

  const planted = mintSecret("s", systemRandom);
  await plantEverywhere(stage, planted, { spans: true });
  expect(plantedPlaces((await stage.inspect([planted])).found)).toEqual(everyPlace);
});

test("the canary reads the key and every header of a record, not only its value", async () => {
  const store = await openSqliteStore({ file: ":memory:" });
  const bus = await openSqliteBus({
    file: ":memory:",
    epochs: await store.collection<EpochRow>("epochs"),
    clock: systemClock,
    topics: Object.fromEntries(topics.map((topic) => [topic.name, topic.partitions])),
  });
  closers.push(
    () => store.close(),
    () => bus.close(),
  );
  const [key, header, value] = Array.from({ length: 3 }, () => mintSecret("s", systemRandom)) as [
    string,
    string,
    string,
  ];
  const producer = await bus.openProducer({ topic: "curfew.uses.v1", name: "control/1" });
  const headers = { first: "1", second: header };
  await producer.send([{ partition: 11, key: `uses/${key}`, headers, value: Buffer.from(`{"x":"${value}"}`) }]);
  for (const [secret, kind] of Object.entries({ [key]: "key", [header]: "header", [value]: "record" })) {
    const canary = openCanary([secret]);
    await lookAtTopics(bus, canary.look);
    expect(canary.found.map((one) => [one.kind, one.where])).toContainEqual([kind, "curfew.uses.v1/11@0"]);
    expect(new Set(canary.found.map((one) => one.kind))).toEqual(new Set([kind]));
  }
});

test("the canary finds every form, and nothing where there is none", () => {
  const secret = mintSecret("s", systemRandom);
  const forms = secretVariants(secret);
  for (const { form, bytes } of forms) {
    const canary = openCanary([secret]);
    canary.look("text", "", Buffer.concat([Buffer.from("before"), bytes, Buffer.alloc(5)]));
    expect(canary.found.map((one) => one.form)).toContain(form);
  }
  const canary = openCanary([secret]);
  canary.look("text", "", `${secret.slice(0, 20)} ${secret.slice(20)} ${mintSecret("s", systemRandom)}`);
  expect(canary.found).toEqual([]);
});
