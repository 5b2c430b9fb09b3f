import { timestampFromMs } from "@bufbuild/protobuf/wkt";
import type { Position } from "@curfew/contracts/gen/curfew/events/v1/common_pb.ts";
import {
  type EndedToken,
  type FreshnessMark,
  RevocationService,
  type WatchRevocationsResponse,
} from "@curfew/contracts/gen/curfew/revocation/v1/revocation_pb.ts";
import type { RpcChannel } from "@curfew/rpc/channel.ts";
import { createClient } from "@curfew/rpc/client.ts";
import { parseRpcError } from "@curfew/rpc/errors.ts";
import type { Clock } from "@curfew/runtime/clock.ts";
import type { Log } from "@curfew/runtime/log.ts";
import type { Random } from "@curfew/runtime/random.ts";
import { evolve, type Freshness, type FreshnessEvent, type Instant, isLiveAt, neverLive } from "./freshness.ts";

/** What an SDK has reported of its uses, as of now. */
export interface Reported {
  /** instance_sequence up to which every use is acknowledged. */
  readonly sequence: number;
  /** Nothing is left to report. */
  readonly allReported: boolean;
  /** When the oldest use that is not acknowledged was decided, by the wall clock; undefined: there is none. */
  readonly oldestOpenMs: number | undefined;
}

export interface WatcherOptions {
  /** To replicas of `revocation`; the next one is tried when one fails. They stay the caller's to close. */
  readonly channels: readonly RpcChannel[];
  /** Id of this process, new at every start: lower-case letters, digits, hyphens. */
  readonly instance: string;
  /** True for an SDK, whose uses arrive later in reports. */
  readonly reportsUses: boolean;
  readonly clock: Clock;
  readonly random: Random;
  readonly log: Log;
  /** Must apply them before it returns: they are acknowledged then. If it throws, nothing is, and the watcher is not live until it worked. */
  readonly onEnded: (tokens: readonly EndedToken[]) => void;
  /**
   * For how long, after `onEnded` has applied its end, somebody may still act on what was answered for a token before: it is
   * acknowledged after that. Absent: nobody but this process acts on its answers.
   */
  readonly openForMs?: (token: EndedToken) => number;
  /**
   * Whether everything below these positions (of curfew.revocations.v1 and curfew.tokens.v1) is applied, for a verifier, which has
   * feeds of its own. Asked again until it is. Absent: what the stream brought before a mark is applied when the mark arrives.
   */
  readonly positionsApplied?: (positions: readonly Position[]) => boolean;
  /**
   * Each mark as it arrives; `first`: of a new stream, which may have missed what was pushed before it opened. `clockOffsetMs`: how far
   * our wall clock is ahead of revocation's, less the way of the ping.
   */
  readonly onMark?: (positions: readonly Position[], first: boolean, clockOffsetMs: number) => void;
  readonly reported?: () => Reported;
}

/** The watcher side of WatchRevocations, for verifiers and SDKs alike. It never throws and never rejects, but for `whenLive`. */
export interface Watcher {
  /** Whether an allowed answer may be given now. Synchronous: call it as the last step before each answer, after looking at what `onEnded` applied. */
  isLive(): boolean;
  /** Resolves once live; rejects with the signal's reason when it aborts, or when the watcher is closed. */
  whenLive(signal?: AbortSignal): Promise<void>;
  /** Not live from now on; says goodbye (at most 1 s) so that nobody waits for this instance's lease to end. */
  close(): Promise<void>;
}

const pingEveryMs = 500;
/** A stream that brings no mark for so long is given up: another replica may do better. */
const silenceMs = 5_000;
const goodbyeMs = 1_000;
const retryBaseMs = 50;
const retryCapMs = 2_000;
const pollMs = 20;
const maxAcknowledged = 1_000;
/** Ends that come meanwhile share an acknowledgement; and the ends come first, for whoever has several watchers in one process. */
const acknowledgeAfterMs = 20;

const msOf = ({ seconds, nanos }: { seconds: bigint; nanos: number }) => Number(seconds) * 1000 + nanos / 1_000_000;

/** Opens at once; live some milliseconds after `revocation` can be reached. */
export const openWatcher = (options: WatcherOptions): Watcher => {
  const watcher = new RevocationWatcher(options);
  watcher.start();
  return watcher;
};

