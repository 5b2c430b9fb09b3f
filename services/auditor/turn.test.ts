import { topicNames } from "@curfew/event-log/event-types.ts";
import type { Clock } from "@curfew/runtime/clock.ts";
import { expect, it } from "vitest";
import { maxBatchRecords } from "./domain.ts";
import { bound, clock, openWorld, replayAll, seal, sendOn, startAuditor, untilSealed, use } from "./testing/rig.ts";

/** Sequencers over a turn of the year, with full batches under way and clocks that do not agree on when it is. */

const turnMs = Date.UTC(2027, 0, 1);
/** More batches than all clocks together are looked at before the turn. */
const records = 6 * maxBatchRecords + 500;

/** A clock that stands before the turn for so many looks at it, and after it from then on. */
const turningAfter = (looks: number): Clock => {
  let left = looks;
  return { ...clock, now: () => turnMs + (left-- > 0 ? -1_000 : 1_000) };
};

it.each([
  ["one", [3]],
  ["two, one of which is late", [2, 3]],
])(
  "%s: every record is sealed once, in two trees, each batch after the one before it",
  async (_, looks) => {
    const world = await openWorld();
    for (let from = 0; from < records; from += maxBatchRecords) {
      const some = Array.from({ length: Math.min(maxBatchRecords, records - from) }, (_each, i) =>
        use(from + i, i % 3),
      );
      await sendOn(world.bus, topicNames.uses, `verifier/from${from}`, some);
    }
    const auditors = [];
    for (const each of looks)
      auditors.push(await startAuditor(world, world.store, world.bus, seal, turningAfter(each)));
    await untilSealed(world);
    for (const auditor of auditors) await auditor.close();
    const { batches, head } = await replayAll(world.store);
    expect(head.size).toBe(records);
    const places = batches.flatMap((batch) => batch.records.map((r) => `${r.topic}/${r.partition}@${r.offset}`));
    expect(new Set(places).size).toBe(records);
    const shards = batches.map(({ doc: { shard } }) => shard.year);
    expect(shards).toEqual([...shards].sort());
    expect([shards[0], new Set(shards).size]).toEqual([2026, 2]);
  },
  bound.timeout * 3,
);
