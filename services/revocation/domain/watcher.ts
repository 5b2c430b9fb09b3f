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
  /** The instance lives and may report it all yet. */
  readonly live: boolean;
}

/**
 * A gap is told once: a lease that ended is in no later gap's time. One of an instance that lives is told again for what came since
 * when that is as long as what was told, so that a month without reports is some twenty events.
 */
export const gapIsDue = (
  { gapToMs }: GapState,
  { fromMs, toMs, live }: Pick<RecordGap, "fromMs" | "toMs" | "live">,
): boolean => toMs > gapToMs && !(live && toMs - gapToMs < gapToMs - fromMs);

const decideGap = (state: GapState, command: RecordGap): readonly UseReportingGap[] => {
  if (!gapIsDue(state, command)) return [];
  return [
    create(UseReportingGapSchema, {
      instance: command.instance,
      resourceService: command.resourceService,
      from: timestampFromMs(Math.floor(Math.max(command.fromMs, state.gapToMs))),
      to: timestampFromMs(Math.ceil(command.toMs)),
    }),
  ];
};

export const reportingGaps: Decider<GapState, RecordGap, UseReportingGap> = {
  initial: { gapToMs: 0 },
  decide: decideGap,
  evolve: (state, { to }) => ({ gapToMs: to ? timestampMs(to) : state.gapToMs }),
};
