import { create, isMessage } from "@bufbuild/protobuf";
import { durationMs, timestampMs } from "@bufbuild/protobuf/wkt";
import {
  RevocationAcknowledgedSchema,
  RevocationEffectiveSchema,
  TokenRevokedSchema,
} from "@curfew/contracts/gen/curfew/events/v1/revocations_pb.ts";
import { TokenRotatedSchema } from "@curfew/contracts/gen/curfew/events/v1/tokens_pb.ts";
import { type EndedToken, EndedTokenSchema } from "@curfew/contracts/gen/curfew/revocation/v1/revocation_pb.ts";
import type { ReadEvent } from "@curfew/event-log/envelope.ts";
import type { Clock } from "@curfew/runtime/clock.ts";
import type { PendingRevocations } from "./pending.ts";
import type { SecretIndex } from "./secret-index.ts";
import { endedByRevocation, type WatchHub } from "./watch-hub.ts";

const lookUpSweepMs = 3_600_000;

/**
 * What every replica folds for itself from the topics of tokens and revocations, from offset 0: whose a secret is, which revocations
 * are not effective yet, and what to push to those who watch here.
 */
export const createProjection = (parts: {
  readonly index: SecretIndex;
  readonly pending: PendingRevocations;
  readonly hub: WatchHub;
  readonly clock: Clock;
  /** Whether anybody may be watching: before that, reading the log from its beginning, ends are old news. */
  readonly watched: () => boolean;
}) => {
  const { index, pending, hub, clock, watched } = parts;
  let sweptMs = clock.monotonicMs();

  const end = (event: ReadEvent, ended: EndedToken) => {
    if (watched()) hub.push(event.id, ended);
    else hub.recall(event.id, ended, clock.now() - event.record.timestampMs);
  };

  return {
    apply(event: ReadEvent): void {
      const { message } = event;
      if (isMessage(message, TokenRevokedSchema)) {
        const committedMs = message.revokedAt ? timestampMs(message.revokedAt) : event.timeMs;
        pending.add(event.id, message.tokenId, committedMs, clock.monotonicMs());
        pending.publishedAt(event.id, event.record.offset);
        end(event, endedByRevocation(message.tokenId, event.id));
      } else if (isMessage(message, RevocationAcknowledgedSchema)) {
        const receivedAtMs = message.receivedAt ? timestampMs(message.receivedAt) : event.timeMs;
        const clockOffsetMs = message.clockOffset ? durationMs(message.clockOffset) : 0;
        pending.acknowledge(message.revocationEventIds, message.instance, { receivedAtMs, clockOffsetMs });
      } else if (isMessage(message, RevocationEffectiveSchema)) pending.effective(message.revocationEventId);
      else {
        index.apply(message);
        if (isMessage(message, TokenRotatedSchema)) {
          const upToGeneration = (message.generation?.number ?? 1) - 1;
          const ended = { tokenId: message.tokenId, upToGeneration };
          const endsAt = message.previousEndsAt;
          end(event, create(EndedTokenSchema, endsAt ? { ...ended, endsAt } : ended));
        }
      }
      if (clock.monotonicMs() - sweptMs > lookUpSweepMs) {
        sweptMs = clock.monotonicMs();
        index.sweep(clock.now());
      }
    },
  };
};
