import { expect } from "vitest";
import { type Decider, Rejection } from "./decider.ts";

/** given / when / then for a decider: `specFor(d)([issued]).when(revoke).then([revoked])`, or `.thenRejected("CODE")`. */
export const specFor =
  <State, Command, Event>(decider: Decider<State, Command, Event>) =>
  (given: readonly Event[]) => {
    let state = decider.initial;
    for (const event of given) state = decider.evolve(state, event);
    return {
      when: (command: Command) => ({
        // biome-ignore lint/suspicious/noThenProperty: the word of given / when / then; nobody awaits it
        then: (expected: readonly Event[]) => expect(decider.decide(state, command)).toEqual(expected),
        thenEvents: (check: (events: readonly Event[]) => void) => check(decider.decide(state, command)),
        thenRejected: (code: string) => {
          let caught: unknown;
          try {
            decider.decide(state, command);
          } catch (error) {
            caught = error;
          }
          expect(caught).toBeInstanceOf(Rejection);
          expect((caught as Rejection).code).toBe(code);
        },
      }),
    };
  };
