import { systemClock } from "@curfew/runtime/clock.ts";
import { expect, it } from "vitest";
import { WaitingRoom } from "./waiting-room.ts";

/** A clock of which only the time is ours: sleeps end when it is moved. */
const virtualClock = () => {
  let nowMs = 0;
  let sleeping: { readonly untilMs: number; readonly wake: () => void }[] = [];
  return {
    ...systemClock,
    monotonicMs: () => nowMs,
    sleep: (ms: number, signal?: AbortSignal) =>
      new Promise<void>((resolve) => {
        sleeping.push({ untilMs: nowMs + ms, wake: resolve });
        signal?.addEventListener("abort", () => resolve());
      }),
    sleepers: () => sleeping.length,
    async move(ms: number) {
      nowMs += ms;
      const due = sleeping.filter(({ untilMs }) => untilMs <= nowMs);
      sleeping = sleeping.filter(({ untilMs }) => untilMs > nowMs);
      for (const { wake } of due) wake();
      await new Promise(setImmediate);
    },
  };
};

const watched = (waiting: readonly Promise<boolean>[]) => {
  const answers: (boolean | undefined)[] = waiting.map(() => undefined);
  for (const [i, each] of waiting.entries()) void each.then((admitted) => (answers[i] = admitted));
  return async () => {
    await new Promise(setImmediate);
    return answers;
  };
};

it("admits in turn, as many as there is room for, past those who left", async () => {
  const room = new WaitingRoom(10, virtualClock());
  const leaving = new AbortController();
  const answers = watched([
    room.wait(100, undefined),
    room.wait(100, leaving.signal),
    room.wait(100, undefined),
    room.wait(100, undefined),
  ]);
  leaving.abort();
  room.admit(2);
  expect(await answers()).toEqual([true, false, true, undefined]);
  room.admitAll();
  expect(await answers()).toEqual([true, false, true, true]);
  expect(room.isEmpty).toBe(true);
});

it("each waits for its own time, by one timer", async () => {
  const clock = virtualClock();
  const room = new WaitingRoom(10, clock);
  const answers = watched([room.wait(300, undefined), room.wait(300, undefined), room.wait(400, undefined)]);
  expect(clock.sleepers()).toBe(1);
  const sooner = watched([room.wait(100, undefined)]);
  await clock.move(100);
  expect(await sooner()).toEqual([false]);
  expect(await answers()).toEqual([undefined, undefined, undefined]);
  await clock.move(200);
  expect(await answers()).toEqual([false, false, undefined]);
  await clock.move(100);
  expect(await answers()).toEqual([false, false, false]);
  expect(room.isEmpty).toBe(true);
});

it("turns away at once who comes when it is full, and counts nobody who left", async () => {
  const room = new WaitingRoom(2, virtualClock());
  const leaving = new AbortController();
  const first = watched([room.wait(100, leaving.signal), room.wait(100, undefined)]);
  expect(await room.wait(100, undefined)).toBe(false);
  leaving.abort();
  const next = watched([room.wait(100, undefined)]);
  room.admitAll();
  expect([await first(), await next()]).toEqual([[false, true], [true]]);
});
