import { hash } from "node:crypto";
import { create } from "@bufbuild/protobuf";
import { type Timestamp, timestampFromMs, timestampMs } from "@bufbuild/protobuf/wkt";
import {
  type AwarenessDecided,
  AwarenessDecidedSchema,
  type CaseOpened,
  CaseOpenedSchema,
  type NotificationDrafted,
  NotificationDraftedSchema,
  type PageAcknowledged,
  PageAcknowledgedSchema,
  type PageDue,
  type PageFailed,
  type PageSent,
  type Signal,
  type SignalJoined,
  SignalJoinedSchema,
} from "@curfew/contracts/gen/curfew/events/v1/breaches_pb.ts";
import { type Decider, Rejection } from "@curfew/decider/decider.ts";
import { type LadderCase, milestoneNames } from "./domain/ladder.ts";
import { failPage, type Pages, pageEvents, raisePages, sendPage } from "./domain/pages.ts";

/** One suspected breach: stream `case/<token id, or hash of a producer>/<n>`. Nothing in it is ever edited, only superseded. */
export type CaseEvent =
  | CaseOpened
  | SignalJoined
  | AwarenessDecided
  | PageDue
  | PageSent
  | PageFailed
  | PageAcknowledged
  | NotificationDrafted;

/** A request that led to an event: the same one again changes nothing and is answered alike. */
export interface PastRequest {
  readonly key: string;
  readonly hash: string;
  /** What was decided, for DecideAwareness. */
  readonly awareAtMs: number | undefined;
}

export interface OpenCase {
  readonly status: "signalled" | "aware";
  readonly caseId: string;
  /** Empty: about a producer. */
  readonly tokenId: string;
  readonly producer: string;
  readonly noPersonalData: boolean;
  /** Oldest first by time on our log. */
  readonly signals: readonly Signal[];
  readonly firstSignalAtMs: number;
  /** The decision in force. */
  readonly decision: AwarenessDecided | undefined;
  readonly pages: Pages;
  readonly acknowledgements: readonly PageAcknowledged[];
  /** Last ones, oldest first. */
  readonly requests: readonly PastRequest[];
}

export type CaseState = { readonly status: "none" } | OpenCase;

/** Who asked, from the certificate, and under which request key. */
interface Asked {
  readonly by: string;
  readonly request: { readonly key: string; readonly hash: string };
  readonly nowMs: number;
}

export type CaseCommand =
  | {
      /** Opens the case, or joins it: who comes second finds it open. */
      readonly type: "RecordSignal";
      readonly caseId: string;
      readonly tokenId: string;
      readonly producer: string;
      readonly noPersonalData: boolean;
      readonly signal: Signal;
    }
  | ({
      readonly type: "DecideAwareness";
      readonly awareAt: Timestamp;
      readonly reason: string;
      readonly evidenceEventIds: readonly string[];
    } & Asked)
  | ({ readonly type: "AcknowledgePage"; readonly milestone: string } & Asked)
  | ({ readonly type: "DraftNotification"; readonly controller: string; readonly draftSha256: Uint8Array } & Asked)
  | {
      readonly type: "RaisePages";
      readonly targets: readonly string[];
      readonly repeatMs: number;
      readonly nowMs: number;
    }
  | {
      readonly type: "MarkPageSent";
      readonly pageId: string;
      readonly channelMessageId: string;
      readonly nowMs: number;
    }
  | {
      readonly type: "MarkPageFailed";
      readonly pageId: string;
      readonly error: string;
      /** Configured now, in order: the next one is tried. */
      readonly targets: readonly string[];
      readonly nowMs: number;
    };

export type RejectionCode =
  | "CASE_NOT_FOUND"
  | "REQUEST_ID_REUSED"
  | "AWARE_AT_INVALID"
  | "AWARE_IN_FUTURE"
  | "REASON_REQUIRED"
  | "MILESTONE_UNKNOWN"
  | "NOT_PAGED";

export const maxSignals = 1_000;
const maxRequests = 100;
const maxAcknowledgements = 1_000;
const earliestAwareMs = Date.UTC(2000, 0, 1);
const latestSeconds = 253_402_300_799n; // the end of the year 9999
const caseIdForm = /^case\/[A-Za-z0-9_-]{1,64}\/[1-9]\d{0,5}$/;

