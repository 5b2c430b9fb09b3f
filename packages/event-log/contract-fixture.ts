import { randomUUID } from "node:crypto";
import type { Collection } from "@curfew/document-store/port.ts";
import { expect, vi } from "vitest";
import type { Bus, InRecord, OutRecord, SubscribeOptions } from "./bus.ts";
import { type ChainHead, checkLink, producerHeader } from "./chain.ts";
import type { EpochRow } from "./epochs.ts";

export interface OpenedBus {
  readonly bus: Bus;
  /** What the bus keeps its epochs in. */
  readonly epochs: Collection<EpochRow>;
  /** Closes `bus` and opens the same topics and epochs again. Absent where nothing outlives the bus. */
  reopen?(): Promise<Bus>;
  /** Closes whatever is open and removes what was made. */
  close(): Promise<void>;
}

/** Partitions of the topics that a test gets: names are new each time. */
export type ContractTopics = Readonly<Record<string, number>>;

export const manyPartitions = 3;
export const bound = { timeout: 60_000, interval: 5 };

export class Fixture {
  one = "";
  many = "";
  bus!: Bus;
  opened!: OpenedBus;

  rename() {
    const id = randomUUID();
    this.one = `contract-${id}-one`;
    this.many = `contract-${id}-many`;
  }

  use(opened: OpenedBus) {
    this.opened = opened;
    this.bus = opened.bus;
  }

  async reopen() {
    if (!this.opened.reopen) return false;
    this.bus = await this.opened.reopen();
    return true;
  }

  producer(topic: string, name = "tester/1") {
    return this.bus.openProducer({ topic, name });
  }

  /** Subscribes and keeps what comes. */
  async collect(topics: readonly string[], options: Partial<SubscribeOptions> = {}) {
    const records: InRecord[] = [];
    const subscription = await this.bus.subscribe({
      name: "reader",
      topics,
      start: () => 0,
      onRecords: (batch) => void records.push(...batch),
      ...options,
    });
    const count = (n: number) => vi.waitFor(() => expect(records.length).toBeGreaterThanOrEqual(n), bound);
    return { records, subscription, count };
  }

  /** Everything on the topics now. */
  async readAll(...topics: string[]) {
    const ends = await Promise.all(topics.map((topic) => this.bus.ends(topic)));
    const { records, subscription, count } = await this.collect(topics);
    await count(ends.flat().reduce((total, end) => total + end, 0));
    await subscription.close();
    return records;
  }
}

export const record = (value: string | Uint8Array, more: Partial<OutRecord> = {}): OutRecord => ({
  partition: 0,
  key: "k",
  headers: {},
  value: typeof value === "string" ? Buffer.from(value) : value,
  ...more,
});
export const textOf = ({ value }: { value: Uint8Array }) => Buffer.from(value).toString();
export const numbers = (n: number, from = 0) => Array.from({ length: n }, (_, i) => from + i);
export const headerOf = ({ headers }: InRecord, name: string) => headers.find(([n]) => n === name)?.[1];

/** Every link of every chain holds, from number 1; answers the last number per producer epoch. */
export const assertChained = (records: readonly InRecord[]) => {
  const heads = new Map<string, ChainHead | undefined>();
  const last: Record<string, number> = {};
  for (const r of records) {
    const lane = `${headerOf(r, producerHeader)} ${r.topic} ${r.partition}`;
    const { verdict, producer, head } = checkLink(heads.get(lane), r);
    expect(verdict).toEqual({ kind: "ok" });
    heads.set(lane, head);
    last[producer ?? ""] = Math.max(last[producer ?? ""] ?? 0, head?.sequence ?? 0);
  }
  return last;
};

/** Each partition's offsets are 0, 1, 2 … in the order of delivery, and its time never goes back. */
export const assertDense = (records: readonly InRecord[]) => {
  for (const lane of Map.groupBy(records, (r) => `${r.topic} ${r.partition}`).values()) {
    expect(lane.map((r) => r.offset)).toEqual(numbers(lane.length));
    for (const [i, r] of lane.entries()) expect(r.timestampMs).toBeGreaterThanOrEqual(lane[i - 1]?.timestampMs ?? 1);
  }
};
