import { durationMs, type Timestamp, timestampDate } from "@bufbuild/protobuf/wkt";
import {
  type GetHealthResponse,
  type OpenFinding,
  type Verdict,
  VerdictState,
} from "@curfew/contracts/gen/curfew/auditor/v1/auditor_pb.ts";

/** The auditor's GetHealth for people and for scripts. Pure. */

const timeOf = (at: Timestamp | undefined) => (at ? timestampDate(at).toISOString() : "");
const states: Readonly<Record<number, string>> = {
  [VerdictState.HOLDS]: "holds",
  [VerdictState.BROKEN]: "BROKEN",
};
const stateOf = (verdict: Verdict | undefined) => states[verdict?.state ?? 0] ?? "unknown";

const placeOf = ({ position, topic, cause }: OpenFinding) => {
  if (!position) return topic;
  // A drift of all of a partition has no record of its own.
  const record = cause.startsWith("DRIFT_CAUSE_SHRUNK") ? "" : `@${position.offset}`;
  return `${position.topic}/${position.partition}${record}`;
};

const findingRow = (finding: OpenFinding) => ({
  cause: finding.cause,
  since: timeOf(finding.since),
  place: placeOf(finding),
  what: finding.what,
  expected: finding.expected,
  seen: finding.seen,
  ...(finding.ledgerIndex !== undefined && { index: Number(finding.ledgerIndex) }),
});

const verdictRow = (verdict: Verdict | undefined) => ({
  state: stateOf(verdict),
  since: timeOf(verdict?.since),
  checked: Number(verdict?.checkedSize ?? 0),
  findings: (verdict?.findings ?? []).map(findingRow),
  more: verdict?.moreFindings ?? false,
});

const lagRow = ({ lag }: GetHealthResponse) => ({
  ...(lag?.unsealedRecords !== undefined && { unsealed: Number(lag.unsealedRecords) }),
  ...(lag?.mergeDelay && { mergeDelayMs: durationMs(lag.mergeDelay) }),
  objectiveMs: lag?.objective ? durationMs(lag.objective) : 0,
});

export const healthRow = (health: GetHealthResponse) => ({
  integrity: verdictRow(health.integrity),
  completeness: verdictRow(health.completeness),
  drift: verdictRow(health.drift),
  lag: lagRow(health),
  ...(health.witnesses && {
    witnesses: {
      quorum: health.witnesses.quorum,
      cosignedSize: Number(health.witnesses.cosignedSize),
      cosignedAt: timeOf(health.witnesses.cosignedAt),
      answers: health.witnesses.answers.map(({ name, outcome, said, at }) => ({ name, outcome, said, at: timeOf(at) })),
    },
  }),
  ...(health.timestamps && {
    timestamps: {
      size: Number(health.timestamps.size),
      time: timeOf(health.timestamps.time),
      failing: health.timestamps.failing,
      failingSince: timeOf(health.timestamps.failingSince),
    },
  }),
  compared: health.reverifications.map((each) => ({
    what: each.what,
    passes: Number(each.passes),
    endedAt: timeOf(each.endedAt),
    size: Number(each.size),
    compared: Number(each.compared),
    at: each.at,
  })),
  size: Number(health.ledgerSize),
});
export type HealthRow = ReturnType<typeof healthRow>;

const verdictNames = ["integrity", "completeness", "drift"] as const;

/** Whether sealing keeps to its declared level; undefined: nothing is known of it. */
const lagKept = ({ lag }: HealthRow) => lag.mergeDelayMs === undefined || lag.mergeDelayMs <= lag.objectiveMs;

/** What a person is told of when it turns: each thing, and how it is. */
export const conditions = (row: HealthRow): ReadonlyMap<string, string> =>
  new Map([
    ...verdictNames.map((name) => [name, row[name].state] as const),
    ["lag", lagKept(row) ? "kept" : "OVER"] as const,
    ...(row.witnesses ? [["witnesses", row.witnesses.quorum] as const] : []),
    ...(row.timestamps ? [["timestamps", row.timestamps.failing ? "FAILING" : "kept"] as const] : []),
  ]);

