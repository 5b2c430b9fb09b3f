import { create } from "@bufbuild/protobuf";
import { timestampFromMs } from "@bufbuild/protobuf/wkt";
import { type PageDue, type Signal, SignalSchema } from "@curfew/contracts/gen/curfew/events/v1/breaches_pb.ts";
import { fold, Rejection } from "@curfew/decider/decider.ts";
import { specFor } from "@curfew/decider/spec.ts";
import { describe, expect, it } from "vitest";
import { hourMs } from "./article-clock.ts";
import { maxKeptPages } from "./domain/pages.ts";
import {
  breachCase,
  type CaseCommand,
  type CaseEvent,
  caseIdOf,
  isCaseId,
  ladderOf,
  maxSignals,
  type OpenCase,
  pastRequest,
  type RejectionCode,
} from "./domain.ts";

const given = specFor(breachCase);
const startMs = Date.UTC(2026, 10, 24, 13, 17, 42);
const tokenId = "tok_00000000-0000-8000-8000-000000000001";
const caseId = caseIdOf({ tokenId }, 0);
const minute = 60_000;

const signal = (n: number, atMs = startMs): Signal =>
  create(SignalSchema, { eventId: `event-${n}`, eventType: "curfew.leak.reported.v1", at: timestampFromMs(atMs) });
const record = (n: number, atMs = startMs, noPersonalData = false): CaseCommand => ({
  type: "RecordSignal",
  caseId,
  tokenId,
  producer: "",
  noPersonalData,
  signal: signal(n, atMs),
});
const asked = (key: string, nowMs: number, hash = `hash-${key}`) => ({
  by: "spiffe://test.example/person/dora",
  request: { key, hash },
  nowMs,
});
const decideAt = (awareMs: number, nowMs: number, reason = "", key = `k${awareMs}`): CaseCommand => ({
  type: "DecideAwareness",
  awareAt: timestampFromMs(awareMs),
  reason,
  evidenceEventIds: [],
  ...asked(key, nowMs),
});
const raise = (nowMs: number, targets = ["mail", "hook"]): CaseCommand => ({
  type: "RaisePages",
  targets,
  repeatMs: 15 * minute,
  nowMs,
});

/** Runs commands one after another; answers all events. */
const run = (commands: readonly CaseCommand[], before: readonly CaseEvent[] = []): CaseEvent[] => {
  const events = [...before];
  let state = fold(breachCase, events);
  for (const command of commands)
    for (const event of breachCase.decide(state, command)) {
      events.push(event);
      state = breachCase.evolve(state, event);
    }
  return events;
};
const stateOf = (events: readonly CaseEvent[]): OpenCase => {
  const state = fold(breachCase, events);
  if (state.status === "none") throw new Error("no case");
  return state;
};
const opened = run([record(1)]);
const pagesOf = (events: readonly CaseEvent[]) =>
  events.filter((event): event is PageDue => event.$typeName === "curfew.events.v1.PageDue").map((p) => p.pageId);
const raised = (events: readonly CaseEvent[], nowMs: number, targets?: string[]) =>
  pagesOf(breachCase.decide(fold(breachCase, events), raise(nowMs, targets))).map((id) => id.slice(caseId.length + 1));
const settle = (events: readonly CaseEvent[], nowMs: number): CaseEvent[] =>
  run(
    [...stateOf(events).pages.all.values()]
      .filter(({ state }) => state === "due")
      .map(({ pageId }) => ({ type: "MarkPageSent", pageId, channelMessageId: "m", nowMs }) as const),
    events,
  );

