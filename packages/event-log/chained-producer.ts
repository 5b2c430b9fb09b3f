/**
 * What both adapters' producers share: the producer chain and its epochs, one open send at a time, bounds, patience. An adapter
 * adds only a transport that appends linked records.
 */
import { BusRefused, BusUnavailable, type OutRecord, type Producer } from "./bus.ts";
import type { ChainedRecord } from "./chain.ts";
import { type Epoch, type EpochParts, openEpoch } from "./epochs.ts";
import { checkedSizes, maxCallBytes, maxCallRecords, sum } from "./record-bounds.ts";

/** Waiting in one producer, the open send included; past it a call is rejected with BusUnavailable. */
export const maxQueuedRecords = 20_000;
const maxQueuedBytes = 64 * 2 ** 20;
const closeMs = 2000;
const firstBackoffMs = 100;
const maxBackoffMs = 1000;
/** A send that is open for longer counts as an outage in `reachable`: a client may be patient inside. */
const slowSendMs = 2000;

/** The transport failed, and certainly nothing of this send is on the topic: the same linked records are tried again. */
export class NothingSent extends BusUnavailable {
  override name = "NothingSent";
}

export interface ProducerTransport {
  /**
   * Appends and answers one offset per record, in order, once durable. One call at a time. Rejects with BusRefused (nothing was
   * written, unless it says so: passed to the callers), NothingSent (tried again in the same epoch), or anything else: a give-up, after which this
   * transport is closed and another opened, and the same records go out in a new epoch.
   */
  send(records: readonly ChainedRecord[]): Promise<number[]>;
  close(): Promise<void>;
}

export interface ChainedProducerSettings extends EpochParts {
  /** How many the topic has; a record for another is refused. */
  readonly partitions: number;
  /** Called at the first send and after a give-up. Rejects with BusRefused for good, with anything else to be asked again. */
  readonly open: () => Promise<ProducerTransport>;
  /** Bytes of one `transport.send`; only a call larger than this is split, and then a refusal may come after its first part. Default 4 MiB. */
  readonly maxBatchBytes?: number;
}

/** Opens no connection and begins no epoch yet: that is the first send's, which waits for both. */
export const openChainedProducer = (settings: ChainedProducerSettings): Producer => new ChainedProducer(settings);

interface Call {
  readonly records: readonly OutRecord[];
  readonly sizes: readonly number[];
  /** Of what is acknowledged; the rest is still to be sent. */
  readonly offsets: number[];
  resolve(offsets: number[]): void;
  reject(error: Error): void;
}

/** The records of one `transport.send`, and how many belong to each call. */
interface Batch {
  readonly records: readonly OutRecord[];
  readonly parts: readonly { call: Call; count: number }[];
}

class ChainedProducer implements Producer {
  readonly #settings: ChainedProducerSettings;
  readonly #maxBatchBytes: number;
  readonly #queue: Call[] = [];
  #queuedRecords = 0;
  #queuedBytes = 0;
  #running: Promise<void> | undefined;
  #transport: ProducerTransport | undefined;
  #epoch: Epoch | undefined;
  #failing: boolean = false;
  #sendingSinceMs: number | undefined;
  #closed: Promise<void> | undefined;
  /** No call is taken any more; then, after `closeMs`, everything that still waits is over. */
  readonly #closing = new AbortController();
  readonly #aborted = new AbortController();

  constructor(settings: ChainedProducerSettings) {
    if (!producerName.test(settings.options.name)) throw new TypeError(`producer name must match ${producerName}`);
    this.#settings = settings;
    this.#maxBatchBytes = settings.maxBatchBytes ?? maxCallBytes;
  }

