import type { DataSubjectErased, EpochKeyDestroyed } from "@curfew/contracts/gen/curfew/events/v1/data_subjects_pb.ts";
import type { Bus, OutRecord } from "@curfew/event-log/bus.ts";
import type { ReadEvent } from "@curfew/event-log/envelope.ts";
import { topicNames } from "@curfew/event-log/event-types.ts";
import { type PersonalStore, rotatedMark } from "@curfew/personal-data/personal-store.ts";
import { type Feed, openFeed } from "@curfew/projection/feed.ts";
import type { Clock } from "@curfew/runtime/clock.ts";
import type { Log } from "@curfew/runtime/log.ts";
import type { Facts } from "./facts.ts";
import type { People } from "./people.ts";

/**
 * Follows the erasures on the log, from the first: each must have been done in the personal store, which it is not where that was restored
 * from a backup. Until the auditor has done it again this replica is not caught up, and serves nobody. Then what memory has of the person is
 * dropped, and that is acknowledged. The row of this instance tells the auditor that there is one to wait for.
 */
const retryMs = 200;
const aliveEveryMs = 60_000;
const maxRows = 1_000;

export const followErasures = async (parts: {
  readonly personal: PersonalStore;
  readonly bus: Bus;
  readonly people: People;
  readonly facts: Facts;
  readonly publish: (records: readonly OutRecord[]) => Promise<void>;
  readonly instance: string;
  readonly exclusive: boolean;
  readonly clock: Clock;
  readonly log: Log;
}): Promise<Feed> => {
  const { personal, people, facts, instance, clock, log } = parts;
  const { holders, persons, marks, epochs } = personal;
  const closing = new AbortController();

  const patiently = async <T>(work: () => Promise<T>): Promise<T | undefined> => {
    for (let tries = 0; !closing.signal.aborted; tries += 1) {
      try {
        return await work();
      } catch (error) {
        if ((error as Error).name !== "StoreUnavailable") throw error;
        if (tries === 0) log.warn({ err: error }, "waiting for the personal store");
        await clock.sleep(retryMs, closing.signal);
      }
    }
    return undefined;
  };

  const until = async (isDone: () => Promise<boolean>, what: string): Promise<void> => {
    for (let tries = 0; (await patiently(isDone)) === false; tries += 1) {
      if (tries === 0)
        log.warn({}, `${what}: was it restored from a backup? Nothing is served until the auditor did it`);
      await clock.sleep(retryMs, closing.signal);
    }
  };

  const erased = async ({ id, message }: ReadEvent) => {
    const { pseudonym, consumers } = message as DataSubjectErased;
    const isDestroyed = async () => (await persons.get(pseudonym))?.destroyed === true;
    await until(isDestroyed, "the personal store holds somebody who was erased");
    await people.forget(pseudonym);
    if (closing.signal.aborted || !consumers.includes(instance)) return;
    // Only closing rejects it; an instance that ends has nothing in memory.
    parts.publish([facts.erasureAcknowledged(message as DataSubjectErased, id)]).catch(() => undefined);
  };

  const destroyed = async ({ message }: ReadEvent) => {
    const { epoch } = message as EpochKeyDestroyed;
    const isRotated = async () => (await marks.get(rotatedMark(epoch))) !== undefined;
    await until(isRotated, "the personal store is of an epoch whose key was destroyed");
    epochs.live();
  };

  const sayAlive = async () => {
    const seenMs = clock.now();
    if (!(await holders.set(instance, { seenMs }))) await holders.insert({ _id: instance, seenMs });
  };
  // Before anything is read that would have to be forgotten.
  await patiently(async () => {
    if (parts.exclusive) for (const { _id } of await holders.find({ limit: maxRows })) await holders.delete(_id);
    await sayAlive();
  });
  const alive = (async () => {
    while (!closing.signal.aborted) {
      await clock.sleep(aliveEveryMs, closing.signal);
      if (!closing.signal.aborted) await patiently(sayAlive);
    }
  })();
  const feed = await openFeed({
    bus: parts.bus,
    name: `verifier-erasures-${instance}`,
    topics: [topicNames.evidence],
    clock,
    log,
    dedupe: false,
    apply: async (event) => {
      if (event.message.$typeName === "curfew.events.v1.DataSubjectErased") await erased(event);
      if (event.message.$typeName === "curfew.events.v1.EpochKeyDestroyed") await destroyed(event);
    },
  });
  return {
    ...feed,
    async close() {
      closing.abort();
      await feed.close();
      await alive;
      // An outage leaves the row, which lapses.
      await holders.delete(instance).catch((err: unknown) => log.warn({ err }, "this instance's row stays"));
    },
  };
};
