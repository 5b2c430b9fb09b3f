import { create } from "@bufbuild/protobuf";
import { durationFromMs, timestampFromMs, timestampMs } from "@bufbuild/protobuf/wkt";
import {
  type RevocationAcknowledged,
  RevocationAcknowledgedSchema,
  type UseReportingGap,
  UseReportingGapSchema,
} from "@curfew/contracts/gen/curfew/events/v1/revocations_pb.ts";
import type { Decider } from "@curfew/decider/decider.ts";

/** What one instance of a verifier or an SDK says that it has applied. */
export interface Receipt {
  readonly instance: string;
  readonly eventIds: readonly string[];
  readonly receivedAtMs: number;
  readonly clockOffsetMs: number;
}

/**
 * What one replica of `revocation` was told by those who watch there: stream `acknowledgements/<our instance>`, with no other writer. A
 * stream for each watcher would cost a commit for each, at every revocation.
 */
export const acknowledgements: Decider<null, { readonly receipts: readonly Receipt[] }, RevocationAcknowledged> = {
  initial: null,
  decide: (_, { receipts }) =>
    receipts.map(({ instance, eventIds, receivedAtMs, clockOffsetMs }) =>
      create(RevocationAcknowledgedSchema, {
        instance,
        revocationEventIds: [...eventIds],
        receivedAt: timestampFromMs(Math.ceil(receivedAtMs)),
        clockOffset: durationFromMs(Math.round(clockOffsetMs)),
      }),
    ),
  evolve: (state) => state,
};

/** What an SDK instance may have left unreported: stream `watchers/<instance>`. */
export interface GapState {
  /** End of the last gap recorded, ms since the epoch; 0: none. */
  readonly gapToMs: number;
}

export interface RecordGap {
  readonly instance: string;
  readonly resourceService: string;
  readonly fromMs: number;
  readonly toMs: number;
}

const decideGap = ({ gapToMs }: GapState, command: RecordGap): readonly UseReportingGap[] => {
  // A gap is told once: a lease that ended is in no later gap's time.
  if (command.toMs <= gapToMs) return [];
  return [
    create(UseReportingGapSchema, {
      instance: command.instance,
      resourceService: command.resourceService,
      from: timestampFromMs(Math.floor(Math.max(command.fromMs, gapToMs))),
      to: timestampFromMs(Math.ceil(command.toMs)),
    }),
  ];
};

export const reportingGaps: Decider<GapState, RecordGap, UseReportingGap> = {
  initial: { gapToMs: 0 },
  decide: decideGap,
  evolve: (state, { to }) => ({ gapToMs: to ? timestampMs(to) : state.gapToMs }),
};
