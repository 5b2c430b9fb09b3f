import { create } from "@bufbuild/protobuf";
import { durationFromMs, type Timestamp, timestampFromMs, timestampMs } from "@bufbuild/protobuf/wkt";
import {
  type LeakReported,
  LeakReportedSchema,
  type LeakSighting,
  LeakSightingSchema,
  RevocationEffectiveSchema,
  RevocationReason,
  TokenRevokedSchema,
} from "@curfew/contracts/gen/curfew/events/v1/revocations_pb.ts";
import {
  type GetRevocationRequest,
  type IdentifySecretRequest,
  type ReportLeakRequest,
  ReportLeakRequestSchema,
  type RevocationService,
  type RevokeBySecretRequest,
  RevokeBySecretRequestSchema,
  type RevokeTokenRequest,
  RevokeTokenRequestSchema,
} from "@curfew/contracts/gen/curfew/revocation/v1/revocation_pb.ts";
import type { Bus } from "@curfew/event-log/bus.ts";
import { topicNames } from "@curfew/event-log/event-types.ts";
import type { Outbox } from "@curfew/event-log/outbox.ts";
import type { CommitDoc } from "@curfew/event-log/streams.ts";
import type { Keyring } from "@curfew/keyring/keyring.ts";
import type { Feed } from "@curfew/projection/feed.ts";
import { past } from "@curfew/projection/progress.ts";
import { RpcError, type StatusByCode } from "@curfew/rpc/errors.ts";
import { type RequestKey, requestKeyOf } from "@curfew/rpc/request-key.ts";
import type { CallContext, Handlers } from "@curfew/rpc/service-definition.ts";
import type { UsedRequests } from "@curfew/rpc/used-requests.ts";
import { secretHash } from "@curfew/token-format/digest.ts";
import { parseTokenId } from "@curfew/token-format/token-id.ts";
import type { InstanceFact } from "./domain/effective.ts";
import { isSameLeak, type RejectionCode, type RevocationCommand } from "./domain.ts";
import { type Found, findEvent, findInStream } from "./find-event.ts";
import type { Limiter } from "./limiter.ts";
import { lookUpSecret, readWaitMs } from "./look-up.ts";
import { type EffectiveProof, type Proofs, proofOfEvent } from "./proofs.ts";
import type { Revocations } from "./reactions.ts";
import type { KnownSecret, SecretIndex } from "./secret-index.ts";
import { type WatchParts, watchRevocations } from "./watch.ts";
import { endedByRevocation } from "./watch-hub.ts";

export const rejections = {
  REQUEST_ID_REUSED: "INVALID_ARGUMENT",
  SIGHTING_INVALID: "INVALID_ARGUMENT",
  SIGHTING_HOLDS_SECRET: "INVALID_ARGUMENT",
  EXPOSED_IN_FUTURE: "INVALID_ARGUMENT",
  NOT_REVOKED: "FAILED_PRECONDITION",
} as const satisfies StatusByCode<RejectionCode>;

export interface HandlerParts extends WatchParts {
  readonly outbox: Outbox;
  readonly revocations: Revocations;
  readonly index: SecretIndex;
  readonly proofs: Proofs;
  readonly keyring: Keyring;
  readonly limiter: Limiter;
  readonly usedRequests: UsedRequests;
  readonly bus: Bus;
  /** Undefined until everything that was on the topics at start is applied. */
  readonly feed: () => Feed | undefined;
}

/** RevokeBySecret answers no earlier than this, so that the time taken does not tell a known secret from an unknown one. */
const bySecretFloorMs = 100;

const unavailable = (reason: string, message: string) =>
  new RpcError({ status: "UNAVAILABLE", reason, message, retryDelayMs: 500 });
const notReady = () => unavailable("NOT_READY", "still reading the log; only RevokeToken is served until then");
const notCaughtUp = () => unavailable("NOT_CAUGHT_UP", "the log could not be read far enough in time; try again");
const streamOf = (tokenId: string) => `revocations/${tokenId}`;
const msOf = (timestamp: Timestamp | undefined): number => (timestamp ? timestampMs(timestamp) : 0);

export const createHandlers = (parts: HandlerParts): Handlers<typeof RevocationService> => {
  const calls = new RevocationCalls(parts);
  return {
    revokeToken: (request, ctx) => calls.revokeToken(request, ctx),
    revokeBySecret: (request, ctx) => calls.revokeBySecret(request, ctx),
    reportLeak: (request, ctx) => calls.reportLeak(request, ctx),
    identifySecret: (request, ctx) => calls.identifySecret(request, ctx),
    getRevocation: (request) => calls.getRevocation(request),
    watchRevocations: (requests, ctx) => {
      calls.feed();
      return watchRevocations(parts, requests, ctx);
    },
  };
};

class RevocationCalls {
  readonly #parts: HandlerParts;

  constructor(parts: HandlerParts) {
    this.#parts = parts;
  }