  get reachable(): boolean {
    const since = this.#sendingSinceMs;
    if (this.#aborted.signal.aborted) return true;
    return !this.#failing && (since === undefined || this.#settings.clock.monotonicMs() - since < slowSendMs);
  }

  async send(records: readonly OutRecord[]): Promise<number[]> {
    if (this.#closing.signal.aborted) throw new BusUnavailable("producer is closed");
    const sizes = checkedSizes(records, this.#settings.partitions);
    if (records.length === 0) return [];
    const bytes = sum(sizes);
    if (this.#queuedRecords + records.length > maxQueuedRecords || this.#queuedBytes + bytes > maxQueuedBytes)
      throw new BusUnavailable(`producer queue is full (${maxQueuedRecords} records, ${maxQueuedBytes} bytes)`);
    this.#queuedRecords += records.length;
    this.#queuedBytes += bytes;
    try {
      return await new Promise<number[]>((resolve, reject) => {
        this.#queue.push({ records, sizes, offsets: [], resolve, reject });
        this.#running ??= this.#run();
      });
    } finally {
      this.#queuedRecords -= records.length;
      this.#queuedBytes -= bytes;
    }
  }

  close(): Promise<void> {
    this.#closed ??= this.#close();
    return this.#closed;
  }

  async #close(): Promise<void> {
    // What is partly or perhaps on the topic may end well; the rest is known not to be there.
    this.#rejectQueued((call) => !this.#open.has(call));
    this.#closing.abort();
    const timer = new AbortController();
    const finished = (async () => {
      await this.#running;
      await this.#endEpoch(false);
      await this.#discardTransport();
    })();
    await Promise.race([finished, this.#settings.clock.sleep(closeMs, timer.signal)]);
    timer.abort();
    this.#aborted.abort();
    this.#epoch?.abandon();
    this.#rejectQueued(() => true);
    void this.#discardTransport();
  }

  /** Calls of the batch that is being sent; they stay at the head of the queue until they are settled. */
  #open = new Set<Call>();

  #rejectQueued(which: (call: Call) => boolean): void {
    const kept = this.#queue.filter((call) => !which(call));
    for (const call of this.#queue.splice(0, this.#queue.length, ...kept))
      if (which(call)) call.reject(new BusUnavailable("producer is closed"));
  }

  async #run(): Promise<void> {
    // Calls made in the same turn go out together.
    await Promise.resolve();
    while (this.#queue.length > 0) {
      const batch = takeBatch(this.#queue, this.#maxBatchBytes);
      this.#open = new Set(batch.parts.map((part) => part.call));
      try {
        this.#settle(batch, await this.#deliver(batch.records));
      } catch (error) {
        this.#refuse(batch, error as Error);
      }
      this.#open.clear();
    }
    this.#running = undefined;
  }

  #settle({ parts }: Batch, offsets: readonly number[]): void {
    let next = 0;
    for (const { call, count } of parts) {
      for (const offset of offsets.slice(next, next + count)) call.offsets.push(offset);
      next += count;
      if (call.offsets.length < call.records.length) continue;
      remove(this.#queue, call);
      call.resolve(call.offsets);
    }
  }

  #refuse({ parts }: Batch, error: Error): void {
    for (const { call } of parts) {
      remove(this.#queue, call);
      call.reject(error);
    }
  }

  /** Until it is there, refused, or the producer's end. */
  async #deliver(records: readonly OutRecord[]): Promise<number[]> {
    const { clock } = this.#settings;
    let linked: readonly ChainedRecord[] | undefined;
    let gaveUp = false;
    for (let backoffMs = firstBackoffMs; ; backoffMs = Math.min(2 * backoffMs, maxBackoffMs)) {
      if (this.#aborted.signal.aborted) throw new BusUnavailable("producer is closed");
      try {
        const { transport, epoch } = await this.#timed(this.#ready());
        // Once linked, a record counts in its chain: it may be linked again only in another epoch.
        linked ??= epoch.link(records);
        const offsets = await this.#timed(transport.send(linked));
        if (offsets.length !== records.length)
          throw new Error(`${offsets.length} offsets for ${records.length} records`);
        epoch.acknowledge();
        this.#failing = false;
        return offsets;
      } catch (error) {
        if (error instanceof BusRefused) {
          if (linked) await this.#endEpoch(!error.partly);
          this.#failing = false;
          throw gaveUp ? new BusUnavailable(`refused after a give-up: ${error.message}`, { cause: error }) : error;
        }
        this.#failing = true;
        if (linked && !(error instanceof NothingSent)) {
          linked = undefined;
          gaveUp = true;
          await this.#endEpoch(false);
          await this.#discardTransport();
        }
        await clock.sleep(backoffMs, this.#aborted.signal);
      }
    }
  }

  async #ready(): Promise<{ transport: ProducerTransport; epoch: Epoch }> {
    const { open } = this.#settings;
    this.#transport ??= await open();
    const transport = this.#transport;
    this.#epoch ??= await openEpoch(this.#settings);
    const epoch = this.#epoch;
    if (this.#aborted.signal.aborted) {
      epoch.abandon();
      await this.#discardTransport();
      throw new BusUnavailable("producer is closed");
    }
    return { transport, epoch };
  }

  async #timed<T>(sending: Promise<T>): Promise<T> {
    this.#sendingSinceMs = this.#settings.clock.monotonicMs();
    try {
      return await sending;
    } finally {
      this.#sendingSinceMs = undefined;
    }
  }

  async #discardTransport(): Promise<void> {
    const transport = this.#transport;
    this.#transport = undefined;
    await transport?.close().catch(() => {});
  }

  /** After a refusal an epoch in which nothing was ever acknowledged starts again from 1: refusals use up no epochs. */
  async #endEpoch(nothingSent: boolean): Promise<void> {
    const epoch = this.#epoch;
    if (!epoch || (nothingSent && (await epoch.restart()))) return;
    this.#epoch = undefined;
    await epoch.end();
  }
}

/** Whole calls as long as they fit; of a first call that is too large alone, as much as fits, at least one record. */
const takeBatch = (queue: readonly Call[], maxBytes: number): Batch => {
  const records: OutRecord[] = [];
  const parts: { call: Call; count: number }[] = [];
  let bytes = 0;
  for (const call of queue) {
    const sizes = call.sizes.slice(call.offsets.length);
    const fits = records.length + sizes.length <= maxCallRecords && bytes + sum(sizes) <= maxBytes;
    if (!fits && parts.length > 0) break;
    let count = fits ? sizes.length : 0;
    if (!fits)
      for (let room = maxBytes - (sizes[0] ?? 0); room >= 0 && count < sizes.length; room -= sizes[count] ?? 0)
        count += 1;
    count = Math.max(count, 1);
    for (const record of call.records.slice(call.offsets.length, call.offsets.length + count)) records.push(record);
    parts.push({ call, count });
    bytes += sum(sizes);
    if (!fits) break;
  }
  return { records, parts };
};

const producerName = /^[a-z][a-z0-9-]*\/[A-Za-z0-9._-]+$/;
const remove = <T>(from: T[], item: T): void => {
  const at = from.indexOf(item);
  if (at >= 0) from.splice(at, 1);
};
