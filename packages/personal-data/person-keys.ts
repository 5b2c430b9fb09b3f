import { createSecretKey, type KeyObject } from "node:crypto";
import type { Collection, Doc } from "@curfew/document-store/port.ts";
import type { EpochKeys } from "@curfew/keyring/epoch-keys.ts";
import type { Clock } from "@curfew/runtime/clock.ts";
import type { Random } from "@curfew/runtime/random.ts";
import { fieldOf, unwrap, wrap } from "./epoch-wrap.ts";
import { openKept } from "./kept.ts";

/**
 * A random key for each person whose data is sealed, under the person's pseudonym; made once, never again. What is left of an erased
 * person is the row without its key, which keeps the id from being used again. `w<epoch>`: the key, wrapped.
 */
export interface PersonDoc extends Doc {
  /** No key may be made or used. */
  erased?: true;
  /** There was something to be destroyed. */
  known?: true;
  /** The person's other rows are gone too. */
  destroyed?: true;
}

export type PersonRows = Pick<Collection<PersonDoc>, "get" | "insert">;

export interface PersonKeys {
  /** AES-256 key material, 32 bytes; made where there is none. Undefined: the person is erased. Rejects with StoreUnavailable. */
  keyOf(pseudonym: string): Promise<KeyObject | undefined>;
  /** Forgets a key; resolves once no call that may have read it before is under way. */
  drop(pseudonym: string): Promise<void>;
}

const keyBytes = 32;

/** The key in a row, undefined where the person is erased. */
export const personKeyIn = (epochs: Pick<EpochKeys, "live">, doc: PersonDoc): KeyObject | undefined => {
  if (doc.erased) return undefined;
  const bytes = unwrap(epochs, "person", doc);
  if (!bytes) throw new Error("a person's key is wrapped under no key that is left");
  return createSecretKey(bytes);
};

/** At most `cacheSize` keys stay in memory, each for `cacheMs` (5 minutes in production). */
export const openPersonKeys = (options: {
  readonly rows: PersonRows;
  readonly epochs: EpochKeys;
  readonly random: Random;
  readonly cacheSize: number;
  readonly cacheMs: number;
  readonly clock: Clock;
}): PersonKeys => {
  const { rows, epochs, random } = options;
  const kept = openKept<KeyObject>(options.cacheSize, options.cacheMs, options.clock);

  const readOrMake = async (_id: string): Promise<Map<string, KeyObject>> => {
    const found = async () => {
      const doc = await rows.get(_id);
      if (!doc) return undefined;
      const key = personKeyIn(epochs, doc);
      return new Map(key ? [[_id, key]] : []);
    };
    const there = await found();
    if (there) return there;
    const key = random(keyBytes);
    const epoch = epochs.current();
    const doc = { _id, [fieldOf(epoch.number)]: wrap(epoch, "person", _id, key, random) };
    if ((await rows.insert(doc)) === "inserted") return new Map([[_id, createSecretKey(key)]]);
    const first = await found();
    if (!first) throw new Error("the personal store neither takes nor has a row");
    return first;
  };

  return {
    keyOf: async (pseudonym) =>
      kept.get(pseudonym) ?? (await kept.read([pseudonym], () => readOrMake(pseudonym))).get(pseudonym),
    drop: (pseudonym) => kept.drop((_key, of) => of === pseudonym),
  };
};
