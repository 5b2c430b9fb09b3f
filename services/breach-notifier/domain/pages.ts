import { create } from "@bufbuild/protobuf";
import { type Timestamp, timestampFromMs, timestampMs } from "@bufbuild/protobuf/wkt";
import {
  type PageDue,
  PageDueSchema,
  type PageFailed,
  PageFailedSchema,
  type PageSent,
  PageSentSchema,
} from "@curfew/contracts/gen/curfew/events/v1/breaches_pb.ts";
import { type Acknowledged, dueMilestones, type LadderCase } from "./ladder.ts";

/** Pages of one case: due, then sent or failed; a repeat is the next round of its milestone and target. */
export interface PageState {
  /** `<case>/<milestone>/<target>/<round>`. */
  readonly pageId: string;
  readonly milestone: string;
  readonly target: string;
  readonly round: number;
  readonly dueAtMs: number;
  readonly state: "due" | "sent" | "failed";
  /** Of the last change. */
  readonly atMs: number;
  readonly error: string;
}

export interface Pages {
  /** Every page that is due, and the last ones that are settled; oldest first. */
  readonly all: ReadonlyMap<string, PageState>;
  /** By milestone and target the last round. */
  readonly last: ReadonlyMap<string, ReadonlyMap<string, PageState>>;
}

export const maxKeptPages = 1_000;

const msOf = (at: Timestamp | undefined): number => (at ? timestampMs(at) : 0);

const due = (caseId: string, pages: Pages, milestone: string, target: string, dueAtMs: number): PageDue => {
  const round = (pages.last.get(milestone)?.get(target)?.round ?? 0) + 1;
  const pageId = `${caseId}/${milestone}/${target}/${round}`;
  return create(PageDueSchema, { caseId, pageId, milestone, target, round, dueAt: timestampFromMs(dueAtMs) });
};

const raisedOf = (pages: Pages) => (milestone: string) => {
  const rounds = [...(pages.last.get(milestone)?.values() ?? [])];
  if (rounds.length === 0) return undefined;
  return {
    lastDueAtMs: Math.max(...rounds.map((page) => page.dueAtMs)),
    someSent: rounds.some((page) => page.state === "sent"),
  };
};

/** What is due by the ladder, to every target. A round that is still under way is not repeated: it is being tried again already. */
export const raisePages = (
  caseId: string,
  pages: Pages,
  o: {
    readonly ladder: LadderCase;
    readonly acknowledged: readonly Acknowledged[];
    readonly targets: readonly string[];
    readonly repeatMs: number;
    readonly nowMs: number;
  },
): PageDue[] =>
  dueMilestones(o.ladder, raisedOf(pages), o.acknowledged, o.nowMs, o.repeatMs).flatMap(({ name, atMs }) =>
    o.targets
      .filter((target) => {
        const before = pages.last.get(name)?.get(target);
        return before?.state !== "due" || before.dueAtMs < atMs;
      })
      .map((target) => due(caseId, pages, name, target, Math.max(o.nowMs, atMs))),
  );

export const sendPage = (
  caseId: string,
  pages: Pages,
  o: { readonly pageId: string; readonly channelMessageId: string; readonly nowMs: number },
): PageSent[] => {
  const page = pages.all.get(o.pageId);
  if (!page || page.state === "sent") return [];
  const { pageId, channelMessageId } = o;
  return [create(PageSentSchema, { caseId, pageId, channelMessageId, sentAt: timestampFromMs(o.nowMs) })];
};

/** Gives a page up and turns to the next target whose own last page of this milestone has not failed; when all have, the next round will. */
export const failPage = (
  caseId: string,
  pages: Pages,
  o: {
    readonly pageId: string;
    readonly error: string;
    readonly targets: readonly string[];
    readonly nowMs: number;
  },
): (PageFailed | PageDue)[] => {
  const page = pages.all.get(o.pageId);
  if (page?.state !== "due") return [];
  const { pageId, error, targets, nowMs } = o;
  const failed = create(PageFailedSchema, { caseId, pageId, error, failedAt: timestampFromMs(nowMs) });
  const rounds = pages.last.get(page.milestone);
  const at = targets.indexOf(page.target);
  const others = [...targets.slice(at + 1), ...targets.slice(0, Math.max(at, 0))];
  const next = others.find((target) => rounds?.get(target)?.state !== "failed");
  // One that is under way will say it anyway.
  if (next === undefined || rounds?.get(next)?.state === "due") return [failed];
  return [failed, due(caseId, pages, page.milestone, next, nowMs)];
};

const none: Pages = { all: new Map(), last: new Map() };

const withPage = (pages: Pages, page: PageState): Pages => {
  const all = new Map(pages.all).set(page.pageId, page);
  if (all.size > maxKeptPages) {
    const oldest = [...all.values()].find(({ state }) => state !== "due");
    if (oldest) all.delete(oldest.pageId);
  }
  const rounds = pages.last.get(page.milestone);
  const newest = rounds?.get(page.target);
  if (newest && newest.round > page.round) return { all, last: pages.last };
  return { all, last: new Map(pages.last).set(page.milestone, new Map(rounds).set(page.target, page)) };
};

const evolve = (pages: Pages, event: PageDue | PageSent | PageFailed): Pages => {
  if (event.$typeName === "curfew.events.v1.PageDue") {
    const { pageId, milestone, target, round } = event;
    const dueAtMs = msOf(event.dueAt);
    return withPage(pages, { pageId, milestone, target, round, dueAtMs, state: "due", atMs: dueAtMs, error: "" });
  }
  const page = pages.all.get(event.pageId);
  if (!page) return pages;
  return event.$typeName === "curfew.events.v1.PageSent"
    ? withPage(pages, { ...page, state: "sent", atMs: msOf(event.sentAt), error: "" })
    : withPage(pages, { ...page, state: "failed", atMs: msOf(event.failedAt), error: event.error });
};

export const pageEvents = { none, evolve };
