import { create } from "@bufbuild/protobuf";
import { durationMs, type Timestamp, timestampMs } from "@bufbuild/protobuf/wkt";
import { SignalSchema } from "@curfew/contracts/gen/curfew/events/v1/breaches_pb.ts";
import type { Grant } from "@curfew/contracts/gen/curfew/events/v1/common_pb.ts";
import {
  DriftCause,
  DriftCauseSchema,
  type EvidenceDriftFound,
  type EvidenceGapFound,
  GapCause,
  GapCauseSchema,
} from "@curfew/contracts/gen/curfew/events/v1/evidence_pb.ts";
import {
  type LeakReported,
  type RevocationAcknowledged,
  type RevocationEffective,
  RevocationReason,
  type TokenRevoked,
  type UseReportingGap,
} from "@curfew/contracts/gen/curfew/events/v1/revocations_pb.ts";
import type { TokenExpired, TokenIssued, TokenRotated } from "@curfew/contracts/gen/curfew/events/v1/tokens_pb.ts";
import type { ReadEvent } from "@curfew/event-log/envelope.ts";
import { topicNames } from "@curfew/event-log/event-types.ts";
import type { TokenGeneration } from "./blast-radius.ts";
import { breachCase, type CaseEvent, type CaseState, caseIdOf, type OpenCase } from "./domain.ts";
import { type KnownSignal, PendingSignals } from "./pending-signals.ts";
import { type ReportingGap, ReportingGaps } from "./reporting-gaps.ts";

/**
 * What this replica knows from the topics of tokens, revocations, evidence and its own, in memory and in any order: an event that comes
 * twice changes nothing. Times in ms since the epoch.
 */
export interface TokenFacts {
  readonly grant: Grant | undefined;
  readonly issuedEventId: string;
  readonly generations: readonly TokenGeneration[];
  readonly revoked: { readonly eventId: string; readonly reason: RevocationReason; readonly atMs: number } | undefined;
  /** Someone ended it as leaked or compromised without saying which generation. */
  readonly wholeTokenCompromised: boolean;
  readonly effective: { readonly eventId: string; readonly atMs: number; readonly clockOffsetMs: number } | undefined;
  readonly leaks: readonly LeakFact[];
}

export interface LeakFact {
  readonly eventId: string;
  readonly generation: number;
  readonly kind: string;
  readonly public: boolean;
  readonly exposedSinceMs: number | undefined;
  readonly atMs: number;
  /** SPIFFE ID. */
  readonly reportedBy: string;
}

export interface EvidenceGap {
  readonly topic: string;
  readonly cause: string;
}

/** A case as its own topic tells it. */
export interface ListedCase {
  readonly state: OpenCase;
  /** Offset of its CaseOpened: the order of lists. */
  readonly offset: number;
}

/** Kept to be named: a single one leaves every case incomplete, so that those beyond change nothing. */
const maxEvidenceGaps = 100;
/** Offsets of answered requests, for those that come again. */
const maxRequestOffsets = 10_000;

interface Token {
  grant?: Grant;
  issuedEventId?: string;
  readonly generations: Map<number, { issuedAtMs: number; expiresAtMs: number }>;
  /** Generations up to `upTo` end at `atMs` at the latest. */
  readonly endings: Map<number, number>;
  lineageEndsMs?: number;
  revoked?: { eventId: string; reason: RevocationReason; atMs: number };
  wholeTokenCompromised: boolean;
  effective?: { eventId: string; atMs: number; clockOffsetMs: number };
  readonly leaks: Map<string, LeakFact>;
}

/** Of these no record is missing or other than it was. */
const keepsRecords = new Set<DriftCause>([DriftCause.SETTING, DriftCause.LEDGER_FILE]);

const msOf = (at: Timestamp | undefined): number => (at ? timestampMs(at) : 0);
const never = Number.MAX_SAFE_INTEGER;

export class Knowledge {
  readonly #tokens = new Map<string, Token>();
  readonly #signals = new PendingSignals();
  readonly #reportingGaps = new ReportingGaps();
  readonly #evidenceGaps = new Map<string, EvidenceGap>();
  readonly #cases = new Map<string, { state: CaseState; sequence: number; offset: number }>();
  readonly #requestOffsets = new Map<string, number>();
  #largestClockOffsetMs = 0;
  /** A signal was read. */
  onSignal: () => void = () => undefined;

  readonly apply = (event: ReadEvent): void => {
    const { message, record } = event;
    if (record.topic === topicNames.breaches) this.#applyOwn(event);
    else this.#appliers[message.$typeName]?.(message as never, event);
  };

