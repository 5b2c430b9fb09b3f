import type { Message } from "@bufbuild/protobuf";
import { timestampMs } from "@bufbuild/protobuf/wkt";
import type { TokenRevoked } from "@curfew/contracts/gen/curfew/events/v1/revocations_pb.ts";
import type { TokenIssued, TokenRotated } from "@curfew/contracts/gen/curfew/events/v1/tokens_pb.ts";
import { Reason } from "@curfew/contracts/gen/curfew/events/v1/uses_pb.ts";
import fc from "fast-check";
import { describe, expect, it } from "vitest";
import { decide } from "./domain.ts";
import { deadKeptMs, digestKey, Fold } from "./projections.ts";
import { dayMs, expired, issued, revoked, rotated, someDigest, tokenIdOf } from "./testing/histories.ts";

const hourMs = 3_600_000;
const t0 = 1_800_000_000_000;
const use = {
  scope: "invoices:read",
  resource: "invoices/1",
  purpose: "billing",
  dataCategories: ["contact"],
  audience: "crm",
  presenterThumbprint: "",
};
const verdict = (fold: Fold, name: string, number: number, nowMs: number): Reason =>
  decide(fold, fold.find(digestKey(someDigest(`${name}/${number}`))), use, nowMs).reason;
const folded = (...events: readonly Message[]): Fold => {
  const fold = new Fold();
  for (const event of events) fold.apply(event);
  return fold;
};
const hour = (n: number) => t0 + n * hourMs;

describe("the fold", () => {
  const first = issued("a", { notBeforeMs: t0, expiresAtMs: hour(2) });
  const second = rotated("a", 2, { notBeforeMs: hour(1), expiresAtMs: hour(3), previousEndsAtMs: hour(1.5) });

  it("lets two generations overlap until the overlap ends", () => {
    const fold = folded(first, second);
    const at = (h: number) => [verdict(fold, "a", 1, hour(h)), verdict(fold, "a", 2, hour(h))];
    expect(at(0.5)).toEqual([Reason.OK, Reason.NOT_YET_VALID]);
    expect(at(1.2)).toEqual([Reason.OK, Reason.OK]);
    expect(at(1.5)).toEqual([Reason.SUPERSEDED, Reason.OK]);
    expect(at(2)).toEqual([Reason.EXPIRED, Reason.OK]);
    expect(at(3)).toEqual([Reason.EXPIRED, Reason.EXPIRED]);
  });

  it("a rotation without overlap also ends generations that still had theirs", () => {
    const third = rotated("a", 3, { notBeforeMs: hour(1.1), expiresAtMs: hour(3), previousEndsAtMs: hour(1.1) });
    for (const fold of [folded(first, second, third), folded(third, first, second), folded(third, second, first)])
      expect([1, 2, 3].map((n) => verdict(fold, "a", n, hour(1.2)))).toEqual([
        Reason.SUPERSEDED,
        Reason.SUPERSEDED,
        Reason.OK,
      ]);
  });

  it("a token that was revoked before anybody heard of it is revoked when it is issued", () => {
    const fold = folded(revoked("a", t0), first);
    expect(verdict(fold, "a", 1, hour(1))).toBe(Reason.REVOKED);
  });

  it("revocation of a parent ends its children, and dominates expiry and supersession", () => {
    const child = issued("c", { notBeforeMs: t0, expiresAtMs: hour(2) }, { ancestors: ["b", "a"] });
    const fold = folded(child, first, second);
    expect(verdict(fold, "c", 1, hour(1))).toBe(Reason.OK);
    fold.apply(revoked("a", hour(1)));
    expect(verdict(fold, "c", 1, hour(1))).toBe(Reason.REVOKED);
    expect([1, 2].map((n) => verdict(fold, "a", n, hour(9)))).toEqual([Reason.REVOKED, Reason.REVOKED]);
  });

  it("where rules of one generation disagree, the later not-before and the earlier end bind", () => {
    const again = issued("a", { notBeforeMs: hour(1), expiresAtMs: hour(4) });
    const shorter = issued("a", { notBeforeMs: t0, expiresAtMs: hour(1.5) });
    for (const fold of [folded(first, again, shorter), folded(shorter, again, first), folded(again, first, shorter)]) {
      expect(verdict(fold, "a", 1, hour(0.5))).toBe(Reason.NOT_YET_VALID);
      expect(verdict(fold, "a", 1, hour(1.2))).toBe(Reason.OK);
      expect(verdict(fold, "a", 1, hour(1.6))).toBe(Reason.EXPIRED);
    }
  });

  it("no generation outlives its lineage", () => {
    const fold = folded(issued("a", { notBeforeMs: t0, expiresAtMs: hour(5), lineageExpiresAtMs: hour(2) }));
    expect(verdict(fold, "a", 1, hour(2))).toBe(Reason.EXPIRED);
  });

  it("a rotation whose token was never issued is no token of ours", () => {
    expect(verdict(folded(second), "a", 2, hour(1.2))).toBe(Reason.UNKNOWN);
  });
});

