import { timestampMs } from "@bufbuild/protobuf/wkt";
import type { WatcherPing } from "@curfew/contracts/gen/curfew/revocation/v1/revocation_pb.ts";
import { RpcError } from "@curfew/rpc/errors.ts";
import type { Caller } from "@curfew/rpc/identity.ts";
import type { Grantee, LeaseRow } from "./lease-book.ts";

/** Pings whose clock reading is compared: the least delayed of them tells the offset best. */
const offsetWindow = 8;
/** A clock further off than this is no measure of anything. */
const maxOffsetMs = 366 * 86_400_000;

const slow = () =>
  new RpcError({
    status: "RESOURCE_EXHAUSTED",
    reason: "SLOW_WATCHER",
    message: "this watcher reads too slowly; connect again",
    retryDelayMs: 100,
  });

/** On the instance's clock, never after the ping was sent: a use may have begun since. Undefined: the ping does not tell. */
const reportedUntil = ({ reportedUntil, allReported }: WatcherPing, sentAtMs: number): number | undefined => {
  if (reportedUntil) return Math.min(timestampMs(reportedUntil), sentAtMs);
  return allReported ? sentAtMs : undefined;
};

/** One stream of one instance: what it asked last, and what waits to be sent to it, in order and bounded. */
export class WatchSession implements Grantee {
  readonly instance: string;
  readonly name: string;
  readonly uri: string;
  readonly reportsUses: boolean;
  last: LeaseRow | undefined;
  reportedSequence: number;
  allReportedAtMs: number;
  clockOffsetMs = 0;
  goodbye = false;
  complete = false;
  /** When this stream was last granted a lease, on the monotonic clock. */
  grantedMs: number | undefined;
  /** A ping of it is in the round that runs. */
  answering = false;
  /** No more requests come: the stream ends once the last ping is answered. */
  finishing = false;
  readonly #offsets: number[] = [];
  readonly #maxQueued: number;
  #ping: WatcherPing | undefined;
  #queue: Uint8Array[] = [];
  #end: { readonly error?: Error } | undefined;
  #woken = Promise.withResolvers<void>();

  constructor(options: {
    readonly instance: string;
    readonly caller: Caller;
    readonly reportsUses: boolean;
    readonly last: LeaseRow | undefined;
    readonly nowMs: number;
    readonly maxQueued: number;
  }) {
    const { instance, caller, last } = options;
    this.instance = instance;
    this.name = `${caller.kind}/${caller.name}`;
    this.uri = caller.uri;
    this.reportsUses = options.reportsUses;
    this.last = last;
    this.reportedSequence = last?.reportedSequence ?? 0;
    this.allReportedAtMs = last?.allReportedAtMs ?? options.nowMs;
    this.#maxQueued = options.maxQueued;
  }

  /** Only the newest ping is answered: its mark covers those before. */
  receivePing(ping: WatcherPing, receivedAtMs: number): void {
    if (this.goodbye) return;
    const sentAtMs = ping.sentAt ? timestampMs(ping.sentAt) : receivedAtMs;
    this.#offsets.push(Math.max(-maxOffsetMs, Math.min(maxOffsetMs, sentAtMs - receivedAtMs)));
    if (this.#offsets.length > offsetWindow) this.#offsets.shift();
    this.clockOffsetMs = Math.max(...this.#offsets);
    this.reportedSequence = Math.max(this.reportedSequence, Number(ping.reportedSequence));
    const reportedUntilMs = reportedUntil(ping, sentAtMs);
    if (reportedUntilMs !== undefined) {
      const byOurClockMs = Math.min(receivedAtMs, reportedUntilMs - this.clockOffsetMs);
      this.allReportedAtMs = Math.max(this.allReportedAtMs, byOurClockMs);
    }
    this.goodbye = ping.goodbye;
    this.complete = ping.goodbye && ping.allReported;
    this.#ping = ping;
  }

  takePing(): WatcherPing | undefined {
    const ping = this.#ping;
    this.#ping = undefined;
    return ping;
  }

  get asks(): boolean {
    return this.#ping !== undefined;
  }

  get ended(): boolean {
    return this.#end !== undefined;
  }

  /** An encoded WatchRevocationsResponse. */
  send(message: Uint8Array): void {
    if (this.#end) return;
    if (this.#queue.length >= this.#maxQueued) this.end(slow());
    else this.#queue.push(message);
    this.#woken.resolve();
  }

  /** Without an error what waits is still sent; with one it is not. */
  end(error?: Error): void {
    if (this.#end) return;
    this.#end = error ? { error } : {};
    if (error) this.#queue = [];
    this.#woken.resolve();
  }

  async *responses(): AsyncGenerator<Uint8Array> {
    for (;;) {
      const message = this.#queue.shift();
      if (message) yield message;
      else if (this.#end?.error) throw this.#end.error;
      else if (this.#end) return;
      else {
        await this.#woken.promise;
        this.#woken = Promise.withResolvers<void>();
      }
    }
  }
}