type Exchange = ReturnType<ReturnType<typeof createClient<typeof RevocationService>>["watchRevocations"]>;
type Message = Parameters<Exchange["send"]>[0];

/** One stream. */
interface Stream {
  readonly exchange: Exchange;
  readonly ended: AbortController;
  pings: number;
  marks: number;
  lastMark: Instant;
  acknowledgements: string[];
  /** Its goodbye was sent: whatever is written after that destroys the stream, and the goodbye perhaps with it. */
  finished: boolean;
}

class RevocationWatcher implements Watcher {
  readonly #options: WatcherOptions;
  readonly #closing = new AbortController();
  #state: Freshness = neverLive;
  #stream: Stream | undefined;
  #running: Promise<void> = Promise.resolve();
  #closed: Promise<void> | undefined;
  /** Streams in a row that brought no mark. */
  #failures = 0;

  constructor(options: WatcherOptions) {
    if (options.channels.length === 0) throw new RangeError("openWatcher: at least one channel to revocation");
    this.#options = options;
  }

  start(): void {
    this.#running = this.#run();
  }

  isLive(): boolean {
    if (this.#closing.signal.aborted) return false;
    const now = this.#now();
    if (this.#state.pending.length > 0) this.#settle();
    if (isLiveAt(this.#state, now)) return true;
    this.#evolve({ type: "observed", at: now });
    return false;
  }

  async whenLive(signal?: AbortSignal): Promise<void> {
    const either = signal ? AbortSignal.any([signal, this.#closing.signal]) : this.#closing.signal;
    while (!this.isLive()) {
      either.throwIfAborted();
      await this.#options.clock.sleep(pollMs, either);
    }
  }

  close(): Promise<void> {
    this.#closed ??= this.#goodbye();
    return this.#closed;
  }

  #now(): Instant {
    const { clock } = this.#options;
    return { monotonicMs: clock.monotonicMs(), wallMs: clock.now() };
  }

  #evolve(event: FreshnessEvent): void {
    this.#state = evolve(this.#state, event);
  }

  /** Marks whose positions have been reached meanwhile, the newest first: it covers those before. */
  #settle(): void {
    const { positionsApplied } = this.#options;
    for (const { ping, positions } of this.#state.pending.toReversed()) {
      if (positionsApplied && !positionsApplied(positions as readonly Position[])) continue;
      this.#evolve({ type: "applied", ordinal: ping.ordinal });
      return;
    }
  }

  async #run(): Promise<void> {
    const { channels, clock, random, log } = this.#options;
    for (let turn = 0; !this.#closing.signal.aborted; turn += 1) {
      const channel = channels[turn % channels.length] as RpcChannel;
      this.#failures += 1;
      try {
        await this.#watch(channel);
      } catch (error) {
        if (this.#closing.signal.aborted) return;
        const { status, reason } = parseRpcError(error);
        log.warn({ status, reason }, "watching revocations was interrupted");
      }
      const [byte = 0] = random(1);
      const boundMs = Math.min(retryCapMs, retryBaseMs * 2 ** Math.min(this.#failures, 10));
      await clock.sleep((boundMs * (byte + 1)) / 256, this.#closing.signal);
    }
  }

  /** One stream, until it ends or is given up. */
  async #watch(channel: RpcChannel): Promise<void> {
    const { instance, reportsUses } = this.#options;
    const ended = new AbortController();
    const exchange = createClient(RevocationService, channel).watchRevocations({ signal: ended.signal });
    const stream: Stream = {
      exchange,
      ended,
      pings: 0,
      marks: 0,
      lastMark: this.#now(),
      acknowledgements: [],
      finished: false,
    };
    this.#stream = stream;
    this.#evolve({ type: "connected" });
    try {
      this.#send(stream, { kind: { case: "hello", value: { instance, reportsUses } } });
      void this.#ping(stream);
      for await (const response of exchange.responses) this.#receive(stream, response);
    } finally {
      ended.abort();
      this.#stream = undefined;
    }
  }

  #send({ exchange, finished }: Stream, message: Message): void {
    if (finished) return;
    // A stream that broke ends its loop of responses; there the error is seen.
    exchange.send(message).catch(() => undefined);
  }

  async #ping(stream: Stream): Promise<void> {
    while (!stream.ended.signal.aborted) {
      const now = this.#now();
      if (now.monotonicMs - stream.lastMark.monotonicMs > silenceMs) return stream.ended.abort();
      this.#sendPing(stream, now, false);
      await this.#options.clock.sleep(pingEveryMs, stream.ended.signal);
    }
  }

  #sendPing(stream: Stream, at: Instant, goodbye: boolean): void {
    stream.pings += 1;
    this.#evolve({ type: "pinged", sequence: stream.pings, at });
    const reported = this.#options.reported?.();
    const { sequence, allReported, oldestOpenMs } = reported ?? { sequence: 0, allReported: true };
    const reportedUntilMs = Math.min(at.wallMs, oldestOpenMs ?? at.wallMs);
    const value = {
      sequence: BigInt(stream.pings),
      sentAt: timestampFromMs(at.wallMs),
      reportedSequence: BigInt(sequence),
      allReported,
      goodbye,
      ...(reported && { reportedUntil: timestampFromMs(reportedUntilMs) }),
    };
    this.#send(stream, { kind: { case: "ping", value } });
  }

  #receive(stream: Stream, { kind }: WatchRevocationsResponse): void {
    if (kind.case === "ended") this.#end(stream, kind.value.tokens);
    else if (kind.case === "mark") this.#mark(stream, kind.value);
  }

  #end(stream: Stream, tokens: readonly EndedToken[]): void {
    try {
      this.#options.onEnded(tokens);
    } catch (error) {
      this.#evolve({ type: "lost" });
      this.#options.log.error({ err: error }, "ends of tokens could not be applied");
      throw error;
    }
    const revoked = tokens.filter(({ revocationEventId }) => revocationEventId !== "");
    if (revoked.length === 0) return;
    const ids = revoked.map(({ revocationEventId }) => revocationEventId);
    const { openForMs, clock } = this.#options;
    const waitMs = openForMs ? Math.max(...revoked.map(openForMs)) : 0;
    if (waitMs <= 0) this.#queueAcknowledgements(stream, ids);
    // On a stream that ends before, they are pushed again on the next one.
    else void clock.sleep(waitMs, stream.ended.signal).then(() => this.#queueAcknowledgements(stream, ids));
  }

  #queueAcknowledgements(stream: Stream, ids: readonly string[]): void {
    if (stream.ended.signal.aborted) return;
    if (stream.acknowledgements.length === 0)
      void this.#options.clock.sleep(acknowledgeAfterMs, stream.ended.signal).then(() => this.#acknowledge(stream));
    stream.acknowledgements.push(...ids);
  }

