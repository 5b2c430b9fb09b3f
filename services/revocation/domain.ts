import { hash } from "node:crypto";
import { create } from "@bufbuild/protobuf";
import { durationFromMs, type Timestamp, timestampFromMs, timestampMs } from "@bufbuild/protobuf/wkt";
import {
  type LapsedInstance,
  type LeakReported,
  LeakReportedSchema,
  type LeakSighting,
  type RevocationEffective,
  RevocationEffectiveSchema,
  RevocationReason,
  type SecretIdentified,
  SecretIdentifiedSchema,
  type TokenRevoked,
  TokenRevokedSchema,
} from "@curfew/contracts/gen/curfew/events/v1/revocations_pb.ts";
import { type Decider, Rejection } from "@curfew/decider/decider.ts";
import { SECRET_PATTERN } from "@curfew/token-format/secret.ts";

/** The end of one token: stream `revocations/tok_…`. Once revoked it never comes back, and nobody needs to know the token to end it. */
export type RevocationEvent = TokenRevoked | LeakReported | SecretIdentified | RevocationEffective;

/** A request that led to events: the same one again changes nothing and is answered alike. */
export interface PastRequest {
  readonly key: string;
  readonly hash: string;
  /** Of a leak report: generation, and whether it was live until then. */
  readonly generation: number;
  readonly wasLive: boolean;
}

/** A sighting on record: the same one again, by the same reporter, tells nothing new. */
interface PastLeak {
  /** Of generation, reporter and place. */
  readonly key: string;
  /** Infinity: not known. */
  readonly exposedSinceMs: number;
}

interface Past {
  /** Last ones, oldest first. */
  readonly requests: readonly PastRequest[];
  readonly leaks: readonly PastLeak[];
}

interface Revoked extends Past {
  readonly reason: RevocationReason;
  readonly revokedAtMs: number;
}

export type RevocationState =
  /** Not revoked, as far as this stream knows: leaks of dead generations may have been reported. */
  | ({ readonly status: "standing" } & Past)
  | ({ readonly status: "revoked" } & Revoked)
  | ({ readonly status: "effective"; readonly effectiveAtMs: number } & Revoked);

interface Asked {
  readonly tokenId: string;
  /** SPIFFE ID from the certificate. */
  readonly by: string;
  /** Clock of revocation, ms since the epoch. */
  readonly nowMs: number;
  readonly request: { readonly key: string; readonly hash: string };
}

export interface EffectiveTime {
  readonly effectiveAtMs: number;
  readonly acknowledged: number;
  readonly lapsed: readonly { readonly instance: string; readonly name: string; readonly endedAtMs: number }[];
  readonly largestClockOffsetMs: number;
}

export type RevocationCommand =
  | ({ readonly type: "Revoke"; readonly reason: RevocationReason } & Asked)
  | ({
      readonly type: "ReportLeak";
      readonly generation: number;
      /** By the clock: neither superseded nor expired. Whether the token is revoked is for the stream to know. */
      readonly generationLive: boolean;
      readonly sighting: LeakSighting;
    } & Asked)
  | { readonly type: "Identify"; readonly tokenId: string; readonly generation: number; readonly by: string }
  | ({ readonly type: "TakeEffect"; readonly tokenId: string; readonly revocationEventId: string } & EffectiveTime);

type ReportLeak = Extract<RevocationCommand, { type: "ReportLeak" }>;

export type RejectionCode =
  | "REQUEST_ID_REUSED"
  | "SIGHTING_INVALID"
  | "SIGHTING_HOLDS_SECRET"
  | "EXPOSED_IN_FUTURE"
  | "NOT_REVOKED";

const maxRequests = 100;
const maxLeaks = 100;
const sightingKinds = ["git", "file", "chat", "paste", "web", "other"];
const maxLocationLength = 2_048;
/** The reporter's clock may be ahead by this much. */
const clockToleranceMs = 300_000;
const earliestExposureMs = Date.UTC(2000, 0, 1);
const secretInText = new RegExp(SECRET_PATTERN);

