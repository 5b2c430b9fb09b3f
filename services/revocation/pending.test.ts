import { expect, it } from "vitest";
import { PendingRevocations } from "./pending.ts";

const received = { receivedAtMs: 1_010, clockOffsetMs: 0 };

it("wakes for an acknowledgement once: what comes from the topic too is no news", () => {
  const pending = new PendingRevocations();
  pending.add("event-1", "tok_1", 1_000, 0);
  let news = 0;
  pending.onChange = () => {
    news += 1;
  };
  pending.acknowledge(["event-1"], "sdk-1", received);
  pending.acknowledge(["event-1"], "sdk-1", received);
  expect(news).toBe(1);
  pending.acknowledge(["event-1"], "sdk-2", received);
  expect(news).toBe(2);
  expect([...(pending.get("event-1")?.acknowledgements.keys() ?? [])]).toEqual(["sdk-1", "sdk-2"]);
});