/** A line for each thing that is otherwise than before. */
export const turnsOf = (before: ReadonlyMap<string, string>, row: HealthRow): string[] =>
  [...conditions(row)].flatMap(([name, is]) => {
    const was = before.get(name);
    if (was === undefined || was === is) return [];
    const finding = verdictNames.some((each) => each === name) ? row[name as "drift"].findings[0] : undefined;
    return [`${name}: ${was} -> ${is}${finding ? ` (${findingText(finding)})` : ""}`];
  });

const findingText = ({ cause, place, what, expected, seen, index }: HealthRow["drift"]["findings"][number]) =>
  [
    cause,
    place,
    what,
    index === undefined ? "" : `index ${index}`,
    `expected ${expected || "nothing"}, seen ${seen || "nothing"}`,
  ]
    .filter((part) => part !== "")
    .join("  ");

const maxShown = 5;

const verdictLines = (name: string, verdict: HealthRow["drift"]): string[] => {
  const { state, since, checked, findings, more } = verdict;
  const facts = since ? `${state === "BROKEN" ? "since" : "as of"} ${since}, ${checked} entries looked at` : "";
  const shown = findings.slice(0, maxShown).map((finding) => `    ${findingText(finding)}`);
  const rest = findings.length - shown.length;
  return [
    `${name.padEnd(14)}${state.padEnd(9)}${facts}`,
    ...shown,
    ...(rest > 0 || more ? [`    and ${more ? "more than " : ""}${rest} others`] : []),
  ];
};

/** Who vouches for the ledger from outside: witnesses, each of which does not cosign under them, and timestamps. */
const outsideLines = ({ witnesses, timestamps }: HealthRow): string[] => {
  const cosigned = witnesses?.cosignedSize ? `checkpoint of ${witnesses.cosignedSize} at ${witnesses.cosignedAt}` : "";
  const unasked = witnesses?.quorum === "unknown" ? "nobody was asked yet" : "";
  const failing = (witnesses?.answers ?? []).filter(({ outcome }) => outcome !== "cosigned");
  const stamped = timestamps?.size ? `checkpoint of ${timestamps.size} at ${timestamps.time}` : "";
  return [
    `witnesses     ${witnesses ? `${witnesses.quorum.padEnd(9)}${cosigned || unasked}` : "none"}`,
    ...failing.map(({ name, outcome, said, at }) => `    ${name}  ${outcome}  ${said}  ${at}`),
    `timestamps    ${timestamps ? `${(timestamps.failing ? "FAILING" : "kept").padEnd(9)}${stamped}` : "none"}`,
    ...(timestamps?.failing ? [`    since ${timestamps.failingSince}: ${timestamps.failing}`] : []),
  ];
};

/** One screen: a line for each thing, and its findings under it. */
export const screenOf = (row: HealthRow): string[] => {
  const { lag, compared, size } = row;
  const unsealed = lag.unsealed === undefined ? "the bus cannot be asked" : `${lag.unsealed} records not sealed`;
  const delay = lag.mergeDelayMs === undefined ? "" : `, 99 % of the newest within ${lag.mergeDelayMs} ms`;
  return [
    `ledger        ${size} entries`,
    ...verdictNames.flatMap((name) => verdictLines(name, row[name])),
    `lag           ${(lagKept(row) ? "kept" : "OVER").padEnd(9)}${unsealed}${delay} (at most ${lag.objectiveMs} ms)`,
    ...outsideLines(row),
    ...compared.map(
      ({ what, passes, endedAt, at, compared: entries }) =>
        `compared      ${what.padEnd(9)}${passes} ${passes === 1 ? "time" : "times"}${endedAt && `, last ${endedAt}`}${at && `, now ${at} (${entries} entries)`}`,
    ),
  ];
};
