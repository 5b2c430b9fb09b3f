import { VerifierService } from "@curfew/contracts/gen/curfew/verifier/v1/verifier_pb.ts";
import type { RpcChannel } from "@curfew/rpc/channel.ts";
import { createClient, EncodedRequest } from "@curfew/rpc/client.ts";
import { parseRpcError, type RpcFailure } from "@curfew/rpc/errors.ts";
import type { Clock } from "@curfew/runtime/clock.ts";
import type { Log } from "@curfew/runtime/log.ts";
import type { Random } from "@curfew/runtime/random.ts";
import {
  apart,
  type CachedUse,
  type CompletedUse,
  type EndedAccess,
  encodeCachedUse,
  encodeCompletedUse,
  encodeReport,
} from "./report-codec.ts";
import { WaitingRoom } from "./waiting-room.ts";
import type { Reported } from "./watch.ts";

/**
 * Brings the uses of an SDK to the log: in order, in batches, a few at a time, again and again with the same ids until they are
 * acknowledged. A use holds its place in the bounded buffer until that; without a free place there is no access.
 */

export interface ReporterOptions {
  readonly instance: string;
  /** To verifiers; the next one is tried when one fails. They stay the caller's to close. */
  readonly channels: readonly RpcChannel[];
  readonly clock: Clock;
  readonly random: Random;
  readonly log: Pick<Log, "warn" | "error">;
  /** Places in the buffer; default 10,000. */
  readonly maxBuffered?: number;
}

export interface UseReporter {
  /** Whether one more access, that is its decision and its completion, has a place, and reports are not late. */
  readonly hasRoom: boolean;
  /** Resolves when there is room, or the reporter closes, with true; with false after `waitMs`, at the signal, or at once when too many wait already. */
  whenRoom(waitMs: number, signal: AbortSignal | undefined): Promise<boolean>;
  /** Keeps a place for the completion of an access that begins; `completed` with `last` gives it to that. */
  begin(): void;
  decided(use: CachedUse): Decision;
  /**
   * A part of what an access touched; `last` ends the access. The only part goes with the decision, as one record, while that still
   * waits here.
   */
  completed(use: CompletedUse, last: boolean, decision?: Decision): void;
  reported(): Reported;
  /** Reports what is left and what the accesses under way still touch, at most 5 s; whether that was all. */
  close(): Promise<boolean>;
}

const defaultMaxBuffered = 10_000;
/** Of people that wait to be reported, estimated. */
const maxBufferedBytes = 64 * 1024 * 1024;
const maxWaiting = 10_000;
/** Of each kind in a request. */
const batchUses = 256;
/** Of a request; the server takes 1 MiB, and one item alone has less. */
const batchBytes = 768 * 1024;
/** Half of the second that a report may be late: the other half is the report's own. */
const flushAfterMs = 500;
const maxInFlight = 8;
const callDeadlineMs = 10_000;
const retryBaseMs = 100;
const retryCapMs = 2_000;
const closeMs = 5_000;
/**
 * No access begins while something older than this is not acknowledged: a process that ends takes with it what it decided in so long,
 * not what it decided since its verifiers went away. Reports are due after half a second; a try that fails may come again within it.
 */
export const maxUnreportedMs = 2_000;

interface Item {
  /** In the form it has in a request; a decision from when its access ended, or it is sent. Gone once it is settled. */
  encoded: Uint8Array | undefined;
  /** A decision till it is encoded. */
  decision: CachedUse | undefined;
  /** A decision that says what its access touched. */
  hasEnded: boolean;
  /** Its instance_sequence; 0: a completion, which has none. */
  readonly sequence: number;
  /** When it was decided; a completion never was. */
  readonly decidedMs: number;
  /** Of its people, estimated. */
  bytes: number;
  readonly addedMs: number;
}
/** A use that was decided here, for the reporter to know again. */
export type Decision = Pick<Item, "sequence">;

