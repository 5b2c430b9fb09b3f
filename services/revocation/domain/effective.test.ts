import { unwatchedHoldMs } from "@curfew/token-format/answer-life.ts";
import { describe, expect, it } from "vitest";
import {
  type Acknowledgement,
  type Lease,
  maxClockErrorMs,
  proofOf,
  provenEndMs,
  type SeenLease,
  surelyEndedMs,
  uncertainCommitMs,
} from "./effective.ts";

const leaseMs = 5_000;
const marginMs = 50;
const committedMs = 1_000_000;

const lease = (over: Partial<Lease> = {}): Lease => ({
  instance: "v-1",
  name: "workload/shop",
  sinceMs: committedMs - 60_000,
  previousEndMs: 0,
  untilMs: committedMs + 3_000,
  goodbye: false,
  clockOffsetMs: 2,
  reportsUses: true,
  ...over,
});
const at = (receivedAtMs: number): Acknowledgement => ({ receivedAtMs, clockOffsetMs: 4 });
/** Seen as it was granted, by a reader whose monotonic clock happens to read as the wall clock of all. */
const seen = (granted: Lease): SeenLease => ({ ...granted, provenEndMs: surelyEndedMs(granted, leaseMs) });
const proof = (leases: Lease[], acknowledged: Record<string, Acknowledgement> = {}, nowMs = committedMs + 10) =>
  proofOf(
    leases.map(seen),
    { committedMs, sinceMs: committedMs, acknowledgements: new Map(Object.entries(acknowledged)) },
    { wallMs: nowMs, monotonicMs: nowMs },
    leaseMs,
  );

