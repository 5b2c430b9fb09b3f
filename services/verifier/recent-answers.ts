import type { Clock } from "@curfew/runtime/clock.ts";
import { unwatchedHoldMs } from "@curfew/token-format/answer-life.ts";

/**
 * Allowed answers that somebody may still act on: a revocation of what they rest on is not acknowledged before that has passed, or an
 * access would begin after the time at which the revocation is said to have taken effect. Holds what was answered in that time.
 */
export interface RecentAnswers {
  /** In the turn in which the answer leaves. */
  allowed(tokenId: string, ancestors: readonly string[]): void;
  /** How long, from now, somebody may act on an answer that rests on this token; 0: nobody. */
  openForMs(tokenId: string): number;
}

export const openRecentAnswers = (clock: Pick<Clock, "monotonicMs">): RecentAnswers => {
  /** By token, the one answered last at the end. */
  const lastMs = new Map<string, number>();
  const note = (tokenId: string, nowMs: number) => {
    lastMs.delete(tokenId);
    lastMs.set(tokenId, nowMs);
  };
  return {
    allowed(tokenId, ancestors) {
      const nowMs = clock.monotonicMs();
      note(tokenId, nowMs);
      for (const ancestor of ancestors) note(ancestor, nowMs);
      for (const [oldest, atMs] of lastMs) {
        if (nowMs - atMs < unwatchedHoldMs) return;
        lastMs.delete(oldest);
      }
    },
    openForMs: (tokenId) => {
      const atMs = lastMs.get(tokenId);
      return atMs === undefined ? 0 : Math.max(0, atMs + unwatchedHoldMs - clock.monotonicMs());
    },
  };
};
