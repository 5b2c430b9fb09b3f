import { create, type Message } from "@bufbuild/protobuf";
import { durationFromMs, timestampFromMs } from "@bufbuild/protobuf/wkt";
import { CaseOpenedSchema, SignalJoinedSchema } from "@curfew/contracts/gen/curfew/events/v1/breaches_pb.ts";
import {
  DriftCause,
  EvidenceDriftFoundSchema,
  EvidenceGapFoundSchema,
  GapCause,
} from "@curfew/contracts/gen/curfew/events/v1/evidence_pb.ts";
import {
  LeakReportedSchema,
  RevocationAcknowledgedSchema,
  RevocationEffectiveSchema,
  RevocationReason,
  TokenRevokedSchema,
  UseReportingGapSchema,
} from "@curfew/contracts/gen/curfew/events/v1/revocations_pb.ts";
import {
  TokenExpiredSchema,
  TokenIssuedSchema,
  TokenRotatedSchema,
} from "@curfew/contracts/gen/curfew/events/v1/tokens_pb.ts";
import type { ReadEvent } from "@curfew/event-log/envelope.ts";
import { eventTypeOf } from "@curfew/event-log/event-types.ts";
import fc from "fast-check";
import { describe, expect, it } from "vitest";
import { maxSignals } from "./domain.ts";
import { Knowledge } from "./projections.ts";

const tokenId = "tok_00000000-0000-8000-8000-000000000001";
let offset = 0;
const eventOf = (message: Message, timeMs: number, subject = tokenId, sequence = 1): ReadEvent => {
  const { topic, type } = eventTypeOf(message);
  offset += 1;
  const record = {
    topic,
    partition: 0,
    offset,
    timestampMs: timeMs,
    key: subject,
    headers: [],
    value: new Uint8Array(1),
  };
  return {
    record,
    id: `e${offset}`,
    type,
    source: "/test",
    subject,
    timeMs,
    sequence,
    traceparent: undefined,
    message,
  };
};
const issued = create(TokenIssuedSchema, {
  tokenId,
  grant: { dataCategories: ["contact"] },
  generation: { number: 1, expiresAt: timestampFromMs(9_000) },
  lineageExpiresAt: timestampFromMs(15_000),
});
const rotated = create(TokenRotatedSchema, {
  tokenId,
  generation: { number: 2, expiresAt: timestampFromMs(18_000) },
  previousEndsAt: timestampFromMs(6_000),
});
const leaked = create(LeakReportedSchema, {
  tokenId,
  generation: 1,
  requestKey: "a",
  reportedAt: timestampFromMs(7_000),
});
const revokedByLeak = create(TokenRevokedSchema, { tokenId, reason: RevocationReason.LEAKED });
const revokedByHand = create(TokenRevokedSchema, { tokenId, reason: RevocationReason.COMPROMISED, requestKey: "b" });
const history = [
  eventOf(issued, 1_000),
  eventOf(rotated, 5_000),
  eventOf(leaked, 7_000),
  eventOf(revokedByLeak, 7_000),
  eventOf(
    create(RevocationEffectiveSchema, {
      tokenId,
      effectiveAt: timestampFromMs(7_500),
      largestClockOffset: durationFromMs(-30),
    }),
    7_600,
  ),
  eventOf(create(RevocationAcknowledgedSchema, { instance: "i", clockOffset: durationFromMs(-120) }), 7_400),
];
const knowing = (events: readonly ReadEvent[]) => {
  const knowledge = new Knowledge();
  for (const event of events) knowledge.apply(event);
  return knowledge;
};

