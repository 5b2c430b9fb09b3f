import type { ConnectionOptions } from "node:tls";
import kafkajs, { type Admin } from "kafkajs";
import { siemTopic } from "./event-types.ts";

export interface Topic {
  name: string;
  /** Fixed for the life of the major version: positions and key placement depend on it. */
  partitions: number;
  /** Topic settings that do not depend on the cluster's size. */
  config: Readonly<Record<string, string>>;
}

/** Nothing is ever deleted or compacted, no acknowledged record is given up for availability, and the broker's clock dates records. */
const config = {
  "cleanup.policy": "delete",
  "retention.ms": "-1",
  "retention.bytes": "-1",
  "unclean.leader.election.enable": "false",
  "message.timestamp.type": "LogAppendTime",
};

/** Topics with one relay have one partition, so that a position in them is one number; uses come from many verifiers. */
export const topics: readonly Topic[] = [
  { name: "curfew.tokens.v1", partitions: 1, config },
  { name: "curfew.revocations.v1", partitions: 1, config },
  { name: "curfew.breaches.v1", partitions: 1, config },
  { name: "curfew.evidence.v1", partitions: 1, config },
  { name: "curfew.uses.v1", partitions: 12, config },
  // In the ledger's order. Kept for ever like the others, since its end says how far it was filled.
  { name: siemTopic, partitions: 1, config },
];

/** The same on SQLite, where one process reads and writes: more than one partition would only spread each commit over more pages. */
export const embeddedTopics: Readonly<Record<string, number>> = Object.fromEntries(topics.map(({ name }) => [name, 1]));

/** What evidence rests on, and what `Bus.describe` answers: the settings with which topics are made. `minInsync`: as TopicOptions has it. */
export const evidenceSettings = (minInsync: number): Readonly<Record<string, string>> => ({
  ...config,
  "min.insync.replicas": String(minInsync),
});

export interface TopicOptions {
  /** Copies of each partition; 3 in production. */
  replicationFactor: number;
  /** `min.insync.replicas`; 2 in production, at most `replicationFactor`. */
  minInsync: number;
  /** Put before each name, so that tests share a cluster. */
  prefix?: string;
  /** Mutual TLS: `ca`, `cert` and `key`. Default: plain text. */
  ssl?: ConnectionOptions;
}

/**
 * Creates the topics that are absent and returns which were. What exists is never changed (kafkajs's `alterConfigs` resets every
 * setting it is not given): `checkTopics` tells whether it is right. Fails, saying the broker's reason for each topic.
 */
export const applyTopics = (brokers: string[], options: TopicOptions): Promise<string[]> =>
  withAdmin(brokers, options, async (admin) => {
    const existing = new Set(await admin.listTopics());
    const absent = wanted(options).filter((t) => !existing.has(t.name));
    if (absent.length === 0) return [];
    await createTopics(admin, absent, options.replicationFactor);
    return absent.map((t) => t.name);
  });

/** One line for each topic or setting that is not what `applyTopics` would create; empty when all is right. Needs DESCRIBE_CONFIGS. */
export const checkTopics = (brokers: string[], options: TopicOptions): Promise<string[]> =>
  withAdmin(brokers, options, async (admin) => {
    const existing = new Set(await admin.listTopics());
    const differences: string[] = [];
    for (const topic of wanted(options)) {
      if (existing.has(topic.name)) differences.push(...(await differencesOf(admin, topic, options.replicationFactor)));
      else differences.push(`${topic.name}: absent`);
    }
    return differences;
  });

const differencesOf = async (admin: Admin, topic: Topic, replicationFactor: number) => {
  const { topics: found } = await admin.fetchTopicMetadata({ topics: [topic.name] });
  const partitions = found[0]?.partitions ?? [];
  const replicas = Math.min(...partitions.map((p) => p.replicas.length));
  const { resources } = await admin.describeConfigs({
    includeSynonyms: false,
    resources: [{ type: kafkajs.ConfigResourceTypes.TOPIC, name: topic.name, configNames: Object.keys(topic.config) }],
  });
  const values = new Map(resources[0]?.configEntries.map((c) => [c.configName, c.configValue]));
  const facts: [what: string, is: string | number | undefined, want: string | number][] = [
    ["partitions", partitions.length, topic.partitions],
    ["replication factor", replicas, replicationFactor],
  ];
  for (const [name, want] of Object.entries(topic.config)) facts.push([name, values.get(name), want]);
  return facts
    .filter(([, is, want]) => is !== want)
    .map(([what, is, want]) => `${topic.name}: ${what} is ${is}, not ${want}`);
};

const wanted = ({ prefix = "", replicationFactor, minInsync }: TopicOptions): Topic[] => {
  if (minInsync > replicationFactor)
    throw new RangeError(
      `min.insync.replicas ${minInsync} is over the replication factor ${replicationFactor}: no write would succeed`,
    );
  return topics.map((t) => ({
    ...t,
    name: prefix + t.name,
    config: { ...t.config, ...evidenceSettings(minInsync) },
  }));
};

const createTopics = async (admin: Admin, absent: Topic[], replicationFactor: number) => {
  try {
    // It returns false where another process created one since we looked: that is as good.
    await admin.createTopics({
      topics: absent.map((t) => ({
        topic: t.name,
        numPartitions: t.partitions,
        replicationFactor,
        configEntries: Object.entries(t.config).map(([name, value]) => ({ name, value })),
      })),
    });
  } catch (e) {
    if (!(e instanceof kafkajs.KafkaJSAggregateError)) throw e;
    throw new Error(`topics not created: ${e.errors.map(reasonOf).join("; ")}`, { cause: e });
  }
};

/** kafkajs keeps topic and reason only in properties its types do not declare. */
const reasonOf = (error: Error | string) => {
  if (typeof error === "string") return error;
  const { topic, type } = error as { topic?: string; type?: string };
  return `${topic ?? "?"}: ${type ?? error.message}`;
};

const withAdmin = async <T>(
  brokers: string[],
  { ssl }: TopicOptions,
  work: (admin: Admin) => Promise<T>,
): Promise<T> => {
  // Silent: what matters comes back as an error.
  const kafka = new kafkajs.Kafka({
    clientId: "curfew-topics",
    brokers,
    logLevel: kafkajs.logLevel.NOTHING,
    ...(ssl && { ssl }),
  });
  const admin = kafka.admin();
  try {
    await admin.connect();
    return await work(admin);
  } finally {
    await admin.disconnect();
  }
};
