import type { JsonValue } from "@bufbuild/protobuf";
import type { SealedRecord } from "@curfew/ledger/leaf.ts";
import { type DecodedEntry, headerOf } from "./decoded.ts";
import { decodedName, file } from "./layout.ts";
import type { Manifest } from "./manifest.ts";
import type { Report } from "./report.ts";

/** The bundle as a page for people: one file, no script, nothing fetched. */

const maxTextLength = 400;
const maxValueLength = 120;
/** What proves something to machines, and tells people nothing. */
const untold = new Set(["requestKey", "requestHash", "tokenId", "caseId"]);

/** Control characters, and those that turn text around or hide it: a page must read the same for everybody. */
const steering = /[\p{C}\u2028\u2029]/gu;
const escapes: Readonly<Record<string, string>> = {
  "&": "&amp;",
  "<": "&lt;",
  ">": "&gt;",
  '"': "&quot;",
  "'": "&#39;",
};

export const escapeHtml = (text: string): string =>
  text.replace(steering, "\ufffd").replace(/[&<>"']/g, (mark) => escapes[mark] as string);

const cut = (text: string, most: number): string => (text.length <= most ? text : `${text.slice(0, most - 1)}…`);

const textOf = (event: JsonValue): string => {
  if (typeof event !== "object" || event === null || Array.isArray(event)) return "";
  const told = Object.entries(event).filter(([name]) => !untold.has(name));
  const parts = told.map(([name, value]) => {
    const text = typeof value === "string" ? value : JSON.stringify(value);
    return `${name}: ${cut(text, maxValueLength)}`;
  });
  return cut(parts.join(" · "), maxTextLength);
};

/** A line of the timeline. */
export interface TimelineRow {
  readonly index: number;
  /** ce_time, or where it is none, the time of sealing. */
  readonly at: string;
  readonly what: string;
  readonly source: string;
  readonly about: string;
  readonly text: string;
}

const timeForm = /^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d{1,9})?Z$/;

export const timelineRow = (entry: DecodedEntry, record: SealedRecord): TimelineRow => {
  const time = headerOf(record, "ce_time");
  const type = cut(headerOf(record, "ce_type"), maxValueLength);
  return {
    index: entry.index,
    at: timeForm.test(time) ? time : entry.sealedAt,
    what: type.replace(/^curfew\.|\.v\d+$/g, "").replace(/[.-]/g, " ") || "a record of no known kind",
    source: cut(headerOf(record, "ce_source").replace(/^\//, ""), maxValueLength),
    about: cut(headerOf(record, "ce_subject"), maxValueLength),
    text: textOf(entry.event),
  };
};

const style = `
:root { color-scheme: light; --ink: #1a1c20; --soft: #5c626c; --line: #d9dce1; --band: #f4f5f7; --accent: #8a1c2c }
* { box-sizing: border-box }
body { margin: 0 auto; padding: 2rem 1.5rem 4rem; max-width: 78rem; color: var(--ink); background: #fff; font: 15px/1.5 system-ui, sans-serif }
h1 { margin: 0 0 .25rem; font-size: 1.6rem; line-height: 1.2 }
.lead { margin: 0 0 1.5rem; color: var(--soft) }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .3rem 1.25rem; margin: 0 0 1.5rem; padding: 1rem 1.25rem; border: 1px solid var(--line); border-radius: .5rem; background: var(--band) }
dt { color: var(--soft) } dd { margin: 0; overflow-wrap: anywhere }
.mono { font-family: ui-monospace, monospace; font-size: .9em }
.missing { margin: 0 0 1.5rem; padding: .75rem 1.25rem .75rem 2.25rem; border: 1px solid var(--accent); border-radius: .5rem; color: var(--accent) }
table { width: 100%; border-collapse: collapse; table-layout: fixed }
th { padding: .5rem .6rem; text-align: left; font-weight: 600; color: var(--soft); border-bottom: 2px solid var(--line) }
td { padding: .5rem .6rem; vertical-align: top; border-bottom: 1px solid var(--line); overflow-wrap: anywhere }
.day th { padding-top: 1.4rem; color: var(--ink); font-size: 1.05rem; border-bottom: 1px solid var(--ink) }
.time { width: 8.5rem } .what { width: 11rem } .about { width: 16rem } .leaf { width: 6.5rem }
td.time, td.leaf { font-variant-numeric: tabular-nums; white-space: nowrap } td.leaf { text-align: right } th.leaf { text-align: right }
td.what { font-weight: 600 } td.what small { display: block; font-weight: 400; color: var(--soft) }
td.text { color: var(--soft); font-size: .92em } a { color: inherit }
@media (max-width: 48rem) {
  body { padding: 1.25rem 1rem 3rem }
  dl { grid-template-columns: 1fr; gap: 0 } dd { margin-bottom: .5rem }
  table, tbody, tr, td { display: block } thead { display: none }
  .day th { display: block; width: auto } td { padding: 0; border: 0; width: auto !important } td.leaf { text-align: left } .day th { padding-left: 0 }
  tr:not(.day) { padding: .7rem 0; border-bottom: 1px solid var(--line) } td.leaf::before { content: "leaf " }
}
@media print {
  @page { margin: 15mm }
  body { max-width: none; padding: 0; font-size: 9pt } thead { display: table-header-group } tr { break-inside: avoid }
  .day { break-after: avoid } dl { background: none } a { text-decoration: none }
}
`;

const pair = (name: string, value: string, isMono = false): string =>
  `<dt>${escapeHtml(name)}</dt><dd${isMono ? ' class="mono"' : ""}>${escapeHtml(value)}</dd>\n`;

const selectionText = ({ selection: { token, case: caseId, from, to } }: Facts): string => {
  const about = caseId || (token ? `token ${token}` : "everything");
  return `${about}${from && `, sealed at or after ${from}`}${to && `, sealed before ${to}`}`;
};

export type Facts = Omit<Manifest, "format" | "files">;

/** Since when the entries exist, by a clock that is not the ledger's. */
export interface TimelineStamp {
  /** Leaves below this one are bounded. */
  readonly size: number;
  /** What the answer of the authority says, in ms since the Unix epoch. */
  readonly timeMs: number;
}

const stampText = ({ range }: Facts, stamp: TimelineStamp | undefined): string => {
  if (!stamp) return "none in this bundle";
  const some = stamp.size < range.end ? `; those from leaf ${stamp.size} on are not bounded by it` : "";
  const which = some && ` before leaf ${stamp.size}`;
  const time = new Date(stamp.timeMs).toISOString();
  return `${time}: the entries${which} existed before that, says a time-stamp authority${some}`;
};

const headOf = (facts: Facts, verifierKey: string, { missing }: Report, stamp: TimelineStamp | undefined): string => {
  const title = facts.selection.case ? "Evidence on a case" : "Evidence";
  const gaps = missing.map((each) => `<li>${escapeHtml(each)}</li>`).join("");
  return `<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">
<title>${escapeHtml(title)}: ${escapeHtml(facts.origin)}</title>
<style>${style}</style>
</head>
<body>
<h1>${escapeHtml(title)}</h1>
<p class="lead">Events in the order in which the ledger sealed them. Times are UTC. This page is for reading: what is proved, and how to
check it, is in ${file.readMe}.</p>
<dl>
${pair("What was asked for", selectionText(facts))}${pair("Ledger", facts.origin, true)}${pair("Its key", verifierKey, true)}${pair(
  "Entries",
  `${facts.entries}, from leaves ${facts.range.first} to ${facts.range.end - 1} of a tree of ${facts.size}`,
)}${pair("Made", facts.madeAt)}${pair("Outside timestamp", stampText(facts, stamp))}</dl>
${gaps && `<ul class="missing">${gaps}</ul>\n`}`;
};

const rowHtml = ({ index, at, what, source, about, text }: TimelineRow): string =>
  `<tr><td class="time">${escapeHtml(at.slice(11))}</td><td class="what">${escapeHtml(what)}<small>${escapeHtml(source)}</small></td>` +
  `<td class="about mono">${escapeHtml(about)}</td><td class="text">${escapeHtml(text)}</td>` +
  `<td class="leaf"><a href="${decodedName(index)}">${index}</a></td></tr>\n`;

const columns =
  '<tr><th class="time">Time</th><th class="what">What</th><th class="about">About</th><th class="text">Said</th><th class="leaf">Leaf</th></tr>';

/** The page, in pieces. */
export const timelineHtml = (
  facts: Facts,
  verifierKey: string,
  report: Report,
  rows: readonly TimelineRow[],
  stamp?: TimelineStamp,
): Buffer => {
  const pieces = [headOf(facts, verifierKey, report, stamp), `<table>\n<thead>${columns}</thead>\n<tbody>\n`];
  let day = "";
  for (const row of rows) {
    const date = row.at.slice(0, 10);
    if (date !== day) pieces.push(`<tr class="day"><th colspan="5">${escapeHtml(date)}</th></tr>\n`);
    day = date;
    pieces.push(rowHtml(row));
  }
  return Buffer.from(`${pieces.join("")}</tbody>\n</table>\n</body>\n</html>\n`);
};
