import type { Clock } from "@curfew/runtime/clock.ts";
import type { Log } from "@curfew/runtime/log.ts";
import type { Random } from "@curfew/runtime/random.ts";
import { attribute, span, withSpan } from "@curfew/runtime/telemetry.ts";
import { type Channel, ChannelFailed, type PageContent, PageRefused } from "./channels/page.ts";
import type { PageState } from "./domain/pages.ts";
import type { CaseCommand, OpenCase } from "./domain.ts";

/**
 * Sends pages that are due, at least once each: the page stands in the log as due before it is sent, under an id of its own, and as sent
 * or failed after. What a replica was about when it ended, the next one sends again under the same id.
 */
export interface Delivery {
  /** Begins to send what is due in the case, and what is to be tried again by now. Does not wait. */
  start(state: OpenCase): void;
  /** Waits for the sends under way, at most `ms`. */
  settle(ms: number): Promise<void>;
}

export interface DeliveryParts {
  readonly channels: ReadonlyMap<string, Channel>;
  readonly compose: (state: OpenCase, page: PageState) => Promise<PageContent>;
  /** Takes a command to the case. */
  readonly command: (caseId: string, command: CaseCommand) => Promise<void>;
  readonly clock: Clock;
  readonly random: Random;
  readonly log: Log;
}

/** Between tries, give or take half of it. */
export const retryPausesMs = [2_000, 8_000, 30_000, 60_000];
const maxUnderWay = 16;
const recordAgainMs = 1_000;

interface Attempt {
  tries: number;
  nextMs: number;
  running: boolean;
  /** How it ended, to be recorded. */
  outcome: CaseCommand | undefined;
  recorded: boolean;
}

export const openDelivery = (parts: DeliveryParts): Delivery => {
  const { channels, compose, command, clock, random, log } = parts;
  const attempts = new Map<string, Attempt>();
  const underWay = new Set<Promise<void>>();

  const trySend = async (state: OpenCase, page: PageState, attempt: Attempt): Promise<void> => {
    const { pageId, target } = page;
    const channel = channels.get(target);
    const failed = (error: string): CaseCommand => ({
      type: "MarkPageFailed",
      pageId,
      error,
      targets: [...channels.keys()],
      nowMs: clock.now(),
    });
    if (!channel) {
      attempt.outcome = failed("the target is not configured any more");
      return;
    }
    attempt.tries += 1;
    try {
      const content = await compose(state, page);
      const attributes = { [attribute.caseId]: state.caseId, [attribute.channel]: target };
      const channelMessageId = await withSpan(span.page(target), attributes, () => channel.send(content));
      attempt.outcome = { type: "MarkPageSent", pageId, channelMessageId, nowMs: clock.now() };
    } catch (error) {
      const isKnown = error instanceof ChannelFailed || error instanceof PageRefused;
      const reason = isKnown ? error.message : "the channel failed in a way that is not known";
      log.warn({ pageId, tries: attempt.tries, reason, ...(!isKnown && { err: error }) }, "a page could not be sent");
      const pauseMs = retryPausesMs[attempt.tries - 1];
      if (pauseMs === undefined || error instanceof PageRefused) attempt.outcome = failed(reason);
      else attempt.nextMs = clock.now() + pauseMs * (0.5 + (random(1)[0] ?? 0) / 255);
    }
  };

  const advance = async (state: OpenCase, page: PageState, attempt: Attempt): Promise<void> => {
    attempt.running = true;
    try {
      if (!attempt.outcome) await trySend(state, page, attempt);
      if (!attempt.outcome) return;
      await command(state.caseId, attempt.outcome);
      attempt.recorded = true;
    } catch (err) {
      // Sent, or given up, and not recorded: that is tried again, not the send.
      log.warn({ err, pageId: page.pageId }, "what became of a page could not be recorded yet");
      attempt.nextMs = clock.now() + recordAgainMs;
    } finally {
      attempt.running = false;
    }
  };

  return {
    start(state) {
      const nowMs = clock.now();
      for (const page of state.pages.all.values()) {
        if (page.state !== "due") {
          attempts.delete(page.pageId);
          continue;
        }
        const attempt = attempts.get(page.pageId) ?? {
          tries: 0,
          nextMs: nowMs,
          running: false,
          outcome: undefined,
          recorded: false,
        };
        attempts.set(page.pageId, attempt);
        if (attempt.running || attempt.recorded || attempt.nextMs > nowMs || underWay.size >= maxUnderWay) continue;
        const running = advance(state, page, attempt).finally(() => underWay.delete(running));
        underWay.add(running);
      }
    },
    async settle(ms) {
      const over = new AbortController();
      await Promise.race([Promise.allSettled(underWay), clock.sleep(ms, over.signal)]);
      over.abort();
    },
  };
};
