import { timestampMs } from "@bufbuild/protobuf/wkt";
import type { Position } from "@curfew/contracts/gen/curfew/events/v1/common_pb.ts";
import { topicNames } from "@curfew/event-log/event-types.ts";
import type { Organisation } from "@curfew/runtime/organisation.ts";
import {
  blastRadius,
  type Declared,
  type ExposureWindow,
  exposureWindow,
  type JudgedUse,
  judgeUses,
  type Radius,
  type Reach,
} from "./blast-radius.ts";
import type { OpenCase } from "./domain.ts";
import type { EvidenceGap, TokenFacts } from "./projections.ts";
import type { ReportingGap } from "./reporting-gaps.ts";
import type { UsesRead } from "./use-rows.ts";

/** What was read of the log when a case's blast radius was asked for. */
export interface CaseEvidence {
  readonly token: TokenFacts | undefined;
  readonly read: UsesRead;
  /** Everything that stood on the topics of uses, tokens, revocations and evidence when it was asked is folded. */
  readonly caughtUp: boolean;
  readonly largestClockOffsetMs: number;
  readonly reportingGaps: Iterable<ReportingGap>;
  readonly evidenceGaps: Iterable<EvidenceGap>;
  readonly nowMs: number;
}

/** A case's blast radius with all that it rests on. */
export interface CaseRadius {
  readonly window: ExposureWindow | undefined;
  readonly judged: readonly JudgedUse[];
  readonly reach: readonly Reach[];
  readonly radius: Radius;
  readonly folded: readonly Position[];
  /** Why the log may not be complete for the window, each a sentence; none: it is. */
  readonly incompleteBecause: readonly string[];
  readonly token: TokenFacts | undefined;
}

/**
 * From this much after it was decided on no use is missing from the log without a gap that says so. SDKs report within 2 s. Of one that does
 * not, revocation records a gap once its reports lag by 10 s; of one that dies just before that, when its lease (5 s) and a time of grace
 * (5 s) are over, looking every second. The rest is for that record to be published and read.
 */
export const lateReportMs = 25_000;
const maxListedGaps = 10;

/** What the grant reaches: its categories at the controllers of the resource services that accept it. */
export const reachOf = (organisation: Organisation, token: TokenFacts | undefined): Reach[] => {
  const { audiences = [], dataCategories = [] } = token?.grant ?? {};
  const services = organisation.resourceServices.filter(({ name }) => audiences.includes(name));
  const controllers = new Set(services.flatMap((service) => service.controllers));
  return [...controllers].flatMap((controller) => dataCategories.map((dataCategory) => ({ controller, dataCategory })));
};

/** What controllers say to hold. */
export const declaredBy =
  ({ controllers }: Organisation): Declared =>
  (what, controllerId, dataCategory) => {
    const controller = controllers.find(({ id }) => id === controllerId);
    return (what === "people" ? controller?.population : controller?.records)?.[dataCategory];
  };

/** Generations whose secret was seen; empty: not known which. */
const leakedOf = (token: TokenFacts): ReadonlySet<number> =>
  new Set(token.wholeTokenCompromised ? [] : token.leaks.map((leak) => leak.generation));

const windowOf = (state: OpenCase, evidence: CaseEvidence, leaked: ReadonlySet<number>): ExposureWindow | undefined => {
  const { token, nowMs, largestClockOffsetMs } = evidence;
  if (!token) return undefined;
  return exposureWindow({
    generations: token.generations,
    leaked,
    signalsAtMs: state.signals.flatMap(({ at }) => (at ? [timestampMs(at)] : [])),
    claimedExposuresMs: token.leaks.flatMap(({ exposedSinceMs }) => exposedSinceMs ?? []),
    effectiveRevocationMs: token.effective?.atMs,
    clockOffsetMs: Math.max(token.effective?.clockOffsetMs ?? 0, token.effective ? 0 : largestClockOffsetMs),
    nowMs,
  });
};

const overlaps = (gap: Pick<ReportingGap, "fromMs" | "toMs">, window: ExposureWindow): boolean =>
  gap.toMs >= window.fromUpperMs && gap.fromMs <= (window.toMs ?? Number.POSITIVE_INFINITY);

