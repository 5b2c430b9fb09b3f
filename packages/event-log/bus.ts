/**
 * The bus as the rest of the code sees it: topics of partitions of records, appended by producers, read from a position that the
 * reader keeps itself. Both adapters, `kafka.ts` and `sqlite.ts`, pass `contract.ts`. Delivery is at least once.
 */
export interface OutRecord {
  readonly partition: number;
  readonly key: string;
  /** Printable ASCII values; order is kept. The producer adds those of its chain (`chain.ts`). */
  readonly headers: Readonly<Record<string, string>>;
  /** Never empty: a null value is a tombstone. */
  readonly value: Uint8Array;
}

export interface InRecord {
  readonly topic: string;
  readonly partition: number;
  readonly offset: number;
  /** Append time by the broker (LogAppendTime), ms since the epoch. */
  readonly timestampMs: number;
  readonly key: string;
  readonly headers: readonly (readonly [name: string, value: string])[];
  readonly value: Uint8Array;
}

/** The bus cannot be reached now. What was being sent may or may not be on the topic. */
export class BusUnavailable extends Error {
  override name = "BusUnavailable";
}

/** The bus refused: no right to write, or a record too large. Nothing of this send is on the topic, and it will never be. */
export class BusRefused extends Error {
  override name = "BusRefused";
  /** A transport's word to its producer: other records of the same send may be on the topic. */
  readonly partly: boolean;
  constructor(message: string, { partly = false, ...options }: ErrorOptions & { readonly partly?: boolean } = {}) {
    super(message, options);
    this.partly = partly;
  }
}

/** A record that a subscription was to read next is not there any more, or never was: going on would skip it. */
export class OffsetGone extends Error {
  override name = "OffsetGone";
  readonly topic: string;
  readonly partition: number;
  readonly offset: number;
  constructor(place: { readonly topic: string; readonly partition: number; readonly offset: number }, why = "") {
    const { topic, partition, offset } = place;
    super(`${topic}/${partition} has no offset ${offset}${why}`);
    this.topic = topic;
    this.partition = partition;
    this.offset = offset;
  }
}

export interface Producer {
  /**
   * Appends records to the producer's topic, in order within a partition; resolves with their offsets, in the order given, once they are
   * durable. Patient: an outage is waited out for as long as it lasts; after a give-up the same records go out in a new epoch. Calls
   * may overlap: they are sent one after another (one open send at a time). At most 1,000 records and 4 MiB a call.
   * Rejects with BusRefused, or BusUnavailable once the producer is closed.
   */
  send(records: readonly OutRecord[]): Promise<number[]>;
  /** False while a send is waiting out an outage. For health. */
  readonly reachable: boolean;
  /** Ends after the open send, or after 2 s; later and unsent ones reject with BusUnavailable. */
  close(): Promise<void>;
}

export interface SubscribeOptions {
  /** Name for logs and consumer groups; a group is always fresh (`<name>-<fence or random>`), so this subscriber gets every partition. */
  readonly name: string;
  readonly topics: readonly string[];
  /** First offset wanted, asked at every assignment: the position stored with the output is the authority. 0 where there is none. */
  readonly start: (topic: string, partition: number) => number;
  /** Records of one partition in offset order, at most 1,000 a call; the next call comes after it resolves. A rejection ends the subscription (`failed`). */
  readonly onRecords: (records: readonly InRecord[]) => Promise<void> | void;
}

export interface Subscription {
  /** Rejects when the subscription has failed for good: `onRecords` rejected, an offset is no longer there (OffsetGone), or no fetch succeeded for too long (a stall): the owner exits or starts anew. Never resolves before `close`. */
  readonly failed: Promise<never>;
  /** Ends after the running `onRecords`. */
  close(): Promise<void>;
}

export interface ProducerOptions {
  readonly topic: string;
  /** service/instance, e.g. verifier/8f3a: first two parts of `curfew-producer`, the epoch is added. */
  readonly name: string;
}

/** A topic as it is now. */
export interface TopicState {
  /** First offset that is there, or will be, per partition. */
  readonly starts: readonly number[];
  /** Offset after the last record, per partition. */
  readonly ends: readonly number[];
  /** Those of `evidenceSettings` (`topics.ts`), in Kafka's words: what the bus does, whoever set it. Empty where they may not be read. */
  readonly settings: Readonly<Record<string, string>>;
}

export interface Bus {
  openProducer(options: ProducerOptions): Promise<Producer>;
  subscribe(options: SubscribeOptions): Promise<Subscription>;
  /** Offset after the last record, per partition. Rejects with BusUnavailable within 5 s when it cannot be asked. */
  ends(topic: string): Promise<number[]>;
  /** Rejects as `ends` does, and with BusRefused where there is no such topic. */
  describe(topic: string): Promise<TopicState>;
  /** For health; rejects with BusUnavailable. */
  ping(): Promise<void>;
  close(): Promise<void>;
}
