import { randomUUID } from "node:crypto";
import { type Timestamp, timestampDate, timestampFromDate } from "@bufbuild/protobuf/wkt";
import { BreachService, type Case, CaseState, type Range } from "@curfew/contracts/gen/curfew/breach/v1/breach_pb.ts";
import { buildCommand, buildRouteMap } from "@stricli/core";
import { type ConnectionFlags, onConnection } from "../connection.ts";
import { enumName } from "../enum-name.ts";
import { connectionFlags, outputAlias, outputFlag, parseTime } from "../flags.ts";
import { type Format, printOne, printRows, standardOutput } from "../output.ts";

interface CaseFlags extends ConnectionFlags {
  readonly output: Format;
}

const iso = (at: Timestamp | undefined) => (at ? timestampDate(at).toISOString() : "");
const numbers = (range: Range | undefined) =>
  range && {
    lower: Number(range.lower),
    best: Number(range.best),
    upper: range.upper === undefined ? null : Number(range.upper),
  };
const inOneLine = (range: ReturnType<typeof numbers>) =>
  range && `${range.lower} / ${range.best} / ${range.upper ?? "unknown"}`;
const inWords = (range: ReturnType<typeof numbers>) =>
  range && `at least ${range.lower}, probably ${range.best}, at most ${range.upper ?? "unknown"}`;
const caseArgument = { kind: "tuple", parameters: [{ parse: String, brief: "case id", placeholder: "CASE" }] } as const;

const dataOf = (found: Case) => ({
  case: found.caseId,
  state: enumName(CaseState, found.state),
  token: found.tokenId,
  firstSignal: iso(found.firstSignalAt),
  fileBefore: iso(found.clock?.conservative),
  people: numbers(found.blastRadius?.people),
  records: numbers(found.blastRadius?.records),
});

const detailsOf = (found: Case) => {
  const { blastRadius: radius, clock } = found;
  return {
    ...dataOf(found),
    awareAt: iso(clock?.awareAt),
    provisional: clock?.provisional,
    regulation1182: iso(clock?.regulation1182),
    window: { from: iso(radius?.window?.fromBest), to: iso(radius?.window?.to) },
    kinds: radius?.kinds,
    complete: radius?.complete,
    incompleteBecause: radius?.incompleteBecause,
    pages: found.pages.map(({ milestone, target, state }) => ({ milestone, target, state })),
    degraded: found.degraded,
  };
};

const list = buildCommand({
  docs: { brief: "List cases, newest first; people and records as lower / best / upper" },
  parameters: { flags: { ...connectionFlags, ...outputFlag }, aliases: outputAlias },
  func: (flags: CaseFlags) =>
    onConnection(flags, async (connection) => {
      const breach = connection.service(BreachService, "breach-notifier");
      const cases: Case[] = [];
      let pageToken = "";
      do {
        const page = await breach.listCases({ pageSize: 1_000, pageToken });
        cases.push(...page.cases);
        pageToken = page.nextPageToken;
      } while (pageToken);
      const rows = cases.map(dataOf);
      const columns = ["case", "state", "firstSignal", "fileBefore", "people", "records"];
      if (flags.output === "json") printRows("json", rows, columns);
      else {
        const lines = rows.map((row) => ({ ...row, people: inOneLine(row.people), records: inOneLine(row.records) }));
        printRows("table", lines, columns);
      }
    }),
});

const show = buildCommand({
  docs: { brief: "Show a case: clock, window, what was touched, pages" },
  parameters: { flags: { ...connectionFlags, ...outputFlag }, aliases: outputAlias, positional: caseArgument },
  func: (flags: CaseFlags, caseId: string) =>
    onConnection(flags, async (connection) => {
      const found = (await connection.service(BreachService, "breach-notifier").getCase({ caseId })).case;
      if (!found) throw new Error("the breach-notifier answered without a case");
      const details = detailsOf(found);
      if (flags.output === "json") return printOne("json", details);
      const { people, records, awareAt, provisional, window, pages, ...others } = details;
      printOne("table", {
        ...others,
        people: inWords(people),
        records: inWords(records),
        awareAt: `${awareAt}${provisional ? " (provisional: nobody has decided)" : ""}`,
        window: `${window.from} to ${window.to || "now: still open"}`,
        pages: pages.map((page) => `${page.milestone} → ${page.target}: ${page.state}`),
      });
    }),
});

const decide = buildCommand({
  docs: { brief: "Decide when the controller became aware (role dpo)" },
  parameters: {
    flags: {
      ...connectionFlags,
      ...outputFlag,
      awareAt: { kind: "parsed", parse: parseTime, brief: "the moment, with its offset", placeholder: "TIME" },
      reason: {
        kind: "parsed",
        parse: String,
        brief: "why; needed when it is after the first signal",
        default: "",
        placeholder: "TEXT",
      },
    },
    aliases: outputAlias,
    positional: caseArgument,
  },
  func: (flags: CaseFlags & { awareAt: Date; reason: string }, caseId: string) =>
    onConnection(flags, async (connection) => {
      const { clock } = await connection.service(BreachService, "breach-notifier").decideAwareness({
        requestId: randomUUID(),
        caseId,
        awareAt: timestampFromDate(flags.awareAt),
        reason: flags.reason,
      });
      printOne(flags.output, {
        case: caseId,
        awareAt: iso(clock?.awareAt),
        fileBefore: iso(clock?.conservative),
        regulation1182: iso(clock?.regulation1182),
      });
    }),
});

const draft = buildCommand({
  docs: { brief: "Draft the Article 33 notification (role dpo)" },
  parameters: {
    flags: {
      ...connectionFlags,
      ...outputFlag,
      controller: {
        kind: "parsed",
        parse: String,
        brief: "id of the controller, where there are several",
        default: "",
        placeholder: "ID",
      },
    },
    aliases: outputAlias,
    positional: caseArgument,
  },
  func: (flags: CaseFlags & { controller: string }, caseId: string) =>
    onConnection(flags, async (connection) => {
      const answer = await connection
        .service(BreachService, "breach-notifier")
        .draftNotification({ requestId: randomUUID(), caseId, controller: flags.controller });
      if (flags.output === "json") standardOutput.write(`${answer.json}\n`);
      else {
        printRows(
          "table",
          answer.fields.map((field) => ({
            field: field.number,
            label: field.label,
            source: field.source,
            value: field.value || (field.required ? "MISSING" : ""),
          })),
          ["field", "label", "source", "value"],
        );
        printOne("table", {
          template: answer.template,
          ready: `${answer.readyPercent} %`,
          missing: answer.missing.join(", "),
        });
      }
    }),
});

export const caseRoutes = buildRouteMap({ docs: { brief: "Breach cases" }, routes: { list, show, decide, draft } });

export const ack = buildCommand({
  docs: { brief: "Say that you have seen a page" },
  parameters: {
    flags: connectionFlags,
    positional: {
      kind: "tuple",
      parameters: [
        { parse: String, brief: "case id", placeholder: "CASE" },
        { parse: String, brief: "milestone, as in the page", placeholder: "MILESTONE" },
      ],
    },
  },
  func: (flags: ConnectionFlags, caseId: string, milestone: string) =>
    onConnection(flags, async (connection) => {
      await connection
        .service(BreachService, "breach-notifier")
        .acknowledgePage({ requestId: randomUUID(), caseId, milestone });
    }),
});
