import { hash } from "node:crypto";
import type { ClockReading } from "../article-clock.ts";
import type { Count, Radius } from "../blast-radius.ts";

/** What a page says, whatever carries it: no person, no address, no secret, and nothing that the case does not say. */
export interface PageContent {
  readonly pageId: string;
  readonly caseId: string;
  readonly milestone: string;
  readonly round: number;
  /** Empty: about a producer. */
  readonly tokenId: string;
  readonly noPersonalData: boolean;
  /** Absent where no personal data was in reach. */
  readonly clock: ClockReading | undefined;
  /** Undefined while they cannot be counted. */
  readonly numbers: Pick<Radius, "people" | "records"> | undefined;
  readonly degraded: readonly string[];
  readonly nowMs: number;
}

/** Sends a page. Throws PageRefused where trying again is pointless, ChannelFailed otherwise; neither names an address. */
export interface Channel {
  /** Answers the channel's own id of the message. */
  send(page: PageContent): Promise<string>;
}

export class ChannelFailed extends Error {
  override name = "ChannelFailed";
}
export class PageRefused extends Error {
  override name = "PageRefused";
}

/** The same page, sent again, has the same id: those who got it twice can tell. */
export const pageKey = (pageId: string): string => hash("sha256", pageId).slice(0, 32);

const headlines: Readonly<Record<string, string>> = {
  opened: "a case was opened",
  "awareness-undecided": "nobody has decided awareness for an hour",
  "investigation-24h": "24 hours of investigation without a decision on awareness",
  "deadline-48h": "48 h or less until the 72-hour deadline",
  "deadline-24h": "24 h or less until the 72-hour deadline",
  "deadline-12h": "12 h or less until the 72-hour deadline",
  "deadline-4h": "4 h or less until the 72-hour deadline",
  "deadline-1h": "1 h or less until the 72-hour deadline",
  overdue: "the 72-hour deadline has passed",
};

export const subjectOf = ({ milestone, noPersonalData, caseId }: PageContent): string => {
  const what = noPersonalData ? "Leaked token without personal data" : "Suspected personal data breach";
  return `[Curfew] ${what}: ${headlines[milestone] ?? milestone} (${caseId})`;
};

const minutesMs = 60_000;
const relative = (ms: number): string => {
  const minutes = Math.floor(Math.abs(ms) / minutesMs);
  const text = `${Math.floor(minutes / 60)} h ${minutes % 60} min`;
  return ms >= 0 ? `${text} left` : `${text} late`;
};
const iso = (ms: number) => new Date(ms).toISOString();
const range = ({ lower, best, upper }: Count): string =>
  `at least ${lower}, best ${best}, at most ${upper ?? "unknown"}`;

const timeLines = ({ clock, nowMs }: PageContent): string[] => {
  if (!clock) return ["No 72-hour clock runs: the token's grant reaches no personal data."];
  return [
    `Aware since: ${iso(clock.awareAtMs)} (${clock.provisional ? "provisional: nobody has decided yet" : "decided"})`,
    `Notify by: ${iso(clock.conservativeMs)} (${relative(clock.conservativeMs - nowMs)})`,
    `Latest reading (Regulation 1182/71): ${iso(clock.regulation1182Ms)}`,
  ];
};

export const textOf = (page: PageContent): string => {
  const { caseId, tokenId, milestone, numbers, degraded } = page;
  const lines = [
    subjectOf(page).replace("[Curfew] ", ""),
    "",
    `Case: ${caseId}`,
    tokenId ? `Token: ${tokenId}` : "About: evidence that is missing, or not kept as it must be",
    "Severity: not yet assessed",
    ...timeLines(page),
    `People so far: ${numbers ? range(numbers.people) : "not counted yet"}`,
    `Records so far: ${numbers ? range(numbers.records) : "not counted yet"}`,
    ...degraded.map((trouble) => `Attention: ${trouble}`),
    "",
    `Look at it:        curfew case show ${caseId}`,
    `Acknowledge:       curfew ack ${caseId} ${milestone}`,
    "",
    "Curfew proposes, a person decides. Not legal advice.",
  ];
  return `${lines.join("\n")}\n`;
};

const counts = ({ lower, best, upper }: Count) => ({ lower, best, upper: upper ?? null });

/** The same as data, for webhooks. */
export const dataOf = (page: PageContent) => ({
  page_id: page.pageId,
  case_id: page.caseId,
  milestone: page.milestone,
  round: page.round,
  token_id: page.tokenId,
  what: subjectOf(page).replace("[Curfew] ", ""),
  severity: "not yet assessed",
  no_personal_data: page.noPersonalData,
  clock: page.clock
    ? {
        provisional: page.clock.provisional,
        aware_at: iso(page.clock.awareAtMs),
        conservative: iso(page.clock.conservativeMs),
        regulation1182: iso(page.clock.regulation1182Ms),
        time_left_seconds: Math.floor((page.clock.conservativeMs - page.nowMs) / 1_000),
      }
    : null,
  people: page.numbers ? counts(page.numbers.people) : null,
  records: page.numbers ? counts(page.numbers.records) : null,
  attention: page.degraded,
  acknowledge: `curfew ack ${page.caseId} ${page.milestone}`,
});
