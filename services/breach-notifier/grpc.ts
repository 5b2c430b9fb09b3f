import { create } from "@bufbuild/protobuf";
import {
  type AcknowledgePageRequest,
  AcknowledgePageRequestSchema,
  BreachService,
  type DecideAwarenessRequest,
  DecideAwarenessRequestSchema,
  type DraftNotificationRequest,
  DraftNotificationRequestSchema,
  type GetCaseRequest,
  type ListCasesRequest,
  type ListDraftsRequest,
} from "@curfew/contracts/gen/curfew/breach/v1/breach_pb.ts";
import { type Position, PositionSchema } from "@curfew/contracts/gen/curfew/events/v1/common_pb.ts";
import { topicNames } from "@curfew/event-log/event-types.ts";
import type { Outbox } from "@curfew/event-log/outbox.ts";
import type { Feed } from "@curfew/projection/feed.ts";
import { past } from "@curfew/projection/progress.ts";
import { RpcError, type StatusByCode } from "@curfew/rpc/errors.ts";
import { type RequestKey, requestKeyOf } from "@curfew/rpc/request-key.ts";
import { type BoundService, bindService, type CallContext } from "@curfew/rpc/service-definition.ts";
import type { UsedRequests } from "@curfew/rpc/used-requests.ts";
import type { Clock } from "@curfew/runtime/clock.ts";
import { readClock } from "./article-clock.ts";
import { degradedOf, wireCase, wireClock } from "./case-view.ts";
import { type CaseCommand, isCaseId, type OpenCase, pastRequest, type RejectionCode } from "./domain.ts";
import type { Drafts } from "./drafts.ts";
import type { Knowledge } from "./projections.ts";
import type { Radii } from "./radii.ts";
import type { Cases } from "./reactions.ts";

export const rejections = {
  CASE_NOT_FOUND: "NOT_FOUND",
  REQUEST_ID_REUSED: "INVALID_ARGUMENT",
  AWARE_AT_INVALID: "INVALID_ARGUMENT",
  AWARE_IN_FUTURE: "INVALID_ARGUMENT",
  REASON_REQUIRED: "INVALID_ARGUMENT",
  MILESTONE_UNKNOWN: "INVALID_ARGUMENT",
  NOT_PAGED: "FAILED_PRECONDITION",
} as const satisfies StatusByCode<RejectionCode>;

export interface HandlerParts {
  readonly cases: Cases;
  readonly outbox: Outbox;
  readonly knowledge: Knowledge;
  readonly radii: Radii;
  readonly drafts: Drafts;
  readonly usedRequests: UsedRequests;
  /** Feeds, once everything that was on their topics at start is applied. */
  readonly feeds: () => readonly Feed[] | undefined;
  /** How many targets are paged. */
  readonly targets: number;
  readonly clock: Clock;
}

const defaultPageSize = 50;
const maxPageSize = 1_000;
const readWaitMs = 250;
const retryDelayMs = 500;

const unavailable = (reason: string, message: string) =>
  new RpcError({ status: "UNAVAILABLE", reason, message, retryDelayMs });
const notFound = () =>
  new RpcError({ status: "NOT_FOUND", reason: "CASE_NOT_FOUND", message: "there is no such case" });

/** A page token names the case to go on after: the list only grows at its head. */
const pageTokenOf = (caseId: string) => Buffer.from(caseId).toString("base64url");
const parsePageToken = (token: string): string | undefined => {
  if (token === "") return undefined;
  const caseId = Buffer.from(token, "base64url").toString();
  if (isCaseId(caseId)) return caseId;
  const message = "the page token is none of ours; begin with the first page";
  throw new RpcError({
    status: "INVALID_ARGUMENT",
    reason: "PAGE_TOKEN_INVALID",
    message,
    fieldViolations: [{ field: "page_token", description: message, reason: "PAGE_TOKEN_INVALID" }],
  });
};

export const breachService = (parts: HandlerParts): BoundService => {
  const calls = new BreachCalls(parts);
  return bindService(
    BreachService,
    {
      listCases: (request) => calls.listCases(request),
      getCase: (request) => calls.getCase(request),
      decideAwareness: (request, ctx) => calls.decideAwareness(request, ctx),
      acknowledgePage: (request, ctx) => calls.acknowledgePage(request, ctx),
      draftNotification: (request, ctx) => calls.draftNotification(request, ctx),
      listDrafts: (request) => calls.listDrafts(request),
    },
    { rejections },
  );
};

class BreachCalls {
  readonly #parts: HandlerParts;

  constructor(parts: HandlerParts) {
    this.#parts = parts;
  }

