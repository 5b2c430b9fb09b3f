import type { Collection } from "@curfew/document-store/port.ts";
import { type EpochKey, type EpochKeys, epochActivationMs } from "@curfew/keyring/epoch-keys.ts";
import type { Random } from "@curfew/runtime/random.ts";
import { epochsIn, fieldOf, type RowKind, unwrap, wrap } from "./epoch-wrap.ts";
import type { PersonDoc } from "./person-keys.ts";
import { checkEpochs, type PersonalStore, rotatedMark } from "./personal-store.ts";
import { type PseudonymDoc, pseudonymBytesOf, pseudonymIn } from "./pseudonyms.ts";

/**
 * What the auditor alone does to the personal store. Every step may be repeated, and may be the last one before a kill: a person counts as
 * destroyed by a mark that is set last, an epoch as over by one that is inserted last.
 */
const pageRows = 1_000;

const fieldsIn = (row: Readonly<Record<string, unknown>>) => epochsIn(row).map(fieldOf);

/** Every row, page by page, in order. */
async function* rowsOf<D extends PseudonymDoc | PersonDoc>(rows: Collection<D>): AsyncGenerator<D> {
  for (let from = ""; ; ) {
    const page = await rows.find({ ...(from !== "" && { from }), limit: pageRows });
    yield* page;
    const last = page.at(-1);
    if (!last || page.length < pageRows) return;
    from = `${last._id}!`;
  }
}

/** Takes a person's key away; no other may be made. */
export const destroyKey = async ({ persons }: PersonalStore, pseudonym: string): Promise<void> => {
  if (!(await persons.set(pseudonym, { erased: true })))
    if ((await persons.insert({ _id: pseudonym, erased: true })) === "exists")
      // Whoever made a key in between finds it taken away at once.
      await persons.set(pseudonym, { erased: true });
  const row = await persons.getLatest(pseudonym);
  const fields = row ? fieldsIn(row) : [];
  if (fields.length === 0) return;
  await persons.set(pseudonym, { known: true });
  await persons.unset(pseudonym, ...fields);
};

/** Destroys keys and mappings. Resolves once nothing in the store leads from or to these people; a backup, and residue, may. */
export const destroyPeople = async (store: PersonalStore, pseudonyms: ReadonlySet<string>): Promise<void> => {
  if (pseudonyms.size === 0) return;
  const { persons, identities, epochs } = store;
  for (const pseudonym of pseudonyms) await destroyKey(store, pseudonym);
  for await (const row of rowsOf(identities)) {
    const pseudonym = pseudonymIn(epochs, row);
    if (pseudonym === undefined || !pseudonyms.has(pseudonym)) continue;
    await persons.set(pseudonym, { known: true });
    await identities.delete(row._id);
  }
  for (const pseudonym of pseudonyms) await persons.set(pseudonym, { destroyed: true });
};

/** Those of them that the store does not know to be destroyed. */
export const notDestroyed = async ({ persons }: PersonalStore, pseudonyms: Iterable<string>): Promise<Set<string>> => {
  const found = new Set<string>();
  for (const pseudonym of pseudonyms) if (!(await persons.getLatest(pseudonym))?.destroyed) found.add(pseudonym);
  return found;
};

/**
 * Wraps a row under `to` and takes away what is wrapped under one before. Whether there was something to do. A replica that was paused for
 * an epoch takes nothing away that is newer than what it knows.
 */
const rewrapRow = async (
  rows: Collection<PseudonymDoc> | Collection<PersonDoc>,
  kind: RowKind,
  row: PseudonymDoc & PersonDoc,
  content: Uint8Array,
  { to, random }: { readonly to: EpochKey; readonly random: Random },
): Promise<boolean> => {
  const field = fieldOf(to.number);
  const epochs = epochsIn(row);
  if (epochs.some((epoch) => epoch > to.number)) return false;
  const old = [
    ...epochs.filter((epoch) => epoch < to.number).map(fieldOf),
    ...(row.pseudonym === undefined ? [] : ["pseudonym"]),
  ];
  const isThere = Object.hasOwn(row, field);
  if (isThere && old.length === 0) return false;
  if (!isThere) await rows.set(row._id, { [field]: wrap(to, kind, row._id, content, random) });
  if (old.length > 0) await rows.unset(row._id, ...old);
  return true;
};