describe("a case", () => {
  it("is opened by the first signal and joined by every other, each once", () => {
    given([])
      .when(record(1))
      .thenEvents(([event]) => expect(event).toMatchObject({ caseId, tokenId, noPersonalData: false }));
    given(opened).when(record(1)).then([]);
    const joined = run([record(2, startMs + 5), record(1), record(2, startMs + 5)], opened);
    expect(joined.map((e) => e.$typeName)).toEqual(["curfew.events.v1.CaseOpened", "curfew.events.v1.SignalJoined"]);
  });

  it("moves provisional awareness back for an earlier signal and forward for none", () => {
    expect(stateOf(run([record(2, startMs + hourMs)], opened)).firstSignalAtMs).toBe(startMs);
    const earlier = stateOf(run([record(3, startMs - hourMs)], opened));
    expect(earlier.firstSignalAtMs).toBe(startMs - hourMs);
    expect(earlier.signals.map((s) => s.eventId)).toEqual(["event-3", "event-1"]);
  });

  it("takes no signals past its limit but one that moves the clock back", () => {
    const full = run(Array.from({ length: maxSignals }, (_, i) => record(i)));
    given(full)
      .when(record(maxSignals, startMs + 1))
      .then([]);
    given(full)
      .when(record(maxSignals, startMs - 1))
      .thenEvents((events) => expect(events).toHaveLength(1));
  });

  it("has an id made of what it is about and of the cases closed before", () => {
    expect(caseIdOf({ tokenId }, 0)).toBe(`case/${tokenId}/1`);
    expect(caseIdOf({ tokenId }, 2)).toBe(`case/${tokenId}/3`);
    expect(caseIdOf({ place: "verifier/a/1" }, 0)).toMatch(/^case\/[0-9a-f]{32}\/1$/);
    expect(isCaseId(caseId)).toBe(true);
    for (const bad of ["", "case/x", "case/x/0", "case/x/01", `${caseId}/1`, "leases/x/1", "case/ü/1", "case/a b/1"])
      expect(isCaseId(bad)).toBe(false);
  });
});

describe("awareness", () => {
  it("is decided with a reason where it is after the first signal, and a second decision supersedes the first", () => {
    const first = run([decideAt(startMs, startMs + hourMs)], opened);
    expect(stateOf(first)).toMatchObject({ status: "aware" });
    const second = run([decideAt(startMs + minute, startMs + 2 * hourMs, "confirmed by the log")], first);
    expect(second).toHaveLength(3);
    expect(ladderOf(stateOf(second)).decidedAwareAtMs).toBe(startMs + minute);
    expect(second.slice(0, 2)).toEqual(first);
  });

  it("may be before the first signal, without a reason", () => {
    given(opened)
      .when(decideAt(startMs - hourMs, startMs))
      .thenEvents((events) => expect(events).toHaveLength(1));
  });

  it("is not decided twice by the same request, and remembers what that request decided", () => {
    const command = decideAt(startMs, startMs + hourMs, "", "same");
    const events = run([command, decideAt(startMs - minute, startMs + hourMs), command], opened);
    expect(events).toHaveLength(3);
    expect(pastRequest(stateOf(events), { key: "same", hash: "hash-same" })?.awareAtMs).toBe(startMs);
  });
});

