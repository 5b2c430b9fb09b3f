import { DriftCause } from "@curfew/contracts/gen/curfew/events/v1/evidence_pb.ts";
import { evidenceSettings } from "@curfew/event-log/topics.ts";
import { describe, expect, it } from "vitest";
import { compareTopic, driftStream } from "./drift.ts";

const topic = "curfew.uses.v1";
const wanted = evidenceSettings(2);
const sealed = [
  { topic, partition: 0, next: 10 },
  { topic, partition: 1, next: 5 },
  { topic: "curfew.tokens.v1", partition: 0, next: 99 },
];
const state = { starts: [0, 0, 0], ends: [10, 7, 0], settings: wanted };

describe("a topic compared with what evidence needs", () => {
  it("is as it must be when it has all that is sealed and every setting", () => {
    expect(compareTopic(topic, state, wanted, sealed)).toEqual([]);
    // Pruned, but not of what is not sealed: that sealed records are gone is for re-verification to say.
    expect(compareTopic(topic, { ...state, starts: [10, 3, 0] }, wanted, sealed)).toEqual([]);
  });

  it.each([
    ["ends before what is sealed", { ends: [9, 7, 0] }, [0, "10", "9"]],
    ["begins after what is sealed", { starts: [0, 6, 0] }, [1, "5", "6"]],
    ["has lost a record before it could be sealed", { starts: [0, 0, 1], ends: [10, 7, 1] }, [2, "0", "1"]],
    ["has fewer partitions", { starts: [0], ends: [10] }, [1, "5", ""]],
  ])("has shrunk where a partition %s", (_, change, [partition, expected, seen]) => {
    const drift = { cause: DriftCause.SHRUNK, topic, setting: "", partition, expected, seen };
    expect(compareTopic(topic, { ...state, ...change }, wanted, sealed)).toEqual([drift]);
  });

  it("has shrunk where it is absent, sealed or not", () => {
    const places = (name: string, known: typeof sealed) =>
      compareTopic(name, undefined, wanted, known).map((d) => [d.cause, d.partition, d.expected, d.seen]);
    expect(places(topic, sealed)).toEqual([
      [DriftCause.SHRUNK, 0, "10", ""],
      [DriftCause.SHRUNK, 1, "5", ""],
    ]);
    expect(places("curfew.evidence.v1", sealed)).toEqual([[DriftCause.SHRUNK, 0, "0", ""]]);
  });

  it.each(Object.entries(wanted))("drifts where %s is not %s, or cannot be seen", (setting, expected) => {
    const { [setting]: _, ...others } = wanted;
    for (const [settings, seen] of [
      [{ ...wanted, [setting]: "other" }, "other"],
      [others, ""],
    ] as const)
      expect(compareTopic(topic, { ...state, settings }, wanted, sealed)).toEqual([
        { cause: DriftCause.SETTING, topic, setting, expected, seen },
      ]);
  });

  it("has a stream of its own for each cause, topic, partition and setting, and one for all files", () => {
    const streams = [
      { cause: DriftCause.SHRUNK, topic, partition: 0, setting: "" },
      { cause: DriftCause.SHRUNK, topic, partition: 1, setting: "" },
      { cause: DriftCause.RECREATED, topic, partition: 1, setting: "" },
      { cause: DriftCause.SETTING, topic, setting: "retention.ms" },
      { cause: DriftCause.SETTING, topic, setting: "retention.bytes" },
      { cause: DriftCause.SETTING, topic: "curfew.tokens.v1", setting: "retention.bytes" },
      { cause: DriftCause.LEDGER_FILE, topic: "", setting: "tile/0/000" },
    ].map(driftStream);
    expect(new Set(streams).size).toBe(streams.length);
    expect(streams.at(-1)).toBe(driftStream({ cause: DriftCause.LEDGER_FILE, topic: "", setting: "tile/0/001" }));
  });
});
