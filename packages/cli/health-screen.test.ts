import { create } from "@bufbuild/protobuf";
import { timestampFromMs } from "@bufbuild/protobuf/wkt";
import { GetHealthResponseSchema, VerdictState } from "@curfew/contracts/gen/curfew/auditor/v1/auditor_pb.ts";
import { describe, expect, it } from "vitest";
import { conditions, healthRow, screenOf, turnsOf } from "./health-screen.ts";

const since = timestampFromMs(Date.UTC(2026, 10, 27));
const good = { state: VerdictState.HOLDS, since, checkedSize: 7n };
const gap = (n: number) => ({
  cause: "GAP_CAUSE_HOLE",
  since,
  position: { topic: "curfew.uses.v1", partition: 3, offset: BigInt(n) },
  topic: "curfew.uses.v1",
  what: "verifier/a/1",
  expected: "4",
  seen: "",
});
const health = (change: object = {}) =>
  healthRow(
    create(GetHealthResponseSchema, {
      integrity: good,
      completeness: good,
      drift: good,
      lag: { unsealedRecords: 0n, mergeDelay: { nanos: 55_000_000 }, objective: { seconds: 2n } },
      reverifications: [{ what: "topics", passes: 2n, endedAt: since, at: "curfew.uses.v1/3@1200", compared: 500n }],
      ledgerSize: 9n,
      ...change,
    }),
  );
const broken = (count: number, moreFindings = false) => ({
  state: VerdictState.BROKEN,
  since,
  checkedSize: 9n,
  findings: Array.from({ length: count }, (_, n) => gap(n)),
  moreFindings,
});

describe("the screen of audit watch", () => {
  it("has a line for each thing, and its findings under it", () => {
    const completeness = broken(2);
    const answers = [
      { name: "w1", outcome: "cosigned", said: "cosigned", at: since },
      { name: "w2", outcome: "unreachable", said: "w2.example:443: ECONNREFUSED", at: since },
    ];
    const witnesses = { quorum: "missing", cosignedSize: 5n, cosignedAt: since, answers };
    const timestamps = { size: 4n, time: since, failing: "the answer is malformed", failingSince: since };
    expect(screenOf(health({ completeness, witnesses, timestamps }))).toEqual([
      "ledger        9 entries",
      "integrity     holds    as of 2026-11-27T00:00:00.000Z, 7 entries looked at",
      "completeness  BROKEN   since 2026-11-27T00:00:00.000Z, 9 entries looked at",
      "    GAP_CAUSE_HOLE  curfew.uses.v1/3@0  verifier/a/1  expected 4, seen nothing",
      "    GAP_CAUSE_HOLE  curfew.uses.v1/3@1  verifier/a/1  expected 4, seen nothing",
      "drift         holds    as of 2026-11-27T00:00:00.000Z, 7 entries looked at",
      "lag           kept     0 records not sealed, 99 % of the newest within 55 ms (at most 2000 ms)",
      "witnesses     missing  checkpoint of 5 at 2026-11-27T00:00:00.000Z",
      "    w2  unreachable  w2.example:443: ECONNREFUSED  2026-11-27T00:00:00.000Z",
      "timestamps    FAILING  checkpoint of 4 at 2026-11-27T00:00:00.000Z",
      "    since 2026-11-27T00:00:00.000Z: the answer is malformed",
      "compared      topics   2 times, last 2026-11-27T00:00:00.000Z, now curfew.uses.v1/3@1200 (500 entries)",
    ]);
  });

  it("says what is not known, and shows five of many findings", () => {
    const unknown = { state: VerdictState.UNKNOWN };
    const lines = screenOf(
      health({ integrity: unknown, drift: broken(100, true), lag: { objective: { seconds: 2n } } }),
    );
    expect(lines).toContain("integrity     unknown  ");
    const witnesses = { quorum: "unknown", answers: [] };
    expect(screenOf(health({ witnesses }))).toContain("witnesses     unknown  nobody was asked yet");
    expect(lines).toContain("    and more than 95 others");
    expect(lines.filter((line) => line.includes("GAP_CAUSE")).length).toBe(5);
    expect(lines).toContain("lag           kept     the bus cannot be asked (at most 2000 ms)");
    expect(lines).toContain("witnesses     none");
    expect(lines).toContain("timestamps    none");
  });

  it("says when one turns, and nothing while none does", () => {
    const before = health();
    expect(turnsOf(new Map(), before)).toEqual([]);
    expect(turnsOf(conditions(before), health({ ledgerSize: 10n }))).toEqual([]);
    const slow = { mergeDelay: { seconds: 3n }, objective: { seconds: 2n } };
    const after = health({ completeness: broken(1), lag: slow });
    expect(turnsOf(conditions(before), after)).toEqual([
      "completeness: holds -> BROKEN (GAP_CAUSE_HOLE  curfew.uses.v1/3@0  verifier/a/1  expected 4, seen nothing)",
      "lag: kept -> OVER",
    ]);
    const stamped = (failing: string) => conditions(health({ timestamps: { failing } }));
    expect([stamped("").get("timestamps"), stamped("no").get("timestamps")]).toEqual(["kept", "FAILING"]);
    expect(turnsOf(conditions(after), before)).toEqual(["completeness: BROKEN -> holds", "lag: OVER -> kept"]);
  });
});
