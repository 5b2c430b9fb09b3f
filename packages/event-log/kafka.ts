/**
 * The bus on a Kafka cluster, through kafkajs 2.2.4, which is no longer maintained and is defended against here: its faults and their
 * remedies stand where they apply, in `kafka-transport.ts` (sending) and `kafka-session.ts` (reading), and test/live shows each.
 */
import type { Collection } from "@curfew/document-store/port.ts";
import { type Random, systemRandom } from "@curfew/runtime/random.ts";
import kafkajs, { type Admin } from "kafkajs";
import {
  type Bus,
  BusRefused,
  BusUnavailable,
  type Producer,
  type ProducerOptions,
  type SubscribeOptions,
  type Subscription,
  type TopicState,
} from "./bus.ts";
import { openChainedProducer } from "./chained-producer.ts";
import type { EpochRow } from "./epochs.ts";
import { brokerErrorOf, type KafkaClient, type KafkaClientSettings, openKafkaClient, within } from "./kafka-client.ts";
import { KafkaSubscription } from "./kafka-subscription.ts";
import { openKafkaTransport } from "./kafka-transport.ts";
import { identityOf, type ProducerIdentity } from "./producer-key.ts";
import { evidenceSettings, topics } from "./topics.ts";

export type { KafkaTls } from "./kafka-client.ts";

export interface KafkaBusSettings extends KafkaClientSettings {
  readonly epochs: Collection<EpochRow>;
  /** What certifies a service's producers, asked whenever a chain begins; absent: nothing is signed. */
  readonly identity?: (service: string) => ProducerIdentity;
  /** Put before each topic's name on the cluster, so that tests share one; records, chains and epochs have the bare name. */
  readonly topicPrefix?: string;
  /** Makes group names unique. Default: the system's. */
  readonly random?: Random;
}

const askMs = 5000;
/** Under `message.max.bytes` (1,048,588 by default), which counts a batch: in the worst case a whole send is one. */
const maxBatchBytes = 1_000_000;

/** Opens no connection yet: a service starts during an outage, and comes to life when it is over. */
export const openKafkaBus = async (settings: KafkaBusSettings): Promise<Bus> => new KafkaBus(settings);

class KafkaBus implements Bus {
  readonly #settings: KafkaBusSettings;
  readonly #prefix: string;
  readonly #producers = new Set<Producer>();
  readonly #subscriptions = new Set<KafkaSubscription>();
  readonly #ends = new Map<string, () => Promise<number[]>>();
  readonly #probe = coalesced(() => this.#ask((admin) => admin.describeCluster()));
  #admin: { readonly client: KafkaClient; readonly connected: Promise<Admin> } | undefined;
  #closed: Promise<void> | undefined;

  constructor(settings: KafkaBusSettings) {
    this.#settings = settings;
    this.#prefix = settings.topicPrefix ?? "";
  }

