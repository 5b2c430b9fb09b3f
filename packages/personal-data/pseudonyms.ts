import assert from "node:assert/strict";
import { createHmac, type KeyObject } from "node:crypto";
import type { Collection, Doc } from "@curfew/document-store/port.ts";
import type { EpochKeys } from "@curfew/keyring/epoch-keys.ts";
import type { Clock } from "@curfew/runtime/clock.ts";
import { lengthPrefixed } from "@curfew/runtime/length-prefixed.ts";
import type { Random } from "@curfew/runtime/random.ts";
import { fieldOf, unwrap, wrap } from "./epoch-wrap.ts";
import { openKept } from "./kept.ts";

/**
 * The only place where a person's identifier meets a pseudonym. Stored is HMAC(identifier) → random pseudonym, wrapped under the epoch's
 * key, never the identifier: whoever has the store but not the keys cannot tell who is in it, and a pseudonym says nothing once its row is
 * gone.
 */

/** A person as the resource service names them, normalised by it: the same three texts are the same person. */
export interface Identity {
  /** A controller's id. */
  readonly controller: string;
  /** What kind of identifier, such as "customer-number". */
  readonly identifierType: string;
  readonly value: string;
}

/** Where it is in the batch and what is wrong with it; never the value. */
export class InvalidIdentity extends Error {
  override name = "InvalidIdentity";
}

export const maxIdentities = 1000;
const limitsBytes = { controller: 128, identifierType: 64, value: 512 } as const;
const pseudonymBytes = 16;
/** Reads at the same time: the driver's pool is shared with others. */
const maxParallelReads = 32;
/** A row may be erased between a lost insert and the read; more often than this in one call is a broken store. */
const maxRounds = 4;

/** One row of the personal store; `w<epoch>`: the pseudonym's 16 bytes, wrapped. */
export interface PseudonymDoc extends Doc {
  /** Before there were epochs: as it is. Wrapped, and removed, with the next one. */
  pseudonym?: string;
}

export interface Pseudonyms {
  /** "psn_" and 32 hexadecimal digits, 128 random bits. Throws InvalidIdentity, or the store's error. */
  pseudonymOf(identity: Identity): Promise<string>;
  /** The pseudonyms of at most 1,000 identities (repetitions allowed), in order. Nothing is stored when one is invalid. */
  pseudonymsOf(identities: readonly Identity[]): Promise<string[]>;
  /** Forgets an erased person's; resolves once no call that may have read it before is under way. */
  drop(pseudonym: string): Promise<void>;
}

/** Throws InvalidIdentity; `index` is its place in the batch, from 0. */
export const checkIdentity = (identity: Identity, index: number): void => {
  for (const [name, maxBytes] of Object.entries(limitsBytes)) {
    const text = identity[name as keyof Identity];
    const wrong = (what: string) => new InvalidIdentity(`identity ${index + 1}: ${name} ${what}`);
    if (typeof text !== "string" || text === "") throw wrong("is missing");
    if (text.length > maxBytes || Buffer.byteLength(text) > maxBytes) throw wrong(`is longer than ${maxBytes} bytes`);
    // Lone surrogates would all become the same replacement character: different people, one pseudonym.
    if (!text.isWellFormed() || /\p{Cc}/u.test(text))
      throw wrong("contains control characters or is not valid Unicode");
  }
};

type Rows = Pick<Collection<PseudonymDoc>, "get" | "insertMany">;

export const pseudonymText = (bytes: Uint8Array): string => `psn_${Buffer.from(bytes).toString("hex")}`;
/** Of "psn_" and 32 hexadecimal digits. */
export const pseudonymBytesOf = (pseudonym: string): Buffer => Buffer.from(pseudonym.slice("psn_".length), "hex");
export const pseudonymPattern = /^psn_[0-9a-f]{32}$/;

/** The pseudonym in a row; undefined where no live epoch opens it. */
export const pseudonymIn = (epochs: Pick<EpochKeys, "live">, doc: PseudonymDoc): string | undefined => {
  const bytes = unwrap(epochs, "identity", doc);
  return bytes ? pseudonymText(bytes) : doc.pseudonym;
};

