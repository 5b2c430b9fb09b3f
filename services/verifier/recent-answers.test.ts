import { unwatchedHoldMs } from "@curfew/token-format/answer-life.ts";
import { expect, test } from "vitest";
import { openRecentAnswers } from "./recent-answers.ts";

test("an answer holds up the end of its token and of those it came from, from the last one on", () => {
  let nowMs = 1_000;
  const answers = openRecentAnswers({ monotonicMs: () => nowMs });
  answers.allowed("child", ["parent"]);
  nowMs += 100;
  answers.allowed("other", ["parent"]);
  expect(["child", "parent", "other", "stranger"].map(answers.openForMs)).toEqual([
    unwatchedHoldMs - 100,
    unwatchedHoldMs,
    unwatchedHoldMs,
    0,
  ]);
  nowMs += unwatchedHoldMs - 100;
  expect(["child", "parent"].map(answers.openForMs)).toEqual([0, 100]);
  answers.allowed("new", []);
  nowMs += 100;
  expect(["child", "parent", "other", "new"].map(answers.openForMs)).toEqual([0, 0, 0, unwatchedHoldMs - 100]);
});
