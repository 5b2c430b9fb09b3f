import { createHash } from "node:crypto";
import { create } from "@bufbuild/protobuf";
import {
  EvidenceGapFoundSchema,
  type GapCause,
  GapCauseSchema,
} from "@curfew/contracts/gen/curfew/events/v1/evidence_pb.ts";
import type { Collection } from "@curfew/document-store/port.ts";
import type { Finding } from "@curfew/event-log/chain-check.ts";
import type { EpochRow } from "@curfew/event-log/epochs.ts";
import type { Outbox } from "@curfew/event-log/outbox.ts";
import type { Clock } from "@curfew/runtime/clock.ts";
import { lengthPrefixed } from "@curfew/runtime/length-prefixed.ts";
import type { Log } from "@curfew/runtime/log.ts";

const maxRemembered = 10_000;
/** Each opens a case of its own, and whoever may write to a topic can make up any number of names. */
const maxStrangersADay = 100;
const dayMs = 86_400_000;

const causeName = (cause: GapCause) => GapCauseSchema.value[cause]?.name ?? String(cause);

/** The stream of a gap: one for each producer and cause, or for each partition where no producer is named. */
export const gapStream = ({ producer, cause, topic, partition }: Finding): string => {
  const whose = producer === "" ? ["", topic, String(partition)] : [producer];
  const name = createHash("sha256")
    .update(lengthPrefixed(causeName(cause), ...whose))
    .digest("hex");
  return `gaps/${name}`;
};

/**
 * Records findings as EvidenceGapFound, once for each stream; a second writer or a repetition finds it there. Of producers
 * that nobody registered a bounded number a day: the records of the rest are sealed, and `curfew verify` tells of them.
 */
export const openGapReporter = (
  outbox: { readonly streams: Pick<Outbox["streams"], "append">; readonly relay: Pick<Outbox["relay"], "published"> },
  parts: {
    readonly epochs: Pick<Collection<EpochRow>, "get">;
    readonly clock: Pick<Clock, "monotonicMs">;
    readonly log: Pick<Log, "error">;
  },
) => {
  const { epochs, clock, log } = parts;
  const known = new Set<string>();
  let day = { sinceMs: Number.NEGATIVE_INFINITY, strangers: 0, isFull: false };

  const record = async (stream: string, finding: Finding): Promise<boolean> => {
    const { producer, cause, topic, partition, offset, expected, seen } = finding;
    const event = create(EvidenceGapFoundSchema, {
      producer,
      cause,
      position: { topic, partition, offset: BigInt(offset) },
      expectedSequence: BigInt(expected),
      seenSequence: BigInt(seen),
    });
    const commit = await outbox.streams.append(stream, { version: 0, sequence: 0 }, [event]);
    if (!commit) return false;
    const place = { topic, partition, offset };
    log.error({ producer, cause: causeName(cause), ...place, expected, seen }, "a gap in the evidence");
    // Not waited for: the relay's scan finds it otherwise.
    void outbox.relay.published(commit);
    return true;
  };

  const recordStranger = async (stream: string, finding: Finding): Promise<boolean> => {
    const nowMs = clock.monotonicMs();
    if (nowMs - day.sinceMs >= dayMs) day = { sinceMs: nowMs, strangers: 0, isFull: false };
    if (day.strangers >= maxStrangersADay) {
      const { topic, partition, offset } = finding;
      if (!day.isFull)
        log.error(
          { topic, partition, offset },
          "gaps of too many unknown producers: no more of them are recorded today",
        );
      day.isFull = true;
      return false;
    }
    if (await record(stream, finding)) day.strangers += 1;
    return true;
  };

  return async (findings: readonly Finding[]): Promise<void> => {
    for (const finding of findings) {
      const stream = gapStream(finding);
      if (known.has(stream)) continue;
      const { producer } = finding;
      if (producer === "" || (await epochs.get(producer))) await record(stream, finding);
      else if (!(await recordStranger(stream, finding))) continue;
      if (known.size >= maxRemembered) known.clear();
      known.add(stream);
    }
  };
};