  #acknowledge(stream: Stream): void {
    const ids = stream.acknowledgements;
    stream.acknowledgements = [];
    for (let i = 0; i < ids.length; i += maxAcknowledged) {
      const revocationEventIds = ids.slice(i, i + maxAcknowledged);
      this.#send(stream, { kind: { case: "acknowledge", value: { revocationEventIds } } });
    }
  }

  #mark(stream: Stream, { sequence, positions, lease, clockOffset }: FreshnessMark): void {
    const at = this.#now();
    stream.lastMark = at;
    stream.marks += 1;
    this.#failures = 0;
    this.#options.onMark?.(positions, stream.marks === 1, clockOffset ? msOf(clockOffset) : 0);
    const leaseMs = lease && msOf(lease);
    this.#evolve({ type: "marked", sequence: Number(sequence), positions, leaseMs, at });
    this.#settle();
    // A new lease counts only with the mark of a later ping: that one need not wait for its turn.
    if (this.#state.lease?.fromOrdinal === this.#state.nextOrdinal) this.#sendPing(stream, this.#now(), false);
  }

  async #goodbye(): Promise<void> {
    const stream = this.#stream;
    this.#closing.abort(new Error("the watcher is closed"));
    if (stream) {
      this.#acknowledge(stream);
      this.#sendPing(stream, this.#now(), true);
      stream.finished = true;
      stream.exchange.end();
      const over = new AbortController();
      await Promise.race([this.#running, this.#options.clock.sleep(goodbyeMs, over.signal)]);
      over.abort();
      stream.ended.abort();
    }
    await this.#running;
  }
}
