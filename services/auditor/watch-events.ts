import type { WatchEventsRequest } from "@curfew/contracts/gen/curfew/auditor/v1/auditor_pb.ts";
import { RpcError } from "@curfew/rpc/errors.ts";
import type { Clock } from "@curfew/runtime/clock.ts";
import { type EventView, readEvents } from "./event-view.ts";
import type { Follower } from "./follower.ts";
import type { ReadModels } from "./projections.ts";

const pollMs = 100;
/** Of one read: no more than this is in memory for a watcher, however slowly it takes it. */
const atOnce = { events: 200, bytes: 2 ** 20, rows: 1_000 };

export type Watched = { readonly event?: EventView; readonly nextIndex: bigint };

/** Reads on as fast as the watcher takes what is read: a slow one is behind, and holds back nobody. Ends when `signal` aborts. */
export async function* watchEvents(
  parts: { readonly models: ReadModels; readonly follower: Pick<Follower, "latest">; readonly clock: Clock },
  request: WatchEventsRequest,
  signal: AbortSignal,
): AsyncGenerator<Watched> {
  const { models, follower, clock } = parts;
  const sizeNow = () => follower.latest()?.size ?? 0;
  const wanted = request.fromIndex ?? BigInt(sizeNow());
  if (wanted > BigInt(sizeNow()))
    throw new RpcError({
      status: "OUT_OF_RANGE",
      reason: "LEDGER_SMALLER",
      message: `from_index ${wanted} is past the ledger, which has ${sizeNow()} entries`,
    });
  let next = Number(wanted);
  yield { nextIndex: BigInt(next) };
  while (!signal.aborted) {
    const size = sizeNow();
    if (next >= size) {
      await clock.sleep(pollMs, signal);
      continue;
    }
    const read = await readEvents(models.entries, request, { start: next, size }, atOnce);
    next = read.next;
    for (const event of read.events) yield { event, nextIndex: event.index + 1n };
    if (BigInt(next) !== (read.events.at(-1)?.index ?? -1n) + 1n) yield { nextIndex: BigInt(next) };
  }
}