const reject = (code: RejectionCode, message: string) => new Rejection<RejectionCode>(code, message);

/** The same request, if it came before. Throws when its id was used for another one. */
export const pastRequest = (state: RevocationState, { key, hash }: Asked["request"]): PastRequest | undefined => {
  const past = state.requests.find((request) => request.key === key);
  if (past && past.hash !== hash)
    throw reject("REQUEST_ID_REUSED", "this request_id was used for another request; make a new one");
  return past;
};

const checkExposure = (exposedSince: Timestamp | undefined, nowMs: number): void => {
  if (!exposedSince) return;
  const sinceMs = timestampMs(exposedSince);
  if (!(sinceMs >= earliestExposureMs))
    throw reject("SIGHTING_INVALID", "exposed_since is before the year 2000; leave it out when it is unknown");
  if (sinceMs > nowMs + clockToleranceMs)
    throw reject("EXPOSED_IN_FUTURE", "exposed_since is in the future; leave it out when it is unknown");
};

/** A sighting is evidence that others read: its kind is known, its place is named, and no secret stands in it. */
const checkSighting = ({ kind, location, exposedSince }: LeakSighting, nowMs: number): void => {
  if (!sightingKinds.includes(kind))
    throw reject("SIGHTING_INVALID", `sighting.kind is one of ${sightingKinds.join(", ")}`);
  // biome-ignore lint/suspicious/noControlCharactersInRegex: control characters are what is refused
  if (location.trim() === "" || location.length > maxLocationLength || /[\u0000-\u001f\u007f]/.test(location))
    throw reject("SIGHTING_INVALID", `sighting.location is a text of 1 to ${maxLocationLength} characters on one line`);
  if (secretInText.test(location))
    throw reject("SIGHTING_HOLDS_SECRET", "sighting.location contains a secret; say where it is, not what it is");
  checkExposure(exposedSince, nowMs);
};

const revoked = (asked: Asked, reason: RevocationReason, request?: Asked["request"]): TokenRevoked =>
  create(TokenRevokedSchema, {
    tokenId: asked.tokenId,
    reason,
    revokedBy: { spiffeId: asked.by },
    revokedAt: timestampFromMs(asked.nowMs),
    requestKey: request?.key ?? "",
    requestHash: request?.hash ?? "",
  });

const revoke = (state: RevocationState, command: Extract<RevocationCommand, { type: "Revoke" }>): RevocationEvent[] => {
  pastRequest(state, command.request);
  return state.status === "standing" ? [revoked(command, command.reason, command.request)] : [];
};

const exposedSinceMs = ({ exposedSince }: LeakSighting): number =>
  exposedSince ? timestampMs(exposedSince) : Number.POSITIVE_INFINITY;

/** A hash: a place may be 2,048 characters, and a hundred of them are kept for each token. */
const leakKey = (generation: number, by: string, { kind, location }: LeakSighting): string =>
  hash("sha256", JSON.stringify([generation, by, kind, location]), "base64");

/** Whether `leak` is the report of this sighting by this reporter that is on record. */
export const isSameLeak = (
  leak: LeakReported,
  { generation, by, sighting }: { readonly generation: number; readonly by: string; readonly sighting: LeakSighting },
): boolean =>
  leak.sighting !== undefined &&
  leakKey(leak.generation, leak.reportedBy?.spiffeId ?? "", leak.sighting) === leakKey(generation, by, sighting);

/** Of a generation that is dead, the same sighting is recorded once, unless it is known to be older by now: writing has a bound. */
const isOnRecord = ({ leaks }: RevocationState, { generation, by, sighting }: ReportLeak): boolean => {
  const key = leakKey(generation, by, sighting);
  return leaks.some((leak) => leak.key === key && leak.exposedSinceMs <= exposedSinceMs(sighting));
};

