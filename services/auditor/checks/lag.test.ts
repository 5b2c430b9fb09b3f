import { durationMs } from "@bufbuild/protobuf/wkt";
import { topicNames } from "@curfew/event-log/event-types.ts";
import { openCommits } from "@curfew/event-log/streams.ts";
import { memoryStore } from "@curfew/simulation/memory-store.ts";
import { virtualClock } from "@curfew/simulation/virtual-clock.ts";
import { expect, it } from "vitest";
import { type BatchDoc, batchId, emptyHead, type LedgerHead } from "../domain.ts";
import type { CheckpointRow } from "../projections.ts";
import { growBy } from "../testing/rig.ts";
import { openEvidenceHealth } from "./health.ts";
import type { PassRow } from "./passes.ts";

/** The rig's leaves were appended then. */
const appendedMs = 1_795_000_000_000;

/** An auditor that looks at a ledger which grows when the test says so. */
const openLook = async () => {
  const clock = virtualClock();
  const batches = await memoryStore().collection<BatchDoc>("batches");
  const bus = { appended: 0, isThere: true };
  let head: LedgerHead = emptyHead;
  const lines: [string, object][] = [];
  const line = (level: string) => (fields: object, msg: string) => void lines.push([`${level}: ${msg}`, fields]);
  const health = openEvidenceHealth({
    bus: {
      async ends(topic) {
        if (!bus.isThere) throw new Error("no bus");
        return topic === topicNames.uses ? [bus.appended] : [];
      },
    },
    drifts: { open: async () => [] },
    commits: await openCommits(memoryStore()),
    passes: await memoryStore().collection<PassRow>("passes"),
    batches,
    follower: { latest: () => (head.batch === 0 ? undefined : (head as unknown as CheckpointRow)) },
    clock,
    log: { error: line("error"), info: line("info") } as never,
  });
  const stop = new AbortController();
  const looking = health.run(stop.signal);
  return {
    bus,
    clock,
    said: () => lines.splice(0).map(([msg]) => msg),
    delayMs: () => {
      const { mergeDelay } = health.lag();
      return mergeDelay && durationMs(mergeDelay);
    },
    /** Seals what is there, so long after it was appended. */
    async seal(delayMs: number) {
      head = await growBy(batches, head, bus.appended - head.size, appendedMs + delayMs);
      expect(await batches.get(batchId(head.batch))).toBeDefined();
    },
    async [Symbol.asyncDispose]() {
      stop.abort();
      await looking;
    },
  };
};
const behind = "error: sealing has fallen behind";
const again = "info: sealing keeps up again";

it("is at least how long records wait that nobody seals, and an alert past the objective, once, and when it is over", async () => {
  await using look = await openLook();
  await look.clock.advance(10_000);
  expect([look.delayMs(), look.said()]).toEqual([undefined, []]);
  look.bus.appended = 1;
  await look.clock.advance(1_000);
  await look.seal(30);
  await look.clock.advance(1_000);
  expect([look.delayMs(), look.said()]).toEqual([30, []]);
  look.bus.appended = 2;
  await look.clock.advance(3_000);
  expect([look.delayMs(), look.said()]).toEqual([2_000, []]);
  await look.clock.advance(2_000);
  expect([look.delayMs(), look.said()]).toEqual([4_000, [behind]]);
  look.bus.isThere = false;
  look.clock.jump(60_000.5);
  await look.clock.advance(0);
  expect([look.delayMs(), look.said()]).toEqual([64_000, []]);
  look.bus.isThere = true;
  await look.seal(70_000);
  await look.clock.advance(1_000);
  expect([look.delayMs(), look.said()]).toEqual([70_000, [again]]);
});

it("is an alert too where batches come and each comes late, but not for what had waited while nobody ran", async () => {
  await using look = await openLook();
  look.bus.appended = 1;
  await look.seal(3_600_000);
  await look.clock.advance(5_000);
  expect([look.delayMs(), look.said()]).toEqual([3_600_000, []]);
  for (const appended of [3, 5, 7]) {
    look.bus.appended = appended - 1;
    await look.seal(2_001);
    look.bus.appended = appended;
    await look.clock.advance(1_000);
  }
  expect([look.delayMs(), look.said()]).toEqual([2_001, [behind]]);
});
