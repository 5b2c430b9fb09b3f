import { fromBinary } from "@bufbuild/protobuf";
import { EvidenceGapFoundSchema, GapCause } from "@curfew/contracts/gen/curfew/events/v1/evidence_pb.ts";
import { beginEpoch, openEpochs } from "@curfew/event-log/epochs.ts";
import { topicNames } from "@curfew/event-log/event-types.ts";
import { openEventStreams } from "@curfew/event-log/streams.ts";
import { openLog } from "@curfew/runtime/log.ts";
import { systemRandom } from "@curfew/runtime/random.ts";
import { memoryStore } from "@curfew/simulation/memory-store.ts";
import { virtualClock } from "@curfew/simulation/virtual-clock.ts";
import { expect, it } from "vitest";
import { openGapReporter } from "./reactions.ts";

const finding = (producer: string, cause: GapCause) => ({
  ...{ producer, cause, topic: topicNames.uses, partition: 0, offset: 7, expected: 0, seen: 0 },
});
const strangers = (from: number, to: number) =>
  Array.from({ length: to - from }, (_, i) => finding(`verifier/made-up/${from + i}`, GapCause.UNKNOWN_PRODUCER));

it("of made-up names are recorded up to a hundred a day, and those of registered producers all the same", async () => {
  const clock = virtualClock();
  const streams = await openEventStreams({ store: memoryStore(), source: "/auditor", clock, random: systemRandom });
  const epochs = await openEpochs(memoryStore());
  const register = () => beginEpoch(epochs, "verifier/real", topicNames.uses);
  const [one, two] = [await register(), await register()];
  const lines: string[] = [];
  const report = openGapReporter(
    { streams, relay: { published: async () => undefined } },
    {
      epochs,
      clock,
      log: openLog({ service: "auditor", level: "error", write: (line) => void lines.push(line) }),
    },
  );
  const recorded = async () => {
    const commits = await streams.commits.find({ from: "gaps/", limit: 1_000 });
    const gaps = commits.flatMap(({ events }) => events.map(({ value }) => fromBinary(EvidenceGapFoundSchema, value)));
    const real = gaps.filter(({ producer }) => producer === one || producer === two);
    return { strange: gaps.length - real.length, real: real.length };
  };
  const floods = () => lines.filter((line) => line.includes("no more of them are recorded today")).length;
  await report(strangers(0, 100));
  await report(strangers(0, 100));
  expect([await recorded(), floods()]).toEqual([{ strange: 100, real: 0 }, 0]);
  await report([...strangers(100, 150), finding(one, GapCause.HOLE), ...strangers(150, 200)]);
  await report([finding("verifier/made-up/1", GapCause.HOLE), finding(two, GapCause.UNKNOWN_PRODUCER)]);
  expect([await recorded(), floods()]).toEqual([{ strange: 100, real: 2 }, 1]);
  await clock.advance(86_400_000);
  await report(strangers(190, 195));
  expect([await recorded(), floods()]).toEqual([{ strange: 105, real: 2 }, 1]);
});