/** Every report is recorded; one of a live generation also ends the token, in the same commit. */
const reportLeak = (state: RevocationState, command: ReportLeak): RevocationEvent[] => {
  if (pastRequest(state, command.request)) return [];
  const { tokenId, generation, sighting, by, nowMs, request } = command;
  checkSighting(sighting, nowMs);
  const generationLive = command.generationLive && state.status === "standing";
  if (!generationLive && isOnRecord(state, command)) return [];
  const reported = create(LeakReportedSchema, {
    tokenId,
    generation,
    generationLive,
    sighting,
    reportedBy: { spiffeId: by },
    reportedAt: timestampFromMs(nowMs),
    requestKey: request.key,
    requestHash: request.hash,
  });
  return generationLive ? [reported, revoked(command, RevocationReason.LEAKED)] : [reported];
};

const lapsedInstance = ({ instance, name, endedAtMs }: EffectiveTime["lapsed"][number]) =>
  ({ instance, name, leaseEndedAt: timestampFromMs(endedAtMs) }) satisfies Partial<LapsedInstance>;

const takeEffect = (
  state: RevocationState,
  command: Extract<RevocationCommand, { type: "TakeEffect" }>,
): RevocationEvent[] => {
  if (state.status === "standing") throw reject("NOT_REVOKED", "a token that is not revoked takes no effect");
  if (state.status === "effective") return [];
  const { tokenId, revocationEventId, effectiveAtMs, acknowledged, lapsed, largestClockOffsetMs } = command;
  return [
    create(RevocationEffectiveSchema, {
      tokenId,
      revocationEventId,
      effectiveAt: timestampFromMs(Math.ceil(effectiveAtMs)),
      acknowledged,
      lapsed: lapsed.length,
      largestClockOffset: durationFromMs(largestClockOffsetMs),
      lapsedInstances: lapsed.map(lapsedInstance),
    }),
  ];
};

const identify = ({ tokenId, generation, by }: Extract<RevocationCommand, { type: "Identify" }>): RevocationEvent[] => [
  create(SecretIdentifiedSchema, { tokenId, generation, identifiedBy: { spiffeId: by } }),
];

const decide = (state: RevocationState, command: RevocationCommand): readonly RevocationEvent[] => {
  switch (command.type) {
    case "Revoke":
      return revoke(state, command);
    case "ReportLeak":
      return reportLeak(state, command);
    case "Identify":
      return identify(command);
    case "TakeEffect":
      return takeEffect(state, command);
  }
};

const remembering = (
  { requests }: RevocationState,
  event: { readonly requestKey: string; readonly requestHash: string },
  result: { readonly generation: number; readonly wasLive: boolean },
): readonly PastRequest[] =>
  event.requestKey === ""
    ? requests
    : [...requests, { key: event.requestKey, hash: event.requestHash, ...result }].slice(-maxRequests);

const msOf = (timestamp: Timestamp | undefined): number => (timestamp ? timestampMs(timestamp) : 0);

const evolve = (state: RevocationState, event: RevocationEvent): RevocationState => {
  switch (event.$typeName) {
    case "curfew.events.v1.TokenRevoked": {
      const requests = remembering(state, event, { generation: 0, wasLive: true });
      if (state.status !== "standing") return { ...state, requests };
      const { leaks } = state;
      return { status: "revoked", reason: event.reason, revokedAtMs: msOf(event.revokedAt), requests, leaks };
    }
    case "curfew.events.v1.LeakReported": {
      const { generation, generationLive: wasLive } = event;
      const requests = remembering(state, event, { generation, wasLive });
      if (!event.sighting) return { ...state, requests };
      const key = leakKey(generation, event.reportedBy?.spiffeId ?? "", event.sighting);
      const leak = { key, exposedSinceMs: exposedSinceMs(event.sighting) };
      return { ...state, requests, leaks: [...state.leaks, leak].slice(-maxLeaks) };
    }
    case "curfew.events.v1.SecretIdentified":
      return state;
    case "curfew.events.v1.RevocationEffective":
      return state.status === "revoked"
        ? { ...state, status: "effective", effectiveAtMs: msOf(event.effectiveAt) }
        : state;
  }
};

export const revocation: Decider<RevocationState, RevocationCommand, RevocationEvent> = {
  initial: { status: "standing", requests: [], leaks: [] },
  decide,
  evolve,
};