  /** Throws until the log is read. */
  feed(): Feed {
    const feed = this.#parts.feed();
    if (!feed) throw notReady();
    return feed;
  }

  /** The emergency stop: needs the store and nothing else. */
  async revokeToken(request: RevokeTokenRequest, ctx: CallContext) {
    const { tokenId, reason } = request;
    const key = requestKeyOf(ctx, request.requestId, RevokeTokenRequestSchema, request);
    await this.#parts.usedRequests.claim(key);
    const commit = await this.#handle({ type: "Revoke", reason, ...this.#asked(tokenId, ctx, key) }, ctx);
    const revoked = this.#announced(commit) ?? (await this.#revocationOf(tokenId));
    if (!revoked) throw new Error(`${tokenId} is revoked and has no TokenRevoked`);
    const { revokedAt } = revoked.message;
    return { ...(revokedAt && { revokedAt }), ...(await this.#published(revoked)) };
  }

  async reportLeak(request: ReportLeakRequest, ctx: CallContext) {
    const { secretSha256, sighting } = request;
    const known = await this.#identify(secretSha256);
    if (!known || !sighting) return {};
    const { tokenId, generation } = known;
    const key = requestKeyOf(ctx, request.requestId, ReportLeakRequestSchema, request);
    await this.#parts.usedRequests.claim(key);
    const commit = await this.#reportLeak(known, sighting, ctx, key);
    const asked = { generation, by: ctx.caller.uri, sighting };
    const reported = commit
      ? findEvent(commit, LeakReportedSchema)
      : ((await this.#leakOf(tokenId, ({ requestKey }) => requestKey === key.keyHex)) ??
        (await this.#leakOf(tokenId, (leak) => isSameLeak(leak, asked))));
    if (!reported) throw new Error(`a leak of ${tokenId} was reported and has no LeakReported`);
    const { generationLive, requestKey } = reported.message;
    // On record already, by another request: that one found it live or not, this one did not.
    const wasLive = generationLive && requestKey === key.keyHex;
    return { tokenId, generation, wasLive, ...(await this.#published(reported)) };
  }

  async revokeBySecret(request: RevokeBySecretRequest, ctx: CallContext) {
    const { clock, limiter } = this.#parts;
    const feed = this.feed();
    const { uri } = ctx.caller;
    // Counted before it is looked up: calls made at the same time must not all pass.
    const attempt = limiter.reserve(uri);
    if (!attempt) {
      const message = "too many secrets that are not ours, or ended before; try again later";
      const retryDelayMs = limiter.retryAfterMs(uri);
      throw new RpcError({ status: "RESOURCE_EXHAUSTED", reason: "TOO_MANY_FAILED_LOOKUPS", message, retryDelayMs });
    }
    const answerAtMs = clock.monotonicMs() + bySecretFloorMs;
    const { known, certain } = await lookUpSecret(this.#parts, feed, secretHash(request.secret));
    if (known && (await this.#endByPossession(known, request, ctx))) attempt.release();
    await clock.sleep(Math.max(0, answerAtMs - clock.monotonicMs()), ctx.signal);
    // The same for a known secret, which is revoked by now: what an outage hides must not show in the answer.
    if (!certain) throw notCaughtUp();
    return {};
  }

  async identifySecret({ secretSha256 }: IdentifySecretRequest, { caller, signal, deadlineMs }: CallContext) {
    const { clock, revocations, outbox } = this.#parts;
    const known = await this.#identify(secretSha256);
    if (!known) return {};
    const { tokenId, generation, subject, endsAtMs } = known;
    const command = { type: "Identify", tokenId, generation, by: caller.uri } as const;
    const { commit, state } = await revocations.handle(streamOf(tokenId), command, { signal, deadlineMs });
    if (commit) void outbox.relay.published(commit, 0);
    return { tokenId, generation, subject, live: state.status === "standing" && clock.now() < endsAtMs };
  }

  async getRevocation({ tokenId, atLeast }: GetRevocationRequest) {
    const { proofs, revocations, pending, clock } = this.#parts;
    if (!(await this.feed().reached(past(atLeast), readWaitMs))) throw notCaughtUp();
    const revoked = parseTokenId(tokenId) && (await this.#revocationOf(tokenId));
    if (!revoked)
      throw new RpcError({ status: "NOT_FOUND", reason: "NOT_REVOKED", message: "no revocation of such a token" });
    const { message, eventId } = revoked;
    const state = await revocations.load(streamOf(tokenId));
    const effective = state.status === "effective" ? await this.#proofOf(tokenId, eventId) : undefined;
    const committedMs = msOf(message.revokedAt);
    const unknown = { id: eventId, tokenId, committedMs, sinceMs: clock.monotonicMs(), acknowledgements: new Map() };
    const known = pending.get(eventId) ?? unknown;
    const proof = effective ?? (await proofs.soFar(known));
    return {
      tokenId,
      reason: message.reason,
      ...(message.revokedAt && { revokedAt: message.revokedAt }),
      revocationEventId: eventId,
      ...(effective && { effectiveAt: timestampFromMs(Math.ceil(effective.effectiveAtMs)) }),
      instances: proof.instances.map(instanceProof),
    };
  }

  /**
   * A live generation ends the token; a dead one is a leak of that generation and ends nothing. Whether it ended the token. Nobody waits
   * for publication.
   */
  async #endByPossession(known: KnownSecret, request: RevokeBySecretRequest, ctx: CallContext): Promise<boolean> {
    const { clock, outbox } = this.#parts;
    const { tokenId, endsAtMs } = known;
    const key = requestKeyOf(ctx, request.requestId, RevokeBySecretRequestSchema, request);
    const revoke = async () => {
      const asked = this.#asked(tokenId, ctx, key);
      const commit = await this.#handle({ type: "Revoke", reason: RevocationReason.REQUESTED, ...asked }, ctx);
      this.#announced(commit);
      return commit;
    };
    const presented = create(LeakSightingSchema, { kind: "other", location: "presented to RevokeBySecret" });
    const commit = clock.now() < endsAtMs ? await revoke() : await this.#reportLeak(known, presented, ctx, key);
    if (commit) void outbox.relay.published(commit, 0);
    return commit !== undefined && findEvent(commit, TokenRevokedSchema) !== undefined;
  }

  async #reportLeak(known: KnownSecret, sighting: LeakSighting, ctx: CallContext, key: RequestKey) {
    const { tokenId, generation, endsAtMs } = known;
    const generationLive = this.#parts.clock.now() < endsAtMs;
    const asked = this.#asked(tokenId, ctx, key);
    const commit = await this.#handle({ type: "ReportLeak", generation, generationLive, sighting, ...asked }, ctx);
    this.#announced(commit);
    return commit;
  }

  /** Whose it is; undefined: surely not ours. */
  async #identify(sha256: Uint8Array): Promise<KnownSecret | undefined> {
    const { known, certain } = await lookUpSecret(this.#parts, this.feed(), sha256);
    if (!known && !certain) throw notCaughtUp();
    return known;
  }

  #asked(tokenId: string, ctx: CallContext, { keyHex, requestHash }: RequestKey) {
    const request = { key: keyHex, hash: requestHash };
    return { tokenId, by: ctx.caller.uri, nowMs: this.#parts.clock.now(), request };
  }

  async #handle(command: RevocationCommand, { signal, deadlineMs }: CallContext): Promise<CommitDoc | undefined> {
    return (await this.#parts.revocations.handle(streamOf(command.tokenId), command, { signal, deadlineMs })).commit;
  }

  async #proofOf(tokenId: string, eventId: string): Promise<EffectiveProof | undefined> {
    const { proofs, outbox } = this.#parts;
    const kept = await proofs.get(eventId);
    if (kept) return kept;
    const found = await findInStream(outbox.streams, streamOf(tokenId), RevocationEffectiveSchema);
    return found && proofOfEvent(found.message);
  }

  #leakOf(tokenId: string, matches: (leak: LeakReported) => boolean) {
    return findInStream(this.#parts.outbox.streams, streamOf(tokenId), LeakReportedSchema, matches);
  }

  #revocationOf(tokenId: string) {
    return findInStream(this.#parts.outbox.streams, streamOf(tokenId), TokenRevokedSchema);
  }

  /** At commit, before publication: those who watch here learn of a revocation in it first, the others from the topic. */
  #announced(commit: CommitDoc | undefined): Found<typeof TokenRevokedSchema> | undefined {
    const revoked = commit && findEvent(commit, TokenRevokedSchema);
    if (!revoked) return undefined;
    const { hub, pending, clock } = this.#parts;
    const { tokenId, revokedAt } = revoked.message;
    hub.push(revoked.eventId, endedByRevocation(tokenId, revoked.eventId));
    pending.add(revoked.eventId, tokenId, msOf(revokedAt), clock.monotonicMs());
    return revoked;
  }

  async #published({ doc, eventId }: Found) {
    const { outbox, pending } = this.#parts;
    const offset = doc.unpublished ? await outbox.relay.published(doc) : pending.offsetOf(eventId);
    const at = { topic: topicNames.revocations, partition: 0, offset: BigInt(offset ?? 0) };
    return { published: offset !== undefined || !doc.unpublished, ...(offset !== undefined && { position: at }) };
  }
}

const instanceProof = (fact: InstanceFact) => ({
  instance: fact.instance,
  name: fact.name,
  clockOffset: durationFromMs(Math.round(fact.clockOffsetMs)),
  ...(fact.acknowledgedAtMs !== undefined && { acknowledgedAt: timestampFromMs(Math.ceil(fact.acknowledgedAtMs)) }),
  ...(fact.leaseEndedAtMs !== undefined && { leaseEndedAt: timestampFromMs(Math.ceil(fact.leaseEndedAtMs)) }),
});
