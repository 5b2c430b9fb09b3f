import { createHmac, type KeyObject } from "node:crypto";
import type { Collection, DocumentStore } from "@curfew/document-store/port.ts";
import { type EpochKey, type EpochKeys, openEpochKeys } from "@curfew/keyring/epoch-keys.ts";
import { KeyringError } from "@curfew/keyring/key-files.ts";
import { openKeyring } from "@curfew/keyring/keyring.ts";
import type { Clock } from "@curfew/runtime/clock.ts";
import type { Random } from "@curfew/runtime/random.ts";
import type { PersonDoc } from "./person-keys.ts";
import type { PseudonymDoc } from "./pseudonyms.ts";

/** An instance that keeps something of people in memory, and when it last said that it lives (its own clock, for people who look). */
export type HolderDoc = { _id: string; seenMs: number };
/**
 * `rotated/<epoch>`: everything in this store was wrapped anew when that epoch ended. `epoch/<epoch>`: which key it has; `identifiers`: that
 * of the HMAC.
 */
export type MarkDoc = { _id: string; check?: string };

/** The store of personal data and the keys without which it says nothing. Verifiers insert and read; the auditor also deletes. */
export interface PersonalStore {
  readonly identities: Collection<PseudonymDoc>;
  readonly persons: Collection<PersonDoc>;
  readonly holders: Collection<HolderDoc>;
  readonly marks: Collection<MarkDoc>;
  /** For the HMAC of identities. */
  readonly identifierKey: KeyObject;
  readonly epochs: EpochKeys;
}

/** How long an instance keeps in memory what it read: anything older is read again. */
export const keptMs = 300_000;

const padded = (epoch: number): string => String(epoch).padStart(6, "0");
export const rotatedMark = (epoch: number): string => `rotated/${padded(epoch)}`;
const epochMark = (epoch: number): string => `epoch/${padded(epoch)}`;

/**
 * Throws KeyringError where another key was used under the same number: with a directory that is not shared, or an old one, everything would
 * look as if its key had been destroyed.
 */
export const checkEpochs = async (
  { marks }: Pick<PersonalStore, "marks">,
  keys: readonly EpochKey[],
): Promise<void> => {
  for (const { number, key } of keys) await checkKey(marks, epochMark(number), key, `epoch-${number}.key`);
};

const checkKey = async (marks: PersonalStore["marks"], _id: string, key: KeyObject, file: string): Promise<void> => {
  const check = createHmac("sha256", key).update("curfew/epoch-check/v1").digest("hex");
  const known = (await marks.get(_id))?.check;
  if (known === check) return;
  if (known === undefined && (await marks.insert({ _id, check })) === "inserted") return;
  if ((await marks.get(_id))?.check === check) return;
  throw new KeyringError(
    `${file} is not the key that the personal store was filled with: verifiers and auditor share one directory of its keys`,
  );
};

/** Throws KeyringError where the directory is older than the store, or another, before a key is made there that would pass for its own. */
const checkNewest = async (marks: PersonalStore["marks"], epochs: EpochKeys, dir: string): Promise<void> => {
  const [last] = await marks.find({ from: "epoch/", below: "epoch0", order: -1, limit: 1 });
  const newest = Number(last?._id.slice("epoch/".length) ?? 0);
  if (epochs.newest() >= newest) return;
  throw new KeyringError(
    `${dir} has no epoch-${newest}.key, under which the personal store was wrapped: it is older than the store, or another directory; put the right one back`,
  );
};

/** `keysDir` is shared by all that work on the store, and no part of its backups. Throws NotPrivate, or KeyringError. */
export const openPersonalStore = async (options: {
  readonly store: DocumentStore;
  readonly keysDir: string;
  readonly random: Random;
  readonly clock: Clock;
}): Promise<PersonalStore> => {
  const { store, keysDir: dir, random, clock } = options;
  const epochs = openEpochKeys({ dir, random, clock });
  const marks = await store.collection<MarkDoc>("marks");
  await checkNewest(marks, epochs, dir);
  const personal: PersonalStore = {
    identities: await store.collection<PseudonymDoc>("identities"),
    persons: await store.collection<PersonDoc>("persons"),
    holders: await store.collection<HolderDoc>("holders"),
    marks,
    identifierKey: openKeyring({ dir, random, clock }).secretKey("identifiers"),
    epochs,
  };
  await checkEpochs(personal, epochs.live());
  await checkKey(personal.marks, "identifiers", personal.identifierKey, "secret-identifiers.key");
  return personal;
};
