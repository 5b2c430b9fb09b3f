import type { Collection } from "@curfew/document-store/port.ts";
import type { Bus } from "@curfew/event-log/bus.ts";
import type { Clock } from "@curfew/runtime/clock.ts";
import type { Log } from "@curfew/runtime/log.ts";
import { type BatchDoc, LedgerBroken } from "../domain.ts";
import type { Follower } from "../follower.ts";
import { Interrupted, type Ledger } from "../ledger.ts";
import type { ReadModels } from "../projections.ts";
import type { ShardFiles } from "../public-log/shard-files.ts";
import type { DriftLog } from "./drift-log.ts";
import { goRound, type PassRow } from "./passes.ts";
import { reverifyLedger } from "./reverify-ledger.ts";
import { reverifyTopics } from "./reverify-topics.ts";
import { type TopicWatch, topicCycleMs } from "./topic-watch.ts";

/** Between two passes, each of which begins with what came since. */
const restMs = 30_000;
export const defaultPerSecond = 1_000;

/** What goes round for ever: the topics compared with what evidence needs, and what is sealed with its topics, with itself and the files. */
export const reverification = (parts: {
  readonly bus: Bus;
  readonly batches: Collection<BatchDoc>;
  readonly models: ReadModels;
  readonly ledger: Ledger;
  readonly files: ShardFiles | undefined;
  readonly follower: Pick<Follower, "latest">;
  readonly drifts: DriftLog;
  readonly topics: Pick<TopicWatch, "compare">;
  readonly passes: Collection<PassRow>;
  /** Records read off the topics a second, at most. */
  readonly perSecond: number;
  readonly clock: Clock;
  readonly log: Log;
}): ((signal: AbortSignal) => Promise<void>)[] => {
  const { passes: rows, models, ledger, follower } = parts;
  const isFatal = (error: unknown) => error instanceof LedgerBroken || error instanceof Interrupted;
  const round = { ...parts, rows, restMs, isFatal };
  const places = { ...parts, checkpoints: models.checkpoints, latest: follower.latest };
  const known = { ...parts, seal: ledger.seal };
  const { compare } = parts.topics;
  return [
    (signal) => goRound({ ...round, id: "settings", restMs: topicCycleMs, pass: compare }, signal),
    (signal) => goRound({ ...round, id: "topics", pass: (told, stop) => reverifyTopics(places, told, stop) }, signal),
    (signal) => goRound({ ...round, id: "ledger", pass: (told, stop) => reverifyLedger(known, told, stop) }, signal),
  ];
};
