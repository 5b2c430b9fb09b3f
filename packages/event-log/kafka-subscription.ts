import { type InRecord, OffsetGone, type SubscribeOptions, type Subscription } from "./bus.ts";
import type { KafkaClientSettings } from "./kafka-client.ts";
import { openSession, type Session, type SessionSettings } from "./kafka-session.ts";

const firstBackoffMs = 100;
const maxBackoffMs = 1000;

type Settings = KafkaClientSettings & Pick<SessionSettings, "random" | "ends"> & { readonly topicPrefix: string };

/**
 * Sessions one after another, each in a fresh group and from the positions that `start` answers: a dead member of the group before
 * blocks nothing. Crashes, stalls and outages only begin the next session; `failed` is for what another try would not mend.
 */
export class KafkaSubscription implements Subscription {
  readonly failed: Promise<never>;
  readonly #settings: Settings;
  readonly #options: SubscribeOptions;
  readonly #over = new AbortController();
  readonly #fail: (error: unknown) => void;
  readonly #running: Promise<void>;
  /** The running `onRecords`; sessions never overlap in it. */
  #delivering: Promise<boolean> = Promise.resolve(true);
  #session: Session | undefined;

  constructor(settings: Settings, options: SubscribeOptions, onEnd: () => void) {
    const { promise, reject } = Promise.withResolvers<never>();
    promise.catch(() => {});
    this.failed = promise;
    this.#fail = (error) => {
      reject(error);
      this.#stop();
    };
    this.#settings = settings;
    this.#options = options;
    this.#running = this.#run().finally(onEnd);
  }

  async close(): Promise<void> {
    this.#stop();
    await this.#running;
  }

  #stop(): void {
    this.#over.abort();
    this.#session?.end();
  }

  async #run(): Promise<void> {
    const { clock, log, topicPrefix } = this.#settings;
    const { name } = this.#options;
    const topics = [...new Set(this.#options.topics)].map((topic) => topicPrefix + topic);
    let backoffMs = firstBackoffMs;
    while (!this.#over.signal.aborted) {
      let delivered = false;
      const session = openSession({
        ...this.#settings,
        topics,
        group: name,
        start: (topic, partition) => this.#start(topic, partition),
        deliver: (topic, records) => {
          delivered = true;
          return this.#deliver(topic, records);
        },
      });
      this.#session = session;
      const reason = await session.ended;
      await this.#delivering;
      await session.close();
      if (reason instanceof OffsetGone) {
        const { partition, offset } = reason;
        this.#fail(new OffsetGone({ topic: reason.topic.slice(topicPrefix.length), partition, offset }));
      }
      if (this.#over.signal.aborted) return;
      log?.warn({ subscription: name, reason: reason.message }, "reading begins again with a new consumer");
      backoffMs = delivered ? firstBackoffMs : Math.min(2 * backoffMs, maxBackoffMs);
      await clock.sleep(backoffMs, this.#over.signal);
    }
  }

  #start(prefixed: string, partition: number): number {
    const offset = this.#options.start(prefixed.slice(this.#settings.topicPrefix.length), partition);
    if (!Number.isSafeInteger(offset) || offset < 0) throw new RangeError(`no offset to start at: ${offset}`);
    return offset;
  }

  #deliver(prefixed: string, records: readonly InRecord[]): Promise<boolean> {
    const topic = prefixed.slice(this.#settings.topicPrefix.length);
    const call = async () => {
      if (this.#over.signal.aborted) return false;
      try {
        await this.#options.onRecords(records.map((record) => ({ ...record, topic })));
        return true;
      } catch (error) {
        this.#fail(error);
        return false;
      }
    };
    this.#delivering = call();
    return this.#delivering;
  }
}
