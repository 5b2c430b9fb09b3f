import { BusRefused } from "@curfew/event-log/bus.ts";
import { topicNames } from "@curfew/event-log/event-types.ts";
import { memoryBus } from "@curfew/simulation/memory-bus.ts";
import { memoryStore } from "@curfew/simulation/memory-store.ts";
import { expect, it } from "vitest";
import { clock, openWorld, partitions, quiet, startAuditor } from "../testing/rig.ts";
import { driftCauseName } from "./drift.ts";
import { openDriftLog } from "./drift-log.ts";
import { openTopicWatch } from "./topic-watch.ts";

it("takes a topic for absent when it is said twice, not once: a broker says so of partitions that it gave away", async () => {
  const world = await openWorld();
  const { outbox, close } = await startAuditor(world);
  const bus = memoryBus({ epochs: await memoryStore().collection("epochs"), clock, topics: { ...partitions } });
  let refusals = 1;
  const describe = async (topic: string) => {
    if (topic === topicNames.uses && refusals-- > 0) throw new BusRefused("no topic");
    return await bus.describe(topic);
  };
  const drifts = openDriftLog(outbox, quiet);
  const watch = openTopicWatch({ bus: { describe }, drifts, latest: () => undefined, wanted: {}, clock, log: quiet });
  expect(await watch.compare()).toBe(0);
  expect(await drifts.open()).toEqual([]);
  refusals = 2;
  await watch.compare();
  expect((await drifts.open()).map(({ cause, topic }) => [driftCauseName(cause), topic])).toEqual([
    ["DRIFT_CAUSE_SHRUNK", topicNames.uses],
  ]);
  await close();
});
