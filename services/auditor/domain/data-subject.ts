import { create } from "@bufbuild/protobuf";
import { type Timestamp, timestampFromMs, timestampMs } from "@bufbuild/protobuf/wkt";
import {
  type AccessGround,
  type DataSubjectErased,
  DataSubjectErasedSchema,
  type DataSubjectExported,
  DataSubjectExportedSchema,
  type ErasureCompleted,
  ErasureCompletedSchema,
  type ErasurePropagated,
  ErasurePropagatedSchema,
  type ErasureRequested,
  ErasureRequestedSchema,
  type HoldGround,
  type LegalHoldPlaced,
  LegalHoldPlacedSchema,
  type LegalHoldReleased,
  LegalHoldReleasedSchema,
  type SealedFieldOpened,
  SealedFieldOpenedSchema,
} from "@curfew/contracts/gen/curfew/events/v1/data_subjects_pb.ts";
import { type Decider, Rejection } from "@curfew/decider/decider.ts";

/** A person whose data is held: stream `subjects/psn_…`. A hold and an erasure exclude each other; an erasure is never taken back. */
export type SubjectEvent =
  | LegalHoldPlaced
  | LegalHoldReleased
  | ErasureRequested
  | DataSubjectErased
  | ErasurePropagated
  | ErasureCompleted
  | DataSubjectExported
  | SealedFieldOpened;

export interface Hold {
  readonly holdId: string;
  readonly ground: HoldGround;
  readonly reference: string;
  readonly placedAtMs: number;
}

interface Requested {
  readonly requestedAtMs: number;
}
interface Destruction {
  readonly erasedAtMs: number;
  readonly known: boolean;
  readonly consumers: readonly string[];
  /** Newest under which a copy may be wrapped. */
  readonly epoch: number;
  readonly keyGoneByMs: number;
  readonly backupDays: number;
}
interface Propagation {
  readonly acknowledged: readonly string[];
  readonly lapsed: readonly string[];
}
interface Completion {
  readonly keyDestroyedAtMs: number;
  readonly backupsGoneAtMs: number;
}
export type ErasureProgress =
  | { readonly status: "none" }
  | ({ readonly status: "requested" } & Requested)
  | ({ readonly status: "destroyed" } & Requested & Destruction)
  | ({ readonly status: "propagated" } & Requested & Destruction & Propagation)
  | ({ readonly status: "completed" } & Requested & Destruction & Propagation & Completion);

export interface SubjectState {
  readonly holds: readonly Hold[];
  readonly erasure: ErasureProgress;
  /** Last ones, oldest first. */
  readonly requests: readonly { readonly key: string; readonly hash: string }[];
}

interface By {
  readonly pseudonym: string;
  /** SPIFFE ID from the certificate. */
  readonly by: string;
  readonly nowMs: number;
}
interface Asked extends By {
  readonly request: { readonly key: string; readonly hash: string };
}
interface Why {
  readonly ground: AccessGround;
  readonly reference: string;
}

export type SubjectCommand =
  | ({ readonly type: "PlaceHold"; readonly ground: HoldGround; readonly reference: string } & Asked)
  | ({ readonly type: "ReleaseHold"; readonly holdId: string } & Asked)
  | ({ readonly type: "RequestErasure"; readonly reference: string } & Asked)
  | ({ readonly type: "RecordDestroyed"; readonly pseudonym: string } & Destruction)
  | ({ readonly type: "RecordPropagated"; readonly pseudonym: string; readonly nowMs: number } & Propagation)
  | {
      readonly type: "Complete";
      readonly pseudonym: string;
      readonly keyDestroyedAtMs: number;
      /** As declared now: what was declared for the erasure counts where it is longer. */
      readonly backupDays: number;
      readonly nowMs: number;
    }
  | ({ readonly type: "RecordExport" } & Why & By)
  | ({ readonly type: "RecordOpened"; readonly eventId: string; readonly field: string } & Why & By);
type Command<Type extends SubjectCommand["type"]> = Extract<SubjectCommand, { type: Type }>;

export type SubjectRejection =
  | "REQUEST_ID_REUSED"
  | "HOLD_IN_FORCE"
  | "TOO_MANY_HOLDS"
  | "HOLD_UNKNOWN"
  | "ERASURE_UNDER_WAY"
  | "ERASURE_NOT_REQUESTED"
  | "NOT_PROPAGATED"
  | "BACKUPS_KEPT";

const dayMs = 86_400_000;
const maxRequests = 100;
const maxHolds = 100;

const reject = (code: SubjectRejection, message: string) => new Rejection<SubjectRejection>(code, message);