const contentOf = (epochs: Pick<EpochKeys, "live">, kind: RowKind, row: PseudonymDoc): Uint8Array | undefined =>
  unwrap(epochs, kind, row) ?? (row.pseudonym === undefined ? undefined : pseudonymBytesOf(row.pseudonym));

/**
 * Wraps everything under the newest epoch's key. What no key that is left opens says nothing any more: such a mapping is removed, such a
 * person gets no key. Answers how many rows were changed, and how many of them were lost like this.
 */
export const rewrapAll = async (
  { identities, persons, epochs }: PersonalStore,
  random: Random,
): Promise<{ readonly changed: number; readonly lost: number }> => {
  let changed = 0;
  let lost = 0;
  const how = { to: epochs.current(), random };
  for await (const row of rowsOf(identities)) {
    const content = contentOf(epochs, "identity", row);
    if (content) changed += Number(await rewrapRow(identities, "identity", row, content, how));
    else lost += await identities.delete(row._id);
  }
  for await (const row of rowsOf(persons)) {
    const fields = fieldsIn(row);
    if (fields.length === 0) continue;
    const content = row.erased ? undefined : unwrap(epochs, "person", row);
    if (content) {
      changed += Number(await rewrapRow(persons, "person", row, content, how));
      continue;
    }
    if (!row.erased) lost += Number(await persons.set(row._id, { erased: true }));
    changed += Number(await persons.unset(row._id, ...fields));
  }
  return { changed: changed + lost, lost };
};

/** How far a rotation of the epoch's key has come, by this process's own clock. */
export interface Rotation {
  /**
   * One step: begins the next epoch when the current one's time is about to be over, wraps everything anew, looks again every `settleMs`
   * until there was nothing to do, destroys the old key. Answers the epochs that are over and have no mark yet in this store: their keys are gone.
   */
  step(): Promise<readonly number[]>;
}

/** Of an epoch's time, the last tenth is for wrapping anew. */
export const leadPart = 10;

export const openRotation = (parts: {
  readonly store: PersonalStore;
  readonly epochMs: number;
  /** How long a writer may take from reading which epoch is current until its row is there. */
  readonly settleMs: number;
  readonly random: Random;
  readonly clock: { now(): number; monotonicMs(): number };
}): Rotation => {
  const { store, epochMs, settleMs, random, clock } = parts;
  const { epochs, marks } = store;
  let lookedMs: number | undefined;

  const wrapAnew = async (old: number): Promise<void> => {
    const beganMs = clock.monotonicMs();
    if (lookedMs !== undefined && beganMs - lookedMs < settleMs) return;
    const { changed } = await rewrapAll(store, random);
    // What was written late is found by the next look; where there is nothing, nobody writes under the old key any more.
    if (lookedMs !== undefined && changed === 0) {
      epochs.destroy(old);
      lookedMs = undefined;
    } else lookedMs = beganMs;
  };

  return {
    async step() {
      const [newest, old] = epochs.live();
      if (newest && !old && clock.now() >= newest.createdAtMs + epochMs - epochMs / leadPart)
        await checkEpochs(store, [epochs.begin()]);
      // Everybody has seen it by twice the time after which it is current.
      if (newest && old && clock.now() >= newest.createdAtMs + 2 * epochActivationMs) await wrapAnew(old.number);
      const oldest = epochs.live().at(-1)?.number ?? 1;
      const over: number[] = [];
      for (let epoch = 1; epoch < oldest; epoch += 1) if (!(await marks.get(rotatedMark(epoch)))) over.push(epoch);
      return over;
    },
  };
};
