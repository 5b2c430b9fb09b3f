import type { Message } from "@bufbuild/protobuf";
import { type Decider, Rejection } from "@curfew/decider/decider.ts";
import { StoreUnavailable } from "@curfew/document-store/port.ts";
import type { Clock } from "@curfew/runtime/clock.ts";
import { span, withSpan } from "@curfew/runtime/telemetry.ts";
import { sharedByKey } from "./shared.ts";
import { type CommitDoc, type EventStreams, isSameCommit, type StreamEnd, UncertainAppend } from "./streams.ts";

/** Another writer was first too often within the deadline. Nothing was written. */
export class CommandConflict extends Error {
  override name = "CommandConflict";
}

export interface Handled<State, Event> {
  /** State after the events. */
  readonly state: State;
  /** What was appended; [] when it was already so. */
  readonly events: readonly Event[];
  /** The commit, to be published; absent when nothing was appended. */
  readonly commit: CommitDoc | undefined;
}

/** What goes into the commit beside its events. */
type Attach<Event> = (events: readonly Event[]) => CommitDoc["attached"] | Promise<CommitDoc["attached"]>;

export interface Aggregates<State, Command, Event extends Message> {
  load(stream: string): Promise<State>;
  /**
   * Loads, decides, appends at the expected version; on a conflict loads what is new and decides again, on an outage tries again with a
   * growing pause, both within `signal`. With `deadlineMs` (wall clock) no try is begun that would likely end after it, so that the caller
   * still hears of the outage. A commit whose reply was lost is recognised in the stream by its event ids, so it has one effect.
   * With `isNew` the stream is named by this very request, so that most likely there is none yet: the first try decides on that guess
   * without loading, and the insert shows whether it was right. Throws what `decide` throws, CommandConflict, or StoreUnavailable.
   */
  handle(
    stream: string,
    command: Command,
    options?: {
      signal?: AbortSignal;
      deadlineMs?: number | undefined;
      attach?: Attach<Event>;
      isNew?: boolean;
    },
  ): Promise<Handled<State, Event>>;
}

const maxCachedStreams = 10_000;
const maxConflicts = 100;
const maxTriesWithoutSignal = 3;
const firstPauseMs = 100;
const maxPauseMs = 1_000;
/** Left of the caller's time for the answer to get back. */
const answerMs = 300;

interface Folded<State> extends StreamEnd {
  readonly state: State;
}

interface Written<Event> {
  readonly commit: CommitDoc;
  readonly events: readonly Event[];
}

/** Streams folded as far as they were last seen. A stale entry is harmless: a stream is always read upward from it. */
const openFolds = <State, Event extends Message>(
  streams: EventStreams,
  decider: Decider<State, never, Event>,
  clock: Clock,
) => {
  // Least recently used first.
  const cache = new Map<string, Folded<State>>();

  const extend = (stream: string, from: Folded<State>, events: readonly Event[]): Folded<State> => {
    let { state } = from;
    for (const event of events) state = decider.evolve(state, event);
    const folded = { version: from.version + 1, sequence: from.sequence + events.length, state };
    cache.delete(stream);
    cache.set(stream, folded);
    if (cache.size > maxCachedStreams) cache.delete(cache.keys().next().value as string);
    return folded;
  };

  const none: Folded<State> = { version: 0, sequence: 0, state: decider.initial };
  const load = sharedByKey(async (stream: string): Promise<Folded<State>> => {
    let folded = cache.get(stream) ?? none;
    for (;;) {
      const next = await streams.read(stream, folded.version + 1);
      if (!next) return folded;
      folded = extend(stream, folded, next.events as Event[]);
    }
  }, clock);

  return { extend, load, none, isKnown: (stream: string) => cache.has(stream) };
};

export const openAggregates = <State, Command, Event extends Message>(parts: {
  streams: EventStreams;
  decider: Decider<State, Command, Event>;
  clock: Clock;
}): Aggregates<State, Command, Event> => {
  const { streams, decider, clock } = parts;
  const folds = openFolds(streams, decider, clock);

  /** What an earlier try of the same command has written after all. A version that is not in the stream yet is still to be fought for. */
  const writtenUpTo = async (version: number, uncertain: readonly Written<Event>[]) => {
    for (const written of uncertain) {
      if (written.commit.version > version) continue;
      const there = await streams.read(written.commit.stream, written.commit.version);
      if (there && isSameCommit(there.doc, written.commit)) return written;
    }
    return undefined;
  };

  /** What is decided where there is no such stream; undefined where that would leave no insert to show that there is none. */
  const decideOnNone = (stream: string, command: Command): readonly Event[] | undefined => {
    if (folds.isKnown(stream)) return undefined;
    try {
      const events = decider.decide(folds.none.state, command);
      return events.length > 0 ? events : undefined;
    } catch (error) {
      if (error instanceof Rejection) return undefined;
      throw error;
    }
  };

  const attempt = async (
    stream: string,
    command: Command,
    uncertain: Written<Event>[],
    { attach, isNew }: { attach: Attach<Event> | undefined; isNew: boolean },
  ): Promise<Handled<State, Event> | "conflict"> => {
    const guessed = isNew ? decideOnNone(stream, command) : undefined;
    const folded = guessed ? folds.none : await folds.load(stream);
    const written = await writtenUpTo(folded.version, uncertain);
    if (written) return { state: folded.state, ...written };
    const events = guessed ?? decider.decide(folded.state, command);
    if (events.length === 0) return { state: folded.state, events, commit: undefined };
    try {
      const commit = await streams.append(stream, folded, events, await attach?.(events));
      return commit ? { state: folds.extend(stream, folded, events).state, events, commit } : "conflict";
    } catch (error) {
      if (error instanceof UncertainAppend) uncertain.push({ commit: error.commit, events });
      throw error;
    }
  };

  const handle: Aggregates<State, Command, Event>["handle"] = async (
    stream,
    command,
    { signal, deadlineMs = Number.POSITIVE_INFINITY, attach, isNew = false } = {},
  ) => {
    const uncertain: Written<Event>[] = [];
    for (let conflicts = 0, failures = 0; ; ) {
      const beganMs = clock.now();
      try {
        const isFirst = conflicts + failures === 0;
        const handled = await attempt(stream, command, uncertain, { attach, isNew: isNew && isFirst });
        if (handled !== "conflict") return handled;
        conflicts += 1;
        if (conflicts >= maxConflicts || signal?.aborted)
          throw new CommandConflict("too many writers at once: try again");
      } catch (error) {
        if (!(error instanceof StoreUnavailable)) throw error;
        failures += 1;
        if (signal ? signal.aborted : failures >= maxTriesWithoutSignal) throw error;
        const pauseMs = Math.min(firstPauseMs * 2 ** (failures - 1), maxPauseMs);
        // The next try takes about as long as this one did.
        if (2 * clock.now() - beganMs + pauseMs + answerMs > deadlineMs) throw error;
        await clock.sleep(pauseMs, signal);
        if (signal?.aborted) throw error;
      }
    }
  };

  return {
    load: async (stream) => (await folds.load(stream)).state,
    handle: (stream, command, options) =>
      withSpan(span.command(stream.split("/")[0] as string), {}, () => handle(stream, command, options)),
  };
};
