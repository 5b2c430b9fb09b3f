import type { KeyObject } from "node:crypto";
import type { Collection, DocumentStore } from "@curfew/document-store/port.ts";
import { type EpochKeys, openEpochKeys } from "@curfew/keyring/epoch-keys.ts";
import { openKeyring } from "@curfew/keyring/keyring.ts";
import type { Clock } from "@curfew/runtime/clock.ts";
import type { Random } from "@curfew/runtime/random.ts";
import type { PersonDoc } from "./person-keys.ts";
import type { PseudonymDoc } from "./pseudonyms.ts";

/** An instance that keeps something of people in memory, and when it last said that it lives (its own clock, for people who look). */
export type HolderDoc = { _id: string; seenMs: number };
/** `rotated/<epoch>`: everything in this store was wrapped anew when that epoch ended. */
export type MarkDoc = { _id: string };

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

export const rotatedMark = (epoch: number): string => `rotated/${String(epoch).padStart(6, "0")}`;

/** `keysDir` is shared by all that work on the store, and no part of its backups. Throws NotPrivate, or KeyringError. */
export const openPersonalStore = async (options: {
  readonly store: DocumentStore;
  readonly keysDir: string;
  readonly random: Random;
  readonly clock: Clock;
}): Promise<PersonalStore> => {
  const { store, keysDir: dir, random, clock } = options;
  return {
    identities: await store.collection<PseudonymDoc>("identities"),
    persons: await store.collection<PersonDoc>("persons"),
    holders: await store.collection<HolderDoc>("holders"),
    marks: await store.collection<MarkDoc>("marks"),
    identifierKey: openKeyring({ dir, random, clock }).secretKey("identifiers"),
    epochs: openEpochKeys({ dir, random, clock }),
  };
};
