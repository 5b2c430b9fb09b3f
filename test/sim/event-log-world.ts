import assert from "node:assert/strict";
import { fromBinary } from "@bufbuild/protobuf";
import { SecretCollectedSchema } from "@curfew/contracts/gen/curfew/events/v1/tokens_pb.ts";
import type { InRecord } from "@curfew/event-log/bus.ts";
import { type ChainHead, checkLink } from "@curfew/event-log/chain.ts";
import type { EpochRow } from "@curfew/event-log/epochs.ts";
import type { Relay } from "@curfew/event-log/relay.ts";
import type { CommitDoc } from "@curfew/event-log/streams.ts";
import { listLog } from "@curfew/event-log/testing/collected.ts";
import { openReplica, type Replica, topic } from "@curfew/event-log/testing/replica.ts";
import { type Feed, openFeed, type StreamAlarm } from "@curfew/projection/feed.ts";
import { type Fault, faultyStore, never } from "@curfew/simulation/faulty-store.ts";
import { type MemoryBus, memoryBus } from "@curfew/simulation/memory-bus.ts";
import { memoryStore } from "@curfew/simulation/memory-store.ts";
import { type SeededRandom, seededRandom } from "@curfew/simulation/seeded-random.ts";
import { settle, type VirtualClock, virtualClock } from "@curfew/simulation/virtual-clock.ts";

interface Process {
  readonly replica: Replica;
  alive: boolean;
}

const streamNames = ["token/a", "token/b", "token/c", "token/d"];
const header = (record: InRecord, name: string) => record.headers.find(([n]) => n === name)?.[1] ?? "";

/**
 * Two replicas of one service over one database and one bus, in one process on virtual time, with everything that goes wrong drawn from a
 * seed: operations lost, done but reported lost, processes killed between any two operations, outages, deliveries repeated, readers anew.
 */
export class World {
  readonly random: SeededRandom;
  readonly clock: VirtualClock = virtualClock();
  readonly acknowledged = new Map<number, string>();
  /** What was done and what went wrong, counted: a run in which nothing did shows nothing. */
  readonly counts: Record<string, number> = {};
  readonly alarms: StreamAlarm[] = [];
  readonly #store = memoryStore();
  readonly #network = new Map<string, Relay>();
  #bus!: MemoryBus;
  #processes: Process[] = [];
  #started = 0;
  #commands = 0;
  #faulty = true;
  #storeDown = false;
  #busDown = false;
  #feed!: Feed;
  #applied: string[] = [];

  private constructor(seed: number) {
    this.random = seededRandom(seed);
  }

  static async open(seed: number): Promise<World> {
    const world = new World(seed);
    const epochs = await world.#store.collection<EpochRow>("epochs");
    world.#bus = memoryBus({ epochs, clock: world.clock, topics: { [topic]: 1 } });
    await world.#readAnew();
    for (let i = 0; i < 2; i += 1) await world.#start();
    return world;
  }

