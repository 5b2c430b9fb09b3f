import type { Clock } from "@curfew/runtime/clock.ts";
import { RpcError } from "./errors.ts";
import type { Caller, Peer } from "./identity.ts";
import type { CallContext } from "./service-definition.ts";

export const cancelled = () =>
  new RpcError({ status: "CANCELLED", reason: "CANCELLED", message: "the caller cancelled or went away" });
export const deadlineExceeded = () =>
  new RpcError({ status: "DEADLINE_EXCEEDED", reason: "DEADLINE_EXCEEDED", message: "deadline exceeded" });
export const shuttingDown = () =>
  new RpcError({
    status: "UNAVAILABLE",
    reason: "SHUTTING_DOWN",
    message: "the server is shutting down; connect again",
    retryDelayMs: 0,
  });

export const certificateExpired = () =>
  new RpcError({
    status: "UNAUTHENTICATED",
    reason: "CERTIFICATE_EXPIRED",
    message: "the certificate has expired; connect again with a new one",
  });

/** Node's timers hold 24 days; and a wall clock that is set on is noticed. */
const longestSleepMs = 600_000;

/** The part of grpc-js's four call classes that they share and we use. */
export interface SurfaceCall {
  readonly cancelled: boolean;
  getDeadline(): number | Date;
  once(event: "cancelled", listener: () => void): unknown;
}

/**
 * One call from its acceptance to its end, and what its handler knows of it. It ends exactly once, by `finish` or by `abort`; `onAbort`
 * answers the caller, whether or not the handler heeds its signal.
 */
export class ActiveCall implements CallContext {
  readonly caller: Caller;
  readonly peerThumbprint: string;
  readonly method: string;
  readonly deadlineMs: number | undefined;
  onAbort: (reason: RpcError) => void = () => undefined;
  #ended = false;
  #reason: RpcError | undefined;
  #controller: AbortController | undefined;
  readonly #calls: CallSet;
  /** Ends the timers of this call; undefined: it has none. */
  readonly #timers: AbortController | undefined;

  constructor(options: {
    readonly call: SurfaceCall;
    readonly peer: Peer;
    readonly method: string;
    /** Infinity: no cap. */
    readonly capMs: number;
    /** It may not outlive its peer's certificate. For streams: what answers once has a deadline. */
    readonly untilExpiry: boolean;
    readonly clock: Clock;
    /** Of its kind: it is one of them until it ends. */
    readonly calls: CallSet;
  }) {
    const { call, peer, method, capMs, clock } = options;
    const askedMs = Number(call.getDeadline());
    const deadlineMs = Math.min(askedMs, clock.now() + capMs);
    this.caller = peer.caller;
    this.peerThumbprint = peer.thumbprint;
    this.method = method;
    this.deadlineMs = deadlineMs === Number.POSITIVE_INFINITY ? undefined : deadlineMs;
    this.#calls = options.calls;
    this.#calls.add(this);
    // grpc-js says so at the end of every call, answered or not: an error nobody gets is not made.
    call.once("cancelled", () => {
      if (!this.ended) this.abort(clock.now() >= askedMs ? deadlineExceeded() : cancelled());
    });
    const isCapped = deadlineMs < askedMs;
    if (isCapped || options.untilExpiry) this.#timers = new AbortController();
    if (isCapped) void this.#abortIn(capMs, clock);
    if (options.untilExpiry) void this.#abortAtExpiry(peer.notAfterMs, clock);
  }

  get aborted(): boolean {
    return this.#reason !== undefined;
  }

  /** Made when first asked for: most handlers never do. */
  get signal(): AbortSignal {
    if (!this.#controller) {
      this.#controller = new AbortController();
      if (this.#reason) this.#controller.abort(this.#reason);
    }
    return this.#controller.signal;
  }

  get ended(): boolean {
    return this.#ended;
  }

  /** True for the first caller only: whoever gets it answers. */
  finish(): boolean {
    if (this.ended) return false;
    this.#ended = true;
    this.#timers?.abort("ended");
    this.#calls.delete(this);
    return true;
  }

  abort(reason: RpcError): void {
    if (!this.finish()) return;
    this.#reason = reason;
    this.#controller?.abort(reason);
    this.onAbort(reason);
  }

  async #abortIn(capMs: number, clock: Clock): Promise<void> {
    await clock.sleep(capMs, this.#timers?.signal);
    this.abort(deadlineExceeded());
  }

  async #abortAtExpiry(notAfterMs: number, clock: Clock): Promise<void> {
    for (let leftMs = notAfterMs - clock.now(); leftMs > 0 && !this.ended; leftMs = notAfterMs - clock.now())
      await clock.sleep(Math.min(leftMs, longestSleepMs), this.#timers?.signal);
    this.abort(certificateExpired());
  }
}

const tooMany = (message: string) =>
  new RpcError({ status: "RESOURCE_EXHAUSTED", reason: "TOO_MANY_CALLS", message, retryDelayMs: 1000 });

/** The calls of one kind that are under way, bounded in all and for each caller. */
export class CallSet implements Iterable<ActiveCall> {
  readonly #calls = new Set<ActiveCall>();
  readonly #byCaller = new Map<string, number>();
  readonly #max: number;
  readonly #maxPerCaller: number;

  constructor(max: number, maxPerCaller: number) {
    this.#max = max;
    this.#maxPerCaller = maxPerCaller;
  }

  /** Throws RpcError RESOURCE_EXHAUSTED when this caller may have no further one. */
  assertRoomFor(callerUri: string): void {
    if (this.#calls.size >= this.#max) throw tooMany("too many calls at once");
    if ((this.#byCaller.get(callerUri) ?? 0) >= this.#maxPerCaller)
      throw tooMany(`at most ${this.#maxPerCaller} calls of one caller at once`);
  }

  add(call: ActiveCall): void {
    const { uri } = call.caller;
    this.#calls.add(call);
    this.#byCaller.set(uri, (this.#byCaller.get(uri) ?? 0) + 1);
  }

  delete(call: ActiveCall): void {
    if (!this.#calls.delete(call)) return;
    const { uri } = call.caller;
    const left = (this.#byCaller.get(uri) ?? 1) - 1;
    if (left > 0) this.#byCaller.set(uri, left);
    else this.#byCaller.delete(uri);
  }

  [Symbol.iterator](): Iterator<ActiveCall> {
    return this.#calls[Symbol.iterator]();
  }
}
