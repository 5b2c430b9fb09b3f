import type { ErasureAcknowledged } from "@curfew/contracts/gen/curfew/events/v1/data_subjects_pb.ts";
import { StoreUnavailable } from "@curfew/document-store/port.ts";
import type { Bus } from "@curfew/event-log/bus.ts";
import { topicNames } from "@curfew/event-log/event-types.ts";
import type { Aggregates } from "@curfew/event-log/handle-command.ts";
import type { Tenure } from "@curfew/event-log/lease.ts";
import type { Outbox } from "@curfew/event-log/outbox.ts";
import { decodeLeaf } from "@curfew/ledger/leaf.ts";
import {
  destroyKey,
  destroyPeople,
  leadPart,
  notDestroyed,
  openRotation,
  rewrapAll,
} from "@curfew/personal-data/erase.ts";
import { keptMs, type PersonalStore, rotatedMark } from "@curfew/personal-data/personal-store.ts";
import { type Feed, openFeed } from "@curfew/projection/feed.ts";
import type { Clock } from "@curfew/runtime/clock.ts";
import type { Log } from "@curfew/runtime/log.ts";
import type { Random } from "@curfew/runtime/random.ts";
import type { SubjectCommand, SubjectEvent, SubjectState } from "../domain/data-subject.ts";
import { backupsGoneMs, type ErasureProgress, subjectStream } from "../domain/data-subject.ts";
import { entryId, messageOf, type ReadModels } from "../projections.ts";
import { Book, recordKeyDestroyed, replay } from "./erasure-book.ts";
import type { ErasureSettings } from "./erasure-settings.ts";

export type Subjects = Aggregates<SubjectState, SubjectCommand, SubjectEvent>;

export interface ErasureParts {
  readonly personal: PersonalStore;
  readonly settings: ErasureSettings;
  readonly outbox: Outbox;
  readonly subjects: Subjects;
  readonly models: Pick<ReadModels, "entries">;
  /** Entries of the ledger that are finished. */
  readonly sealedSize: () => number;
  readonly bus: Bus;
  readonly clock: Clock;
  readonly random: Random;
  readonly log: Log;
}

/**
 * Erasures, from what is asked for to the day on which nothing readable is left. All of it is derived from the log and the ledger; each step
 * may be repeated. The events are the authority over the store: before anything is served, whoever was erased is erased again.
 */
export interface Erasures {
  /** Resolves once the personal store has every erasure of the log. */
  readonly replayed: Promise<void>;
  /** Rejects when erasures cannot be followed any more. */
  readonly failed: Promise<never>;
  /** What one replica does, under a lease. */
  work(tenure: Tenure): Promise<void>;
  /** Somebody has asked for an erasure. */
  wake(pseudonym: string): void;
  /** When the key of an epoch was destroyed; undefined: it is there. */
  keyDestroyedMs(epoch: number): number | undefined;
  close(): Promise<void>;
}

const lookEveryMs = 1_000;
const retryMs = 500;
const rowsPerRead = 500;
const maxConsumers = 1_000;
/** An instance says that it lives every minute; without a word for this long nothing that it kept can be in use. */
const lapseMs = keptMs + 60_000;
const acknowledgedType = "curfew.erasure.acknowledged.v1";

/** Acknowledgements, out of the ledger: they come on the topic of uses, and are sealed like everything. */
const openAcknowledgements = (
  { models, sealedSize }: Pick<ErasureParts, "models" | "sealedSize">,
  isOpen: (pseudonym: string) => boolean,
) => {
  const byPerson = new Map<string, Set<string>>();
  let next = 0;
  return {
    async read(): Promise<void> {
      const size = sealedSize();
      while (next < size) {
        const page = {
          where: { type: acknowledgedType },
          from: entryId(next),
          below: entryId(size),
          limit: rowsPerRead,
        };
        const rows = await models.entries.find(page);
        for (const row of rows) {
          const { pseudonym, consumer } = messageOf(decodeLeaf(row.leaf)) as ErasureAcknowledged;
          if (isOpen(pseudonym)) byPerson.set(pseudonym, (byPerson.get(pseudonym) ?? new Set()).add(consumer));
        }
        const last = rows.at(-1);
        next = last && rows.length === rowsPerRead ? Number(last._id) + 1 : size;
      }
    },
    of: (pseudonym: string): ReadonlySet<string> => byPerson.get(pseudonym) ?? new Set(),
  };
};

