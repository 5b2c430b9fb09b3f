import { create } from "@bufbuild/protobuf";
import { timestampFromMs, timestampMs } from "@bufbuild/protobuf/wkt";
import {
  type DataSubjectErased,
  type EpochKeyDestroyed,
  EpochKeyDestroyedSchema,
  type ErasureCompleted,
  type ErasureRequested,
} from "@curfew/contracts/gen/curfew/events/v1/data_subjects_pb.ts";
import type { EpochKey } from "@curfew/keyring/epoch-keys.ts";
import { destroyPeople, notDestroyed, rewrapAll } from "@curfew/personal-data/erase.ts";
import { checkEpochs, rotatedMark } from "@curfew/personal-data/personal-store.ts";
import type { ErasureParts } from "./erasures.ts";

const retryMs = 500;

/** What the topic of evidence says of erasures, in memory. */
export class Book {
  /** Asked for and not completed. */
  readonly open = new Set<string>();
  readonly erased = new Set<string>();
  readonly destroyedEpochs = new Map<number, number>();
  /** Of which the log speaks: no other key may come under these numbers. */
  newestEpoch = 0;

  apply(message: { readonly $typeName: string }): void {
    switch (message.$typeName) {
      case "curfew.events.v1.ErasureRequested":
        this.open.add((message as ErasureRequested).pseudonym);
        break;
      case "curfew.events.v1.DataSubjectErased":
        this.erased.add((message as DataSubjectErased).pseudonym);
        this.newestEpoch = Math.max(this.newestEpoch, (message as DataSubjectErased).epoch);
        break;
      case "curfew.events.v1.ErasureCompleted":
        this.open.delete((message as ErasureCompleted).pseudonym);
        break;
      case "curfew.events.v1.EpochKeyDestroyed": {
        const { epoch, successor, destroyedAt } = message as EpochKeyDestroyed;
        this.newestEpoch = Math.max(this.newestEpoch, successor);
        this.destroyedEpochs.set(epoch, destroyedAt ? timestampMs(destroyedAt) : 0);
        break;
      }
    }
  }
}

/** As often as it is: the last one counts. Whether nobody else did just now. */
export const recordKeyDestroyed = async ({ outbox, clock }: ErasureParts, epoch: number): Promise<boolean> => {
  const stream = `epochs/${epoch}`;
  let version = 0;
  while (await outbox.streams.read(stream, version + 1)) version += 1;
  const destroyedAt = timestampFromMs(clock.now());
  const destroyed = create(EpochKeyDestroyedSchema, { epoch, successor: epoch + 1, destroyedAt });
  const commit = await outbox.streams.append(stream, { version, sequence: version }, [destroyed]);
  if (commit) void outbox.relay.published(commit, 0);
  return commit !== undefined;
};

/** Erases again, and destroys again, what a store or a keys directory that was restored has brought back. */
export const replay = async (parts: ErasureParts, book: Book, signal: AbortSignal): Promise<void> => {
  const { personal, clock, random, log } = parts;
  const isOver = ({ number }: EpochKey) => book.destroyedEpochs.has(number);
  /** Keys that came back with an old directory of keys, once another is current. */
  const keysThatAreBack = async (): Promise<readonly EpochKey[]> => {
    const { epochs } = personal;
    const back = epochs.live().filter(isOver);
    if (back.length === 0) return back;
    const numbers = back.map(({ number }) => number);
    log.error({ epochs: numbers }, "the keys directory has keys that were destroyed; they are destroyed again");
    if (epochs.live().every(isOver)) await checkEpochs(personal, [epochs.begin(book.newestEpoch)]);
    while (isOver(epochs.current()) && !signal.aborted) await clock.sleep(retryMs, signal);
    return back;
  };

  const people = await notDestroyed(personal, book.erased);
  if (people.size > 0) {
    log.error({ people: people.size }, "the personal store has people who were erased; they are erased again");
    // First: nobody of them may be wrapped anew.
    await destroyPeople(personal, people);
  }
  const back = await keysThatAreBack();
  const epochs: number[] = [];
  for (const epoch of book.destroyedEpochs.keys())
    if (!(await personal.marks.get(rotatedMark(epoch)))) epochs.push(epoch);
  if (signal.aborted || epochs.length + back.length === 0) return;
  const { lost } = await rewrapAll(personal, random);
  if (epochs.length > 0)
    log.error({ epochs, lost }, "the personal store is older than an epoch's end; what no key opens is removed");
  for (const { number } of back) {
    // Backups that were made meanwhile have it: their time counts from now. One that is killed here does it once more.
    await recordKeyDestroyed(parts, number);
    personal.epochs.destroy(number);
  }
  for (const epoch of epochs) await personal.marks.insert({ _id: rotatedMark(epoch) });
};