interface Batch {
  readonly items: readonly Item[];
  /** The last instance_sequence in it or before it. */
  readonly lastSequence: number;
  acknowledged: boolean;
}

/** Once: what is sent is what is sent again. */
const encodeDecision = (item: Item, ended?: EndedAccess): void => {
  if (!item.decision) return;
  item.encoded = encodeCachedUse(item.decision, item.sequence, ended);
  item.decision = undefined;
  item.hasEnded = ended !== undefined;
};

const oldestDecidedMs = (items: readonly Item[]): number => {
  let oldestMs = Number.POSITIVE_INFINITY;
  for (const { decidedMs } of items) if (decidedMs < oldestMs) oldestMs = decidedMs;
  return oldestMs;
};

const personOverheadBytes = 64;
/** Characters of UTF-8 take at most three bytes a UTF-16 unit. */
export const estimatedBytes = (people: readonly { readonly value?: string }[]): number =>
  people.reduce((sum, { value = "" }) => sum + personOverheadBytes + 3 * value.length, 0);

/** Refusals of the content: sending it again would not help. Of the caller as a whole, it may once an administrator has acted. */
const isRefusal = ({ status, reason }: RpcFailure): boolean =>
  status === "INVALID_ARGUMENT" || (status === "PERMISSION_DENIED" && reason !== "CALLER_NOT_ALLOWED");

export const openUseReporter = (options: ReporterOptions): UseReporter => new BufferedReporter(options);

class BufferedReporter implements UseReporter {
  readonly #options: ReporterOptions;
  readonly #maxBuffered: number;
  readonly #clients: readonly ReturnType<typeof createClient<typeof VerifierService>>[];
  readonly #waiting: WaitingRoom;
  #waking: boolean = false;
  readonly #givenUp = new AbortController();
  #items: Item[] = [];
  /** In the order of their sequences. */
  #batches: Batch[] = [];
  #inFlight = 0;
  /** Items in the buffer or on their way, and places kept for completions. */
  #places = 0;
  #bytes = 0;
  #sequence = 0;
  #acknowledgedSequence = 0;
  /** The verifier refused to record something: the log of this instance cannot become whole any more. */
  #lost: boolean = false;
  /** When the first use was decided that the verifier refused to record: it stays open for good. */
  #lostMs = Number.POSITIVE_INFINITY;
  #timer: AbortController | undefined;
  #scheduled: boolean = false;
  #due: boolean = false;
  #closing: boolean = false;
  #turn = 0;
  #drained: (() => void) | undefined;