export const openErasures = (parts: ErasureParts): Erasures => {
  const { bus, clock, log } = parts;
  const book = new Book();
  const closing = new AbortController();
  let feed: Feed | undefined;
  let woken = Promise.withResolvers<void>();
  const failed = Promise.withResolvers<never>();
  failed.promise.catch(() => undefined); // whoever waits sees it

  const patiently = async (work: () => Promise<void>): Promise<void> => {
    for (let tries = 0; !closing.signal.aborted; tries += 1) {
      try {
        return await work();
      } catch (error) {
        if (!(error instanceof StoreUnavailable)) throw error;
        if (tries === 0) log.warn({ err: error }, "erasures wait for the personal store");
        await clock.sleep(retryMs, closing.signal);
      }
    }
  };

  const replayed = (async () => {
    feed = await openFeed({
      bus,
      name: "auditor-erasures",
      topics: [topicNames.evidence],
      clock,
      log,
      dedupe: false,
      apply: ({ message }) => book.apply(message),
    });
    if (closing.signal.aborted) return feed.close();
    feed.failed.catch(failed.reject);
    await feed.caughtUp;
    await patiently(() => replay(parts, book, closing.signal));
  })();
  replayed.catch(failed.reject);

  return {
    replayed,
    failed: failed.promise,
    wake(pseudonym) {
      book.open.add(pseudonym);
      woken.resolve();
    },
    keyDestroyedMs: (epoch) => book.destroyedEpochs.get(epoch),
    async work({ signal }) {
      const over = new Promise<void>((resolve) => signal.addEventListener("abort", () => resolve(), { once: true }));
      await Promise.race([replayed, over]);
      const tenure = new ErasureTenure(parts, book);
      while (!signal.aborted) {
        woken = Promise.withResolvers<void>();
        try {
          await tenure.look(signal);
        } catch (error) {
          log.warn({ err: error }, "erasures are looked at again");
        }
        const rest = new AbortController();
        await Promise.race([woken.promise, over, clock.sleep(lookEveryMs, rest.signal)]);
        rest.abort();
      }
    },
    async close() {
      closing.abort();
      await feed?.close();
    },
  };
};

class ErasureTenure {
  readonly #parts: ErasureParts;
  readonly #book: Book;
  readonly #acknowledgements: ReturnType<typeof openAcknowledgements>;
  readonly #rotation: ReturnType<typeof openRotation>;
  /** When an instance's row was first seen as it is, on our monotonic clock. */
  readonly #seen = new Map<string, { readonly seenMs: number; readonly sinceMs: number }>();

  constructor(parts: ErasureParts, book: Book) {
    this.#parts = parts;
    this.#book = book;
    this.#acknowledgements = openAcknowledgements(parts, (pseudonym) => book.open.has(pseudonym));
    const { personal: store, settings, random, clock } = parts;
    this.#rotation = openRotation({ store, ...settings, random, clock });
  }

  async look(signal: AbortSignal): Promise<void> {
    const { log } = this.#parts;
    if (this.#book.open.size > 0) await this.#acknowledgements.read();
    await this.#destroyRequested();
    for (const pseudonym of [...this.#book.open]) {
      if (signal.aborted) return;
      try {
        await this.#advance(pseudonym);
      } catch (err) {
        log.warn({ err }, "an erasure could not go on; trying again");
      }
    }
    for (const epoch of await this.#rotation.step()) await this.#endEpoch(epoch);
  }

  /** As far as it goes now. */
  async #advance(pseudonym: string): Promise<void> {
    const { subjects } = this.#parts;
    for (let before = ""; ; ) {
      const { erasure } = await subjects.load(subjectStream(pseudonym));
      if (erasure.status === before) return;
      before = erasure.status;
      if (erasure.status === "completed") this.#book.open.delete(pseudonym);
      const command = await this.#next(pseudonym, erasure);
      if (command) await this.#command(pseudonym, command);
    }
  }

  #next(pseudonym: string, erasure: ErasureProgress): Promise<SubjectCommand | undefined> | undefined {
    switch (erasure.status) {
      case "requested":
        return this.#recordDestroyed(pseudonym);
      case "destroyed":
        return this.#hear(pseudonym, erasure.consumers);
      case "propagated":
        return this.#complete(pseudonym, erasure);
      default:
        return undefined;
    }
  }

  /** All at once: mappings are found by looking through all of them. */
  async #destroyRequested(): Promise<void> {
    const { personal, subjects, log } = this.#parts;
    const requested: string[] = [];
    for (const pseudonym of this.#book.open)
      if ((await subjects.load(subjectStream(pseudonym))).erasure.status === "requested") requested.push(pseudonym);
    const people = await notDestroyed(personal, requested);
    await destroyPeople(personal, people);
    if (people.size > 0) log.info({ people: people.size }, "keys and mappings of people are destroyed");
  }

  async #recordDestroyed(pseudonym: string): Promise<SubjectCommand | undefined> {
    const { personal, settings, clock } = this.#parts;
    const row = await personal.persons.getLatest(pseudonym);
    if (!row?.destroyed) return undefined; // asked for since
    // After the rows are gone: an instance that is not here yet finds nothing.
    const holders = await personal.holders.find({ limit: maxConsumers });
    if (holders.length >= maxConsumers)
      throw new Error(`${maxConsumers} instances or more: they cannot all be waited for`);
    const [newest] = personal.epochs.live();
    if (!newest) throw new Error("there is no epoch key");
    return {
      ...{ type: "RecordDestroyed", pseudonym, known: row.known === true, consumers: holders.map(({ _id }) => _id) },
      ...{ epoch: newest.number, backupDays: settings.backupDays, erasedAtMs: clock.now() },
      // Of a key whose time is over, for an auditor that was away: as long as wrapping anew may take.
      keyGoneByMs: Math.max(newest.createdAtMs + settings.epochMs, clock.now() + settings.epochMs / leadPart),
    };
  }

