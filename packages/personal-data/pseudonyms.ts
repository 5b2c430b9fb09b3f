import assert from "node:assert/strict";
import { createHmac, type KeyObject } from "node:crypto";
import type { Collection, Doc } from "@curfew/document-store/port.ts";
import type { Clock } from "@curfew/runtime/clock.ts";
import { lengthPrefixed } from "@curfew/runtime/length-prefixed.ts";
import type { Random } from "@curfew/runtime/random.ts";

/**
 * The only place where a person's identifier meets a pseudonym. Stored is HMAC(identifier) → random pseudonym, never the identifier:
 * whoever has the store but not the key cannot tell who is in it, and a pseudonym says nothing once its row is gone.
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

/** One row of the personal store. */
export interface PseudonymDoc extends Doc {
  pseudonym: string;
}

export interface Pseudonyms {
  /** "psn_" and 32 hexadecimal digits, 128 random bits. Throws InvalidIdentity, or the store's error. */
  pseudonymOf(identity: Identity): Promise<string>;
  /** The pseudonyms of at most 1,000 identities (repetitions allowed), in order. Nothing is stored when one is invalid. */
  pseudonymsOf(identities: readonly Identity[]): Promise<string[]>;
}

const check = (identity: Identity, index: number): void => {
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

/** What was stored lately, under the HMAC, so that memory holds no identifier either. */
const openCache = (maxEntries: number, keepMs: number, clock: Clock) => {
  const entries = new Map<string, { readonly pseudonym: string; readonly untilMs: number }>();
  return {
    get: (id: string): string | undefined => {
      const entry = entries.get(id);
      if (entry && entry.untilMs > clock.monotonicMs()) return entry.pseudonym;
      entries.delete(id);
      return undefined;
    },
    set: (id: string, pseudonym: string): void => {
      entries.delete(id);
      entries.set(id, { pseudonym, untilMs: clock.monotonicMs() + keepMs });
      // Insertion order is age order, so the first is the oldest.
      for (const oldest of entries.keys()) {
        if (entries.size <= maxEntries) break;
        entries.delete(oldest);
      }
    },
  };
};

const readInto = async (found: Map<string, string>, collection: Rows, ids: readonly string[]): Promise<void> => {
  for (let at = 0; at < ids.length; at += maxParallelReads) {
    const part = ids.slice(at, at + maxParallelReads);
    const docs = await Promise.all(part.map((id) => collection.get(id)));
    for (const doc of docs) if (doc) found.set(doc._id, doc.pseudonym);
  }
};

/** Reads first, because most people have been seen before and reading takes no lock; inserts the rest; reads where it lost. */
const readOrInsert = async (collection: Rows, random: Random, ids: readonly string[]): Promise<Map<string, string>> => {
  const found = new Map<string, string>();
  for (let round = 0; round < maxRounds; round++) {
    const unread = ids.filter((id) => !found.has(id));
    await readInto(found, collection, unread);
    const docs = unread
      .filter((id) => !found.has(id))
      .map((id) => ({ _id: id, pseudonym: `psn_${Buffer.from(random(pseudonymBytes)).toString("hex")}` }));
    if (docs.length === 0) return found;
    const verdicts = await collection.insertMany(docs);
    for (const [i, doc] of docs.entries()) if (verdicts[i] === "inserted") found.set(doc._id, doc.pseudonym);
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
  readonly random: Random;
  readonly cacheSize: number;
  readonly cacheMs: number;
  readonly clock: Clock;
}): Pseudonyms => {
  const { collection, identifierKey, random } = options;
  const cache = openCache(options.cacheSize, options.cacheMs, options.clock);
  const idOf = (identity: Identity): string =>
    createHmac("sha256", identifierKey)
      .update(lengthPrefixed("curfew/pseudonym/v1", identity.controller, identity.identifierType, identity.value))
      .digest("hex");

  const pseudonymsOf = async (identities: readonly Identity[]): Promise<string[]> => {
    if (identities.length > maxIdentities)
      throw new InvalidIdentity(`${identities.length} identities: at most ${maxIdentities} at once`);
    for (const [i, identity] of identities.entries()) check(identity, i);
    const ids = identities.map(idOf);
    const known = new Map<string, string>();
    const unknown: string[] = [];
    for (const id of new Set(ids)) {
      const pseudonym = cache.get(id);
      if (pseudonym === undefined) unknown.push(id);
      else known.set(id, pseudonym);
    }
    if (unknown.length > 0)
      for (const [id, pseudonym] of await readOrInsert(collection, random, unknown)) {
        cache.set(id, pseudonym);
        known.set(id, pseudonym);
      }
    return ids.map((id) => {
      const pseudonym = known.get(id);
      assert(pseudonym !== undefined, "every identity has its pseudonym");
      return pseudonym;
    });
  };

  return {
    pseudonymsOf,
    pseudonymOf: async (identity) => {
      const [pseudonym] = await pseudonymsOf([identity]);
      assert(pseudonym !== undefined, "every identity has its pseudonym");
      return pseudonym;
    },
  };
};
