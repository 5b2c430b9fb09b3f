import { create, type Message } from "@bufbuild/protobuf";
import { timestampFromMs } from "@bufbuild/protobuf/wkt";
import { Delivery } from "@curfew/contracts/gen/curfew/events/v1/common_pb.ts";
import { TokenRevokedSchema } from "@curfew/contracts/gen/curfew/events/v1/revocations_pb.ts";
import {
  KeyRegisteredSchema,
  SecretCollectedSchema,
  TokenExpiredSchema,
  TokenIssuedSchema,
} from "@curfew/contracts/gen/curfew/events/v1/tokens_pb.ts";
import { Reason, UseDecidedSchema } from "@curfew/contracts/gen/curfew/events/v1/uses_pb.ts";
import type { ReadEvent } from "@curfew/event-log/envelope.ts";
import { eventTypeOf } from "@curfew/event-log/event-types.ts";
import fc from "fast-check";
import { describe, expect, test } from "vitest";
import { openHeap } from "./heap.ts";
import { keepEndedMs, maxEarlyUses, openTokenBook, useClockToleranceMs } from "./projections.ts";

const hourMs = 3_600_000;
const event = (subject: string, message: Message, sequence?: number, timeMs = 0): ReadEvent => ({
  record: {
    topic: eventTypeOf(message).topic,
    partition: 0,
    offset: 10 * (sequence ?? 0),
    timestampMs: timeMs,
    key: subject,
    headers: [],
    value: new Uint8Array(),
  },
  id: `${subject}#${sequence}`,
  type: eventTypeOf(message).type,
  source: "/test",
  subject,
  timeMs,
  sequence,
  traceparent: undefined,
  message,
});
const issued = (tokenId: string, subject = "billing") =>
  event(
    `tokens/${tokenId}`,
    create(TokenIssuedSchema, {
      tokenId,
      subject,
      generation: {
        number: 1,
        notBefore: timestampFromMs(0),
        expiresAt: timestampFromMs(hourMs),
        delivery: Delivery.SEALED,
      },
      lineageExpiresAt: timestampFromMs(24 * hourMs),
    }),
    1,
  );
const collected = (tokenId: string) =>
  event(`tokens/${tokenId}`, create(SecretCollectedSchema, { tokenId, generation: 1 }), 2);
const expired = (tokenId: string) => event(`tokens/${tokenId}`, create(TokenExpiredSchema, { tokenId }), 3);
const revoked = (tokenId: string, timeMs = 5) =>
  event(`revocations/${tokenId}`, create(TokenRevokedSchema, { tokenId }), 1, timeMs);
const used = (tokenId: string, atMs: number, reason: Reason = Reason.OK) =>
  event("use/1", create(UseDecidedSchema, { tokenId, reason, decidedAt: timestampFromMs(atMs) }));

const usedAndTaken = (tokenId: string, atMs: number, readMs: number) =>
  event(
    "use/1",
    create(UseDecidedSchema, { tokenId, reason: Reason.OK, decidedAt: timestampFromMs(atMs) }),
    undefined,
    readMs,
  );

const bookOf = (...events: readonly ReadEvent[]) => {
  const book = openTokenBook();
  for (const each of events) book.apply(each);
  return book;
};