describe("the page ladder", () => {
  it("pages every target at once, and nothing again until the milestone repeats", () => {
    expect(raised(opened, startMs)).toEqual(["opened/mail/1", "opened/hook/1"]);
    const paged = settle(run([raise(startMs)], opened), startMs + 1);
    expect(raised(paged, startMs + 14 * minute)).toEqual([]);
    expect(raised(paged, startMs + 15 * minute)).toEqual(["opened/mail/2", "opened/hook/2"]);
  });

  it("pages nobody where nobody is configured, and catches up once somebody is", () => {
    expect(raised(opened, startMs, [])).toEqual([]);
    expect(raised(opened, startMs + 5 * minute, ["mail"])).toEqual(["opened/mail/1"]);
  });

  it("climbs from the opening to the deadline and past it, in order", () => {
    let events = opened;
    const seen: [string, number][] = [];
    for (let ms = startMs; ms <= startMs + 75 * hourMs; ms += 5 * minute) {
      const due = breachCase.decide(fold(breachCase, events), raise(ms, ["mail"])) as PageDue[];
      for (const page of due) if (page.round === 1 || page.milestone === "overdue") seen.push([page.milestone, ms]);
      events = settle(run([raise(ms, ["mail"])], events), ms);
      const milestones = new Set(due.map((page) => page.milestone));
      const acks = [...milestones].map(
        (milestone): CaseCommand => ({ type: "AcknowledgePage", milestone, ...asked(`${milestone}${ms}`, ms) }),
      );
      events = run(acks, events);
    }
    expect(seen.map(([name, ms]) => [name, (ms - startMs) / hourMs])).toEqual([
      ["opened", 0],
      ["awareness-undecided", 1],
      ["investigation-24h", 24],
      ["deadline-48h", 24],
      ["deadline-24h", 48],
      ["deadline-12h", 60],
      ["deadline-4h", 68],
      ["deadline-1h", 71],
      ["overdue", 72],
      ["overdue", 73],
      ["overdue", 74],
      ["overdue", 75],
    ]);
  });

  it("is quiet once acknowledged, until the next milestone; seeing a later page covers the earlier ones", () => {
    const acknowledge = (milestone: string, nowMs: number): CaseCommand => ({
      type: "AcknowledgePage",
      milestone,
      ...asked(`${milestone}${nowMs}`, nowMs),
    });
    const paged = settle(run([raise(startMs)], opened), startMs);
    const quiet = run([acknowledge("opened", startMs + minute)], paged);
    expect(raised(quiet, startMs + 59 * minute)).toEqual([]);
    expect(raised(quiet, startMs + hourMs)).toEqual(["awareness-undecided/mail/1", "awareness-undecided/hook/1"]);
    const later = settle(run([raise(startMs + hourMs)], paged), startMs + hourMs);
    expect(
      raised(run([acknowledge("awareness-undecided", startMs + 61 * minute)], later), startMs + 3 * hourMs),
    ).toEqual([]);
    // One acknowledged before its new moment is paged all the same.
    expect(raised(run([acknowledge("opened", startMs + 61 * minute)], later), startMs + 2 * hourMs)).toEqual([
      "awareness-undecided/mail/2",
      "awareness-undecided/hook/2",
    ]);
  });

  it("fires at once what is overdue after a long absence: of the deadline's steps only the most urgent", () => {
    expect(raised(opened, startMs + 61 * hourMs, ["mail"])).toEqual([
      "opened/mail/1",
      "awareness-undecided/mail/1",
      "investigation-24h/mail/1",
      "deadline-12h/mail/1",
    ]);
    const decided = run([decideAt(startMs, startMs + minute)], opened);
    expect(raised(decided, startMs + 100 * hourMs, ["mail"])).toEqual(["opened/mail/1", "overdue/mail/1"]);
  });

  it("follows the deadline when a decision moves it", () => {
    const paged = settle(run([raise(startMs + 61 * hourMs, ["mail"])], opened), startMs + 61 * hourMs);
    const later = run([decideAt(startMs + 10 * hourMs, startMs + 62 * hourMs, "known by then only")], paged);
    // 72 h from ten hours later: the step of 12 h before has a new moment.
    expect(raised(later, startMs + 62 * hourMs, ["mail"])).toEqual(["deadline-24h/mail/1"]);
    const stepped = settle(run([raise(startMs + 62 * hourMs, ["mail"])], later), startMs + 62 * hourMs);
    expect(raised(stepped, startMs + 70 * hourMs, ["mail"])).toEqual(["deadline-12h/mail/2"]);
  });

  it("gives one notice, and no more, where the grant reaches no personal data", () => {
    const harmless = run([record(1, startMs, true)]);
    expect(raised(harmless, startMs, ["mail"])).toEqual(["opened/mail/1"]);
    const paged = run([raise(startMs, ["mail"])], harmless);
    expect(raised(settle(paged, startMs), startMs + 100 * hourMs, ["mail"])).toEqual([]);
    // Unless a person decides that there was personal data after all.
    const aware = run([decideAt(startMs, startMs + minute)], settle(paged, startMs));
    expect(raised(aware, startMs + 61 * hourMs, ["mail"])).toEqual(["deadline-12h/mail/1"]);
  });

  it("turns to the next target when one fails, and repeats what nobody could be told", () => {
    const fail = (page: string, nowMs: number, targets = ["mail", "hook"]): CaseCommand => ({
      type: "MarkPageFailed",
      pageId: `${caseId}/${page}`,
      error: "ESOCKET",
      targets,
      nowMs,
    });
    const paged = run(
      [
        raise(startMs),
        { type: "MarkPageSent", pageId: `${caseId}/opened/mail/1`, channelMessageId: "m", nowMs: startMs },
      ],
      opened,
    );
    const failed = run([fail("opened/hook/1", startMs + minute)], paged);
    expect(pagesOf(failed).at(-1)).toBe(`${caseId}/opened/mail/2`);
    // Failed again: all have failed, so nothing more until the repeat.
    const both = run([fail("opened/mail/2", startMs + 2 * minute)], failed);
    expect(pagesOf(both)).toHaveLength(3);
    expect(raised(both, startMs + 20 * minute)).toEqual(["opened/mail/3", "opened/hook/2"]);
    // A harmless leak too is repeated until one channel has taken it.
    const harmless = run([
      record(1, startMs, true),
      raise(startMs, ["mail"]),
      fail("opened/mail/1", startMs, ["mail"]),
    ]);
    expect(raised(harmless, startMs + 15 * minute, ["mail"])).toEqual(["opened/mail/2"]);
  });

  it("settles a page once: sent again after a crash, it stays sent, and cannot fail after that", () => {
    const pageId = `${caseId}/opened/mail/1`;
    const sent: CaseCommand = { type: "MarkPageSent", pageId, channelMessageId: "m", nowMs: startMs };
    const paged = run([raise(startMs, ["mail"]), sent], opened);
    given(paged).when(sent).then([]);
    given(paged)
      .when({ type: "MarkPageFailed", pageId, error: "x", targets: ["mail"], nowMs: startMs })
      .then([]);
    given(opened).when(sent).then([]);
  });

  it("keeps the number of pages in memory bounded without forgetting a round", () => {
    let state = fold(breachCase, opened);
    const apply = (more: readonly CaseEvent[]) => {
      for (const event of more) state = breachCase.evolve(state, event);
    };
    for (let round = 0; round < maxKeptPages + 50; round += 1) {
      const nowMs = startMs + (100 + round) * hourMs;
      apply(breachCase.decide(state, raise(nowMs, ["mail"])));
      if (state.status === "none") throw new Error("no case");
      for (const { pageId, state: is } of state.pages.all.values())
        if (is === "due")
          apply(breachCase.decide(state, { type: "MarkPageSent", pageId, channelMessageId: "m", nowMs }));
    }
    if (state.status === "none") throw new Error("no case");
    expect(state.pages.all.size).toBeLessThanOrEqual(maxKeptPages + 1);
    expect(pagesOf(breachCase.decide(state, raise(startMs + 5_000 * hourMs, ["mail"])))).toEqual([
      `${caseId}/overdue/mail/${maxKeptPages + 51}`,
    ]);
  });
});

