import type { Message } from "@bufbuild/protobuf";
import type { Decider } from "@curfew/decider/decider.ts";
import type { Clock } from "@curfew/runtime/clock.ts";
import { span, withSpan } from "@curfew/runtime/telemetry.ts";
import type { CommitDoc, EventStreams, StreamEnd } from "./streams.ts";

/** Another writer was first too often within the deadline. Nothing was written. */
export class CommandConflict extends Error {
  override name = "CommandConflict";
}

interface Folded<State> extends StreamEnd {
  readonly state: State;
}

export interface Handled<State, Event> {
  /** State after the events. */
  readonly state: State;
  /** What was appended; [] when it was already so. */
  readonly events: readonly Event[];
  /** The commit, to be published; absent when nothing was appended. */
  readonly commit: CommitDoc | undefined;
}

export interface Aggregates<State, Command, Event extends Message> {
  load(stream: string): Promise<State>;
  /**
   * Loads, decides, appends at the expected version; on a conflict loads what is new and decides again, on an outage tries again with a
   * growing pause, both within `signal`. A lost reply of the database is met by the next try: the stream then holds the request already.
   * Throws what `decide` throws, CommandConflict, or StoreUnavailable.
   */
  handle(
    stream: string,
    command: Command,
    options?: { signal?: AbortSignal; attach?: (events: readonly Event[]) => CommitDoc["attached"] },
  ): Promise<Handled<State, Event>>;
}

const maxCachedStreams = 10_000;
const maxConflicts = 100;
const maxTriesWithoutSignal = 3;

export const openAggregates = <State, Command, Event extends Message>(parts: {
  streams: EventStreams;
  decider: Decider<State, Command, Event>;
  clock: Clock;
}): Aggregates<State, Command, Event> => {
  const { streams, decider, clock } = parts;
  // Least recently used first. A stale entry is harmless: a stream is always read upward from it.
  const cache = new Map<string, Folded<State>>();

  const remember = (stream: string, folded: Folded<State>) => {
    cache.delete(stream);
    cache.set(stream, folded);
    if (cache.size > maxCachedStreams) cache.delete(cache.keys().next().value as string);
    return folded;
  };

  const load = async (stream: string): Promise<Folded<State>> => {
    let folded = cache.get(stream) ?? { version: 0, sequence: 0, state: decider.initial };
    for (;;) {
      const next = await streams.read(stream, folded.version + 1);
      if (!next) return folded.version === 0 ? folded : remember(stream, folded);
      folded = {
        version: folded.version + 1,
        sequence: folded.sequence + next.events.length,
        state: (next.events as Event[]).reduce(decider.evolve, folded.state),
      };
    }
  };

  const attempt = async (
    stream: string,
    command: Command,
    attach?: (events: readonly Event[]) => CommitDoc["attached"],
  ): Promise<Handled<State, Event> | "conflict"> => {
    const folded = await load(stream);
    const events = decider.decide(folded.state, command);
    if (events.length === 0) return { state: folded.state, events, commit: undefined };
    const commit = await streams.append(stream, folded, events, attach?.(events));
    if (!commit) return "conflict";
    const state = events.reduce(decider.evolve, folded.state);
    remember(stream, { version: commit.version, sequence: folded.sequence + events.length, state });
    return { state, events, commit };
  };

  return {
    load: async (stream) => (await load(stream)).state,
    handle: (stream, command, { signal, attach } = {}) =>
      withSpan(span.command(stream.slice(0, stream.indexOf("/"))), {}, async () => {
        let conflicts = 0;
        for (let failures = 0; ; ) {
          try {
            const handled = await attempt(stream, command, attach);
            if (handled !== "conflict") return handled;
            conflicts += 1;
            if (conflicts >= maxConflicts || signal?.aborted)
              throw new CommandConflict("too many writers at once: try again");
          } catch (error) {
            if ((error as Error).name !== "StoreUnavailable") throw error;
            failures += 1;
            if (signal ? signal.aborted : failures >= maxTriesWithoutSignal) throw error;
            await clock.sleep(Math.min(50 * 2 ** failures, 1_000), signal);
            if (signal?.aborted) throw error;
          }
        }
      }),
  };
};
