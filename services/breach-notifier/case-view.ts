import type { MessageInitShape } from "@bufbuild/protobuf";
import { type Timestamp, timestampFromMs } from "@bufbuild/protobuf/wkt";
import {
  type ArticleClockSchema,
  type BlastRadiusSchema,
  type CaseSchema,
  CaseState as WireState,
} from "@curfew/contracts/gen/curfew/breach/v1/breach_pb.ts";
import { type ClockReading, readClock } from "./article-clock.ts";
import type { Count } from "./blast-radius.ts";
import type { CaseRadius } from "./case-radius.ts";
import { hasClock } from "./domain/ladder.ts";
import { maxKeptPages, type PageState } from "./domain/pages.ts";
import { ladderOf, type OpenCase } from "./domain.ts";

/** Cases as the API and the pages show them. */
export const clockOf = (state: OpenCase, nowMs: number): ClockReading | undefined => {
  const { firstSignalAtMs, decidedAwareAtMs, noPersonalData } = ladderOf(state);
  if (!hasClock({ noPersonalData, decidedAwareAtMs })) return undefined;
  return readClock(firstSignalAtMs, decidedAwareAtMs, nowMs);
};

export const wireClock = (clock: ClockReading): MessageInitShape<typeof ArticleClockSchema> => ({
  provisional: clock.provisional,
  awareAt: timestampFromMs(clock.awareAtMs),
  conservative: timestampFromMs(clock.conservativeMs),
  regulation1182: timestampFromMs(clock.regulation1182Ms),
  late: clock.late,
});

const wireRange = ({ lower, best, upper }: Count) => ({
  lower: BigInt(lower),
  best: BigInt(best),
  ...(upper !== undefined && { upper: BigInt(upper) }),
});

const optionalTime = <K extends string>(key: K, ms: number | undefined): { [k in K]?: Timestamp } =>
  ms === undefined ? {} : ({ [key]: timestampFromMs(ms) } as { [k in K]?: Timestamp });

const wireRadius = (
  { window, radius, folded, incompleteBecause }: CaseRadius,
  withSlices: boolean,
): MessageInitShape<typeof BlastRadiusSchema> => ({
  ...(window && {
    window: {
      fromUpper: timestampFromMs(window.fromUpperMs),
      fromBest: timestampFromMs(window.fromBestMs),
      ...optionalTime("to", window.toMs),
    },
  }),
  people: wireRange(radius.people),
  records: wireRange(radius.records),
  slices: withSlices
    ? radius.slices.map(({ dimension, value, people, records }) => ({
        dimension,
        value,
        people: wireRange(people),
        records: wireRange(records),
      }))
    : [],
  uses: BigInt(radius.uses),
  completedUses: BigInt(radius.completedUses),
  kinds: [...radius.kinds],
  folded: [...folded],
  complete: incompleteBecause.length === 0,
  incompleteBecause: [...incompleteBecause],
});

const wirePage = ({ pageId, milestone, target, state, atMs, error }: PageState) => ({
  pageId,
  milestone,
  target,
  state,
  at: timestampFromMs(atMs),
  error,
});

/** Targets whose last page could not be delivered. */
export const failingTargets = ({ pages }: OpenCase): PageState[] => {
  const last = new Map<string, PageState>();
  for (const page of pages.all.values())
    if (page.state !== "due" && page.atMs >= (last.get(page.target)?.atMs ?? 0)) last.set(page.target, page);
  return [...last.values()].filter(({ state }) => state === "failed");
};

/** What is wrong with the notifier itself, each a sentence. */
export const degradedOf = (
  state: OpenCase,
  o: { readonly targets: number; readonly busAnswers: boolean },
): string[] => [
  ...(o.targets === 0 ? ["Nobody is configured to be paged."] : []),
  ...failingTargets(state).map(({ target, error }) => `${target} could not be reached: ${error}.`),
  ...(o.busAnswers ? [] : ["The log cannot be reached: new signals and uses are not seen until it can."]),
];

/** A case; for a list without slices, signals and pages. */
export const wireCase = (
  state: OpenCase,
  o: {
    readonly radius: CaseRadius | undefined;
    readonly degraded: readonly string[];
    readonly nowMs: number;
    readonly whole: boolean;
  },
): MessageInitShape<typeof CaseSchema> => {
  const clock = clockOf(state, o.nowMs);
  const pages = [...state.pages.all.values()].sort((a, b) => a.dueAtMs - b.dueAtMs).slice(-maxKeptPages);
  return {
    caseId: state.caseId,
    tokenId: state.tokenId,
    producer: state.producer,
    state: state.status === "aware" ? WireState.AWARE : WireState.SIGNALLED,
    noPersonalData: state.noPersonalData,
    firstSignalAt: timestampFromMs(state.firstSignalAtMs),
    signals: o.whole ? [...state.signals] : [],
    ...(clock && { clock: wireClock(clock) }),
    ...(o.radius && { blastRadius: wireRadius(o.radius, o.whole) }),
    pages: o.whole ? pages.map(wirePage) : [],
    acknowledgements: o.whole ? [...state.acknowledgements] : [],
    ...(state.decision && { awareness: state.decision }),
    degraded: [...o.degraded],
  };
};