  #count(what: string): void {
    this.counts[what] = (this.counts[what] ?? 0) + 1;
  }

  #fault(kind: string, odds: number): Fault | undefined {
    if (!this.#faulty || !this.random.chance(odds)) return undefined;
    const fault = this.random.pick(["lost", "unacknowledged"] as const);
    this.#count(`${kind} ${fault}`);
    return fault;
  }

  async #start(): Promise<void> {
    this.#started += 1;
    const name = `r${this.#started}`;
    const self: { process?: Process } = {};
    /** Before any operation the process may be dead, or die: then nothing more of it happens; or it dies behind it. */
    const planned = (kind: string, odds: number, down: () => boolean) => (): Fault | undefined | Promise<Fault> => {
      const { process } = self;
      if (process && !process.alive) return never<Fault>();
      if (process && this.#faulty && this.random.chance(0.003)) {
        this.#kill(process);
        this.#count("killed at an operation");
        return this.random.chance(0.5) ? never<Fault>() : "unanswered";
      }
      return down() ? "lost" : this.#fault(kind, odds);
    };
    const onStore = planned("write", 0.08, () => this.#storeDown);
    const onBus = planned("send", 0.1, () => this.#busDown);
    const replica = await openReplica({
      name,
      store: faultyStore(this.#store, onStore),
      bus: this.#bus.seenBy((operation) => (operation.kind === "send" ? onBus() : undefined)),
      clock: this.clock,
      random: this.random.bytes,
      network: this.#network,
    });
    self.process = { replica, alive: true };
    this.#processes.push(self.process);
  }

  #kill(process: Process): void {
    process.alive = false;
    this.#processes = this.#processes.filter((other) => other !== process);
    for (const [name, relay] of this.#network) if (relay === process.replica.relay) this.#network.delete(name);
  }

  /** A reader that starts from nothing: it must come to the same result. */
  async #readAnew(): Promise<void> {
    // Undefined before the first.
    await (this.#feed as Feed | undefined)?.close();
    const applied: string[] = [];
    this.#applied = applied;
    this.#feed = await openFeed({
      bus: this.#bus.seenBy(({ kind }) => (kind === "deliver" ? this.#fault("deliver", 0.2) : undefined)),
      name: "reader",
      topics: [topic],
      clock: this.clock,
      log: listLog(),
      apply: (event) => void applied.push(event.id),
      onAlarm: (alarm) => void this.alarms.push(alarm),
    });
  }

  /** One random thing happens. */
  async step(): Promise<void> {
    while (this.#processes.length < 2) await this.#start();
    const { random } = this;
    const what = random.below(100);
    if (what < 55) this.#command();
    else if (what < 85) await this.clock.advance(random.pick([0, 20, 300, 1_000, 3_000]));
    else if (what < 88) this.#storeDown = !this.#storeDown;
    else if (what < 92) this.#busDown = !this.#busDown;
    else if (what < 95) {
      this.#count("killed");
      this.#kill(random.pick(this.#processes));
    } else if (what < 97) await this.#readAnew();
    else void random.pick(this.#processes).replica.lease.close();
    await settle();
  }

  /** A command for one replica, or, as a client's repetition, for both at once. */
  #command(): void {
    const { random } = this;
    const stream = random.pick(streamNames);
    this.#commands += 1;
    const id = this.#commands;
    const numbers = random.chance(0.3) ? [id * 2, id * 2 + 1] : [id * 2];
    const receivers = random.chance(0.2) ? this.#processes : [random.pick(this.#processes)];
    for (const process of receivers) {
      this.#count("commands");
      process.replica.handle(stream, { numbers }).then(
        ({ commit }) => {
          if (!process.alive) return;
          for (const n of numbers) this.acknowledged.set(n, stream);
          this.#count("acknowledged");
          if (commit) void process.replica.relay.published(commit);
        },
        () => process.alive && this.#count("refused"),
      );
    }
  }

  /** Everything works again, for long enough that nothing can still be on its way. */
  async heal(): Promise<void> {
    this.#faulty = false;
    this.#storeDown = false;
    this.#busDown = false;
    while (this.#processes.length < 2) await this.#start();
    // One whose lease was closed contends no more: a process that stops. One that lives has to be there.
    await this.#start();
    await this.clock.advance(40_000);
  }

  records(): readonly InRecord[] {
    return this.#bus.records(topic);
  }

  async #commits(): Promise<CommitDoc[]> {
    return (await this.#store.collection<CommitDoc>("commits")).find({ limit: 10_000 });
  }

  /** What holds at every moment. */
  async check(): Promise<void> {
    const commits = await this.#commits();
    const stored = this.#checkStreams(commits);
    for (const [n, stream] of this.acknowledged)
      assert.ok(stored.numbers.has(`${stream} ${n}`), `acknowledged command ${n} is not in its stream`);
    this.#checkTopic(stored.bytes);
    assert.deepEqual(this.alarms, [], "the reader raised an alarm");
    assert.equal(new Set(this.#applied).size, this.#applied.length, "an event was applied twice");
  }

  /** Versions and sequences without gaps, no command twice. */
  #checkStreams(commits: readonly CommitDoc[]) {
    const ends = new Map<string, { version: number; sequence: number }>();
    const bytes = new Map<string, string>();
    const numbers = new Set<string>();
    for (const { stream, version, events } of commits) {
      const end = ends.get(stream) ?? { version: 0, sequence: 0 };
      assert.equal(version, end.version + 1, `${stream}: versions have a gap`);
      for (const [i, { headers, value }] of events.entries()) {
        assert.equal(Number(headers.ce_sequence), end.sequence + 1 + i, `${stream}: sequences have a gap`);
        const id = headers.ce_id ?? "";
        assert.ok(!bytes.has(id), "an event id twice");
        bytes.set(id, Buffer.from(value).toString("hex"));
      }
      ends.set(stream, { version, sequence: end.sequence + events.length });
    }
    for (const { stream, events } of commits)
      for (const { value } of events) {
        const n = fromBinary(SecretCollectedSchema, value).generation;
        assert.ok(!numbers.has(`${stream} ${n}`), `${stream}: command ${n} had two effects`);
        numbers.add(`${stream} ${n}`);
      }
    return { bytes, numbers };
  }

  /** First occurrences in order and dense, repetitions identical, every producer's chain whole. */
  #checkTopic(stored: ReadonlyMap<string, string>): void {
    const next = new Map<string, number>();
    const seen = new Set<string>();
    const heads = new Map<string, ChainHead>();
    for (const record of this.records()) {
      const { verdict, producer = "", head } = checkLink(heads.get(header(record, "curfew-producer")), record);
      assert.equal(verdict.kind, "ok", `the chain of ${producer} breaks at ${record.offset}`);
      if (head) heads.set(producer, head);
      const id = header(record, "ce_id");
      assert.equal(Buffer.from(record.value).toString("hex"), stored.get(id), "not the bytes that were committed");
      if (seen.has(id)) {
        this.#count("records twice");
        continue;
      }
      seen.add(id);
      const sequence = Number(header(record, "ce_sequence"));
      assert.equal(sequence, (next.get(record.key) ?? 0) + 1, `${record.key} is out of order at ${record.offset}`);
      next.set(record.key, sequence);
    }
  }

  /** What holds once everything has healed. */
  async checkEnd(): Promise<void> {
    await this.check();
    const commits = await this.#commits();
    const ids = commits.flatMap(({ events }) => events.map(({ headers }) => headers.ce_id ?? "")).sort();
    assert.deepEqual(
      [...new Set(this.records().map((r) => header(r, "ce_id")))].sort(),
      ids,
      "not all is on the topic",
    );
    assert.deepEqual([...this.#applied].sort(), ids, "the reader has not applied all");
    assert.deepEqual(
      commits.filter((commit) => commit.unpublished).map(({ _id }) => _id),
      [],
      "flags are left",
    );
    assert.equal(this.#processes.filter(({ replica }) => replica.lease.held).length, 1, "not one holder");
  }
}