/** Whether the very same request came before. Throws when its id was used for another one. */
const cameBefore = ({ requests }: SubjectState, { key, hash }: Asked["request"]): boolean => {
  const past = requests.find((request) => request.key === key);
  if (past && past.hash !== hash)
    throw reject("REQUEST_ID_REUSED", "this request_id was used for another request; make a new one");
  return past !== undefined;
};

export const holdIdOf = (requestKey: string): string => `hold_${requestKey.slice(0, 32)}`;

const groundTexts: Readonly<Record<HoldGround, string>> = {
  0: "no ground",
  1: "a legal obligation (GDPR Art. 17(3)(b))",
  2: "legal claims (GDPR Art. 17(3)(e))",
};
export const holdText = ({ holdId, ground, reference }: Hold): string =>
  `${groundTexts[ground]}, ${reference}, ${holdId}`;

const requestOf = ({ request }: Asked) => ({ requestKey: request.key, requestHash: request.hash });

const placeHold = (state: SubjectState, command: Command<"PlaceHold">): SubjectEvent[] => {
  if (cameBefore(state, command.request)) return [];
  const { pseudonym, ground, reference, by, nowMs, request } = command;
  if (state.erasure.status !== "none")
    throw reject("ERASURE_UNDER_WAY", "this person is erased, or is about to be: nothing is left that could be kept");
  if (state.holds.length >= maxHolds) throw reject("TOO_MANY_HOLDS", `${maxHolds} holds are in force: release one`);
  const hold = { pseudonym, holdId: holdIdOf(request.key), ground, reference, placedBy: { spiffeId: by } };
  return [create(LegalHoldPlacedSchema, { ...hold, placedAt: timestampFromMs(nowMs), ...requestOf(command) })];
};

const releaseHold = (state: SubjectState, command: Command<"ReleaseHold">): SubjectEvent[] => {
  if (cameBefore(state, command.request)) return [];
  const { pseudonym, holdId, by, nowMs } = command;
  if (!state.holds.some((hold) => hold.holdId === holdId))
    throw reject("HOLD_UNKNOWN", "no such hold is in force on this person's data");
  const released = { pseudonym, holdId, releasedBy: { spiffeId: by }, releasedAt: timestampFromMs(nowMs) };
  return [create(LegalHoldReleasedSchema, { ...released, ...requestOf(command) })];
};

/** Art. 17(3)(b), (e): what must be kept is not erased, whoever asks. */
const requestErasure = (state: SubjectState, command: Command<"RequestErasure">): SubjectEvent[] => {
  if (cameBefore(state, command.request) || state.erasure.status !== "none") return [];
  if (state.holds.length > 0)
    throw reject("HOLD_IN_FORCE", `the data must be kept: ${state.holds.map(holdText).join("; ")}`);
  const { pseudonym, reference, by, nowMs } = command;
  const requested = { pseudonym, reference, requestedBy: { spiffeId: by }, requestedAt: timestampFromMs(nowMs) };
  return [create(ErasureRequestedSchema, { ...requested, ...requestOf(command) })];
};

const recordDestroyed = ({ erasure }: SubjectState, command: Command<"RecordDestroyed">): SubjectEvent[] => {
  if (erasure.status === "none") throw reject("ERASURE_NOT_REQUESTED", "nobody has asked for this erasure");
  if (erasure.status !== "requested") return [];
  const { pseudonym, known, consumers, epoch, erasedAtMs, keyGoneByMs, backupDays } = command;
  const times = { erasedAt: timestampFromMs(erasedAtMs), keyGoneBy: timestampFromMs(keyGoneByMs) };
  return [
    create(DataSubjectErasedSchema, { pseudonym, known, consumers: [...consumers], epoch, backupDays, ...times }),
  ];
};

const recordPropagated = ({ erasure }: SubjectState, command: Command<"RecordPropagated">): SubjectEvent[] => {
  if (erasure.status === "propagated" || erasure.status === "completed") return [];
  const { pseudonym, acknowledged, lapsed, nowMs } = command;
  const heard = new Set([...acknowledged, ...lapsed]);
  if (erasure.status !== "destroyed" || !erasure.consumers.every((consumer) => heard.has(consumer)))
    throw reject("NOT_PROPAGATED", "an instance may still have a copy");
  const propagated = { acknowledged: [...acknowledged], lapsed: [...lapsed], propagatedAt: timestampFromMs(nowMs) };
  return [create(ErasurePropagatedSchema, { pseudonym, ...propagated })];
};

/** From when no backup is left that was made while the epoch's key was there. */
export const backupsGoneMs = (backupDays: number, keyGoneMs: number): number => keyGoneMs + backupDays * dayMs;

