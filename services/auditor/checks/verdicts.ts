import { timestampFromMs } from "@bufbuild/protobuf/wkt";
import { VerdictState } from "@curfew/contracts/gen/curfew/auditor/v1/auditor_pb.ts";
import { GapCauseSchema } from "@curfew/contracts/gen/curfew/events/v1/evidence_pb.ts";
import { breaksIntegrity, driftCauseName } from "./drift.ts";
import type { OpenDrift } from "./drift-log.ts";
import type { Gap } from "./gap-list.ts";
import type { PassRow } from "./passes.ts";

/** The two verdicts, never mixed, and what may make them turn (design: evidence). Pure. */

const maxFindings = 100;

interface Finding {
  readonly cause: string;
  readonly sinceMs: number;
  readonly position?: { readonly topic: string; readonly partition: number; readonly offset: bigint };
  readonly topic: string;
  readonly what: string;
  readonly expected: string;
  readonly seen: string;
  readonly ledgerIndex?: bigint;
}

const ofDrift = (drift: OpenDrift): Finding => {
  const { cause, topic, partition, offset = 0, setting, ledgerIndex, expected, seen, sinceMs } = drift;
  return {
    cause: driftCauseName(cause),
    sinceMs,
    ...(partition !== undefined && { position: { topic, partition, offset: BigInt(offset) } }),
    topic,
    what: setting,
    expected,
    seen,
    ...(ledgerIndex !== undefined && { ledgerIndex: BigInt(ledgerIndex) }),
  };
};

const ofGap = ({ gap, sinceMs }: Gap): Finding => ({
  cause: GapCauseSchema.value[gap.cause]?.name ?? String(gap.cause),
  sinceMs,
  ...(gap.position && { position: gap.position }),
  topic: gap.position?.topic ?? "",
  what: gap.producer,
  expected: String(gap.expectedSequence),
  seen: gap.seenSequence === 0n ? "" : String(gap.seenSequence),
});

/** `looked`: how many entries, and when; absent: nobody looked yet. */
const verdict = (found: readonly Finding[], looked: { readonly size: number; readonly atMs: number } | undefined) => {
  const findings = found.toSorted((a, b) => a.sinceMs - b.sinceMs);
  const state = findings[0] ? VerdictState.BROKEN : looked ? VerdictState.HOLDS : VerdictState.UNKNOWN;
  const sinceMs = findings[0]?.sinceMs ?? looked?.atMs;
  return {
    state,
    ...(sinceMs !== undefined && { since: timestampFromMs(sinceMs) }),
    checkedSize: BigInt(looked?.size ?? 0),
    findings: findings
      .slice(0, maxFindings)
      .map(({ sinceMs: at, ...finding }) => ({ ...finding, since: timestampFromMs(at) })),
    moreFindings: findings.length > maxFindings,
  };
};
export type Verdict = ReturnType<typeof verdict>;

/** What the passes that ended looked at, all of them: the fewest entries, the longest ago. */
const lookedBy = (rows: readonly (PassRow | undefined)[]) => {
  const ended = rows.filter((row) => row !== undefined && row.endedMs > 0) as PassRow[];
  if (ended.length < rows.length) return undefined;
  return { size: Math.min(...ended.map((row) => row.size)), atMs: Math.min(...ended.map((row) => row.endedMs)) };
};

export const verdicts = (known: {
  readonly drifts: readonly OpenDrift[];
  readonly gaps: readonly Gap[];
  readonly passes: Readonly<Partial<Record<PassRow["_id"], PassRow>>>;
  /** Of the newest batch, whose chains were checked as it was sealed; absent: there is none. */
  readonly newest: { readonly size: number; readonly atMs: number } | undefined;
}) => {
  const { drifts, gaps, passes, newest } = known;
  const broken = drifts.filter(breaksIntegrity);
  return {
    integrity: verdict(broken.map(ofDrift), lookedBy([passes.topics, passes.ledger])),
    completeness: verdict(gaps.map(ofGap), newest),
    drift: verdict(drifts.filter((each) => !breaksIntegrity(each)).map(ofDrift), lookedBy([passes.settings])),
  };
};

/** 99th percentile; undefined of nothing. */
export const p99 = (values: readonly number[]): number | undefined =>
  values.toSorted((a, b) => a - b)[Math.max(0, Math.ceil(values.length * 0.99) - 1)];
