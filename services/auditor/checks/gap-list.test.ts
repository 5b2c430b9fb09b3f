import { create } from "@bufbuild/protobuf";
import { EvidenceGapFoundSchema, GapCause } from "@curfew/contracts/gen/curfew/events/v1/evidence_pb.ts";
import { openEventStreams } from "@curfew/event-log/streams.ts";
import { systemRandom } from "@curfew/runtime/random.ts";
import { memoryStore } from "@curfew/simulation/memory-store.ts";
import { expect, it } from "vitest";
import { clock } from "../testing/rig.ts";
import { listGaps } from "./gap-list.ts";

it("open gaps are those that `curfew verify` finds in the ledger too: each cause but an offset that jumps", async () => {
  const { append, commits } = await openEventStreams({
    ...{ store: memoryStore(), source: "/auditor", clock, random: systemRandom },
  });
  const causes = [GapCause.HOLE, GapCause.OFFSET_JUMP, GapCause.OVERSIZE, GapCause.UNKNOWN_PRODUCER];
  for (const cause of causes) {
    const gap = create(EvidenceGapFoundSchema, { cause, producer: "verifier/a/1" });
    await append(`gaps/${cause}`, { version: 0, sequence: 0 }, [gap]);
  }
  const listed = (await listGaps(commits, 10)).map(({ gap }) => gap.cause);
  expect(listed.sort()).toEqual(causes.filter((cause) => cause !== GapCause.OFFSET_JUMP).sort());
  expect(await listGaps(commits, 2)).toHaveLength(2);
});