  async openProducer(options: ProducerOptions): Promise<Producer> {
    this.#assertOpen();
    const { epochs, clock, identity } = this.#settings;
    // Ours are known without asking, and fixed: a service opens its producers during an outage too.
    const known = topics.find(({ name }) => name === options.topic);
    const partitions = known?.partitions ?? (await this.ends(options.topic)).length;
    this.#assertOpen();
    const producer = openChainedProducer({
      options,
      partitions,
      epochs,
      clock,
      ...identityOf(options, identity),
      maxBatchBytes,
      open: () => openKafkaTransport(this.#settings, this.#prefix + options.topic, () => this.#probed()),
    });
    this.#producers.add(producer);
    return producer;
  }

  async subscribe(options: SubscribeOptions): Promise<Subscription> {
    this.#assertOpen();
    for (const topic of new Set(options.topics))
      await this.ends(topic).catch((error: unknown) => {
        if (error instanceof BusRefused) throw error;
      });
    this.#assertOpen();
    const settings = {
      ...this.#settings,
      random: this.#settings.random ?? systemRandom,
      topicPrefix: this.#prefix,
      ends: (topic: string) => this.ends(topic.slice(this.#prefix.length)),
    };
    const subscription = new KafkaSubscription(settings, options, () => this.#subscriptions.delete(subscription));
    this.#subscriptions.add(subscription);
    return subscription;
  }

  async ends(topic: string): Promise<number[]> {
    this.#assertOpen();
    let ask = this.#ends.get(topic);
    if (!ask) {
      ask = coalesced(() => this.#askEnds(topic));
      this.#ends.set(topic, ask);
    }
    try {
      return await within(this.#settings.clock, askMs, ask());
    } catch (error) {
      // Names come from callers: none may stay that the cluster does not know.
      this.#ends.delete(topic);
      throw error;
    }
  }

  async describe(topic: string): Promise<TopicState> {
    this.#assertOpen();
    const name = this.#prefix + topic;
    const question = async (admin: Admin) => {
      const offsets = await admin.fetchTopicOffsets(name);
      const resource = { type: kafkajs.ConfigResourceTypes.TOPIC, name, configNames: Object.keys(evidenceSettings(1)) };
      const described = await admin
        .describeConfigs({ includeSynonyms: false, resources: [resource] })
        .catch((error: unknown) => {
          if (brokerErrorOf(error)?.endsWith("AUTHORIZATION_FAILED")) return undefined;
          throw error;
        });
      const entries = described?.resources[0]?.configEntries ?? [];
      const inOrder = offsets.toSorted((a, b) => a.partition - b.partition);
      return {
        starts: inOrder.map(({ low }) => Number(low)),
        ends: inOrder.map(({ high }) => Number(high)),
        settings: Object.fromEntries(entries.map(({ configName, configValue }) => [configName, configValue])),
      };
    };
    return await this.#ask(question, topic);
  }

  async ping(): Promise<void> {
    this.#assertOpen();
    if ([...this.#producers].some((producer) => !producer.reachable)) throw new BusUnavailable("a send is waiting");
    await this.#probed();
  }

  close(): Promise<void> {
    this.#closed ??= (async () => {
      await Promise.all([...this.#producers, ...this.#subscriptions].map((part) => part.close()));
      this.#dropAdmin();
    })();
    return this.#closed;
  }

  async #probed(): Promise<void> {
    await within(this.#settings.clock, askMs, this.#probe());
  }

  async #askEnds(topic: string): Promise<number[]> {
    const found = await this.#ask((admin) => admin.fetchTopicOffsets(this.#prefix + topic), topic);
    const ends: number[] = [];
    for (const { partition, high } of found) ends[partition] = Number(high);
    return ends;
  }

  /**
   * On one long-lived connection, or after any failure on a new one. kafkajs asks for the metadata of every topic it was ever asked about
   * together: one that is deleted makes all unknown. So what is said to be unknown is asked again, alone.
   */
  async #ask<T>(question: (admin: Admin) => Promise<T>, topic = "", alone = false): Promise<T> {
    this.#admin ??= openAdmin(this.#settings);
    const { client, connected } = this.#admin;
    try {
      return await within(this.#settings.clock, askMs, connected.then(question));
    } catch (error) {
      if (this.#admin?.client === client) this.#dropAdmin();
      client.end();
      if (brokerErrorOf(error) === "UNKNOWN_TOPIC_OR_PARTITION") {
        if (!alone) return await this.#ask(question, topic, true);
        throw new BusRefused(`no topic ${topic}`, { cause: error });
      }
      if (error instanceof BusUnavailable) throw error;
      throw new BusUnavailable(`Kafka: ${(error as Error).message}`, { cause: error });
    }
  }

  #dropAdmin(): void {
    this.#admin?.client.end();
    this.#admin = undefined;
  }

  #assertOpen(): void {
    if (this.#closed !== undefined) throw new BusUnavailable("bus is closed");
  }
}

const openAdmin = (settings: KafkaBusSettings) => {
  const client = openKafkaClient(settings, { requestTimeoutMs: askMs, retries: 1 });
  const admin = client.kafka.admin({ retry: client.retry });
  return { client, connected: admin.connect().then(() => admin) };
};

/** Calls while one is under way share the one after it: an answer is never older than its question. */
const coalesced = <T>(ask: () => Promise<T>): (() => Promise<T>) => {
  let running: Promise<T> | undefined;
  let next: Promise<T> | undefined;
  const begin = () => {
    const answer = ask().finally(() => {
      if (running === answer) running = undefined;
    });
    running = answer;
    return answer;
  };
  return () => {
    if (!running) return begin();
    const afterwards = () => {
      next = undefined;
      return begin();
    };
    next ??= running.then(afterwards, afterwards);
    return next;
  };
};