describe("what the log says of a token", () => {
  it("is when each generation was issued and ended, who saw it leak, and since when it is dead", () => {
    const knowledge = knowing(history);
    expect(knowledge.token(tokenId)).toMatchObject({
      generations: [
        { number: 1, issuedAtMs: 1_000, endsAtMs: 6_000 },
        { number: 2, issuedAtMs: 5_000, endsAtMs: 15_000 },
      ],
      leaks: [{ generation: 1 }],
      wholeTokenCompromised: false,
      effective: { atMs: 7_500, clockOffsetMs: 30 },
    });
    expect(knowledge.largestClockOffsetMs).toBe(120);
    const expired = knowing([
      ...history,
      eventOf(create(TokenExpiredSchema, { tokenId, expiredAt: timestampFromMs(14_000) }), 14_000),
    ]);
    expect(expired.token(tokenId)?.generations.map((g) => g.endsAtMs)).toEqual([6_000, 14_000]);
  });

  it("does not say which generation leaked where someone ended the token as compromised without a report", () => {
    expect(knowing([...history, eventOf(revokedByHand, 8_000)]).token(tokenId)?.wholeTokenCompromised).toBe(true);
  });

  it("is the same in whatever order the topics were read, and read twice", () => {
    const expected = knowing(history).token(tokenId);
    const sorted = (facts: typeof expected) =>
      facts && { ...facts, generations: [...facts.generations].sort((a, b) => a.number - b.number) };
    fc.assert(
      fc.property(fc.shuffledSubarray([...history, ...history], { minLength: 12, maxLength: 12 }), (events) => {
        const knowledge = knowing(events);
        expect(sorted(knowledge.token(tokenId))).toEqual(expected);
        expect([...knowledge.signals]).toHaveLength(2);
      }),
    );
  });
});

describe("gaps in the reporting of uses", () => {
  it("are all known, however many there are", () => {
    const gap = (fromMs: number) =>
      eventOf(
        create(UseReportingGapSchema, {
          instance: "i",
          resourceService: "invoices",
          from: timestampFromMs(fromMs),
          to: timestampFromMs(fromMs + 5),
        }),
        fromMs,
      );
    const knowledge = knowing([...Array.from({ length: 10_001 }, (_, n) => gap(1_000 + n)), gap(2_000_000)]);
    expect([...knowledge.reportingGaps]).toEqual([
      { resourceService: "invoices", fromMs: 1_000, toMs: 11_005 },
      { resourceService: "invoices", fromMs: 2_000_000, toMs: 2_000_005 },
    ]);
  });
});

describe("signals", () => {
  it("name the case they belong to: one per token, one per producer, one per place where no producer is named", () => {
    const gap = (producer: string, partition: number) =>
      eventOf(create(EvidenceGapFoundSchema, { producer, position: { topic: "curfew.uses.v1", partition } }), 1);
    const cases = (events: readonly ReadEvent[]) => new Set([...knowing(events).signals].map(({ caseId }) => caseId));
    expect(cases(history)).toEqual(new Set([`case/${tokenId}/1`]));
    expect(cases([gap("verifier/a/1", 0), gap("verifier/a/1", 1)]).size).toBe(1);
    expect(cases([gap("", 0), gap("", 1), gap("", 1)]).size).toBe(2);
  });

  it("of offsets that jump are none: they prove nothing alone; a record that was too large to be sealed is one", () => {
    const gap = (cause: GapCause) =>
      eventOf(create(EvidenceGapFoundSchema, { cause, position: { topic: "curfew.uses.v1" } }), 1);
    const jumped = knowing([gap(GapCause.OFFSET_JUMP)]);
    expect([[...jumped.signals], [...jumped.evidenceGaps]]).toEqual([[], []]);
    const oversize = knowing([gap(GapCause.OVERSIZE)]);
    expect([[...oversize.signals].length, [...oversize.evidenceGaps].length]).toEqual([1, 1]);
  });

  it("of drift are one case for each topic, and one for the ledger's files; where records are not what they were, numbers may be too low", () => {
    const drift = (cause: DriftCause, topic: string, setting = "") =>
      eventOf(create(EvidenceDriftFoundSchema, { cause, topic, setting }), 1);
    const knowledge = knowing([
      drift(DriftCause.SETTING, "curfew.uses.v1", "retention.ms"),
      drift(DriftCause.SHRUNK, "curfew.uses.v1"),
      drift(DriftCause.RECORD_CHANGED, "curfew.tokens.v1"),
      drift(DriftCause.LEDGER_FILE, "", "checkpoint"),
    ]);
    const byCase = Map.groupBy(knowledge.signals, ({ caseId }) => caseId);
    expect([...byCase.values()].map((signals) => signals.length)).toEqual([2, 1, 1]);
    expect([...knowledge.evidenceGaps]).toEqual([
      { topic: "curfew.uses.v1", cause: "shrunk" },
      { topic: "curfew.tokens.v1", cause: "record changed" },
    ]);
  });

  it("keep the time to the millisecond and the place", () => {
    const [known] = knowing([eventOf(leaked, 1_767_225_600_123)]).signals;
    expect(known?.signal).toMatchObject({
      at: { seconds: 1_767_225_600n, nanos: 123_000_000 },
      position: { topic: "curfew.revocations.v1" },
    });
  });
});

