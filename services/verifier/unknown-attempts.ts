import type { Reason } from "@curfew/contracts/gen/curfew/events/v1/uses_pb.ts";
import type { Clock } from "@curfew/runtime/clock.ts";
import type { Log } from "@curfew/runtime/log.ts";
import { outsideOfRequests } from "@curfew/runtime/telemetry.ts";

/**
 * Denied attempts in which no token was recognised, merged per resource service, reason and network, so that whoever guesses secrets
 * cannot fill the log. Memory is bounded by the networks of one window.
 */
export interface Attempts {
  readonly resourceService: string;
  readonly reason: Reason;
  /** In CIDR notation; "": unknown; "more": of all past the first 1,000. */
  readonly network: string;
  count: number;
  readonly firstMs: number;
  lastMs: number;
}

export interface UnknownAttempts {
  add(resourceService: string, reason: Reason, network: string, nowMs: number): void;
  /** Publishes what is merged so far; it is kept and tried again with the next window where that fails. */
  close(): Promise<void>;
}

export const mergeMs = 10_000;
export const maxNetworks = 1_000;
export const moreNetworks = "more";

export const openUnknownAttempts = (options: {
  readonly clock: Clock;
  readonly log: Log;
  /** Resolves when they are durable. */
  readonly publish: (attempts: readonly Attempts[]) => Promise<void>;
}): UnknownAttempts => {
  const { clock, log, publish } = options;
  const closing = new AbortController();
  let window = new Map<string, Attempts>();
  let running: Promise<void> | undefined;

  const merge = (one: Omit<Attempts, "network">, network: string) => {
    const keyOf = (name: string) => `${one.resourceService}\n${one.reason}\n${name}`;
    // At most two rows more for each resource service: one for each reason.
    const isKnown = network === "" || window.has(keyOf(network)) || window.size < maxNetworks;
    const name = isKnown ? network : moreNetworks;
    const row = window.get(keyOf(name));
    if (!row) window.set(keyOf(name), { ...one, network: name });
    else {
      row.count += one.count;
      row.lastMs = Math.max(row.lastMs, one.lastMs);
    }
  };

  const flush = async () => {
    if (window.size === 0) return;
    const full = window;
    window = new Map();
    try {
      await publish([...full.values()]);
    } catch (error) {
      log.warn({ err: error, rows: full.size }, "merged attempts could not be recorded yet");
      for (const row of full.values()) merge(row, row.network);
    }
  };

  /** A window grows while the one before is not on the log: an outage costs no memory. */
  const run = async () => {
    while (window.size > 0 && !closing.signal.aborted) {
      await clock.sleep(mergeMs, closing.signal);
      await flush();
    }
    running = undefined;
  };

  return {
    add(resourceService, reason, network, nowMs) {
      merge({ resourceService, reason, count: 1, firstMs: nowMs, lastMs: nowMs }, network);
      running ??= outsideOfRequests(run);
    },
    async close() {
      closing.abort();
      await running;
      await flush();
    },
  };
};
