import { create } from "@bufbuild/protobuf";
import { durationFromMs, timestampFromMs, timestampMs } from "@bufbuild/protobuf/wkt";
import {
  type RevocationAcknowledged,
  RevocationAcknowledgedSchema,
  type UseReportingGap,
  UseReportingGapSchema,
} from "@curfew/contracts/gen/curfew/events/v1/revocations_pb.ts";
import type { Decider } from "@curfew/decider/decider.ts";

/** What one instance of a verifier or an SDK proved or left open: stream `watchers/<instance>`. */
export type WatcherEvent = RevocationAcknowledged | UseReportingGap;

export interface WatcherState {
  /** The last acknowledged event ids, oldest first. */
  readonly acknowledged: readonly string[];
  /** End of the last gap recorded, ms since the epoch; 0: none. */
  readonly gapToMs: number;
}

export type WatcherCommand =
  | {
      readonly type: "Acknowledge";
      readonly instance: string;
      readonly eventIds: readonly string[];
      readonly receivedAtMs: number;
      readonly clockOffsetMs: number;
    }
  | {
      readonly type: "RecordGap";
      readonly instance: string;
      readonly resourceService: string;
      readonly fromMs: number;
      readonly toMs: number;
    };

/** A later repetition is harmless: the first receipt is what counts. */
const maxRemembered = 256;

const decide = (state: WatcherState, command: WatcherCommand): readonly WatcherEvent[] => {
  const { instance } = command;
  if (command.type === "Acknowledge") {
    const ids = [...new Set(command.eventIds)].filter((id) => !state.acknowledged.includes(id));
    if (ids.length === 0) return [];
    return [
      create(RevocationAcknowledgedSchema, {
        instance,
        revocationEventIds: ids,
        receivedAt: timestampFromMs(Math.ceil(command.receivedAtMs)),
        clockOffset: durationFromMs(Math.round(command.clockOffsetMs)),
      }),
    ];
  }
  // A gap is told once: a lease that ended is in no later gap's time.
  if (command.toMs <= state.gapToMs) return [];
  return [
    create(UseReportingGapSchema, {
      instance,
      resourceService: command.resourceService,
      from: timestampFromMs(Math.floor(Math.max(command.fromMs, state.gapToMs))),
      to: timestampFromMs(Math.ceil(command.toMs)),
    }),
  ];
};

const evolve = (state: WatcherState, event: WatcherEvent): WatcherState =>
  event.$typeName === "curfew.events.v1.RevocationAcknowledged"
    ? { ...state, acknowledged: [...state.acknowledged, ...event.revocationEventIds].slice(-maxRemembered) }
    : { ...state, gapToMs: event.to ? timestampMs(event.to) : state.gapToMs };

export const watcher: Decider<WatcherState, WatcherCommand, WatcherEvent> = {
  initial: { acknowledged: [], gapToMs: 0 },
  decide,
  evolve,
};
