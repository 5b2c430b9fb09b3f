import { RpcError } from "@curfew/rpc/errors.ts";

const maxRunning = 2;
const maxWaiting = 64;

/**
 * Exports run two at a time, in the order in which they came; those who give up leave the line. Where as many wait as may, `take` rejects
 * with RESOURCE_EXHAUSTED. Whose `take` resolved has to `leave`.
 */
export const openTurns = () => {
  const line: (() => void)[] = [];
  let running = 0;
  return {
    async take(signal: AbortSignal): Promise<void> {
      signal.throwIfAborted();
      if (running >= maxRunning) {
        if (line.length >= maxWaiting)
          throw new RpcError({
            status: "RESOURCE_EXHAUSTED",
            reason: "TOO_MANY_EXPORTS",
            message: "as many exports wait as may: try again later",
            retryDelayMs: 1_000,
          });
        const turn = Promise.withResolvers<void>();
        const giveUp = () => {
          const at = line.indexOf(turn.resolve);
          if (at < 0) return; // its turn has come
          line.splice(at, 1);
          turn.reject(signal.reason);
        };
        line.push(turn.resolve);
        signal.addEventListener("abort", giveUp, { once: true });
        await turn.promise.finally(() => signal.removeEventListener("abort", giveUp));
        return; // in the place of the one that left
      }
      running += 1;
    },
    leave(): void {
      const next = line.shift();
      if (next) next();
      else running -= 1;
    },
  };
};