  constructor(options: ReporterOptions) {
    this.#options = options;
    this.#maxBuffered = options.maxBuffered ?? defaultMaxBuffered;
    this.#waiting = new WaitingRoom(maxWaiting, options.clock);
    this.#clients = options.channels.map((channel) => createClient(VerifierService, channel));
    if (this.#clients.length === 0) throw new RangeError("openUseReporter: at least one channel to a verifier");
  }

  get hasRoom(): boolean {
    return this.#places + 2 <= this.#maxBuffered && this.#bytes < maxBufferedBytes && !this.#isLate();
  }

  whenRoom(waitMs: number, signal: AbortSignal | undefined): Promise<boolean> {
    if (this.hasRoom || this.#closing) return Promise.resolve(true);
    return this.#waiting.wait(waitMs, signal);
  }

  begin(): void {
    this.#places += 1;
  }

  decided(decision: CachedUse): Decision {
    this.#places += 1;
    this.#sequence += 1;
    const { decidedMs } = decision;
    const addedMs = this.#options.clock.monotonicMs();
    const item: Item = {
      encoded: undefined,
      decision,
      hasEnded: false,
      sequence: this.#sequence,
      decidedMs,
      bytes: 0,
      addedMs,
    };
    this.#add(item);
    return item;
  }

  completed(use: CompletedUse, last: boolean, decision?: Decision): void {
    const bytes = estimatedBytes(use.people);
    this.#bytes += bytes;
    const item = decision as Item | undefined;
    if (last && use.part === 1 && item?.decision) {
      encodeDecision(item, use);
      item.bytes = bytes;
      this.#places -= 1;
      this.#wake();
      return;
    }
    const encoded = encodeCompletedUse(use);
    if (!last) this.#places += 1;
    const addedMs = this.#options.clock.monotonicMs();
    const decidedMs = Number.POSITIVE_INFINITY;
    this.#add({ encoded, decision: undefined, hasEnded: false, sequence: 0, decidedMs, bytes, addedMs });
  }

  reported(): Reported {
    const allReported = !this.#lost && this.#items.length === 0 && this.#inFlight === 0;
    return { sequence: this.#acknowledgedSequence, allReported, oldestOpenMs: this.#oldestOpenMs() };
  }

  async close(): Promise<boolean> {
    this.#closing = true;
    this.#due = true;
    this.#flush();
    // Accesses that have begun may still complete.
    if (this.#places > 0) {
      const drained = new Promise<void>((resolve) => {
        this.#drained = resolve;
      });
      const over = new AbortController();
      await Promise.race([drained, this.#options.clock.sleep(closeMs, over.signal)]);
      over.abort();
    }
    const allReported = this.#places === 0 && this.reported().allReported;
    this.#givenUp.abort();
    this.#timer?.abort();
    this.#waiting.admitAll();
    return allReported;
  }

  /** Batches and what waits are in the order in which it came, and the first batch is not acknowledged: the oldest is first. */
  #isLate(): boolean {
    const oldest = this.#batches[0]?.items[0] ?? this.#items[0];
    return oldest !== undefined && this.#options.clock.monotonicMs() - oldest.addedMs >= maxUnreportedMs;
  }

  /** Of decisions: a use without its completion stands in the log with all that it may have touched. */
  #oldestOpenMs(): number | undefined {
    let oldestMs = Math.min(this.#lostMs, oldestDecidedMs(this.#items));
    for (const { acknowledged, items } of this.#batches)
      if (!acknowledged) oldestMs = Math.min(oldestMs, oldestDecidedMs(items));
    return Number.isFinite(oldestMs) ? oldestMs : undefined;
  }

  #add(item: Item): void {
    this.#items.push(item);
    if (this.#closing || this.#items.length >= batchUses) {
      if (this.#scheduled) return;
      this.#scheduled = true;
      setImmediate(() => {
        this.#scheduled = false;
        this.#flush();
      });
    } else this.#timer ??= this.#startTimer();
  }

  /** One timer for all that waits, however many uses come. */
  #startTimer(): AbortController {
    const timer = new AbortController();
    void this.#options.clock.sleep(flushAfterMs, timer.signal).then(() => {
      this.#timer = undefined;
      if (timer.signal.aborted) return;
      this.#due = true;
      this.#flush();
    });
    return timer;
  }

  #flush(): void {
    while (this.#inFlight < maxInFlight && (this.#items.length >= batchUses || (this.#due && this.#items.length > 0))) {
      const items = this.#take();
      const lastSequence = items.reduce((last, { sequence }) => Math.max(last, sequence), 0);
      const batch: Batch = { items, lastSequence, acknowledged: false };
      this.#batches.push(batch);
      this.#inFlight += 1;
      this.#turn += 1;
      void this.#deliver(items, this.#turn).then((delivered) => this.#settle(batch, delivered));
    }
    if (this.#items.length === 0) this.#due = this.#closing;
  }

  /** From the front, as much as a request may hold: a use never comes after its own completion. */
  #take(): Item[] {
    let cached = 0;
    let completed = 0;
    let bytes = 0;
    let n = 0;
    for (const item of this.#items) {
      if (item.sequence > 0) cached += 1;
      else completed += 1;
      encodeDecision(item);
      bytes += item.encoded?.length ?? 0;
      if (cached > batchUses || completed > batchUses || (bytes > batchBytes && n > 0)) break;
      n += 1;
    }
    return this.#items.splice(0, n);
  }

  /** False when given up. What the verifier refuses is narrowed down by halves, so that the rest is recorded. */
  async #deliver(items: readonly Item[], turn: number): Promise<boolean> {
    for (let attempt = 0; !this.#givenUp.signal.aborted; attempt += 1) {
      const failure = await this.#send(items, turn + attempt);
      if (!failure) return true;
      if (isRefusal(failure)) return this.#narrow(items, turn, failure);
      this.#options.log.warn({ status: failure.status, reason: failure.reason }, "uses could not be reported yet");
      const [byte = 0] = this.#options.random(1);
      const boundMs = Math.min(retryCapMs, retryBaseMs * 2 ** Math.min(attempt, 10));
      await this.#options.clock.sleep((boundMs * (byte + 1)) / 256, this.#givenUp.signal);
    }
    return false;
  }