describe("forgetting", () => {
  const prune = (fold: Fold, nowMs: number) => fold.prune(nowMs, 10_000);

  it("names a dead secret for a day, then forgets it; a token keeps its grant for the rotations of its lineage", () => {
    const fold = folded(issued("a", { notBeforeMs: t0, expiresAtMs: hour(1) }));
    prune(fold, hour(1) + deadKeptMs);
    expect(verdict(fold, "a", 1, hour(1) + deadKeptMs)).toBe(Reason.EXPIRED);
    prune(fold, hour(2) + deadKeptMs);
    expect(fold.size()).toEqual({ generations: 0, tokens: 1, tombstones: 0 });
    fold.apply(rotated("a", 2, { notBeforeMs: hour(30), expiresAtMs: hour(31), previousEndsAtMs: hour(30) }));
    expect(verdict(fold, "a", 2, hour(30.5))).toBe(Reason.OK);
  });

  it("forgets a token that has expired for good, and what it shared", () => {
    const fold = folded(issued("a", { notBeforeMs: t0, expiresAtMs: hour(1) }), expired("a", hour(1)));
    prune(fold, hour(2) + deadKeptMs);
    expect(fold.size()).toEqual({ generations: 0, tokens: 0, tombstones: 0 });
  });

  it("a token that is rotated every minute for a day keeps a handful of generations", () => {
    const minuteMs = 60_000;
    const fold = folded(issued("a", { notBeforeMs: t0, expiresAtMs: t0 + 2 * minuteMs }));
    for (let n = 2; n < 1440; n += 1) {
      const atMs = t0 + n * minuteMs;
      fold.apply(
        rotated("a", n, { notBeforeMs: atMs, expiresAtMs: atMs + 2 * minuteMs, previousEndsAtMs: atMs + minuteMs }),
      );
      prune(fold, atMs);
    }
    expect(fold.size().generations).toBeLessThan(6);
    expect(verdict(fold, "a", 1439, t0 + 1439 * minuteMs)).toBe(Reason.OK);
  });

  it("a tombstone outlives every token that it could still have to end", () => {
    const fold = folded(revoked("late", t0));
    prune(fold, t0 + 30 * dayMs);
    fold.apply(issued("late", { notBeforeMs: t0, expiresAtMs: t0 + 30 * dayMs }));
    expect(verdict(fold, "late", 1, t0 + 29 * dayMs)).toBe(Reason.REVOKED);
    const long = folded(
      issued("long", { notBeforeMs: t0, expiresAtMs: t0 + 90 * dayMs, lineageExpiresAtMs: t0 + 90 * dayMs }),
      revoked("long", t0),
    );
    prune(long, t0 + 89 * dayMs);
    expect(verdict(long, "long", 1, t0 + 89 * dayMs)).toBe(Reason.REVOKED);
    prune(fold, t0 + 60 * dayMs);
    prune(fold, t0 + 60 * dayMs);
    expect(fold.size()).toEqual({ generations: 0, tokens: 0, tombstones: 0 });
  });
});

/** The verdict as one would write it down, from all the facts at once. */
const naive = (facts: readonly Message[], name: string, number: number, nowMs: number): Reason => {
  const of = <T extends Message>(type: string) =>
    facts.filter((fact) => fact.$typeName === `curfew.events.v1.${type}`) as T[];
  const id = tokenIdOf(name);
  const issue = of<TokenIssued>("TokenIssued").find((fact) => fact.tokenId === id);
  const rotations = of<TokenRotated>("TokenRotated").filter((fact) => fact.tokenId === id);
  const generation =
    number === 1 ? issue?.generation : rotations.find((fact) => fact.generation?.number === number)?.generation;
  if (!issue || !generation) return Reason.UNKNOWN;
  const ids = [id, ...issue.ancestors];
  if (of<TokenRevoked>("TokenRevoked").some((fact) => ids.includes(fact.tokenId))) return Reason.REVOKED;
  const at = (time: Parameters<typeof timestampMs>[0] | undefined) => (time ? timestampMs(time) : Number.NaN);
  if (nowMs >= at(generation.expiresAt)) return Reason.EXPIRED;
  if (nowMs < at(generation.notBefore)) return Reason.NOT_YET_VALID;
  const isSuperseded = rotations.some(
    (fact) => (fact.generation?.number ?? 0) > number && nowMs >= at(fact.previousEndsAt),
  );
  return isSuperseded ? Reason.SUPERSEDED : Reason.OK;
};

