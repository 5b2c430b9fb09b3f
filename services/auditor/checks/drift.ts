import { createHash } from "node:crypto";
import { DriftCause, DriftCauseSchema } from "@curfew/contracts/gen/curfew/events/v1/evidence_pb.ts";
import type { TopicState } from "@curfew/event-log/bus.ts";
import { lengthPrefixed } from "@curfew/runtime/length-prefixed.ts";
import { type NextOffset, nextOffset } from "../domain.ts";

/** What is not as evidence needs it (design: evidence, "Drift watch"): how it is named, and how a topic is compared. Pure. */

/** As EvidenceDriftFound has it. */
export interface Drift {
  readonly cause: DriftCause;
  /** Empty: it is about the ledger's files. */
  readonly topic: string;
  /** Absent: about the whole topic. */
  readonly partition?: number;
  readonly offset?: number;
  readonly setting: string;
  readonly expected: string;
  readonly seen: string;
  readonly ledgerIndex?: number;
}

export const driftCauseName = (cause: DriftCause): string => DriftCauseSchema.value[cause]?.name ?? String(cause);

/** One stream for each cause, topic, partition and setting; one for all of the ledger's files. */
export const driftStream = ({ cause, topic, partition, setting }: Omit<Drift, "expected" | "seen">): string => {
  const what = cause === DriftCause.LEDGER_FILE ? "" : setting;
  const name = lengthPrefixed(driftCauseName(cause), topic, String(partition ?? ""), what);
  return `drift/${createHash("sha256").update(name).digest("hex")}`;
};

/** The topic is not the one that was sealed: what it gets next would stand on offsets that are taken. Nothing may be sealed. */
export const stopsSealing = ({ cause }: Pick<Drift, "cause">): boolean =>
  cause === DriftCause.SHRUNK || cause === DriftCause.RECREATED;

/** What was sealed is not what is there any more; a setting only says that it may come to be so. */
export const breaksIntegrity = ({ cause }: Pick<Drift, "cause">): boolean => cause !== DriftCause.SETTING;

/** `state`: undefined where there is no such topic. `sealed`: positions after the last record sealed of each partition. */
export const compareTopic = (
  topic: string,
  state: TopicState | undefined,
  wanted: Readonly<Record<string, string>>,
  sealed: readonly NextOffset[],
): Drift[] => {
  const shrunk = (partition: number, expected: number, seen: number | undefined): Drift => {
    return { cause: DriftCause.SHRUNK, topic, partition, setting: "", expected: `${expected}`, seen: `${seen ?? ""}` };
  };
  const known = sealed.filter((place) => place.topic === topic).map(({ partition }) => partition);
  const partitions = new Set([...known, ...(state?.ends ?? [0]).keys()]);
  const drifts = [...partitions].flatMap((partition) => {
    const next = nextOffset(sealed, topic, partition);
    const [start, end] = [state?.starts[partition], state?.ends[partition]];
    if (start === undefined || end === undefined || end < next) return [shrunk(partition, next, end)];
    return start > next ? [shrunk(partition, next, start)] : [];
  });
  if (state)
    for (const [setting, expected] of Object.entries(wanted)) {
      const seen = state.settings[setting] ?? "";
      if (seen !== expected) drifts.push({ cause: DriftCause.SETTING, topic, setting, expected, seen });
    }
  return drifts;
};
