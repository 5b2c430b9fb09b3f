import type kafkajs from "kafkajs";
import type { RecordMetadata } from "kafkajs";
import { BusRefused, BusUnavailable } from "./bus.ts";
import type { ChainedRecord } from "./chain.ts";
import type { ProducerTransport } from "./chained-producer.ts";
import { brokerErrorOf, type KafkaClientSettings, openKafkaClient, reasonsOf, within } from "./kafka-client.ts";

const requestTimeoutMs = 30_000;
const openMs = 10_000;
const disconnectMs = 1000;
/** A send without one response for so long is given up, if the cluster answers another connection. */
export const silenceMs = 30_000;
const watchEveryMs = 5000;

/** What will be so for ever, and of which nothing was appended: to the whole topic, or to a partition beside others. */
const topicRefusals = new Set(["TOPIC_AUTHORIZATION_FAILED", "CLUSTER_AUTHORIZATION_FAILED"]);
const partitionRefusals = new Set(["MESSAGE_TOO_LARGE", "RECORD_LIST_TOO_LARGE", "INVALID_RECORD"]);

/**
 * One idempotent kafkajs producer, connected (within 10 s, else BusUnavailable). It must have one open send at a time: two that
 * share a partition lose acknowledged records when an acknowledgement is lost. Any rejection but BusRefused is a give-up: kafkajs
 * would swallow a later batch, so the owner closes it and opens another.
 * @param probe Resolves when the cluster answers on a connection of its own.
 */
export const openKafkaTransport = async (
  settings: KafkaClientSettings,
  topic: string,
  probe: () => Promise<void>,
): Promise<ProducerTransport> => {
  const { clock } = settings;
  const client = openKafkaClient(settings, { requestTimeoutMs, retries: Infinity });
  const producer = client.kafka.producer({
    idempotent: true,
    maxInFlightRequests: 1,
    allowAutoTopicCreation: false,
    retry: client.retry,
    createPartitioner: () => explicitPartition,
  });
  let heardMs = clock.monotonicMs();
  producer.on(producer.events.REQUEST, () => {
    heardMs = clock.monotonicMs();
  });
  const close = async () => {
    await within(clock, disconnectMs, producer.disconnect()).catch(() => {});
    client.end();
  };
  try {
    await within(clock, openMs, producer.connect());
  } catch (error) {
    client.end();
    throw asBusError(error);
  }

  const silence = async (sent: AbortSignal): Promise<never> => {
    heardMs = clock.monotonicMs();
    for (;;) {
      await clock.sleep(watchEveryMs, sent);
      if (sent.aborted) break;
      if (clock.monotonicMs() - heardMs < silenceMs) continue;
      const answers = await probe().then(
        () => true,
        () => false,
      );
      if (answers && clock.monotonicMs() - heardMs >= silenceMs) break;
    }
    throw new BusUnavailable(`no response to a send for ${silenceMs} ms`);
  };

  return {
    close,
    async send(records) {
      const sent = new AbortController();
      const silent = silence(sent.signal);
      silent.catch(() => {});
      try {
        const messages = records.map(toMessage);
        const acks = { acks: -1, timeout: requestTimeoutMs };
        const metadata = await Promise.race([producer.send({ topic, messages, ...acks }), silent]);
        return offsetsOf(records, metadata);
      } catch (error) {
        throw asBusError(error, new Set(records.map(({ partition }) => partition)).size);
      } finally {
        sent.abort();
      }
    },
  };
};

/** kafkajs sends nothing, without an error, for a partition it does not know; and without an explicit one it places anew at a retry. */
const explicitPartition: ReturnType<kafkajs.ICustomPartitioner> = ({ topic, partitionMetadata, message }) => {
  const { partition } = message;
  if (partition === undefined || !partitionMetadata.some((p) => p.partitionId === partition))
    throw new BusRefused(`no partition ${partition} in ${topic}`);
  return partition;
};

const toMessage = ({ partition, key, headers, value }: ChainedRecord): kafkajs.Message => ({
  partition,
  key,
  headers: { ...headers },
  value: Buffer.from(value.buffer, value.byteOffset, value.byteLength),
});

const offsetsOf = (records: readonly ChainedRecord[], metadata: readonly RecordMetadata[]): number[] => {
  const next = new Map(metadata.map(({ partition, baseOffset }) => [partition, Number(baseOffset)]));
  return records.map(({ partition }) => {
    const offset = next.get(partition);
    if (offset === undefined || !Number.isSafeInteger(offset) || offset < 0)
      throw new BusUnavailable(`acknowledged without an offset in partition ${partition}`);
    next.set(partition, offset + 1);
    return offset;
  });
};

const asBusError = (error: unknown, partitions = 1): Error => {
  for (const e of reasonsOf(error)) if (e instanceof BusRefused) return e;
  const reason = brokerErrorOf(error);
  const message = error instanceof Error ? error.message : String(error);
  const isOfPartition = reason !== undefined && partitionRefusals.has(reason);
  if (isOfPartition || (reason !== undefined && topicRefusals.has(reason)))
    return new BusRefused(`Kafka: ${reason}`, { cause: error, partly: isOfPartition && partitions > 1 });
  return new BusUnavailable(`Kafka: ${message}`, { cause: error });
};
