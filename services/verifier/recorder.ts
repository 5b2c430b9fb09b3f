import { BusUnavailable, type OutRecord, type Producer } from "@curfew/event-log/bus.ts";
import { RpcError } from "@curfew/rpc/errors.ts";
import type { Clock } from "@curfew/runtime/clock.ts";
import type { Log } from "@curfew/runtime/log.ts";
import { outsideOfRequests } from "@curfew/runtime/telemetry.ts";

/**
 * Makes uses durable: what waits while a send is open goes out together in the next one. The queue is bounded; a fact whose caller
 * gave up is dropped while it waits, and followed by `unanswered` once it is on the log.
 */
export interface Fact {
  readonly record: OutRecord;
  /** What is to be recorded where this became durable and nobody was left to be answered; absent: nothing. */
  readonly unanswered?: () => OutRecord;
}

export interface Recorder {
  /**
   * Resolves when all are durable. Rejects with RpcError RESOURCE_EXHAUSTED when too many wait, BusUnavailable while the bus is out
   * (some may become durable all the same), or the caller's reason when it left before all were sent.
   */
  record(facts: readonly Fact[], caller: Waiter): Promise<void>;
  /** For records that have no caller: they wait out an outage. Resolves when durable; rejects only once closed. */
  follow(records: readonly OutRecord[]): Promise<void>;
  /** False while a send waits out an outage. For health. */
  readonly reachable: boolean;
  /** Sends what waits, as far as the bus takes it within 2 s. */
  close(): Promise<void>;
}

/** Who waits for an answer: of a call's context as much as is needed here. */
export interface Waiter {
  readonly aborted: boolean;
  readonly signal: { readonly reason: unknown };
}

export const maxWaiting = 10_000;
const maxBatchRecords = 1_000;
const maxBatchBytes = 3 * 2 ** 20;
/** Headers, generously: the producer counts them too. */
const overheadBytes = 1_200;
/** How long a caller waits for an open send. */
export const patienceMs = 2_000;
const closeMs = 2_000;
/** What is sent in a turn of the event loop leaves at its end: in pieces, so that the first callers go on while the rest are answered. */
const answersPerTurn = 32;
const nextTurn = (): Promise<void> => new Promise((resolve) => setImmediate(resolve));

interface Entry {
  readonly caller: Waiter | undefined;
  left: number;
  settled: boolean;
  resolve(): void;
  reject(error: unknown): void;
}

interface Waiting {
  readonly fact: Fact;
  readonly entry: Entry;
}

const tooMany = () =>
  new RpcError({
    status: "RESOURCE_EXHAUSTED",
    reason: "TOO_MANY_USES_WAITING",
    message: `more than ${maxWaiting} uses wait to be recorded; retry later`,
    retryDelayMs: 1_000,
  });
const busOut = () => new BusUnavailable("the bus does not take uses now");
const isGone = (entry: Entry): boolean => entry.settled || entry.caller?.aborted === true;

/** One producer has one open send; with several, each for partitions of its own, one decides while the bus writes for another. */
export const openRecorder = (options: {
  readonly producers: readonly Producer[];
  readonly clock: Clock;
  readonly log: Log;
}): Recorder => new LaneRecorder(options.producers, options.clock, options.log);

class LaneRecorder implements Recorder {
  readonly #lanes: readonly Lane[];
  readonly #clock: Clock;
  #closed: boolean = false;

  constructor(producers: readonly Producer[], clock: Clock, log: Log) {
    this.#clock = clock;
    const follow = (record: OutRecord) => this.follow([record]);
    this.#lanes = producers.map((producer) => new Lane(producer, clock, log, follow));
  }

  get reachable(): boolean {
    return this.#lanes.every((lane) => lane.reachable);
  }

  record(facts: readonly Fact[], caller: Waiter): Promise<void> {
    if (caller.aborted) return Promise.reject(caller.signal.reason);
    if (this.#closed || !this.reachable) return Promise.reject(busOut());
    if (this.#waiting() + facts.length > maxWaiting) for (const lane of this.#lanes) lane.dropGone();
    return this.#waiting() + facts.length > maxWaiting ? Promise.reject(tooMany()) : this.#enqueue(facts, caller);
  }

  follow(records: readonly OutRecord[]): Promise<void> {
    return this.#enqueue(
      records.map((record) => ({ record })),
      undefined,
    );
  }