  async #narrow(items: readonly Item[], turn: number, failure: RpcFailure): Promise<boolean> {
    if (items.length > 1) {
      const half = items.length >> 1;
      return (await this.#deliver(items.slice(0, half), turn)) && (await this.#deliver(items.slice(half), turn));
    }
    const [item] = items;
    // The decision may be at fault, or what was touched: the other one is recorded.
    if (item?.encoded && item.hasEnded) {
      const { decision, completion } = apart(item.encoded);
      const alone = { ...item, encoded: decision, hasEnded: false };
      const rest = { ...alone, encoded: completion, sequence: 0, decidedMs: Number.POSITIVE_INFINITY };
      return (await this.#deliver([alone], turn)) && (await this.#deliver([rest], turn));
    }
    this.#lost = true;
    this.#lostMs = Math.min(this.#lostMs, oldestDecidedMs(items));
    const { status, reason, message } = failure;
    const kind = item?.sequence ? "cached" : "completed";
    this.#options.log.error({ status, reason, why: message, kind }, "the verifier refuses to record a use");
    return true;
  }

  async #send(items: readonly Item[], turn: number): Promise<RpcFailure | undefined> {
    const client = this.#clients[turn % this.#clients.length];
    const encodedOf = (which: (item: Item) => boolean) =>
      items.filter(which).map(({ encoded }) => encoded as Uint8Array);
    const cachedUses = encodedOf(({ sequence }) => sequence > 0);
    const completedUses = encodedOf(({ sequence }) => sequence === 0);
    try {
      const { instance } = this.#options;
      const options = { deadlineMs: callDeadlineMs, signal: this.#givenUp.signal };
      await client?.reportUses(new EncodedRequest(encodeReport(instance, cachedUses, completedUses)), options);
      return undefined;
    } catch (error) {
      return parseRpcError(error);
    }
  }

  #settle(batch: Batch, delivered: boolean): void {
    this.#inFlight -= 1;
    this.#places -= batch.items.length;
    for (const item of batch.items) {
      this.#bytes -= item.bytes;
      // An access that goes on holds its decision, and that would hold memory it shares with many.
      item.encoded = undefined;
    }
    batch.acknowledged = delivered;
    while (this.#batches[0]?.acknowledged) {
      const { lastSequence } = this.#batches.shift() as Batch;
      if (!this.#lost && lastSequence > 0) this.#acknowledgedSequence = lastSequence;
    }
    this.#flush();
    this.#wake();
    if (this.#places === 0) this.#drained?.();
  }

  /** As many as there is room for. Whoever is admitted need not take it, so that is looked at again in the next turn. */
  #wake(): void {
    if (this.#waiting.isEmpty || this.#waking || !this.hasRoom) return;
    this.#waiting.admit((this.#maxBuffered - this.#places) >> 1);
    if (this.#waiting.isEmpty) return;
    this.#waking = true;
    setImmediate(() => {
      this.#waking = false;
      this.#wake();
    });
  }
}
