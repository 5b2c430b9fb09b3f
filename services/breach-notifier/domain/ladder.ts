import { hourMs, readClock } from "../article-clock.ts";

/**
 * What is paged, and when (design: breach, "Paging"): a list derived from the case, never stored, so that whoever looks next, after a
 * restart too, finds what is overdue. Times in ms since the epoch, UTC.
 */
export const milestoneNames = [
  "opened",
  "awareness-undecided",
  "investigation-24h",
  "deadline-48h",
  "deadline-24h",
  "deadline-12h",
  "deadline-4h",
  "deadline-1h",
  "overdue",
] as const;
export type MilestoneName = (typeof milestoneNames)[number];

export interface Milestone {
  readonly name: MilestoneName;
  /** Its moment: "overdue" has a new one every hour. */
  readonly atMs: number;
}

/** What the ladder needs to know of a case. */
export interface LadderCase {
  readonly firstSignalAtMs: number;
  readonly decidedAwareAtMs: number | undefined;
  /** One notice, and no clock until a person decides otherwise. */
  readonly noPersonalData: boolean;
}

const deadlineHours = [48, 24, 12, 4, 1] as const;

/** Whether the 72 hours run: not where no personal data was in reach, unless a person has decided that there was. */
export const hasClock = ({
  noPersonalData,
  decidedAwareAtMs,
}: Pick<LadderCase, "noPersonalData" | "decidedAwareAtMs">): boolean =>
  !noPersonalData || decidedAwareAtMs !== undefined;

const awareness = ({ firstSignalAtMs, decidedAwareAtMs }: LadderCase): Milestone[] =>
  decidedAwareAtMs === undefined
    ? [
        { name: "awareness-undecided", atMs: firstSignalAtMs + hourMs },
        { name: "investigation-24h", atMs: firstSignalAtMs + 24 * hourMs },
      ]
    : [];

/** Of the steps around bound A only the one that has come last: who was away needs the most urgent one, not all of them. */
const deadline = ({ firstSignalAtMs, decidedAwareAtMs }: LadderCase, nowMs: number): Milestone[] => {
  const boundMs = readClock(firstSignalAtMs, decidedAwareAtMs, nowMs).conservativeMs;
  if (nowMs >= boundMs) return [{ name: "overdue", atMs: boundMs + Math.floor((nowMs - boundMs) / hourMs) * hourMs }];
  const steps = deadlineHours.map((h): Milestone => ({ name: `deadline-${h}h`, atMs: boundMs - h * hourMs }));
  const passed = steps.filter(({ atMs }) => atMs <= nowMs).at(-1);
  return passed ? [passed] : [];
};

/** Milestones whose moment has come, the latest last. A case that is open is paged, however our clock and the signal's differ. */
export const reachedMilestones = (of: LadderCase, nowMs: number): Milestone[] => {
  const later = hasClock(of) ? [...awareness(of), ...deadline(of, nowMs)] : [];
  const reached = later.filter(({ atMs }) => atMs <= nowMs).sort((a, b) => a.atMs - b.atMs);
  return [{ name: "opened", atMs: of.firstSignalAtMs }, ...reached];
};

/** Pages of one milestone so far. */
export interface Raised {
  readonly lastDueAtMs: number;
  /** One of the last round was taken by its channel. */
  readonly someSent: boolean;
}

/** What a person has said to have seen. */
export interface Acknowledged {
  readonly milestone: string;
  readonly atMs: number;
}

/**
 * Milestones to be paged now. Each once for its moment (a decision that moves the deadline makes a step due again); the current one again
 * every `repeatMs` while nobody has acknowledged it, or while no channel has taken it. An acknowledgement covers its milestone and those
 * before: who saw the later page knows.
 */
export const dueMilestones = (
  of: LadderCase,
  raised: (milestone: MilestoneName) => Raised | undefined,
  acknowledged: readonly Acknowledged[],
  nowMs: number,
  repeatMs: number,
): Milestone[] => {
  const reached = reachedMilestones(of, nowMs);
  const current = reached.at(-1);
  const isCovered = ({ atMs }: Milestone) =>
    acknowledged.some((ack) => {
      const seen = reached.find((m) => m.name === ack.milestone);
      return seen !== undefined && seen.atMs >= atMs && ack.atMs >= atMs;
    });
  return reached.filter((milestone) => {
    const before = raised(milestone.name);
    if (!before || before.lastDueAtMs < milestone.atMs) return true;
    if (milestone !== current || nowMs - before.lastDueAtMs < repeatMs) return false;
    if (!before.someSent) return true;
    return hasClock(of) && milestone.name !== "overdue" && !isCovered(milestone);
  });
};