describe("rejections", () => {
  const draft = (hash: string): CaseCommand => ({
    type: "DraftNotification",
    controller: "acme",
    draftSha256: new Uint8Array(32),
    ...asked("d", startMs, hash),
  });
  const table = {
    CASE_NOT_FOUND: [[], raise(startMs)],
    REQUEST_ID_REUSED: [run([draft("one")], opened), draft("other")],
    AWARE_AT_INVALID: [
      opened,
      { ...decideAt(0, startMs), awareAt: { ...timestampFromMs(0), seconds: 10n ** 15n } } as CaseCommand,
    ],
    AWARE_IN_FUTURE: [opened, decideAt(startMs + 1, startMs, "soon")],
    REASON_REQUIRED: [opened, decideAt(startMs + 1, startMs + 2, "  ")],
    MILESTONE_UNKNOWN: [opened, { type: "AcknowledgePage", milestone: "deadline-2h", ...asked("m", startMs) }],
    NOT_PAGED: [opened, { type: "AcknowledgePage", milestone: "opened", ...asked("n", startMs) }],
  } satisfies Record<RejectionCode, readonly [readonly CaseEvent[], CaseCommand]>;

  it.each(Object.entries(table))("%s", (code, [events, command]) => {
    given(events).when(command).thenRejected(code);
    const caught = (() => {
      try {
        return breachCase.decide(fold(breachCase, events), command);
      } catch (error) {
        return error;
      }
    })();
    expect((caught as Rejection).message).toMatch(/[a-z]{3}/);
    expect(caught).toBeInstanceOf(Rejection);
  });

  it("refuses a time before the year 2000 and one with nanoseconds out of range", () => {
    given(opened).when(decideAt(0, startMs)).thenRejected("AWARE_AT_INVALID");
    const odd = { ...decideAt(startMs, startMs), awareAt: { ...timestampFromMs(startMs), nanos: -1 } } as CaseCommand;
    given(opened).when(odd).thenRejected("AWARE_AT_INVALID");
  });
});
