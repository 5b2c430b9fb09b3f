import type { Doc, DocumentStore } from "@curfew/document-store/port.ts";
import type { Bus } from "@curfew/event-log/bus.ts";
import type { Relay } from "@curfew/event-log/relay.ts";
import type { CommitDoc } from "@curfew/event-log/streams.ts";
import { listLog } from "@curfew/event-log/testing/collected.ts";
import { openReplica, type Replica, topic } from "@curfew/event-log/testing/replica.ts";
import { systemClock } from "@curfew/runtime/clock.ts";
import { systemRandom } from "@curfew/runtime/random.ts";
import { afterEach, beforeEach, describe, expect, it, vi } from "vitest";
import { openFeed, type StreamAlarm } from "./feed.ts";
import { Progress } from "./progress.ts";

export interface OpenedLog {
  readonly store: DocumentStore;
  /** With the topic of `testing/replica.ts`, of one partition. */
  readonly bus: Bus;
  close(): Promise<void>;
}

type Row = Doc & { stream: string; sequence: number };
type Place = Doc & { offset: number };

const callers = 64;
const perCaller = 5;
const bound = { timeout: 60_000, interval: 5 };
const upTo = (n: number) => Array.from({ length: n }, (_, i) => i + 1);

/** What streams, relay and projection do together, on any pair of adapters; each test has a store and a bus of its own. */
export const streamContract = (name: string, open: () => Promise<OpenedLog>): void => {
  describe(`streams, relay and projection on ${name}`, () => {
    const undo: (() => Promise<unknown>)[] = [];
    let opened: OpenedLog;
    let replicas: readonly Replica[];
    beforeEach(async () => {
      opened = await open();
      undo.push(() => opened.close());
      const network = new Map<string, Relay>();
      const parts = { ...opened, clock: systemClock, random: systemRandom, network };
      replicas = await Promise.all(["one", "two"].map((each) => openReplica({ ...parts, name: each })));
      undo.push(() => Promise.all(replicas.map(({ lease }) => lease.close())));
      await vi.waitFor(() => expect(replicas.every(({ lease }) => lease.holder())).toBe(true), bound);
    });
    afterEach(async () => {
      for (const step of undo.splice(0).reverse()) await step();
    });

    /** Every caller at one of the two replicas, its numbers one after the other. */
    const append = (numbers: readonly number[]) =>
      Promise.all(
        upTo(callers).map(async (caller) => {
          const replica = replicas[caller % 2] as Replica;
          const offsets: (number | undefined)[] = [];
          for (const n of numbers) {
            const { commit } = await replica.handle(`token/${caller}`, { numbers: [n] });
            offsets.push(await replica.relay.published(commit as CommitDoc, bound.timeout));
          }
          return offsets;
        }),
      );
    const whole = (n: number) => new Map(upTo(callers).map((caller) => [`token/${caller}`, upTo(n)]));
    const byStream = (events: readonly { readonly stream: string; readonly sequence: number }[]) => {
      const found = new Map<string, number[]>();
      for (const { stream, sequence } of events) found.set(stream, [...(found.get(stream) ?? []), sequence]);
      return found;
    };

    it("publish for two replicas what 64 callers append at once, each stream in order, without gap or fork", async () => {
      const offsets = (await append(upTo(perCaller))).flat();
      expect(new Set(offsets).size).toBe(callers * perCaller);
      const events: { stream: string; sequence: number }[] = [];
      const alarms: StreamAlarm[] = [];
      // A record that was sent twice, as it may be where the lease changes hands, is dropped by the feed.
      const feed = await openFeed({
        ...{ bus: opened.bus, name: "reader", topics: [topic], clock: systemClock, log: listLog() },
        apply: ({ subject: stream, sequence = 0 }) => void events.push({ stream, sequence }),
        onAlarm: (alarm) => void alarms.push(alarm),
      });
      undo.push(() => feed.close());
      await feed.caughtUp;
      expect(byStream(events)).toEqual(whole(perCaller));
      expect(alarms).toEqual([]);
      const flagged = () => replicas[0]?.streams.commits.find({ where: { unpublished: true }, limit: 1 });
      await vi.waitFor(async () => expect(await flagged()).toEqual([]), bound);
    });

    it("give a version of one stream to one of those who want it: each command once, at whichever replica", async () => {
      await Promise.all(
        upTo(8).map((n) => (replicas[n % 2] as Replica).handle("token/one", { numbers: [n, 100 + n] })),
      );
      await Promise.all(replicas.map(({ handle }) => handle("token/one", { numbers: [1] })));
      const states = await Promise.all(replicas.map(({ load }) => load("token/one")));
      expect(states[0]).toHaveLength(16);
      expect(states[1]).toEqual(states[0]);
      for (const n of upTo(8)) expect(states[0]?.indexOf(100 + n)).toBe((states[0]?.indexOf(n) ?? 0) + 1);
    });

    it("fold each event once into rows, also when it dies after the rows and before their position, and goes on from there", async () => {
      const rows = await opened.store.collection<Row>("rows");
      const places = await opened.store.collection<Place>("places");
      const again: string[] = [];
      const project = async (dies: () => boolean) => {
        const [newest] = await places.find({ order: -1, limit: 1 });
        const waiting: Row[] = [];
        const feed = await openFeed({
          ...{ bus: opened.bus, name: "projection", topics: [topic], clock: systemClock, log: listLog() },
          ...(newest && { from: [Progress.position(topic, 0, newest.offset)] }),
          apply: ({ id, subject: stream, sequence = 0 }) => void waiting.push({ _id: id, stream, sequence }),
          commit: async ([position]) => {
            const batch = waiting.splice(0);
            const verdicts = await rows.insertMany(batch);
            again.push(...batch.filter((_, i) => verdicts[i] === "exists").map(({ _id }) => _id));
            if (dies()) throw new Error("killed");
            const offset = Number(position?.offset);
            await places.insert({ _id: String(offset).padStart(10, "0"), offset });
          },
        });
        feed.failed.catch(() => undefined);
        undo.push(() => feed.close());
        return feed;
      };
      await append(upTo(2));
      const first = await project(() => false);
      await first.caughtUp;
      await first.close();
      await append([3, 4]);
      await expect((await project(() => true)).failed).rejects.toThrow("killed");
      await append([5]);
      const last = await project(() => false);
      await last.caughtUp;
      expect(again.length).toBeGreaterThan(0);
      const found = await rows.find({ limit: 10_000 });
      const sorted = [...byStream(found)].map(
        ([stream, sequences]) => [stream, sequences.sort((a, b) => a - b)] as const,
      );
      expect(new Map(sorted)).toEqual(whole(5));
      expect(last.positions()).toEqual([Progress.position(topic, 0, (await opened.bus.ends(topic))[0] ?? 0)]);
    });
  });
};
