import type { DocumentStore } from "@curfew/document-store/port.ts";
import type { Clock } from "@curfew/runtime/clock.ts";
import type { Log } from "@curfew/runtime/log.ts";
import { RpcError } from "./errors.ts";
import type { RequestKey } from "./request-key.ts";

/**
 * Request ids that came in the last day or two, for commands whose stream is named by the request: a stream knows only what was asked
 * of itself, so an id used again for another target would pass as a new request there. A row per request, inserted before its command.
 */
export interface UsedRequests {
  /** Makes the id this request's, or finds that it is. Throws RpcError when another request has it. Needs the store alone. */
  claim(key: RequestKey): Promise<void>;
}

/** `<day>/<request key>`, so that what is old can be found and removed. */
type RequestRow = { _id: string; hash: string };

const dayMs = 86_400_000;
const pruneEveryMs = 3_600_000;
const prunedAtOnce = 500;

/** Of the order of days, as text, until the year 29349. */
const dayOf = (nowMs: number): string => String(Math.floor(nowMs / dayMs)).padStart(7, "0");

const reused = () =>
  new RpcError({
    status: "INVALID_ARGUMENT",
    reason: "REQUEST_ID_REUSED",
    message: "this request_id was used for another request; make a new one",
  });

export const openUsedRequests = async (parts: {
  readonly store: DocumentStore;
  readonly clock: Clock;
  readonly log: Pick<Log, "warn">;
}): Promise<UsedRequests> => {
  const { store, clock, log } = parts;
  const rows = await store.collection<RequestRow>("requests");
  let prunedMs = Number.NEGATIVE_INFINITY;

  const prune = async (nowMs: number) => {
    for (;;) {
      const old = await rows.find({ below: dayOf(nowMs - dayMs), limit: prunedAtOnce });
      if (old.length > 0) await rows.delete(...old.map(({ _id }) => _id));
      if (old.length < prunedAtOnce) return;
    }
  };

  return {
    async claim({ keyHex, requestHash: hash }) {
      const nowMs = clock.now();
      const _id = `${dayOf(nowMs)}/${keyHex}`;
      const [verdict, before] = await Promise.all([
        rows.insert({ _id, hash }),
        rows.get(`${dayOf(nowMs - dayMs)}/${keyHex}`),
      ]);
      const first = before ?? (verdict === "exists" ? await rows.getLatest(_id) : undefined);
      if (first && first.hash !== hash) throw reused();
      if (clock.monotonicMs() - prunedMs < pruneEveryMs) return;
      prunedMs = clock.monotonicMs();
      void prune(nowMs).catch((error) => log.warn({ err: error }, "old request ids stay"));
    },
  };
};
