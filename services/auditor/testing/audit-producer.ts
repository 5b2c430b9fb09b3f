import { fromBinary } from "@bufbuild/protobuf";
import { ProducerEpochClosedSchema } from "@curfew/contracts/gen/curfew/events/v1/evidence_pb.ts";
import type { InRecord } from "@curfew/event-log/bus.ts";
import { topicNames } from "@curfew/event-log/event-types.ts";
import { readTopic } from "@curfew/event-log/read-topic.ts";
import { memoryStore } from "@curfew/simulation/memory-store.ts";
import { virtualClock } from "@curfew/simulation/virtual-clock.ts";
import { watchEpochs } from "../checks/epoch-watch.ts";
import { listGaps } from "../checks/gap-list.ts";
import { openFollower } from "../follower.ts";
import { clock, quiet, seal, startAuditor, untilSealed, type World } from "./rig.ts";

const minuteOfLooks = 14;
const maxLooks = 200;

/**
 * An auditor that begins after the end of a producer of uses, seals all there is, and lets a minute of silence pass: what stands on the topic
 * then, how the epoch was closed, and what was found.
 */
export const auditProducer = async ({ epochs, bus }: Pick<World, "epochs" | "bus">, producer: string) => {
  const world = { epochs, store: memoryStore(), bus };
  const auditor = await startAuditor(world);
  const { outbox, models } = auditor;
  outbox.start("localhost:1");
  const follower = await openFollower({ models, seal, clock, log: quiet });
  const time = virtualClock();
  const stop = new AbortController();
  const watching = watchEpochs({ epochs, outbox, bus, follower, clock: time, log: quiet }, stop.signal);
  const row = await epochs.get(producer);
  const closing = { where: { type: "curfew.producer-epoch.closed.v1" }, limit: 1 };
  const isDone = async () =>
    !row || ((await epochs.get(producer))?.open === undefined && (await models.entries.find(closing)).length > 0);
  for (let looks = 0; looks < minuteOfLooks || !(await isDone()); looks += 1) {
    if (looks > maxLooks) throw new Error(`${producer} is not closed`);
    await time.advance(5_000);
    await untilSealed(world);
    await clock.sleep(20);
  }
  await untilSealed(world);
  const { commits } = outbox.streams;
  const stream = `epochs/${producer}`;
  const commitsOfClosings = await commits.find({ from: `${stream}@`, below: `${stream}A`, limit: 10 });
  const records: InRecord[] = [];
  await readTopic({ bus, topic: topicNames.uses, name: "test" }, (some) => void records.push(...some));
  const gaps = (await listGaps(commits, 100)).map(({ gap }) => gap);
  stop.abort();
  await watching;
  await follower.close();
  await auditor.close();
  const closings = commitsOfClosings.flatMap(({ events }) => events);
  return { row, gaps, records, closings: closings.map(({ value }) => fromBinary(ProducerEpochClosedSchema, value)) };
};