export const isCaseId = (text: string): boolean => caseIdForm.test(text);

/** The stream of a case. `closedBefore`: cases about the same that were closed, so that what comes after a closing begins the next. */
export const caseIdOf = (
  about: { readonly tokenId: string } | { readonly place: string },
  closedBefore: number,
): string =>
  `case/${"tokenId" in about ? about.tokenId : hash("sha256", about.place).slice(0, 32)}/${closedBefore + 1}`;

const reject = (code: RejectionCode, message: string) => new Rejection<RejectionCode>(code, message);

const msOf = (at: Timestamp | undefined): number => (at ? timestampMs(at) : 0);

/** The same request, if it came before. Throws when its id was used for another one. */
export const pastRequest = (state: CaseState, { key, hash: asked }: Asked["request"]): PastRequest | undefined => {
  const past = state.status === "none" ? undefined : state.requests.find((request) => request.key === key);
  if (past && past.hash !== asked)
    throw reject("REQUEST_ID_REUSED", "this request_id was used for another request; make a new one");
  return past;
};

/** The clock and the ladder of a case. */
export const ladderOf = ({ firstSignalAtMs, decision, noPersonalData }: OpenCase): LadderCase => ({
  firstSignalAtMs,
  noPersonalData,
  decidedAwareAtMs: decision && msOf(decision.awareAt),
});

/** Whether the case takes it: not what it has, and past the limit only what moves the clock back; the others stand on their own topic. */
export const takesSignal = (state: CaseState, signal: Signal): boolean =>
  state.status === "none" ||
  (!state.signals.some((known) => known.eventId === signal.eventId) &&
    (state.signals.length < maxSignals || msOf(signal.at) < state.firstSignalAtMs));

const recordSignal = (state: CaseState, command: Extract<CaseCommand, { type: "RecordSignal" }>): CaseEvent[] => {
  const { caseId, tokenId, producer, noPersonalData, signal } = command;
  if (state.status === "none") return [create(CaseOpenedSchema, { caseId, tokenId, producer, noPersonalData, signal })];
  return takesSignal(state, signal) ? [create(SignalJoinedSchema, { caseId, signal })] : [];
};

const checkedAwareMs = (awareAt: Timestamp, state: OpenCase, reason: string, nowMs: number): void => {
  const { seconds, nanos } = awareAt;
  const isSane = seconds >= 0n && seconds <= latestSeconds && nanos >= 0 && nanos < 1_000_000_000;
  if (!isSane || msOf(awareAt) < earliestAwareMs)
    throw reject("AWARE_AT_INVALID", "aware_at is no time since the year 2000; give the moment in UTC");
  if (msOf(awareAt) > nowMs)
    throw reject("AWARE_IN_FUTURE", "aware_at is after this decision; nobody can become aware later than now");
  if (msOf(awareAt) > state.firstSignalAtMs && reason.trim() === "")
    throw reject(
      "REASON_REQUIRED",
      `aware_at is after the first signal (${new Date(state.firstSignalAtMs).toISOString()}); write down why, in reason`,
    );
};

const decideAwareness = (
  state: OpenCase,
  command: Extract<CaseCommand, { type: "DecideAwareness" }>,
): AwarenessDecided[] => {
  const { awareAt, reason, evidenceEventIds, by, request, nowMs } = command;
  checkedAwareMs(awareAt, state, reason, nowMs);
  return [
    create(AwarenessDecidedSchema, {
      caseId: state.caseId,
      awareAt,
      reason,
      decidedBy: { spiffeId: by },
      evidenceEventIds: [...evidenceEventIds],
      decidedAt: timestampFromMs(nowMs),
      requestKey: request.key,
      requestHash: request.hash,
    }),
  ];
};

