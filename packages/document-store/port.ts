/**
 * The database as the rest of the code sees it. Inserting a unique `_id` is the only compare-and-set: `set` and `unset` must be
 * idempotent, and no decision may rest on them (see shared design "Inserting a unique _id"). Both adapters, `mongo.ts` and
 * `sqlite.ts`, pass `contract.ts`.
 */
export type Value = null | boolean | number | string | Uint8Array | Value[] | { [key: string]: Value };
export type Doc = { _id: string } & { [key: string]: Value };

/** The database cannot be reached, is read-only, full or too slow. Nothing is known about a write that ended so: ask again by `_id`. */
export class StoreUnavailable extends Error {
  override name = "StoreUnavailable";
}

export interface CollectionOptions {
  /** Top-level fields that `find` filters on, each by an index of its own (sparse: documents without the field are not in it). */
  readonly indexes?: readonly string[];
}

export interface Find {
  /** Equality on indexed top-level string, number or boolean fields; all must hold. */
  readonly where?: Readonly<Record<string, string | number | boolean>>;
  /** Inclusive lower and exclusive upper bound on `_id`, compared as UTF-8 bytes. */
  readonly from?: string;
  readonly below?: string;
  /** Sort by `_id`: 1 ascending (default), -1 descending. */
  readonly order?: 1 | -1;
  /** At most this many; 1 to 10,000. Required: nothing is read without a bound. */
  readonly limit: number;
}

/** Every read is of majority-committed data; every write is durable (journalled, majority) before its promise resolves. */
export interface Collection<D extends Doc = Doc> {
  /** Inserts one document atomically. `"exists"` when its `_id` is taken: nothing was written. */
  insert(doc: D): Promise<"inserted" | "exists">;
  /** Inserts many, each on its own: a taken `_id` leaves the others alone. Answers one verdict per document, in order. At most 1,000. */
  insertMany(docs: readonly D[]): Promise<("inserted" | "exists")[]>;
  get(id: string): Promise<D | undefined>;
  /** Of at most 1,000 documents those that are there, each once, in any order. */
  getMany(ids: readonly string[]): Promise<D[]>;
  find(query: Find): Promise<D[]>;
  /** Sets top-level fields of an existing document; false when there is none. Only for values that any writer would set alike. */
  set(id: string, fields: Readonly<Record<string, Value>>): Promise<boolean>;
  /** Removes top-level fields; false when there is no such document. */
  unset(id: string, ...fields: string[]): Promise<boolean>;
  /** As `unset` for each of at most 1,000, those that are not there left out; not together: an outage may leave some as they were. */
  unsetMany(ids: readonly string[], ...fields: string[]): Promise<void>;
  /** Removes documents by `_id`; how many there were. */
  delete(...ids: string[]): Promise<number>;
  /** As `get`, but linearizable on a replica set: what leases are read with. */
  getLatest(id: string): Promise<D | undefined>;
  /** As `find`, linearizable where the server can. */
  findLatest(query: Find): Promise<D[]>;
}

export interface DocumentStore {
  collection<D extends Doc = Doc>(name: string, options?: CollectionOptions): Promise<Collection<D>>;
  /** Resolves when the server answers; rejects with StoreUnavailable. For health. */
  ping(): Promise<void>;
  close(): Promise<void>;
}
