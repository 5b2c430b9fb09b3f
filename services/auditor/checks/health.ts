import { durationMs, timestampFromMs } from "@bufbuild/protobuf/wkt";
import { VerdictState } from "@curfew/contracts/gen/curfew/auditor/v1/auditor_pb.ts";
import type { Collection } from "@curfew/document-store/port.ts";
import type { Bus } from "@curfew/event-log/bus.ts";
import type { EventStreams } from "@curfew/event-log/streams.ts";
import type { Clock } from "@curfew/runtime/clock.ts";
import type { Log } from "@curfew/runtime/log.ts";
import { gauge } from "@curfew/runtime/telemetry.ts";
import type { BatchDoc } from "../domain.ts";
import type { Follower } from "../follower.ts";
import type { TimestampStatus } from "../public-log/timestamps.ts";
import type { WitnessStatus } from "../public-log/witnesses.ts";
import type { DriftLog } from "./drift-log.ts";
import { listGaps } from "./gap-list.ts";
import { mergeObjectiveMs, openLag } from "./lag.ts";
import type { PassRow } from "./passes.ts";
import { type Verdict, verdicts } from "./verdicts.ts";

const lookEveryMs = 1_000;
/** Looked at: the oldest of so many are shown. */
const maxGaps = 1_000;

export interface HealthParts {
  readonly bus: Pick<Bus, "ends">;
  readonly drifts: Pick<DriftLog, "open">;
  readonly commits: EventStreams["commits"];
  readonly passes: Pick<Collection<PassRow>, "get">;
  readonly batches: Pick<Collection<BatchDoc>, "get">;
  readonly follower: Pick<Follower, "latest">;
  /** Absent: nobody is asked to cosign. */
  readonly witnesses?: () => Promise<WitnessStatus>;
  /** Absent: nobody is asked for a timestamp. */
  readonly timestamps?: () => Promise<TimestampStatus>;
  readonly clock: Clock;
  readonly log: Pick<Log, "error" | "info">;
}

export type EvidenceHealth = ReturnType<typeof openEvidenceHealth>;

/** Says when a verdict turns, once; the first look of a process says only what is broken. */
const openAlerts = (log: HealthParts["log"]) => {
  const shown = gauge.verdict();
  const last = new Map<string, VerdictState>();
  return (verdict: string, { state, findings }: Verdict): void => {
    if (state !== VerdictState.UNKNOWN) shown.record(state === VerdictState.HOLDS ? 1 : 0, { verdict });
    const before = last.get(verdict);
    last.set(verdict, state);
    if (before === state) return;
    const { cause = "", topic = "", what = "" } = findings[0] ?? {};
    if (state === VerdictState.BROKEN) log.error({ verdict, cause, topic, what }, "the evidence has turned: broken");
    else if (before === VerdictState.BROKEN) log.info({ verdict }, "the evidence has turned: no longer broken");
  };
};

/** Says when sealing does not keep to its level, and when it does again. Twice in a row: what had waited while nobody ran is sealed at once. */
const openLagAlert = (log: HealthParts["log"]) => {
  let looks = 0;
  return ({ unsealedRecords, mergeDelay }: ReturnType<ReturnType<typeof openLag>["last"]>): void => {
    if (unsealedRecords === undefined) return;
    const delayMs = mergeDelay ? durationMs(mergeDelay) : 0;
    if (unsealedRecords > 0n && delayMs > mergeObjectiveMs) {
      looks += 1;
      if (looks !== 2) return;
      log.error({ delayMs, unsealed: Number(unsealedRecords), mergeObjectiveMs }, "sealing has fallen behind");
    } else {
      if (looks > 1) log.info({ delayMs }, "sealing keeps up again");
      looks = 0;
    }
  };
};

const reverification = (row: PassRow) => ({
  what: row._id,
  passes: BigInt(row.passes),
  ...(row.endedMs > 0 && { endedAt: timestampFromMs(row.endedMs) }),
  size: BigInt(row.size),
  startedAt: timestampFromMs(row.startedMs),
  compared: BigInt(row.compared),
  at: row.at,
});

const timestampHealth = ({ newest, failing }: TimestampStatus) => ({
  size: BigInt(newest?.size ?? 0),
  ...(newest && { time: timestampFromMs(newest.timeMs) }),
  ...(failing && { failing: failing.said, failingSince: timestampFromMs(failing.sinceMs) }),
});

const witnessHealth = ({ quorum, cosigned, answers }: WitnessStatus) => ({
  quorum,
  cosignedSize: BigInt(cosigned?.size ?? 0),
  ...(cosigned && { cosignedAt: timestampFromMs(1_000 * cosigned.seconds) }),
  answers: answers.map(({ name, outcome, said, atMs }) => ({ name, outcome, said, at: timestampFromMs(atMs) })),
});

/** How the evidence is, as every replica can tell: from the store that all share, and from the bus. */
export const openEvidenceHealth = (parts: HealthParts) => {
  const { drifts, commits, follower, witnesses, timestamps, clock, log } = parts;
  const lag = openLag(parts);
  const [alert, alertLag] = [openAlerts(log), openLagAlert(log)];

  const readPasses = async () => {
    const rows = await Promise.all((["topics", "ledger", "settings"] as const).map((id) => parts.passes.get(id)));
    return Object.fromEntries(rows.flatMap((row) => (row ? [[row._id, row]] : []))) as Partial<
      Record<PassRow["_id"], PassRow>
    >;
  };

  const look = async () => {
    const [passes, newest] = [await readPasses(), await lag.newest()];
    return {
      passes,
      found: verdicts({ drifts: await drifts.open(), gaps: await listGaps(commits, maxGaps), passes, newest }),
    };
  };

  return {
    /** As of the last look: a part of other answers. */
    lag: lag.last,
    /** Rejects with StoreUnavailable. */
    async read() {
      const { passes, found } = await look();
      const [witnessed, stamped] = await Promise.all([witnesses?.(), timestamps?.()]);
      return {
        ...found,
        lag: await lag.measure(),
        ...(witnessed && { witnesses: witnessHealth(witnessed) }),
        ...(stamped && { timestamps: timestampHealth(stamped) }),
        reverifications: Object.values(passes).map(reverification),
        ledgerSize: BigInt(follower.latest()?.size ?? 0),
      };
    },
    /** Looks every second until `signal` aborts: an alert when a verdict turns, and the gauges. */
    async run(signal: AbortSignal) {
      while (!signal.aborted) {
        try {
          for (const [name, verdict] of Object.entries((await look()).found)) alert(name, verdict);
          alertLag(await lag.measure());
        } catch (error) {
          if ((error as Error).name !== "StoreUnavailable") throw error;
        }
        await clock.sleep(lookEveryMs, signal);
      }
    },
  };
};