describe("signals wait", () => {
  const caseId = `case/${tokenId}/1`;
  const leakAt = (timeMs: number) => eventOf(leaked, timeMs);
  const signalOf = ({ id, timeMs }: ReadEvent) => ({ eventId: id, at: timestampFromMs(timeMs) });
  const taken = (leak: ReadEvent, sequence: number) =>
    sequence === 1
      ? eventOf(create(CaseOpenedSchema, { caseId, tokenId, signal: signalOf(leak) }), 1, caseId, 1)
      : eventOf(create(SignalJoinedSchema, { caseId, signal: signalOf(leak) }), 1, caseId, sequence);
  const waiting = (events: readonly ReadEvent[]) => [...knowing(events).signals].map(({ signal }) => signal.eventId);

  it("until their case has them, in whatever order the topics are read", () => {
    const [one, two, three] = [leakAt(100), leakAt(200), leakAt(300)];
    const [opened, joined] = [taken(one, 1), taken(two, 2)];
    expect(waiting([one, two, three, opened])).toEqual([two.id, three.id]);
    expect(waiting([one, two, three, opened, joined])).toEqual([three.id]);
    expect(waiting([opened, joined, one, two, three, one])).toEqual([three.id]);
    const knowledge = new Knowledge();
    let woken = 0;
    knowledge.onSignal = () => {
      woken += 1;
    };
    for (const event of [one, opened, one]) knowledge.apply(event);
    expect(woken).toBe(1);
  });

  it("at most as many as a case takes, the earliest, and none that it will not take", () => {
    const leaks = Array.from({ length: maxSignals + 50 }, (_, i) => leakAt(10_000 - i));
    const earliest = leaks.slice(50).map(({ id }) => id);
    expect(waiting(leaks)).toEqual(earliest);
    expect(waiting(leaks.toReversed())).toEqual(earliest.toReversed());
    const full = leaks.slice(0, maxSignals).map((leak, i) => taken(leak, i + 1));
    const [early, late] = [leakAt(1), leakAt(20_000)];
    expect(waiting([...full, early, late])).toEqual([early.id]);
    expect(waiting([early, late, ...full])).toEqual([early.id]);
  });
});

describe("own cases", () => {
  it("are folded in their order, each event once", () => {
    const caseId = `case/${tokenId}/1`;
    const signal = (id: string) => ({ eventId: id, at: timestampFromMs(1) });
    const opened = eventOf(create(CaseOpenedSchema, { caseId, tokenId, signal: signal("a") }), 1, caseId, 1);
    const joined = eventOf(create(SignalJoinedSchema, { caseId, signal: signal("b") }), 2, caseId, 2);
    const [found] = knowing([opened, joined, opened, joined]).cases();
    expect(found?.state.signals.map((s) => s.eventId)).toEqual(["a", "b"]);
    expect(found?.offset).toBe(opened.record.offset);
  });
});