  async listCases({ pageSize, pageToken, tokenId }: ListCasesRequest) {
    this.#ready();
    const { knowledge, radii } = this.#parts;
    const size = Math.min(pageSize === 0 ? defaultPageSize : pageSize, maxPageSize);
    const after = parsePageToken(pageToken);
    const all = knowledge.cases().filter(({ state }) => tokenId === "" || state.tokenId === tokenId);
    const start = after === undefined ? 0 : all.findIndex(({ state }) => state.caseId === after) + 1;
    const page = all.slice(start, start + size).map(({ state }) => state);
    const counted = await radii.ofAll(page);
    const last = page.at(-1);
    return {
      cases: page.map((state, i) => this.#view(state, counted[i], false)),
      nextPageToken: last && start + size < all.length ? pageTokenOf(last.caseId) : "",
    };
  }

  async getCase({ caseId, atLeast }: GetCaseRequest) {
    await this.#reached(atLeast);
    const state = await this.#load(caseId);
    return { case: this.#view(state, await this.#parts.radii.of(state), true) };
  }

  async decideAwareness(request: DecideAwarenessRequest, ctx: CallContext) {
    this.#ready();
    const { awareAt, reason, evidenceEventIds } = request;
    if (!awareAt) throw new TypeError("the request was validated without aware_at");
    const key = requestKeyOf(ctx, request.requestId, DecideAwarenessRequestSchema, request);
    await this.#parts.usedRequests.claim(key);
    const command = { type: "DecideAwareness", awareAt, reason, evidenceEventIds } as const;
    const { state, ...answer } = await this.#handle(request.caseId, { ...command, ...this.#asked(ctx, key) }, ctx, key);
    // The clock of this decision, also where it was repeated after another had superseded it.
    const decided = pastRequest(state, { key: key.keyHex, hash: key.requestHash });
    const clock = readClock(state.firstSignalAtMs, decided?.awareAtMs, this.#parts.clock.now());
    return { clock: wireClock(clock), ...answer };
  }

  async acknowledgePage(request: AcknowledgePageRequest, ctx: CallContext) {
    this.#ready();
    const { milestone } = request;
    const key = requestKeyOf(ctx, request.requestId, AcknowledgePageRequestSchema, request);
    await this.#parts.usedRequests.claim(key);
    const command = { type: "AcknowledgePage", milestone, ...this.#asked(ctx, key) } as const;
    const { published, position } = await this.#handle(request.caseId, command, ctx, key);
    return { published, ...(position && { position }) };
  }

  async draftNotification(request: DraftNotificationRequest, ctx: CallContext) {
    this.#ready();
    const { drafts, usedRequests } = this.#parts;
    const key = requestKeyOf(ctx, request.requestId, DraftNotificationRequestSchema, request);
    const state = await this.#load(request.caseId);
    await usedRequests.claim(key);
    pastRequest(state, { key: key.keyHex, hash: key.requestHash });
    const draft = await drafts.get(state, request.controller, key);
    const { controller } = draft.response;
    const command = { type: "DraftNotification", controller, draftSha256: draft.sha256 } as const;
    const { published, position } = await this.#handle(
      request.caseId,
      { ...command, ...this.#asked(ctx, key) },
      ctx,
      key,
    );
    const { response } = draft;
    response.published = published;
    if (position) response.position = create(PositionSchema, position);
    return response;
  }

  async listDrafts({ caseId }: ListDraftsRequest) {
    this.#ready();
    await this.#load(caseId);
    const { drafts, knowledge } = this.#parts;
    const newest = await drafts.newest(caseId, (key) => knowledge.offsetOf(key));
    return {
      drafts: newest.map(({ controller, json, offset }) => {
        return { controller, json, position: { topic: topicNames.breaches, partition: 0, offset: BigInt(offset) } };
      }),
    };
  }

  #ready(): readonly Feed[] {
    const feeds = this.#parts.feeds();
    if (!feeds) throw unavailable("NOT_READY", "still reading the log; try again");
    return feeds;
  }

  async #reached(positions: readonly Position[]): Promise<void> {
    const feeds = this.#ready();
    const wanted = past(positions);
    const reached = await Promise.all(feeds.map((feed) => feed.reached(wanted, readWaitMs)));
    if (reached.includes(false))
      throw unavailable("NOT_CAUGHT_UP", "the log could not be read that far in time; try again");
  }

  async #load(caseId: string): Promise<OpenCase> {
    if (!isCaseId(caseId)) throw notFound();
    const state = await this.#parts.cases.load(caseId);
    if (state.status === "none") throw notFound();
    return state;
  }

  #asked({ caller }: CallContext, { keyHex, requestHash }: RequestKey) {
    return { by: caller.uri, request: { key: keyHex, hash: requestHash }, nowMs: this.#parts.clock.now() };
  }

  async #handle(caseId: string, command: CaseCommand, { signal, deadlineMs }: CallContext, key: RequestKey) {
    if (!isCaseId(caseId)) throw notFound();
    const { cases, outbox, knowledge } = this.#parts;
    const { state, commit } = await cases.handle(caseId, command, { signal, deadlineMs });
    if (state.status === "none") throw notFound();
    // One that was repeated was committed before: published as far as we have read it on the topic.
    const offset = commit ? await outbox.relay.published(commit) : knowledge.offsetOf(key.keyHex);
    const position =
      offset === undefined ? undefined : { topic: topicNames.breaches, partition: 0, offset: BigInt(offset) };
    return { state, published: offset !== undefined, ...(position && { position }) };
  }

  #view(state: OpenCase, radius: Awaited<ReturnType<Radii["of"]>>, whole: boolean) {
    const { radii, targets, clock } = this.#parts;
    const degraded = degradedOf(state, { targets, busAnswers: radii.busAnswers });
    return wireCase(state, { radius, degraded, nowMs: clock.now(), whole });
  }
}