const acknowledgePage = (
  state: OpenCase,
  command: Extract<CaseCommand, { type: "AcknowledgePage" }>,
): PageAcknowledged[] => {
  const { milestone, by, request, nowMs } = command;
  if (!(milestoneNames as readonly string[]).includes(milestone))
    throw reject("MILESTONE_UNKNOWN", `milestone is one of ${milestoneNames.join(", ")}`);
  if (!state.pages.last.has(milestone))
    throw reject("NOT_PAGED", `nobody was paged about ${milestone} in this case: there is nothing to acknowledge`);
  return [
    create(PageAcknowledgedSchema, {
      caseId: state.caseId,
      milestone,
      acknowledgedBy: { spiffeId: by },
      acknowledgedAt: timestampFromMs(nowMs),
      requestKey: request.key,
      requestHash: request.hash,
    }),
  ];
};

const draftNotification = (
  state: OpenCase,
  command: Extract<CaseCommand, { type: "DraftNotification" }>,
): NotificationDrafted[] => [
  create(NotificationDraftedSchema, {
    caseId: state.caseId,
    controller: command.controller,
    draftSha256: command.draftSha256,
    draftedBy: { spiffeId: command.by },
    draftedAt: timestampFromMs(command.nowMs),
    requestKey: command.request.key,
    requestHash: command.request.hash,
  }),
];

const decide = (state: CaseState, command: CaseCommand): readonly CaseEvent[] => {
  if (command.type === "RecordSignal") return recordSignal(state, command);
  if (state.status === "none") throw reject("CASE_NOT_FOUND", "there is no such case");
  switch (command.type) {
    case "DecideAwareness":
      return pastRequest(state, command.request) ? [] : decideAwareness(state, command);
    case "AcknowledgePage":
      return pastRequest(state, command.request) ? [] : acknowledgePage(state, command);
    case "DraftNotification":
      return pastRequest(state, command.request) ? [] : draftNotification(state, command);
    case "RaisePages": {
      const acknowledged = state.acknowledgements.map((ack) => ({
        milestone: ack.milestone,
        atMs: msOf(ack.acknowledgedAt),
      }));
      return raisePages(state.caseId, state.pages, { ladder: ladderOf(state), acknowledged, ...command });
    }
    case "MarkPageSent":
      return sendPage(state.caseId, state.pages, command);
    case "MarkPageFailed":
      return failPage(state.caseId, state.pages, command);
  }
};

const opened = ({ caseId, tokenId, producer, noPersonalData, signal }: CaseOpened): OpenCase => ({
  status: "signalled",
  caseId,
  tokenId,
  producer,
  noPersonalData,
  signals: signal ? [signal] : [],
  firstSignalAtMs: msOf(signal?.at),
  decision: undefined,
  pages: pageEvents.none,
  acknowledgements: [],
  requests: [],
});

const joined = (state: OpenCase, signal: Signal): OpenCase => ({
  ...state,
  signals: [...state.signals, signal].sort((a, b) => msOf(a.at) - msOf(b.at)),
  firstSignalAtMs: Math.min(state.firstSignalAtMs, msOf(signal.at)),
});

const remembering = (
  { requests }: OpenCase,
  event: { readonly requestKey: string; readonly requestHash: string },
  awareAtMs?: number,
): readonly PastRequest[] =>
  [...requests, { key: event.requestKey, hash: event.requestHash, awareAtMs }].slice(-maxRequests);

const evolve = (state: CaseState, event: CaseEvent): CaseState => {
  if (event.$typeName === "curfew.events.v1.CaseOpened") return state.status === "none" ? opened(event) : state;
  if (state.status === "none") return state;
  switch (event.$typeName) {
    case "curfew.events.v1.SignalJoined":
      return event.signal ? joined(state, event.signal) : state;
    case "curfew.events.v1.AwarenessDecided":
      return {
        ...state,
        status: "aware",
        decision: event,
        requests: remembering(state, event, msOf(event.awareAt)),
      };
    case "curfew.events.v1.PageAcknowledged":
      return {
        ...state,
        acknowledgements: [...state.acknowledgements, event].slice(-maxAcknowledgements),
        requests: remembering(state, event),
      };
    case "curfew.events.v1.NotificationDrafted":
      return { ...state, requests: remembering(state, event) };
    case "curfew.events.v1.PageDue":
    case "curfew.events.v1.PageSent":
    case "curfew.events.v1.PageFailed":
      return { ...state, pages: pageEvents.evolve(state.pages, event) };
  }
};

export const breachCase: Decider<CaseState, CaseCommand, CaseEvent> = { initial: { status: "none" }, decide, evolve };