  async #hear(pseudonym: string, consumers: readonly string[]): Promise<SubjectCommand | undefined> {
    const heard = this.#acknowledgements.of(pseudonym);
    const lapsed: string[] = [];
    for (const consumer of consumers) if (!heard.has(consumer) && (await this.#isGone(consumer))) lapsed.push(consumer);
    const acknowledged = consumers.filter((consumer) => heard.has(consumer));
    if (acknowledged.length + lapsed.length < consumers.length) return undefined;
    return { type: "RecordPropagated", pseudonym, acknowledged, lapsed, nowMs: this.#parts.clock.now() };
  }

  /** It has taken its row with it, or has not been heard of for longer than it keeps anything. */
  async #isGone(instance: string): Promise<boolean> {
    const { personal, clock } = this.#parts;
    const row = await personal.holders.getLatest(instance);
    if (!row) return true;
    const nowMs = clock.monotonicMs();
    const seen = this.#seen.get(instance);
    if (!seen || seen.seenMs !== row.seenMs) {
      this.#seen.set(instance, { seenMs: row.seenMs, sinceMs: nowMs });
      return false;
    }
    if (nowMs - seen.sinceMs < lapseMs) return false;
    await personal.holders.delete(instance);
    return true;
  }

  async #complete(
    pseudonym: string,
    { epoch, backupDays }: Extract<ErasureProgress, { status: "propagated" }>,
  ): Promise<SubjectCommand | undefined> {
    const { personal, settings, clock } = this.#parts;
    const keyDestroyedAtMs = this.#book.destroyedEpochs.get(epoch);
    const nowMs = clock.now();
    // Kept for longer since it was declared: so are those that have the key.
    const keptDays = Math.max(backupDays, settings.backupDays);
    if (keyDestroyedAtMs === undefined || nowMs < backupsGoneMs(keptDays, keyDestroyedAtMs)) return undefined;
    // A replica that was paused while it wrapped keys anew may have put one back: nothing had it, and now it is gone too.
    await destroyKey(personal, pseudonym);
    return { type: "Complete", pseudonym, keyDestroyedAtMs, backupDays: keptDays, nowMs };
  }

  async #command(pseudonym: string, command: SubjectCommand): Promise<void> {
    const { subjects, outbox } = this.#parts;
    const { commit } = await subjects.handle(subjectStream(pseudonym), command);
    if (commit) void outbox.relay.published(commit, 0);
  }

  /** The event, then the mark: one that was killed in between finds it said. */
  async #endEpoch(epoch: number): Promise<void> {
    const { personal, outbox, random, log } = this.#parts;
    const { lost } = await rewrapAll(personal, random);
    if (lost > 0) log.error({ epoch, lost }, "rows of the personal store are wrapped under no key that is left");
    const isSaid = (await outbox.streams.read(`epochs/${epoch}`, 1)) !== undefined;
    if (!isSaid && (await recordKeyDestroyed(this.#parts, epoch))) log.info({ epoch }, "an epoch's key is destroyed");
    await personal.marks.insert({ _id: rotatedMark(epoch) });
  }
}