describe("the book of tokens", () => {
  test("says the same in whatever order the topics are read, however often a record comes", () => {
    const own = [issued("a"), collected("a"), expired("a")];
    const others = [revoked("a"), used("a", 7), used("a", 3), used("a", 9, Reason.EXPIRED)];
    const expected = bookOf(...own, ...others).get("a");
    expect(expected).toMatchObject({
      sequence: 3,
      offset: 30,
      revokedMs: 5,
      lastUsedMs: 7,
      state: { status: "expired" },
    });
    fc.assert(
      fc.property(fc.shuffledSubarray([0, 0, 0, 1, 1, 1, 1], { minLength: 7 }), fc.nat(6), (turns, repeat) => {
        const [mine, theirs] = [[...own], [...others]];
        const merged = turns.flatMap((turn) => (turn === 0 ? mine.shift() : theirs.shift()) ?? []);
        const again = merged[repeat];
        expect(bookOf(...merged, ...(again ? [again] : [])).get("a")).toEqual(expected);
      }),
    );
  });

  test("ignores what follows a gap, and events of other streams", () => {
    const book = bookOf(
      collected("a"),
      event("keys/x", create(KeyRegisteredSchema, { subject: "billing" }), 1),
      issued("b"),
      expired("b"),
    );
    expect(book.get("a")).toBeUndefined();
    expect(book.get("b")).toMatchObject({ sequence: 1, state: { status: "issued" } });
  });

  test("knows no token by its uses alone, however many ids are used; the latest are remembered until it is issued", () => {
    const ids = Array.from({ length: maxEarlyUses + 1 }, (_, i) => `t${i}`);
    const book = bookOf(...ids.map((id) => used(id, 7)));
    for (const id of [ids[0], ids.at(-1)]) {
      expect(book.get(id ?? "")).toBeUndefined();
      book.apply(issued(id ?? ""));
    }
    expect(book.get("t0")?.lastUsedMs).toBeUndefined();
    expect(book.get(ids.at(-1) ?? "")?.lastUsedMs).toBe(7);
    const revokedBook = bookOf(revoked("a"), used("a", 3), issued("a"));
    expect(revokedBook.get("a")).toMatchObject({ revokedMs: 5, lastUsedMs: 3 });
  });

  test("believes no use later than the broker has taken its record, but for clocks that differ a little", () => {
    const takenMs = 10 * hourMs;
    const lastUsed = (atMs: number) => bookOf(issued("a"), usedAndTaken("a", atMs, takenMs)).get("a")?.lastUsedMs;
    expect(lastUsed(takenMs - hourMs)).toBe(takenMs - hourMs);
    expect(lastUsed(takenMs + useClockToleranceMs)).toBe(takenMs + useClockToleranceMs);
    expect(lastUsed(takenMs + useClockToleranceMs + 1)).toBe(takenMs);
    expect(lastUsed(Date.UTC(9998, 0, 1))).toBe(takenMs);
  });

  test("gives what is due, once, until it is postponed or something happens", () => {
    const book = bookOf(issued("a"), issued("b"), collected("b"));
    const due = (nowMs: number) => book.takeDue(nowMs, 10).map((entry) => entry.tokenId);
    expect(due((2 / 3) * hourMs - 1)).toEqual([]);
    expect(due((2 / 3) * hourMs)).toEqual(["b"]);
    expect(due(0.9 * hourMs)).toEqual(["a"]);
    expect(due(2 * hourMs)).toEqual([]);
    book.postpone("a", 3 * hourMs);
    expect(due(3 * hourMs)).toEqual(["a"]);
    book.apply(collected("a"));
    book.postpone("a", 9 * hourMs); // the event came first
    expect(due(3 * hourMs)).toEqual(["a"]);
  });

  test("forgets what ended long ago, and what was revoked without ever being heard of", () => {
    const book = bookOf(issued("a"), collected("a"), expired("a"), issued("b"), revoked("b"), revoked("c"));
    expect(book.list(undefined, "", 10)).toHaveLength(2);
    expect(book.takeDue(hourMs + keepEndedMs, 10)).toEqual([]);
    for (const id of ["a", "b", "c"]) expect(book.get(id)).toBeUndefined();
    expect(book.list(undefined, "", 10)).toEqual([]);
    expect(book.list("billing", "", 10)).toEqual([]);
  });

  test("lists in order of ids, from any place, one subject's or all", () => {
    const ids = Array.from({ length: 50 }, (_, i) => String((i * 37) % 50).padStart(2, "0"));
    const book = bookOf(...ids.map((id) => issued(id, Number(id) % 2 ? "odd" : "even")), revoked("99"));
    const list = (subject: string | undefined, after: string, limit: number) =>
      book.list(subject, after, limit).map((entry) => entry.tokenId);
    expect(list(undefined, "", 3)).toEqual(["00", "01", "02"]);
    expect(list("odd", "05", 3)).toEqual(["07", "09", "11"]);
    expect(list(undefined, "47", 10)).toEqual(["48", "49"]);
    expect(list("nobody", "", 10)).toEqual([]);
  });
});

test("a heap gives back in order whatever was put in, in between too", () => {
  fc.assert(
    fc.property(fc.array(fc.option(fc.nat(100))), (steps) => {
      const heap = openHeap<number>((a, b) => a - b);
      const model: number[] = [];
      for (const step of steps) {
        if (step === null) expect(heap.pop()).toBe(model.shift());
        else {
          heap.push(step);
          model.push(step);
          model.sort((a, b) => a - b);
        }
        expect(heap.peek()).toBe(model[0]);
        expect(heap.size).toBe(model.length);
      }
    }),
  );
});
