import { randomUUID } from "node:crypto";
import { mkdir } from "node:fs/promises";
import { join } from "node:path";
import type { MessageInitShape } from "@bufbuild/protobuf";
import type { SubjectSchema } from "@curfew/contracts/gen/curfew/auditor/v1/data_subjects_pb.ts";
import {
  type DataSubject,
  DataSubjectService,
  type ExportDataSubjectResponse,
  type ExportedEvent,
} from "@curfew/contracts/gen/curfew/auditor/v1/data_subjects_pb.ts";
import { BreachService, CaseState } from "@curfew/contracts/gen/curfew/breach/v1/breach_pb.ts";
import type { AccessGround } from "@curfew/contracts/gen/curfew/events/v1/data_subjects_pb.ts";
import type { Connection } from "../connection.ts";
import { enumName } from "../enum-name.ts";
import { assertNew, writeNewFile } from "../new-file.ts";
import { openProgress } from "../output.ts";
import { type SubjectPage, type SubjectRow, subjectHtml } from "../subject-page.ts";
import { erasureLines, holdOf, iso } from "../subject-text.ts";

/** Rows on the page for people; the JSON has all. */
const maxRows = 2_000;
/** Of an event on the page. */
const maxText = 600;
/** Of tokens that cases are looked up for. */
const maxTokens = 1_000;

/** What the pages of an export come to, while its JSON is written. */
interface Collected {
  subject: DataSubject | undefined;
  readonly rows: SubjectRow[];
  events: number;
  readonly tokens: Set<string>;
}

const eventOf = (event: ExportedEvent) => ({
  index: Number(event.index),
  time: iso(event.time),
  type: event.type,
  id: event.eventId,
  role: event.role,
  ...(event.tokenId && { token: event.tokenId }),
  ...(event.sourceAddress && { sourceAddress: event.sourceAddress }),
  event: event.json === "" ? null : JSON.parse(event.json),
});

const untold = new Set(["use_id", "decided_at", "completed_at", "token_id", "people", "source", "pseudonym"]);
/** "scope: invoices:read · resource: invoices/7": the leaves of an event by their names. */
const leavesOf = (value: unknown, name: string): string[] => {
  if (typeof value !== "object" || value === null) return [`${name}: ${String(value)}`];
  if (Array.isArray(value)) return [`${name}: ${value.map(String).join(", ")}`];
  return Object.entries(value).flatMap(([inner, each]) => (untold.has(inner) ? [] : leavesOf(each, inner)));
};
const textOf = (event: unknown): string => (event ? leavesOf(event, "").join(" · ").slice(0, maxText) : "");

const collect = (into: Collected, page: ExportDataSubjectResponse): string[] =>
  page.events.map((event) => {
    const told = eventOf(event);
    if (event.tokenId && into.tokens.size < maxTokens) into.tokens.add(event.tokenId);
    if (into.rows.length < maxRows)
      into.rows.push({
        time: told.time,
        what: event.type.replace(/^curfew\.|\.v\d+$/g, "").replace(/[.-]/g, " "),
        role: event.role,
        token: event.tokenId,
        address: event.sourceAddress,
        text: textOf(told.event),
      });
    into.events += 1;
    return JSON.stringify(told);
  });

const casesOf = async (connection: Connection, tokens: Iterable<string>): Promise<SubjectPage["cases"]> => {
  const breach = connection.service(BreachService, "breach-notifier");
  const found: SubjectPage["cases"][number][] = [];
  for (const tokenId of tokens)
    for (const { caseId, state, firstSignalAt } of (await breach.listCases({ tokenId, pageSize: 100 })).cases)
      found.push({ id: caseId, state: enumName(CaseState, state), since: iso(firstSignalAt) });
  return found;
};

/** Writes `export.json` and `export.html` into a folder of the caller's own (0700, files 0600). Answers how many events are in them. */
export const exportSubject = async (
  connection: Connection,
  subject: MessageInitShape<typeof SubjectSchema>,
  why: { readonly ground: AccessGround; readonly reference: string; readonly directory: string },
): Promise<number> => {
  const { ground, reference, directory } = why;
  const service = connection.service(DataSubjectService, "auditor");
  const requestId = randomUUID();
  const collected: Collected = { subject: undefined, rows: [], events: 0, tokens: new Set() };
  const madeAt = new Date().toISOString();
  let cases: SubjectPage["cases"] = [];
  const pieces = async function* () {
    const progress = openProgress();
    yield Buffer.from(`{"madeAt":${JSON.stringify(madeAt)},"events":[`);
    let pageToken = "";
    do {
      const page = await service.exportDataSubject({ requestId, subject, ground, reference, pageToken });
      const first = collected.events === 0;
      const lines = collect(collected, page);
      if (lines.length > 0) yield Buffer.from(`${first ? "\n" : ",\n"}${lines.join(",\n")}`);
      collected.subject = page.subject;
      progress.count("pages");
      pageToken = page.nextPageToken;
    } while (pageToken);
    progress.clear();
    cases = await casesOf(connection, collected.tokens);
    const { pseudonym, holds = [], erasure } = collected.subject ?? {};
    const rest = {
      pseudonym,
      holds: holds.map(holdOf),
      erasure: erasureLines(erasure),
      tokens: [...collected.tokens],
      cases,
    };
    yield Buffer.from(`\n],${JSON.stringify(rest, null, 2).slice(1)}\n`);
  };
  await mkdir(directory, { recursive: true, mode: 0o700 });
  // Before anything is asked for: a copy that is handed out is recorded.
  assertNew(join(directory, "export.html"));
  await writeNewFile(join(directory, "export.json"), pieces());
  const { rows, events, tokens, subject: held } = collected;
  const html = subjectHtml({
    madeAt,
    pseudonym: held?.pseudonym ?? "",
    holds: (held?.holds ?? []).map(holdOf),
    erasure: erasureLines(held?.erasure),
    events: rows,
    more: events - rows.length,
    tokens: [...tokens],
    cases,
  });
  await writeNewFile(
    join(directory, "export.html"),
    (async function* () {
      yield Buffer.from(html);
    })(),
  );
  return events;
};