const names = ["a", "b", "c"];
/** The life of one token: issued, rotated some times, perhaps revoked, perhaps derived from the others. */
const life = (name: string) =>
  fc
    .record({
      startHour: fc.integer({ min: 0, max: 24 }),
      ttlHours: fc.integer({ min: 1, max: 12 }),
      rotations: fc.array(
        fc.record({
          afterHours: fc.integer({ min: 0, max: 12 }),
          ttlHours: fc.integer({ min: 1, max: 12 }),
          overlapHours: fc.integer({ min: 0, max: 6 }),
        }),
        { maxLength: 4 },
      ),
      ancestors: fc.subarray(names.filter((other) => other < name)),
      revokedHour: fc.option(fc.integer({ min: 0, max: 48 })),
    })
    .map(({ startHour, ttlHours, rotations, ancestors, revokedHour }) => {
      let atHour = startHour;
      const facts: Message[] = [
        issued(name, { notBeforeMs: hour(startHour), expiresAtMs: hour(startHour + ttlHours) }, { ancestors }),
      ];
      for (const [i, { afterHours, ttlHours: ttl, overlapHours }] of rotations.entries()) {
        atHour += afterHours;
        facts.push(
          rotated(name, i + 2, {
            notBeforeMs: hour(atHour),
            expiresAtMs: hour(atHour + ttl),
            previousEndsAtMs: hour(atHour + overlapHours),
          }),
        );
      }
      if (revokedHour !== null) facts.push(revoked(name, hour(revokedHour)));
      return facts;
    });

const histories = fc
  .tuple(...names.map(life))
  .map((lives) => lives.flat())
  .chain((facts) =>
    fc.record({
      facts: fc.constant(facts),
      // Every interleaving, with any repetitions: all facts in some order, and any of them again in another.
      order: fc
        .tuple(
          fc.shuffledSubarray(facts, { minLength: facts.length, maxLength: facts.length }),
          fc.array(fc.constantFrom(...facts), { maxLength: 12 }),
          fc.array(fc.nat(), { minLength: facts.length + 12, maxLength: facts.length + 12 }),
        )
        .map(([all, again, keys]) => {
          const mixed = [...all, ...again].map((fact, i) => ({ fact, key: keys[i] ?? 0 }));
          return mixed.sort((x, y) => x.key - y.key).map(({ fact }) => fact);
        }),
    }),
  );

describe("whatever the order and the repetitions", () => {
  it("the verdicts are those of all facts at once", () => {
    fc.assert(
      fc.property(histories, ({ facts, order }) => {
        const fold = folded(...order);
        for (const name of names)
          for (let number = 1; number <= 6; number += 1)
            for (const h of [0, 3.5, 8, 13.5, 20, 33, 47, 90])
              expect(verdict(fold, name, number, hour(h)), `${name}/${number} at ${h}`).toBe(
                naive(facts, name, number, hour(h)),
              );
      }),
      { numRuns: 300 },
    );
  });

  it("ends that were pushed ahead of the log change nothing once it has been read", () => {
    fc.assert(
      fc.property(histories, ({ facts, order }) => {
        const fold = new Fold();
        for (const fact of facts) {
          if (fact.$typeName === "curfew.events.v1.TokenRevoked") fold.revoke((fact as TokenRevoked).tokenId, hour(1));
          const { tokenId, generation, previousEndsAt } = fact as TokenRotated;
          if (previousEndsAt && generation) fold.supersede(tokenId, generation.number - 1, timestampMs(previousEndsAt));
        }
        for (const fact of order) fold.apply(fact);
        for (const name of names)
          for (let number = 1; number <= 5; number += 1)
            for (const h of [5, 12, 26, 44])
              expect(verdict(fold, name, number, hour(h))).toBe(naive(facts, name, number, hour(h)));
      }),
      { numRuns: 100 },
    );
  });

  it("forgetting in between never allows what would be denied, nor denies what would be allowed", () => {
    const input = fc.tuple(histories, fc.array(fc.integer({ min: 0, max: 120 }), { minLength: 1, maxLength: 5 }));
    fc.assert(
      fc.property(input, ([{ facts, order }, pruneHours]) => {
        const fold = new Fold();
        for (const [i, fact] of order.entries()) {
          fold.apply(fact);
          fold.prune(hour(pruneHours[i % pruneHours.length] ?? 0), 3);
        }
        const latest = Math.max(...pruneHours);
        for (const name of names)
          for (let number = 1; number <= 5; number += 1)
            for (const h of [latest, latest + 3.5, latest + 9]) {
              const isAllowed = verdict(fold, name, number, hour(h)) === Reason.OK;
              expect(isAllowed, `${name}/${number} at ${h}`).toBe(naive(facts, name, number, hour(h)) === Reason.OK);
            }
      }),
      { numRuns: 300 },
    );
  });
});