/** HMAC of an identity: the id of its row. */
export const identityId = (identifierKey: KeyObject, identity: Identity): string =>
  createHmac("sha256", identifierKey)
    .update(lengthPrefixed("curfew/pseudonym/v1", identity.controller, identity.identifierType, identity.value))
    .digest("hex");

interface Store {
  readonly collection: Rows;
  readonly epochs: EpochKeys;
  readonly random: Random;
}

const readInto = async (
  found: Map<string, string>,
  { collection, epochs }: Store,
  ids: readonly string[],
): Promise<void> => {
  for (let at = 0; at < ids.length; at += maxParallelReads) {
    const part = ids.slice(at, at + maxParallelReads);
    const docs = await Promise.all(part.map((id) => collection.get(id)));
    for (const doc of docs) {
      if (!doc) continue;
      const pseudonym = pseudonymIn(epochs, doc);
      // Of a store restored from before an epoch that is gone: the auditor removes such rows before anybody is served.
      if (pseudonym === undefined) throw new Error("a row of the personal store is wrapped under no key that is left");
      found.set(doc._id, pseudonym);
    }
  }
};

/** Reads first, because most people have been seen before and reading takes no lock; inserts the rest; reads where it lost. */
const readOrInsert = async (store: Store, ids: readonly string[]): Promise<Map<string, string>> => {
  const { collection, epochs, random } = store;
  const found = new Map<string, string>();
  for (let round = 0; round < maxRounds; round++) {
    const unread = ids.filter((id) => !found.has(id));
    await readInto(found, store, unread);
    const epoch = epochs.current();
    const fresh = unread.filter((id) => !found.has(id)).map((_id) => ({ _id, bytes: random(pseudonymBytes) }));
    if (fresh.length === 0) return found;
    const verdicts = await collection.insertMany(
      fresh.map(({ _id, bytes }) => ({ _id, [fieldOf(epoch.number)]: wrap(epoch, "identity", _id, bytes, random) })),
    );
    for (const [i, { _id, bytes }] of fresh.entries())
      if (verdicts[i] === "inserted") found.set(_id, pseudonymText(bytes));
    if (found.size === ids.length) return found;
  }
  throw new Error("the personal store neither takes nor has a row");
};

/**
 * `identifierKey` is the keyring's "identifiers"; a store is worthless without the very key it was filled with. At most `cacheSize`
 * rows stay in memory, each for `cacheMs` (5 minutes in production).
 */
export const openPseudonyms = (options: {
  readonly collection: Rows;
  readonly identifierKey: KeyObject;
  readonly epochs: EpochKeys;
  readonly random: Random;
  readonly cacheSize: number;
  readonly cacheMs: number;
  readonly clock: Clock;
}): Pseudonyms => {
  const { identifierKey } = options;
  // Under the HMAC, so that memory holds no identifier either.
  const kept = openKept<string>(options.cacheSize, options.cacheMs, options.clock);

  const pseudonymsOf = async (identities: readonly Identity[]): Promise<string[]> => {
    if (identities.length > maxIdentities)
      throw new InvalidIdentity(`${identities.length} identities: at most ${maxIdentities} at once`);
    for (const [i, identity] of identities.entries()) checkIdentity(identity, i);
    const ids = identities.map((identity) => identityId(identifierKey, identity));
    const known = new Map<string, string>();
    const unknown: string[] = [];
    for (const id of new Set(ids)) {
      const pseudonym = kept.get(id);
      if (pseudonym === undefined) unknown.push(id);
      else known.set(id, pseudonym);
    }
    if (unknown.length > 0)
      for (const [id, pseudonym] of await kept.read(unknown, (absent) => readOrInsert(options, absent)))
        known.set(id, pseudonym);
    return ids.map((id) => {
      const pseudonym = known.get(id);
      assert(pseudonym !== undefined, "every identity has its pseudonym");
      return pseudonym;
    });
  };

  return {
    pseudonymsOf,
    drop: (pseudonym) => kept.drop((value) => value === pseudonym),
    pseudonymOf: async (identity) => {
      const [pseudonym] = await pseudonymsOf([identity]);
      assert(pseudonym !== undefined, "every identity has its pseudonym");
      return pseudonym;
    },
  };
};
