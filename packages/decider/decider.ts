/** A pure aggregate: `decide` answers the events that a command leads to ([]: already so) or throws a Rejection; `evolve` folds one event. */
export interface Decider<State, Command, Event> {
  readonly initial: State;
  decide(state: State, command: Command): readonly Event[];
  evolve(state: State, event: Event): State;
}

/** A command refused by a rule of the domain. `code` is from the service's closed union, which its table maps to a gRPC status. */
export class Rejection<Code extends string = string> extends Error {
  override name = "Rejection";
  readonly code: Code;
  /** What was wrong and what to do, for the caller: no secret, no personal data. */
  readonly details: Readonly<Record<string, string>>;
  constructor(code: Code, message: string, details: Readonly<Record<string, string>> = {}) {
    super(message);
    this.code = code;
    this.details = details;
  }
}

export const fold = <State, Event>(decider: Decider<State, never, Event>, events: Iterable<Event>): State => {
  let state = decider.initial;
  for (const event of events) state = decider.evolve(state, event);
  return state;
};