  async close(): Promise<void> {
    this.#closed = true;
    const over = new AbortController();
    const idle = Promise.all(this.#lanes.map((lane) => lane.running));
    await Promise.race([idle, this.#clock.sleep(closeMs, over.signal)]);
    over.abort();
    await Promise.all(this.#lanes.map((lane) => lane.close()));
  }

  #waiting(): number {
    return this.#lanes.reduce((sum, lane) => sum + lane.waiting, 0);
  }

  #enqueue(facts: readonly Fact[], caller: Waiter | undefined): Promise<void> {
    if (facts.length === 0) return Promise.resolve();
    return new Promise((resolve, reject) => {
      const entry: Entry = { caller, left: facts.length, settled: false, resolve, reject };
      for (const fact of facts) this.#lanes[fact.record.partition % this.#lanes.length]?.push({ fact, entry });
    });
  }
}

class Lane {
  readonly #producer: Producer;
  readonly #clock: Clock;
  readonly #log: Log;
  readonly #follow: (record: OutRecord) => Promise<void>;
  #queue: Waiting[] = [];
  #open: readonly Waiting[] = [];
  #running: Promise<void> | undefined;
  #stalled: boolean = false;

  constructor(producer: Producer, clock: Clock, log: Log, follow: (record: OutRecord) => Promise<void>) {
    this.#producer = producer;
    this.#clock = clock;
    this.#log = log;
    this.#follow = follow;
  }

  get reachable(): boolean {
    return !this.#stalled && this.#producer.reachable;
  }

  get running(): Promise<void> | undefined {
    return this.#running;
  }

  get waiting(): number {
    return this.#queue.length + this.#open.length;
  }

  push(waiting: Waiting): void {
    this.#queue.push(waiting);
    this.#running ??= outsideOfRequests(() => this.#run());
  }

  dropGone(): void {
    this.#queue = this.#queue.filter((waiting) => !drop(waiting));
  }

  /** Rejects what is left in the open send, which ends the loop; what still waits is refused there. */
  async close(): Promise<void> {
    await this.#producer.close();
    await this.#running;
  }

  async #run(): Promise<void> {
    // What is decided in the same turn of the event loop goes out together.
    await nextTurn();
    let answering: Promise<void> | undefined;
    for (let batch = this.#take(); batch.length > 0 || answering; batch = this.#take()) {
      if (batch.length === 0) {
        // What comes meanwhile is taken next.
        await answering;
        answering = undefined;
        continue;
      }
      this.#open = batch;
      try {
        // The bus writes this one while the callers of the one before are answered.
        await Promise.all([this.#send(batch), answering]);
        answering = this.#answerAll(batch);
      } catch (error) {
        // Refused or closed: the callers are told, and an allowed answer was given to none of them.
        if ((error as Error).name !== "BusUnavailable") this.#log.error({ err: error }, "uses were refused by the bus");
        for (const { entry } of batch) settle(entry, () => entry.reject(error));
      }
      this.#open = [];
    }
    this.#running = undefined;
  }

  /** Never rejects. */
  async #answerAll(batch: readonly Waiting[]): Promise<void> {
    let answered = 0;
    for (const waiting of batch) {
      try {
        if (this.#durable(waiting)) answered += 1;
      } catch (error) {
        // Of one alone: who waits behind it is answered, and what follows is sent.
        this.#log.error({ err: error }, "a durable use was not answered");
      }
      if (answered < answersPerTurn) continue;
      answered = 0;
      await nextTurn();
    }
  }

  async #send(batch: readonly Waiting[]): Promise<void> {
    const sent = new AbortController();
    const impatient = this.#clock.sleep(patienceMs, sent.signal).then(() => {
      if (sent.signal.aborted) return;
      this.#stalled = true;
      // They are answered UNAVAILABLE; what is in the open send may become durable, what only waits is dropped.
      for (const { entry } of [...batch, ...this.#queue]) if (entry.caller) settle(entry, () => entry.reject(busOut()));
      this.dropGone();
    });
    try {
      await this.#producer.send(batch.map(({ fact }) => fact.record));
    } finally {
      sent.abort("sent");
      this.#stalled = false;
      await impatient;
    }
  }

  /** Whether it was the last of its call's, and that is answered. */
  #durable({ fact, entry }: Waiting): boolean {
    entry.left -= 1;
    if (isGone(entry)) {
      settle(entry, () => entry.reject(entry.caller?.signal.reason));
      // Only closing rejects it, and then the use counts with its declared maximum.
      if (fact.unanswered) this.#follow(fact.unanswered()).catch(() => undefined);
      return false;
    }
    if (entry.left === 0) settle(entry, entry.resolve);
    return entry.left === 0;
  }

  /** The next batch, without what nobody waits for any more. */
  #take(): Waiting[] {
    const batch: Waiting[] = [];
    let bytes = 0;
    let looked = 0;
    for (const waiting of this.#queue) {
      const size = overheadBytes + waiting.fact.record.value.byteLength;
      if (batch.length >= maxBatchRecords || (batch.length > 0 && bytes + size > maxBatchBytes)) break;
      looked += 1;
      if (drop(waiting)) continue;
      batch.push(waiting);
      bytes += size;
    }
    this.#queue = this.#queue.slice(looked);
    return batch;
  }
}

const settle = (entry: Entry, act: () => void): void => {
  if (entry.settled) return;
  entry.settled = true;
  act();
};

/** True where nobody waits for it, who is then told. */
const drop = ({ entry }: Waiting): boolean => {
  if (!isGone(entry)) return false;
  settle(entry, () => entry.reject(entry.caller?.signal.reason));
  return true;
};
