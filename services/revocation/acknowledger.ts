import type { RevocationAcknowledged } from "@curfew/contracts/gen/curfew/events/v1/revocations_pb.ts";
import type { Aggregates } from "@curfew/event-log/handle-command.ts";
import type { Relay } from "@curfew/event-log/relay.ts";
import type { Clock } from "@curfew/runtime/clock.ts";
import type { Log } from "@curfew/runtime/log.ts";
import { outsideOfRequests } from "@curfew/runtime/telemetry.ts";
import type { Acknowledgement } from "./domain/effective.ts";
import type { Receipt } from "./domain/watcher.ts";

/** Turns acknowledgements into facts: those that arrive close together, of whatever instances, share a commit. */
export interface Acknowledger {
  receive(instance: string, ids: readonly string[], acknowledgement: Acknowledgement): void;
  /** Writes what has arrived, once; what cannot be written is given up: its leases bound it. */
  close(): Promise<void>;
}

interface Batch extends Acknowledgement {
  readonly ids: Set<string>;
}

const retryMs = 500;
/** Of one commit, so that it stays far below what one may hold. */
const maxReceipts = 500;
const maxIds = 5_000;
const maxIdsPerReceipt = 1_000;

export const openAcknowledger = (parts: {
  readonly aggregates: Aggregates<null, { readonly receipts: readonly Receipt[] }, RevocationAcknowledged>;
  /** Of this replica: nobody else writes to its stream. */
  readonly instance: string;
  readonly relay: Relay;
  readonly clock: Clock;
  readonly log: Log;
  readonly everyMs: number;
  readonly recorded: (receipt: Receipt) => void;
}): Acknowledger => {
  const { aggregates, relay, clock, log } = parts;
  const closing = new AbortController();
  const waiting = new Map<string, Batch>();
  let flushing: Promise<void> | undefined;

  const receive: Acknowledger["receive"] = (instance, ids, { receivedAtMs, clockOffsetMs }) => {
    const before = waiting.get(instance);
    // The latest receipt stands for all of a commit: never earlier than the truth.
    const at = Math.max(receivedAtMs, before?.receivedAtMs ?? 0);
    const batch = { ids: before?.ids ?? new Set<string>(), receivedAtMs: at, clockOffsetMs };
    for (const id of ids) batch.ids.add(id);
    waiting.set(instance, batch);
    flushing ??= outsideOfRequests(() => flushLater(parts.everyMs));
  };

  /** As many as a commit takes; they wait no more. */
  const take = (): Receipt[] => {
    const receipts: Receipt[] = [];
    let size = 0;
    for (const [instance, { ids, ...at }] of waiting) {
      if (receipts.length >= maxReceipts || size >= maxIds) break;
      const eventIds = [...ids].slice(0, maxIdsPerReceipt);
      for (const id of eventIds) ids.delete(id);
      if (ids.size === 0) waiting.delete(instance);
      receipts.push({ instance, eventIds, ...at });
      size += eventIds.length;
    }
    return receipts;
  };

  /** False when it has to be tried again. */
  const flush = async (): Promise<boolean> => {
    const receipts = take();
    try {
      const { commit } = await aggregates.handle(`acknowledgements/${parts.instance}`, { receipts });
      for (const receipt of receipts) parts.recorded(receipt);
      if (commit) void relay.published(commit, 0);
      return true;
    } catch (error) {
      log.warn({ err: error, watchers: receipts.length }, "acknowledgements could not be recorded yet");
      for (const { instance, eventIds, ...at } of receipts) receive(instance, eventIds, at);
      return false;
    }
  };

  const flushLater = async (delayMs: number) => {
    await clock.sleep(delayMs, closing.signal);
    while (waiting.size > 0) {
      if (await flush()) continue;
      if (closing.signal.aborted) break;
      await clock.sleep(retryMs, closing.signal);
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
