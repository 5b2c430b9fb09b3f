import { describe, expect, it } from "vitest";
import { type Decider, fold, Rejection } from "./decider.ts";
import { specFor } from "./spec.ts";

type Door = "open" | "shut" | "locked";
const door: Decider<Door, "shut" | "lock", "Shut" | "Locked"> = {
  initial: "open",
  decide(state, command) {
    if (command === "shut") return state === "open" ? ["Shut"] : [];
    if (state === "open") throw new Rejection("DOOR_OPEN", "shut it first", { door: "front" });
    return state === "locked" ? [] : ["Locked"];
  },
  evolve: (_state, event) => (event === "Shut" ? "shut" : "locked"),
};
const given = specFor(door);

describe("a decider spec", () => {
  it("folds what is given before the command is decided", () => {
    given([]).when("shut").then(["Shut"]);
    given(["Shut"]).when("lock").then(["Locked"]);
    given(["Shut", "Locked"]).when("lock").then([]);
    given(["Shut"])
      .when("lock")
      .thenEvents((events) => expect(events).toHaveLength(1));
    expect(fold(door, ["Shut", "Locked"])).toBe("locked");
    expect(fold(door, [])).toBe("open");
  });

  it("knows a rejection by its code", () => {
    given([]).when("lock").thenRejected("DOOR_OPEN");
    expect(new Rejection("A", "why").details).toEqual({});
  });

  it("fails where the events, the code, or the outcome are others", () => {
    expect(() => given([]).when("shut").then(["Locked"])).toThrow();
    expect(() => given([]).when("shut").then([])).toThrow();
    expect(() => given([]).when("lock").thenRejected("OTHER")).toThrow();
    expect(() => given([]).when("shut").thenRejected("DOOR_OPEN")).toThrow();
    expect(() => given([]).when("lock").then([])).toThrow(Rejection);
  });

  it("does not take a crash for a rejection", () => {
    const broken = specFor<Door, "shut", "Shut">({
      ...door,
      decide: () => {
        throw new TypeError("bug");
      },
      evolve: () => "shut",
    });
    expect(() => broken([]).when("shut").thenRejected("DOOR_OPEN")).toThrow();
  });
});
