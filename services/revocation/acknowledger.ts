import type { Aggregates } from "@curfew/event-log/handle-command.ts";
import type { Relay } from "@curfew/event-log/relay.ts";
import type { Clock } from "@curfew/runtime/clock.ts";
import type { Log } from "@curfew/runtime/log.ts";
import type { Acknowledgement } from "./domain/effective.ts";
import type { WatcherCommand, WatcherEvent, WatcherState } from "./domain/watcher.ts";

export type Watchers = Aggregates<WatcherState, WatcherCommand, WatcherEvent>;

/** Turns acknowledgements into facts: those of one instance that arrive close together share a commit. */
export interface Acknowledger {
  receive(instance: string, ids: readonly string[], acknowledgement: Acknowledgement): void;
  /** Writes what has arrived, once; what cannot be written is given up: its leases bound it. */
  close(): Promise<void>;
}

interface Batch extends Acknowledgement {
  readonly ids: Set<string>;
}

const maxCommitsAtOnce = 100;
const retryMs = 500;
const maxIdsPerCommit = 1_000;

export const openAcknowledger = (parts: {
  readonly watchers: Watchers;
  readonly relay: Relay;
  readonly clock: Clock;
  readonly log: Log;
  readonly everyMs: number;
  readonly recorded: (ids: readonly string[], instance: string, acknowledgement: Acknowledgement) => void;
}): Acknowledger => {
  const { watchers, relay, clock, log } = parts;
  const closing = new AbortController();
  let waiting = new Map<string, Batch>();
  let flushing: Promise<void> | undefined;

  const receive: Acknowledger["receive"] = (instance, ids, { receivedAtMs, clockOffsetMs }) => {
    const before = waiting.get(instance);
    // The latest receipt stands for all of a commit: never earlier than the truth.
    const at = Math.max(receivedAtMs, before?.receivedAtMs ?? 0);
    const batch = { ids: before?.ids ?? new Set<string>(), receivedAtMs: at, clockOffsetMs };
    for (const id of ids) batch.ids.add(id);
    waiting.set(instance, batch);
    flushing ??= flushLater(parts.everyMs);
  };

  const record = async (instance: string, { ids, receivedAtMs, clockOffsetMs }: Batch) => {
    const all = [...ids];
    for (let i = 0; i < all.length; i += maxIdsPerCommit) {
      const eventIds = all.slice(i, i + maxIdsPerCommit);
      const command = { type: "Acknowledge" as const, instance, eventIds, receivedAtMs, clockOffsetMs };
      const { commit } = await watchers.handle(`watchers/${instance}`, command);
      parts.recorded(eventIds, instance, { receivedAtMs, clockOffsetMs });
      if (commit) void relay.published(commit, 0);
    }
  };

  /** False when something has to be tried again. */
  const flush = async (): Promise<boolean> => {
    const batches = [...waiting];
    waiting = new Map();
    let failed = false;
    for (let i = 0; i < batches.length; i += maxCommitsAtOnce)
      await Promise.all(
        batches.slice(i, i + maxCommitsAtOnce).map(async ([instance, batch]) => {
          try {
            await record(instance, batch);
          } catch (error) {
            failed = true;
            log.warn({ err: error, instance }, "acknowledgements could not be recorded yet");
            const newer = waiting.get(instance);
            waiting.set(instance, newer ? { ...newer, ids: newer.ids.union(batch.ids) } : batch);
          }
        }),
      );
    return !failed;
  };

  const flushLater = async (delayMs: number) => {
    await clock.sleep(delayMs, closing.signal);
    while (waiting.size > 0) {
      const done = await flush();
      if (closing.signal.aborted) break;
      if (!done) await clock.sleep(retryMs, closing.signal);
    }
    flushing = undefined;
  };

  return {
    receive,
    async close() {
      closing.abort();
      await flushing;
    },
  };
};