const complete = ({ erasure }: SubjectState, command: Command<"Complete">): SubjectEvent[] => {
  if (erasure.status === "completed") return [];
  if (erasure.status !== "propagated") throw reject("NOT_PROPAGATED", "an instance may still have a copy");
  const { pseudonym, keyDestroyedAtMs, nowMs } = command;
  const goneMs = backupsGoneMs(Math.max(erasure.backupDays, command.backupDays), keyDestroyedAtMs);
  if (nowMs < goneMs) throw reject("BACKUPS_KEPT", "a backup may still hold a copy");
  const times = { keyDestroyedAt: timestampFromMs(keyDestroyedAtMs), backupsGoneAt: timestampFromMs(goneMs) };
  return [create(ErasureCompletedSchema, { pseudonym, ...times })];
};

/** Each time, whatever the request id: data is handed out again, and who got it how often is what the record is for. */
const recordExport = (command: Command<"RecordExport">): SubjectEvent[] => {
  const { pseudonym, ground, reference, by, nowMs } = command;
  const exported = { exportedBy: { spiffeId: by }, exportedAt: timestampFromMs(nowMs) };
  return [create(DataSubjectExportedSchema, { pseudonym, ground, reference, ...exported })];
};

/** Each time, as an export. */
const recordOpened = (command: Command<"RecordOpened">): SubjectEvent[] => {
  const { pseudonym, eventId, field, ground, reference, by, nowMs } = command;
  const opened = { openedBy: { spiffeId: by }, openedAt: timestampFromMs(nowMs) };
  return [create(SealedFieldOpenedSchema, { pseudonym, eventId, field, ground, reference, ...opened })];
};

const decide = (state: SubjectState, command: SubjectCommand): readonly SubjectEvent[] => {
  switch (command.type) {
    case "PlaceHold":
      return placeHold(state, command);
    case "ReleaseHold":
      return releaseHold(state, command);
    case "RequestErasure":
      return requestErasure(state, command);
    case "RecordDestroyed":
      return recordDestroyed(state, command);
    case "RecordPropagated":
      return recordPropagated(state, command);
    case "Complete":
      return complete(state, command);
    case "RecordExport":
      return recordExport(command);
    case "RecordOpened":
      return recordOpened(command);
  }
};

const msOf = (timestamp: Timestamp | undefined): number => (timestamp ? timestampMs(timestamp) : 0);

const remembering = (
  state: SubjectState,
  { requestKey: key, requestHash: hash }: { readonly requestKey: string; readonly requestHash: string },
): SubjectState => ({ ...state, requests: [...state.requests, { key, hash }].slice(-maxRequests) });

const evolveErasure = (erasure: ErasureProgress, event: SubjectEvent): ErasureProgress => {
  switch (event.$typeName) {
    case "curfew.events.v1.ErasureRequested":
      return { status: "requested", requestedAtMs: msOf(event.requestedAt) };
    case "curfew.events.v1.DataSubjectErased": {
      if (erasure.status !== "requested") return erasure;
      const { known, consumers, epoch, backupDays } = event;
      const times = { erasedAtMs: msOf(event.erasedAt), keyGoneByMs: msOf(event.keyGoneBy) };
      return { ...erasure, status: "destroyed", known, consumers, epoch, backupDays, ...times };
    }
    case "curfew.events.v1.ErasurePropagated": {
      const { acknowledged, lapsed } = event;
      return erasure.status === "destroyed" ? { ...erasure, status: "propagated", acknowledged, lapsed } : erasure;
    }
    case "curfew.events.v1.ErasureCompleted": {
      const times = { keyDestroyedAtMs: msOf(event.keyDestroyedAt), backupsGoneAtMs: msOf(event.backupsGoneAt) };
      return erasure.status === "propagated" ? { ...erasure, status: "completed", ...times } : erasure;
    }
    default:
      return erasure;
  }
};

const evolve = (state: SubjectState, event: SubjectEvent): SubjectState => {
  switch (event.$typeName) {
    case "curfew.events.v1.LegalHoldPlaced": {
      const { holdId, ground, reference } = event;
      const hold = { holdId, ground, reference, placedAtMs: msOf(event.placedAt) };
      return { ...remembering(state, event), holds: [...state.holds, hold] };
    }
    case "curfew.events.v1.LegalHoldReleased":
      return { ...remembering(state, event), holds: state.holds.filter(({ holdId }) => holdId !== event.holdId) };
    case "curfew.events.v1.ErasureRequested":
      return { ...remembering(state, event), erasure: evolveErasure(state.erasure, event) };
    default:
      return { ...state, erasure: evolveErasure(state.erasure, event) };
  }
};

export const dataSubject: Decider<SubjectState, SubjectCommand, SubjectEvent> = {
  initial: { holds: [], erasure: { status: "none" }, requests: [] },
  decide,
  evolve,
};

export const subjectStream = (pseudonym: string): string => `subjects/${pseudonym}`;
