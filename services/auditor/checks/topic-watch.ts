import { DriftCause } from "@curfew/contracts/gen/curfew/events/v1/evidence_pb.ts";
import { type Bus, BusRefused, BusUnavailable, type TopicState } from "@curfew/event-log/bus.ts";
import { topicNames } from "@curfew/event-log/event-types.ts";
import type { Clock } from "@curfew/runtime/clock.ts";
import type { Log } from "@curfew/runtime/log.ts";
import type { NextOffset } from "../domain.ts";
import type { CheckpointRow } from "../projections.ts";
import { compareTopic, type Drift, stopsSealing } from "./drift.ts";
import type { DriftLog } from "./drift-log.ts";

/** Looks whether the topics are as evidence needs them (design: evidence, "Drift watch"), and lets nothing be sealed while one has lost what was. */
export interface TopicWatch {
  /**
   * Compares the topics with what is sealed of them. Resolves once none is known to have lost any of it, or `signal` aborts. A bus that
   * cannot be asked is none that lost something.
   */
  sound(sealed: readonly NextOffset[], signal: AbortSignal): Promise<void>;
  /** Resolves when one is next found to have lost something. */
  lost(): Promise<void>;
  /** Compares once. Answers the entries of the ledger then; undefined where some topic could not be asked. Rejects with StoreUnavailable. */
  compare(): Promise<number | undefined>;
}

/** Between two comparisons. */
export const topicCycleMs = 5_000;
/** Until a topic is asked for once more that is said not to be there: a broker says so too that no longer has it after a reassignment. */
const secondLookMs = 1_000;
const topicsSealed = Object.values(topicNames);
/** What a comparison finds, and so can find to be over. */
const ownCauses: ReadonlySet<DriftCause> = new Set([DriftCause.SETTING, DriftCause.SHRUNK]);

export const openTopicWatch = (parts: {
  readonly bus: Pick<Bus, "describe">;
  readonly drifts: DriftLog;
  readonly latest: () => CheckpointRow | undefined;
  /** Settings that every topic must have. */
  readonly wanted: Readonly<Record<string, string>>;
  readonly clock: Clock;
  readonly log: Pick<Log, "warn">;
}): TopicWatch => {
  const { bus, drifts, wanted, clock, log } = parts;

  let reachable = true;

  /** Undefined: it cannot be asked now. */
  const ask = async (topic: string, isLast = false): Promise<{ state?: TopicState } | undefined> => {
    try {
      const state = await bus.describe(topic);
      reachable = true;
      return { state };
    } catch (error) {
      if (error instanceof BusRefused) {
        if (isLast) return {};
        await clock.sleep(secondLookMs);
        return await ask(topic, true);
      }
      if (!(error instanceof BusUnavailable)) throw error;
      if (reachable) log.warn({ topic, err: error }, "the bus cannot be asked how a topic is; trying again");
      reachable = false;
      return undefined;
    }
  };

  const compare = async (
    sealed: readonly NextOffset[],
  ): Promise<{ readonly all: boolean; readonly sound: boolean }> => {
    const now: Drift[] = [];
    const asked = new Set<string>();
    for (const topic of topicsSealed) {
      const answer = await ask(topic);
      // Each question would wait for its time: the others are for when this one is answered.
      if (!answer) break;
      asked.add(topic);
      now.push(...compareTopic(topic, answer.state, wanted, sealed));
    }
    await drifts.settle(({ cause, topic }) => ownCauses.has(cause) && asked.has(topic), now);
    return { all: asked.size === topicsSealed.length, sound: !(await drifts.open()).some(stopsSealing) };
  };

  return {
    async sound(sealed, signal) {
      while (!signal.aborted) {
        try {
          if ((await compare(sealed)).sound) return;
        } catch (error) {
          if ((error as Error).name !== "StoreUnavailable") throw error;
          log.warn({ err: error }, "what was found of the topics cannot be recorded now");
        }
        await clock.sleep(topicCycleMs, signal);
      }
    },
    lost: drifts.lost,
    async compare() {
      const latest = parts.latest();
      return (await compare(latest?.positions ?? [])).all ? (latest?.size ?? 0) : undefined;
    },
  };
};
