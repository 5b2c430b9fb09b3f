import type {
  WatcherHello,
  WatchRevocationsRequest,
} from "@curfew/contracts/gen/curfew/revocation/v1/revocation_pb.ts";
import { RpcError } from "@curfew/rpc/errors.ts";
import type { CallContext } from "@curfew/rpc/service-definition.ts";
import type { Clock } from "@curfew/runtime/clock.ts";
import type { Acknowledger } from "./acknowledger.ts";
import type { Freshness } from "./freshness.ts";
import type { LeaseBook } from "./lease-book.ts";
import type { PendingRevocations } from "./pending.ts";
import type { WatchHub } from "./watch-hub.ts";
import type { WatchLimits } from "./watch-limits.ts";
import { WatchSession } from "./watch-session.ts";

export interface WatchParts {
  readonly hub: WatchHub;
  readonly book: LeaseBook;
  readonly pending: PendingRevocations;
  readonly freshness: Freshness;
  readonly acknowledger: Acknowledger;
  readonly clock: Clock;
  readonly limits: WatchLimits;
}

const invalid = (reason: string, message: string) => new RpcError({ status: "INVALID_ARGUMENT", reason, message });

const openSession = async (parts: WatchParts, hello: WatcherHello, ctx: CallContext): Promise<WatchSession> => {
  const { hub, book, pending, clock, limits } = parts;
  const { instance, reportsUses } = hello;
  const { caller } = ctx;
  const name = `${caller.kind}/${caller.name}`;
  if ((await book.claim(instance, { uri: caller.uri, name })) === "taken")
    throw new RpcError({
      status: "PERMISSION_DENIED",
      reason: "INSTANCE_TAKEN",
      message: "this instance id belongs to another caller; make one anew at every start",
    });
  const last = await book.newestOf(instance);
  const { maxQueued } = limits;
  const session = new WatchSession({ instance, caller, reportsUses, last, nowMs: clock.now(), maxQueued });
  hub.join(session, pending.all());
  return session;
};

/** What comes after the hello, until the watcher sends no more. */
const receive = (parts: WatchParts, session: WatchSession, { kind }: WatchRevocationsRequest): void => {
  const { clock, freshness, pending, acknowledger } = parts;
  const nowMs = clock.now();
  if (kind.case === "ping") {
    session.receivePing(kind.value, nowMs);
    freshness.wake();
  } else if (kind.case === "acknowledge") {
    const { clockOffsetMs, instance } = session;
    // Of no use for what is effective already, and of no meaning for what is no revocation.
    const ids = kind.value.revocationEventIds.filter((id) => pending.heard(id, instance));
    if (ids.length > 0) acknowledger.receive(instance, ids, { receivedAtMs: nowMs, clockOffsetMs });
  } else throw invalid("HELLO_TWICE", "say hello once, as the first message");
};

const receiveAll = async (
  parts: WatchParts,
  session: WatchSession,
  requests: AsyncIterator<WatchRevocationsRequest>,
) => {
  try {
    for (let next = await requests.next(); !next.done; next = await requests.next())
      receive(parts, session, next.value);
    session.finishing = true;
    if (!session.asks && !session.answering) session.end();
  } catch (error) {
    session.end(error as Error);
  }
};

/** The handler of WatchRevocations: hello, then pings and acknowledgements in, ends and marks out. */
export async function* watchRevocations(
  parts: WatchParts,
  requests: AsyncIterable<WatchRevocationsRequest>,
  ctx: CallContext,
): AsyncGenerator<Uint8Array> {
  const incoming = requests[Symbol.asyncIterator]();
  const first = await incoming.next();
  if (first.done) return;
  if (first.value.kind.case !== "hello") throw invalid("HELLO_MISSING", "say hello first");
  const session = await openSession(parts, first.value.kind.value, ctx);
  const gone = () => session.end(new RpcError({ status: "CANCELLED", reason: "CANCELLED", message: "the call ended" }));
  ctx.signal.addEventListener("abort", gone, { once: true });
  if (ctx.signal.aborted) gone();
  void receiveAll(parts, session, incoming);
  try {
    yield* session.responses();
  } finally {
    parts.hub.leave(session);
    session.end();
    // Best effort: the row says less without it, never anything wrong.
    if (!session.goodbye) void parts.book.ended(session).catch(() => undefined);
  }
}