  readonly #appliers: Readonly<Record<string, (message: never, event: ReadEvent) => void>> = {
    "curfew.events.v1.TokenIssued": (message: TokenIssued, event) => this.#issued(message, event),
    "curfew.events.v1.TokenRotated": (message: TokenRotated, event) => this.#rotated(message, event),
    "curfew.events.v1.TokenExpired": (message: TokenExpired) => this.#expired(message),
    "curfew.events.v1.TokenRevoked": (message: TokenRevoked, event) => this.#revoked(message, event),
    "curfew.events.v1.LeakReported": (message: LeakReported, event) => this.#leaked(message, event),
    "curfew.events.v1.RevocationEffective": (message: RevocationEffective, event) => this.#effective(message, event),
    "curfew.events.v1.RevocationAcknowledged": ({ clockOffset }: RevocationAcknowledged) =>
      this.#offset(clockOffset ? durationMs(clockOffset) : 0),
    "curfew.events.v1.UseReportingGap": (message: UseReportingGap) => this.#reportingGap(message),
    "curfew.events.v1.EvidenceGapFound": (message: EvidenceGapFound, event) => this.#evidenceGap(message, event),
    "curfew.events.v1.EvidenceDriftFound": (message: EvidenceDriftFound, event) => this.#evidenceDrift(message, event),
  };

  token(tokenId: string): TokenFacts | undefined {
    const token = this.#tokens.get(tokenId);
    if (!token) return undefined;
    return {
      grant: token.grant,
      issuedEventId: token.issuedEventId ?? "",
      generations: [...token.generations].map(([number, { issuedAtMs, expiresAtMs }]) => {
        const endings = [...token.endings].filter(([upTo]) => upTo >= number).map(([, atMs]) => atMs);
        return { number, issuedAtMs, endsAtMs: Math.min(expiresAtMs, token.lineageEndsMs ?? never, ...endings) };
      }),
      revoked: token.revoked,
      wholeTokenCompromised: token.wholeTokenCompromised,
      effective: token.effective,
      leaks: [...token.leaks.values()],
    };
  }

  /** Largest clock offset that any instance reported, absolute. */
  get largestClockOffsetMs(): number {
    return this.#largestClockOffsetMs;
  }

  get reportingGaps(): Iterable<ReportingGap> {
    return this.#reportingGaps.list();
  }

  get evidenceGaps(): Iterable<EvidenceGap> {
    return this.#evidenceGaps.values();
  }

  /** Those that were read and that their case does not have yet, as far as its topic was read. */
  get signals(): Iterable<KnownSignal> {
    return this.#signals.list();
  }

  /** Newest first. */
  cases(): ListedCase[] {
    return [...this.#cases.values()]
      .flatMap(({ state, offset }) => (state.status === "none" ? [] : [{ state, offset }]))
      .sort((a, b) => b.offset - a.offset);
  }

  /** Where the event that answered a request stands, as far as it was read. */
  offsetOf(requestKey: string): number | undefined {
    return this.#requestOffsets.get(requestKey);
  }

  #token(tokenId: string): Token {
    const found = this.#tokens.get(tokenId);
    if (found) return found;
    const token: Token = {
      generations: new Map(),
      endings: new Map(),
      wholeTokenCompromised: false,
      leaks: new Map(),
    };
    this.#tokens.set(tokenId, token);
    return token;
  }

  #issued({ tokenId, grant, generation, lineageExpiresAt }: TokenIssued, { id, timeMs }: ReadEvent): void {
    const token = this.#token(tokenId);
    if (grant) token.grant = grant;
    token.issuedEventId = id;
    if (lineageExpiresAt) token.lineageEndsMs = msOf(lineageExpiresAt);
    if (generation)
      token.generations.set(generation.number, { issuedAtMs: timeMs, expiresAtMs: msOf(generation.expiresAt) });
  }

  #rotated({ tokenId, generation, previousEndsAt }: TokenRotated, { timeMs }: ReadEvent): void {
    if (!generation) return;
    const token = this.#token(tokenId);
    token.generations.set(generation.number, { issuedAtMs: timeMs, expiresAtMs: msOf(generation.expiresAt) });
    token.endings.set(generation.number - 1, msOf(previousEndsAt));
  }

  #expired({ tokenId, expiredAt }: TokenExpired): void {
    this.#token(tokenId).endings.set(never, msOf(expiredAt));
  }

  #revoked(message: TokenRevoked, event: ReadEvent): void {
    const { tokenId, reason, requestKey } = message;
    const token = this.#token(tokenId);
    token.revoked = { eventId: event.id, reason, atMs: msOf(message.revokedAt) };
    if (reason !== RevocationReason.LEAKED && reason !== RevocationReason.COMPROMISED) return;
    // One that a leak report led to carries no key of its own: the report says which generation it was.
    if (requestKey !== "") token.wholeTokenCompromised = true;
    this.#signal(event, tokenId, "");
  }

  #leaked(message: LeakReported, event: ReadEvent): void {
    const { tokenId, generation, sighting, reportedBy, reportedAt } = message;
    this.#token(tokenId).leaks.set(event.id, {
      eventId: event.id,
      generation,
      kind: sighting?.kind ?? "",
      public: sighting?.public ?? false,
      exposedSinceMs: sighting?.exposedSince && msOf(sighting.exposedSince),
      atMs: msOf(reportedAt),
      reportedBy: reportedBy?.spiffeId ?? "",
    });
    this.#signal(event, tokenId, "");
  }

  #effective({ tokenId, effectiveAt, largestClockOffset }: RevocationEffective, { id }: ReadEvent): void {
    const clockOffsetMs = largestClockOffset ? Math.abs(durationMs(largestClockOffset)) : 0;
    this.#token(tokenId).effective = { eventId: id, atMs: msOf(effectiveAt), clockOffsetMs };
    this.#offset(clockOffsetMs);
  }

  #offset(ms: number): void {
    this.#largestClockOffsetMs = Math.max(this.#largestClockOffsetMs, Math.ceil(Math.abs(ms)));
  }

  #reportingGap({ resourceService, from, to }: UseReportingGap): void {
    this.#reportingGaps.add({ resourceService, fromMs: msOf(from), toMs: to ? msOf(to) : never });
  }

  #evidenceGap({ producer, cause, position }: EvidenceGapFound, event: ReadEvent): void {
    // Proves nothing alone (design: evidence).
    if (cause === GapCause.OFFSET_JUMP) return;
    const topic = position?.topic ?? "";
    this.#missing(event, topic, GapCauseSchema.value[cause]?.localName);
    this.#signal(event, "", producer, `${topic}/${position?.partition ?? 0}`);
  }

  /** One case for each topic, and one for the ledger's files. */
  #evidenceDrift({ topic, cause }: EvidenceDriftFound, event: ReadEvent): void {
    if (!keepsRecords.has(cause)) this.#missing(event, topic, DriftCauseSchema.value[cause]?.localName);
    this.#signal(event, "", "", `drift ${topic}`);
  }

  #missing(event: ReadEvent, topic: string, cause: string | undefined): void {
    if (this.#evidenceGaps.size >= maxEvidenceGaps) return;
    this.#evidenceGaps.set(event.id, { topic, cause: cause?.toLowerCase().replaceAll("_", " ") ?? "unknown cause" });
  }

  #signal(event: ReadEvent, tokenId: string, producer: string, place = ""): void {
    const { record, id, type, timeMs } = event;
    const about = tokenId === "" ? { place: producer === "" ? place : producer } : { tokenId };
    const signal = create(SignalSchema, {
      eventId: id,
      eventType: type,
      at: { seconds: BigInt(Math.floor(timeMs / 1_000)), nanos: (timeMs % 1_000) * 1_000_000 },
      position: { topic: record.topic, partition: record.partition, offset: BigInt(record.offset) },
    });
    // Nothing closes a case yet.
    const known = { caseId: caseIdOf(about, 0), tokenId, producer, signal };
    const state = this.#cases.get(known.caseId)?.state ?? breachCase.initial;
    if (this.#signals.add(known, state)) this.onSignal();
  }

  #applyOwn({ message, subject, sequence = 0, record }: ReadEvent): void {
    const known = this.#cases.get(subject);
    if (sequence !== (known?.sequence ?? 0) + 1) return;
    const event = message as CaseEvent;
    const state = breachCase.evolve(known?.state ?? breachCase.initial, event);
    this.#cases.set(subject, { state, sequence, offset: known?.offset ?? record.offset });
    if ("signal" in event) this.#signals.settle(subject, event.signal, state);
    if (!("requestKey" in event) || event.requestKey === "") return;
    this.#requestOffsets.set(event.requestKey, record.offset);
    if (this.#requestOffsets.size > maxRequestOffsets)
      this.#requestOffsets.delete(this.#requestOffsets.keys().next().value as string);
  }
}
