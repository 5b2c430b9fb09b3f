import { fromBinary } from "@bufbuild/protobuf";
import {
  type EvidenceGapFound,
  EvidenceGapFoundSchema,
  GapCause,
} from "@curfew/contracts/gen/curfew/events/v1/evidence_pb.ts";
import type { EventStreams } from "@curfew/event-log/streams.ts";

/** A gap that was found: one never ends. */
export interface Gap {
  readonly gap: EvidenceGapFound;
  readonly sinceMs: number;
}

const perRead = 1_000;

/** Gaps in the order of their streams, at most `limit`. Rejects with StoreUnavailable. */
export const listGaps = async (commits: Pick<EventStreams["commits"], "find">, limit: number): Promise<Gap[]> => {
  const gaps: Gap[] = [];
  for (let from = "gaps/"; ; ) {
    const docs = await commits.find({ from, below: "gaps0", limit: perRead });
    for (const { events } of docs)
      for (const { headers, value } of events) {
        const gap = fromBinary(EvidenceGapFoundSchema, value);
        // Offsets that jump prove nothing by themselves.
        if (gap.cause !== GapCause.OFFSET_JUMP) gaps.push({ gap, sinceMs: Date.parse(headers.ce_time ?? "") });
      }
    const last = docs.at(-1);
    if (!last || docs.length < perRead || gaps.length >= limit) return gaps.slice(0, limit);
    from = `${last._id} `;
  }
};
