import type { Collection } from "@curfew/document-store/port.ts";
import type { Clock } from "@curfew/runtime/clock.ts";
import type { Log } from "@curfew/runtime/log.ts";

/** How far a re-verification has come; for health alone: nothing is decided by it. */
export type PassRow = {
  _id: "topics" | "ledger" | "settings";
  /** Passes that were brought to an end since the ledger exists. */
  passes: number;
  /** When the last of them ended, ms since the epoch; 0: none did. */
  endedMs: number;
  /** Entries that it compared. */
  size: number;
  /** When the pass that runs began, how many entries it has compared, and where it is. */
  startedMs: number;
  compared: number;
  at: string;
};

/** What a pass says while it runs. */
export type Compared = (entries: number, at: string) => Promise<void>;

const noteEveryMs = 2_000;
const retryMs = 5_000;

/**
 * Makes pass after pass until `signal` aborts, with a rest between two. `pass` answers how many entries it compared, or nothing where it could
 * not be brought to an end. What fails for now begins anew; `isFatal` says what does not.
 */
export const goRound = async (
  parts: {
    readonly id: PassRow["_id"];
    readonly rows: Collection<PassRow>;
    readonly restMs: number;
    readonly clock: Clock;
    readonly log: Pick<Log, "warn">;
    readonly pass: (compared: Compared, signal: AbortSignal) => Promise<number | undefined>;
    readonly isFatal: (error: unknown) => boolean;
  },
  signal: AbortSignal,
): Promise<void> => {
  const { id, rows, restMs, clock, log, pass, isFatal } = parts;
  const once = async () => {
    const fresh: PassRow = { _id: id, passes: 0, endedMs: 0, size: 0, startedMs: clock.now(), compared: 0, at: "" };
    await rows.insert(fresh);
    const { passes } = (await rows.get(id)) ?? fresh;
    await rows.set(id, { startedMs: clock.now(), compared: 0, at: "" });
    let all = 0;
    let notedMs = clock.monotonicMs();
    const compared: Compared = async (entries, at) => {
      all += entries;
      if (clock.monotonicMs() - notedMs < noteEveryMs) return;
      notedMs = clock.monotonicMs();
      await rows.set(id, { compared: all, at });
    };
    const size = await pass(compared, signal);
    if (size !== undefined)
      await rows.set(id, { passes: passes + 1, endedMs: clock.now(), size, compared: all, at: "" });
  };
  let fails = false;
  while (!signal.aborted) {
    try {
      await once();
      fails = false;
      await clock.sleep(restMs, signal);
    } catch (error) {
      if (signal.aborted) return;
      if (isFatal(error)) throw error;
      if (!fails)
        log.warn({ err: error, pass: id }, "what is sealed cannot be compared again now; trying until it can");
      fails = true;
      await clock.sleep(retryMs, signal);
    }
  }
};