describe("the effective time", () => {
  it("is the commit when nobody held a lease", () => {
    expect(proof([])).toEqual({ instances: [], effectiveAtMs: committedMs });
    expect(proof([lease({ untilMs: committedMs - marginMs })])).toEqual({ instances: [], effectiveAtMs: committedMs });
  });

  it("is absent while an instance has neither acknowledged nor surely lost its lease", () => {
    expect(proof([lease()]).effectiveAtMs).toBeUndefined();
    expect(proof([lease()], {}, committedMs + 3_000 + marginMs - 1).effectiveAtMs).toBeUndefined();
    expect(proof([lease()], {}, committedMs + 3_000 + marginMs).effectiveAtMs).toBe(committedMs + 3_000 + marginMs);
  });

  it("counts a lease whose end is only just not sure at commit", () => {
    expect(proof([lease({ untilMs: committedMs - marginMs + 1 })]).instances).toHaveLength(1);
  });

  it("is the latest of receipts and lease ends", () => {
    const leases = [lease(), lease({ instance: "v-2" }), lease({ instance: "sdk-1", untilMs: committedMs + 500 })];
    const receipts = { "v-1": at(committedMs + 5), "v-2": at(committedMs + 9), stranger: at(committedMs + 99_999) };
    expect(proof(leases, receipts, committedMs + 549).effectiveAtMs).toBeUndefined();
    expect(proof(leases, receipts, committedMs + 551)).toEqual({
      effectiveAtMs: committedMs + 550,
      instances: [
        { instance: "v-1", name: "workload/shop", clockOffsetMs: 4, acknowledgedAtMs: committedMs + 5 },
        { instance: "v-2", name: "workload/shop", clockOffsetMs: 4, acknowledgedAtMs: committedMs + 9 },
        { instance: "sdk-1", name: "workload/shop", clockOffsetMs: 2, leaseEndedAtMs: committedMs + 550 },
      ],
    });
  });

  it("does not wait for an instance that has said goodbye longer than until it did", () => {
    const gone = lease({ goodbye: true, untilMs: committedMs + 7 });
    expect(surelyEndedMs(gone, leaseMs)).toBe(committedMs + 7);
    expect(proof([gone]).effectiveAtMs).toBe(committedMs + 7);
  });

  it("is later for what a verifier may have answered last, where it vanished, left or ended before; not where it acknowledged", () => {
    const held = (over: Partial<Lease>) => lease({ reportsUses: false, ...over });
    const endMs = committedMs + 3_000 + marginMs + unwatchedHoldMs;
    expect(proof([held({})], {}, endMs - 1).effectiveAtMs).toBeUndefined();
    expect(proof([held({})], {}, endMs).effectiveAtMs).toBe(endMs);
    const gone = held({ goodbye: true, untilMs: committedMs + 7 });
    expect(proof([gone], {}, endMs).effectiveAtMs).toBe(committedMs + 7 + unwatchedHoldMs);
    const before = (agoMs: number) => held({ untilMs: committedMs - marginMs - agoMs });
    expect(proof([before(unwatchedHoldMs)])).toEqual({ instances: [], effectiveAtMs: committedMs });
    expect(proof([before(1)], {}, endMs).effectiveAtMs).toBe(committedMs + unwatchedHoldMs - 1);
    expect(proof([held({})], { "v-1": at(committedMs + 5) }).effectiveAtMs).toBe(committedMs + 5);
  });

  it("counts a lease that began soon after the commit was dated: the commit may have been written after it", () => {
    const began = (sinceMs: number) => lease({ sinceMs, untilMs: sinceMs + leaseMs });
    expect(proof([began(committedMs + uncertainCommitMs)], {}, committedMs + 60_001).effectiveAtMs).toBeUndefined();
    expect(proof([began(committedMs + uncertainCommitMs + 1)], {}, committedMs + 60_002).effectiveAtMs).toBe(
      committedMs,
    );
  });

  it("is bounded by the end of the lease before, for an instance that came back long after", () => {
    const back = lease({
      sinceMs: committedMs + 200_000,
      previousEndMs: committedMs + 4_000,
      untilMs: committedMs + 205_000,
    });
    expect(proof([back], {}, committedMs + 200_001)).toMatchObject({
      effectiveAtMs: committedMs + 4_000,
      instances: [{ leaseEndedAtMs: committedMs + 4_000 }],
    });
  });

  describe("with clocks that disagree", () => {
    /** On a reader's monotonic clock that began at 0: row seen at 1,000, revocation heard of at 1,500, leases read at `atMs`. */
    const skewed = (aheadMs: number, atMs: number) => {
      const granted = lease({ untilMs: committedMs - 500 + leaseMs });
      const read = (ms: number) => ({ wallMs: committedMs + ms - 1_500, monotonicMs: ms });
      const standing = { ...granted, provenEndMs: provenEndMs(granted, read(1_000), leaseMs) };
      const revocation = { committedMs: committedMs + aheadMs, sinceMs: 1_500, acknowledgements: new Map() };
      return proofOf([standing], revocation, read(atMs), leaseMs);
    };

    it("a commit dated ahead does not make a lease one that had ended before", () => {
      for (const aheadMs of [6_000, 10_000, 3_600_000]) {
        expect(skewed(aheadMs, 1_501)).toMatchObject({ effectiveAtMs: undefined, instances: [{ instance: "v-1" }] });
        expect(skewed(aheadMs, 6_049).effectiveAtMs).toBeUndefined();
      }
    });

    it("the lease ends as long after the commit's own date as after it was heard of", () => {
      expect(skewed(0, 6_050).effectiveAtMs).toBe(committedMs + 4_550);
      expect(skewed(10_000, 6_050)).toMatchObject({
        effectiveAtMs: committedMs + 14_550,
        instances: [{ leaseEndedAtMs: committedMs + 14_550 }],
      });
    });

    it("one that is set ahead ends no lease that stands", () => {
      const granted = lease();
      const standing = { ...granted, provenEndMs: 6_050 };
      const revocation = { committedMs, sinceMs: 1_500, acknowledgements: new Map() };
      const read = { wallMs: committedMs + 86_400_000, monotonicMs: 6_049 };
      expect(proofOf([standing], revocation, read, leaseMs).effectiveAtMs).toBeUndefined();
    });

    it("a lease that ended a minute before its row was first seen needs no proof", () => {
      const granted = lease({ untilMs: committedMs - maxClockErrorMs - marginMs });
      const at = (wallMs: number) => provenEndMs(granted, { wallMs, monotonicMs: 1_000 }, leaseMs);
      expect(at(committedMs + 1)).toBe(Number.NEGATIVE_INFINITY);
      expect(at(committedMs)).toBe(6_050);
    });
  });
});
