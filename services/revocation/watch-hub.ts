import { create, toBinary } from "@bufbuild/protobuf";
import {
  type EndedToken,
  EndedTokenSchema,
  WatchRevocationsResponseSchema,
} from "@curfew/contracts/gen/curfew/revocation/v1/revocation_pb.ts";
import { RpcError } from "@curfew/rpc/errors.ts";
import type { Clock } from "@curfew/runtime/clock.ts";
import type { WatchLimits } from "./watch-limits.ts";
import type { WatchSession } from "./watch-session.ts";

/**
 * Everybody who watches at this replica. An end of a token is pushed when it is committed here or read from the topic, whichever is
 * first, once to each stream; a new stream gets at once what ended lately, so that one which took the place of another missed nothing.
 */
export interface WatchHub {
  readonly sessions: ReadonlySet<WatchSession>;
  /** `id` is the event's; one that was pushed lately is not pushed again. */
  push(id: string, ended: EndedToken): void;
  /** As `push`, for what was read before anybody could watch: nothing but the recent past is kept. */
  recall(id: string, ended: EndedToken, ageMs: number): void;
  /** From here on the session gets every push; first, what ended lately and `pending`. Throws RpcError when it cannot be served. */
  join(session: WatchSession, pending: Iterable<{ readonly id: string; readonly tokenId: string }>): void;
  leave(session: WatchSession): void;
}

interface Recent {
  readonly ended: EndedToken;
  readonly atMs: number;
}

const maxTokensPerMessage = 1_000;

/** As it is pushed for a revoked token. */
export const endedByRevocation = (tokenId: string, eventId: string): EndedToken =>
  create(EndedTokenSchema, { tokenId, revocationEventId: eventId, upToGeneration: 0 });

const messageOf = (tokens: EndedToken[]): Uint8Array =>
  toBinary(
    WatchRevocationsResponseSchema,
    create(WatchRevocationsResponseSchema, { kind: { case: "ended", value: { tokens } } }),
  );

const refused = (reason: string, message: string) =>
  new RpcError({ status: "RESOURCE_EXHAUSTED", reason, message, retryDelayMs: 1_000 });

export const openWatchHub = (parts: { readonly clock: Clock; readonly limits: WatchLimits }): WatchHub => {
  const { clock, limits } = parts;
  const sessions = new Set<WatchSession>();
  /** By event id, in the order in which they came. */
  const recent = new Map<string, Recent>();
  /** Something younger than `recentMs` had to be forgotten: until then nobody can be told all that ended lately. */
  let incompleteUntilMs = Number.NEGATIVE_INFINITY;

  const remember = (id: string, ended: EndedToken, atMs: number) => {
    recent.set(id, { ended, atMs });
    const nowMs = clock.monotonicMs();
    for (const [oldest, entry] of recent) {
      const young = nowMs - entry.atMs < limits.recentMs;
      if (young && recent.size <= limits.maxRecent) return;
      if (young) incompleteUntilMs = entry.atMs + limits.recentMs;
      recent.delete(oldest);
    }
  };

  return {
    sessions,
    push(id, ended) {
      if (recent.has(id)) return;
      remember(id, ended, clock.monotonicMs());
      // Encoded once; every stream is handed the same bytes.
      const message = messageOf([ended]);
      for (const session of sessions) session.send(message);
    },
    recall(id, ended, ageMs) {
      if (ageMs < limits.recentMs) remember(id, ended, clock.monotonicMs() - Math.max(0, ageMs));
    },
    join(session, pending) {
      if (clock.monotonicMs() < incompleteUntilMs)
        throw refused("TOO_MANY_ENDED", "too many tokens ended lately to be told to a new watcher; try again");
      let open = 0;
      for (const { uri } of sessions) if (uri === session.uri) open += 1;
      if (open >= limits.maxStreamsPerCaller)
        throw refused("TOO_MANY_STREAMS", `at most ${limits.maxStreamsPerCaller} streams of one caller`);
      const tokens = [...recent.values()].map(({ ended }) => ended);
      for (const { id, tokenId } of pending) if (!recent.has(id)) tokens.push(endedByRevocation(tokenId, id));
      for (let i = 0; i < tokens.length; i += maxTokensPerMessage)
        session.send(messageOf(tokens.slice(i, i + maxTokensPerMessage)));
      sessions.add(session);
    },
    leave: (session) => void sessions.delete(session),
  };
};