const counted = (n: number, one: string, many: string) => `${n} ${n === 1 ? one : many}`;

const incompleteness = (
  evidence: CaseEvidence,
  window: ExposureWindow | undefined,
  judged: readonly JudgedUse[],
): string[] => {
  const { token, read, caughtUp, nowMs } = evidence;
  if (!token || !window)
    return ["The log does not say yet when this token was issued, so there is no window to look at."];
  const audiences = token.grant?.audiences;
  const open = judged.filter(({ use }) => !use.complete).length;
  const gaps = [...evidence.reportingGaps].filter(
    ({ resourceService, ...gap }) =>
      (!audiences || resourceService === "" || audiences.includes(resourceService)) && overlaps(gap, window),
  );
  const found = [...evidence.evidenceGaps];
  const { toMs } = window;
  const because: (string | false)[] = [
    toMs === undefined && "The window is still open: no revocation of the token has taken effect everywhere yet.",
    nowMs < (toMs ?? nowMs) + lateReportMs && `Uses up to ${iso(toMs ?? nowMs)} may still be reported.`,
    !caughtUp && "Not everything on the log has been read yet.",
    read.truncated && "The token has more uses than are counted at once: the numbers are too low.",
    read.orphans > 0 &&
      `${counted(read.orphans, "use was", "uses were")} reported without its decision standing on the log.`,
    open > 0 && `${counted(open, "allowed use has", "allowed uses have")} not been reported as completed.`,
    ...gaps
      .slice(0, maxListedGaps)
      .map(
        ({ resourceService, fromMs, toMs: end }) =>
          `${resourceService || "A resource service"} may not have reported all its uses between ${iso(fromMs)} and ${iso(end)}.`,
      ),
    ...found
      .slice(0, maxListedGaps)
      .map(
        ({ topic, cause }) =>
          `A gap was found in the evidence (${cause}, ${topic || "no topic"}): records may be missing.`,
      ),
    Math.max(gaps.length, found.length) > maxListedGaps && "There are more gaps than are listed here.",
  ];
  return because.filter((reason) => reason !== false);
};

const latestMs = 8.64e15; // the last moment that a Date can name
const iso = (ms: number) => new Date(Math.min(ms, latestMs)).toISOString();

/** The blast radius of a case about a token, as far as `evidence` goes. */
export const caseRadius = (state: OpenCase, evidence: CaseEvidence, organisation: Organisation): CaseRadius => {
  const { token, read } = evidence;
  const leaked = token ? leakedOf(token) : new Set<number>();
  const window = windowOf(state, evidence, leaked);
  const judged = window ? judgeUses(window, leaked, read.uses) : [];
  const reach = reachOf(organisation, token);
  return {
    window,
    judged,
    reach,
    radius: blastRadius(judged, reach, declaredBy(organisation)),
    folded: read.folded.filter(({ topic }) => topic === topicNames.uses),
    incompleteBecause: incompleteness(evidence, window, judged),
    token,
  };
};

/** The part of one controller: only its own uses, and what could be reached of it. */
export const radiusOfController = (whole: CaseRadius, controller: string, organisation: Organisation): CaseRadius => {
  const judged = whole.judged.filter(({ use }) => use.controller === controller);
  const reach = whole.reach.filter((r) => r.controller === controller);
  return { ...whole, judged, reach, radius: blastRadius(judged, reach, declaredBy(organisation)) };
};

/** Each once, by their code units. */
export const inOrder = (texts: readonly string[]): string[] => [...new Set(texts)].sort((a, b) => (a < b ? -1 : 1));

/** Controllers whose data was touched after the exposure; where none is known, those whose data could be reached. */
export const controllersOf = ({ judged, reach }: CaseRadius): string[] => {
  const touched = judged.filter(({ inBest }) => inBest).map(({ use }) => use.controller);
  const all = touched.length > 0 ? touched : reach.map(({ controller }) => controller);
  return inOrder(all.filter((id) => id !== ""));
};
