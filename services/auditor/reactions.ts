import { createHash } from "node:crypto";
import { create } from "@bufbuild/protobuf";
import {
  EvidenceGapFoundSchema,
  type GapCause,
  GapCauseSchema,
} from "@curfew/contracts/gen/curfew/events/v1/evidence_pb.ts";
import type { Finding } from "@curfew/event-log/chain-check.ts";
import type { Outbox } from "@curfew/event-log/outbox.ts";
import { lengthPrefixed } from "@curfew/runtime/length-prefixed.ts";
import type { Log } from "@curfew/runtime/log.ts";

const maxRemembered = 10_000;

const causeName = (cause: GapCause) => GapCauseSchema.value[cause]?.name ?? String(cause);

/** The stream of a gap: one for each producer and cause, or for each partition where no producer is named. */
export const gapStream = ({ producer, cause, topic, partition }: Finding): string => {
  const whose = producer === "" ? ["", topic, String(partition)] : [producer];
  const name = createHash("sha256")
    .update(lengthPrefixed(causeName(cause), ...whose))
    .digest("hex");
  return `gaps/${name}`;
};

/** Records findings as EvidenceGapFound, once for each stream; a second writer or a repetition finds it there. */
export const openGapReporter = (outbox: Outbox, log: Log) => {
  const known = new Set<string>();
  return async (findings: readonly Finding[]): Promise<void> => {
    for (const finding of findings) {
      const { producer, cause, topic, partition, offset, expected, seen } = finding;
      const stream = gapStream(finding);
      if (known.has(stream)) continue;
      const event = create(EvidenceGapFoundSchema, {
        producer,
        cause,
        position: { topic, partition, offset: BigInt(offset) },
        expectedSequence: BigInt(expected),
        seenSequence: BigInt(seen),
      });
      const commit = await outbox.streams.append(stream, { version: 0, sequence: 0 }, [event]);
      if (commit) {
        log.error(
          { producer, cause: causeName(cause), topic, partition, offset, expected, seen },
          "a gap in the evidence",
        );
        // Not waited for: the relay's scan finds it otherwise.
        void outbox.relay.published(commit);
      }
      if (known.size >= maxRemembered) known.clear();
      known.add(stream);
    }
  };
};
