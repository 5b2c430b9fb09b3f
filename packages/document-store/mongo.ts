import {
  type AnyBulkWriteOperation,
  BSON,
  type Db,
  type Filter,
  MongoBulkWriteError,
  MongoClient,
  type MongoClientOptions,
  type Collection as MongoCollection,
  MongoError,
  MongoServerError,
  type ReadConcernLevel,
} from "mongodb";
import {
  checkBatch,
  checkCollection,
  checkDoc,
  checkFieldNames,
  checkFields,
  checkFind,
  checkId,
  StoreMisuse,
} from "./document.ts";
import {
  type Collection,
  type CollectionOptions,
  type Doc,
  type DocumentStore,
  type Find,
  StoreUnavailable,
  type Value,
} from "./port.ts";
import { followedContext, type TlsFiles } from "./tls-files.ts";

export interface MongoStoreOptions {
  /** `mongodb://…`; on a replica set, name it there (`?replicaSet=rs0`) or give several hosts. */
  readonly url: string;
  readonly database: string;
  /** Paths of PEM files for mutual TLS. Read for each new connection, so that a renewed certificate is taken into use. */
  readonly tls?: TlsFiles;
}

const maxPoolSize = 50;
/** Operations begun and not yet answered; past it `StoreUnavailable`. */
const maxPendingOperations = 10_000;
const selectionTimeoutMs = 3000;
const socketTimeoutMs = 10_000;
/** How long the server itself may take for a read, or for a majority to confirm a write. */
const serverTimeoutMs = 5000;

/** Server codes that say that the request itself is wrong: BadValue, FailedToParse, TypeMismatch, InvalidBSON, index options and keys, too large. */
const misuse = new Set([2, 9, 14, 22, 85, 86, 10334, 17280, 17419]);
/** InvalidOptions, CommandNotSupported, NotAReplicaSet, NotImplemented: answers to a read concern that the server does not have. */
const noLinearizable = new Set([72, 115, 123, 238]);
const duplicateKey = 11_000;
const namespaceExists = 48;

/**
 * A document store on a MongoDB-protocol server: writes are journalled by a majority, reads see majority-committed data. Does not
 * connect by itself (`ping` tells whether it can), so it may be opened before the server is up, and recovers when it comes back.
 *
 * The driver repeats a write whose reply was lost. On servers that do not recognise the repetition, `insert` may therefore answer
 * "exists" for its own document: whoever is told so reloads it and compares, as after any conflict.
 */
export const openMongoStore = async ({ url, database, tls }: MongoStoreOptions): Promise<DocumentStore> => {
  const options: MongoClientOptions = {
    writeConcern: { w: "majority", journal: true, wtimeoutMS: serverTimeoutMs },
    readConcern: { level: "majority" },
    readPreference: "primary",
    retryReads: true,
    retryWrites: true,
    promoteBuffers: true,
    maxPoolSize,
    serverSelectionTimeoutMS: selectionTimeoutMs,
    connectTimeoutMS: selectionTimeoutMs,
    waitQueueTimeoutMS: selectionTimeoutMs,
    socketTimeoutMS: socketTimeoutMs,
  };
  if (tls) Object.assign(options, { tls: true, secureContext: followedContext(tls) });
  const newClient = () => new MongoClient(url, options);
  try {
    await newClient().close();
  } catch {
    // The driver's message quotes the connection string, with its password.
    throw new StoreMisuse("MongoDB: the connection string is not valid");
  }
  const connection = new Connection(newClient, database);
  return {
    async collection<D extends Doc = Doc>(name: string, { indexes = [] }: CollectionOptions = {}) {
      checkCollection(name, indexes);
      return new MongoDocuments<D>(connection, name, connection.indexed(name, indexes));
    },
    async ping() {
      await connection.run((db) => db.command({ ping: 1 }));
      await connection.prepareAll();
    },
    close: () => connection.close(),
  };
};

/** What all collections share: the bound on pending operations, the translation of errors, and what the server turned out to know. */
class Connection {
  readonly #newClient: () => MongoClient;
  readonly #database: string;
  #connected: Promise<MongoClient> | undefined;
  #pending = 0;
  #closed: boolean;
  /** Fields by collection; shared by the handles of one collection, as in SQLite. */
  readonly #indexed = new Map<string, Set<string>>();
  readonly #made = new Map<string, Promise<unknown>>();
  latest: ReadConcernLevel = "linearizable";

  constructor(newClient: () => MongoClient, database: string) {
    this.#newClient = newClient;
    this.#database = database;
    this.#closed = false;
  }

  indexed(collection: string, fields: readonly string[]): ReadonlySet<string> {
    const indexed = this.#indexed.get(collection) ?? new Set<string>();
    for (const field of fields) indexed.add(field);
    this.#indexed.set(collection, indexed);
    return indexed;
  }

  async run<T>(operation: (db: Db) => Promise<T>): Promise<T> {
    if (this.#closed) throw new StoreUnavailable("MongoDB: closed");
    if (this.#pending >= maxPendingOperations)
      throw new StoreUnavailable(`MongoDB: more than ${maxPendingOperations} operations wait`);
    this.#pending += 1;
    try {
      this.#connected ??= this.#connect();
      return await operation((await this.#connected).db(this.#database));
    } catch (error) {
      throw translated(error);
    } finally {
      this.#pending -= 1;
    }
  }

  /** A client whose first connection failed stays unusable for ever, so each attempt gets a new one; once connected, it recovers alone. */
  async #connect(): Promise<MongoClient> {
    const client = this.#newClient();
    try {
      return await client.connect();
    } catch (error) {
      this.#connected = undefined;
      await client.close();
      throw error;
    }
  }

  /** Before the first operation at the latest, not at opening: a server that is down then must not keep a service from starting. */
  inCollection<T>(name: string, operation: (documents: MongoCollection<Doc>) => Promise<T>): Promise<T> {
    return this.run(async (db) => {
      await this.#prepare(db, name);
      return operation(db.collection<Doc>(name));
    });
  }

  /**
   * All collections that were asked for. Done while a service is not ready yet: a server that is killed while it makes one (FerretDB) may be
   * left with one that takes no document any more, and then it should not be in the middle of a command.
   */
  async prepareAll(): Promise<void> {
    for (const name of this.#indexed.keys()) await this.run((db) => this.#prepare(db, name));
  }

  /** The collection, then its indexes. */
  async #prepare(db: Db, name: string): Promise<void> {
    await this.#once(name, () => created(db, name));
    // One field only: an index over `_id` as well would hold every document, sparse or not.
    for (const field of this.#indexed.get(name) ?? [])
      await this.#once(`${name}/${field}`, () => db.collection(name).createIndex({ [field]: 1 }, { sparse: true }));
  }

  async #once(key: string, make: () => Promise<unknown>): Promise<void> {
    const made = this.#made.get(key) ?? make();
    this.#made.set(key, made);
    await made.catch((error: unknown) => {
      this.#made.delete(key);
      throw error;
    });
  }

  async close(): Promise<void> {
    this.#closed = true;
    const client = await this.#connected?.catch(() => undefined);
    await client?.close();
  }
}

const created = async (db: Db, name: string): Promise<void> => {
  try {
    await db.createCollection(name);
  } catch (error) {
    if (!(error instanceof MongoServerError && error.code === namespaceExists)) throw error;
  }
};

type Shape = Pick<Find, "limit" | "order">;

class MongoDocuments<D extends Doc> implements Collection<D> {
  readonly #connection: Connection;
  readonly #name: string;
  readonly #indexed: ReadonlySet<string>;

  constructor(connection: Connection, name: string, indexed: ReadonlySet<string>) {
    this.#connection = connection;
    this.#name = name;
    this.#indexed = indexed;
  }

  async insert(doc: D): Promise<"inserted" | "exists"> {
    checkDoc(doc, this.#indexed);
    return this.#run(async (documents) => {
      try {
        await documents.insertOne(doc);
        return "inserted";
      } catch (error) {
        if (error instanceof MongoServerError && error.code === duplicateKey) return "exists";
        throw error;
      }
    });
  }

  async insertMany(docs: readonly D[]) {
    checkBatch(docs);
    for (const doc of docs) checkDoc(doc, this.#indexed);
    const verdicts = docs.map((): "inserted" | "exists" => "inserted");
    if (docs.length === 0) return verdicts;
    return this.#run(async (documents) => {
      try {
        await documents.insertMany([...docs], { ordered: false });
      } catch (error) {
        if (!(error instanceof MongoBulkWriteError) || error.result.getWriteConcernError()) throw error;
        const failed = Array.isArray(error.writeErrors) ? error.writeErrors : [error.writeErrors];
        // Some other trouble stopped the batch: what was not tried is not written, so there is no verdict to give.
        if (failed.length === 0 || failed.some(({ code }) => code !== duplicateKey)) throw error;
        for (const { index } of failed) verdicts[index] = "exists";
      }
      return verdicts;
    });
  }

  async get(id: string) {
    checkId(id);
    return (await this.#find({ _id: id }, { limit: 1 }, "majority"))[0];
  }

  async getMany(ids: readonly string[]) {
    checkBatch(ids);
    // One exact `_id` each, as in `delete`.
    const found = await Promise.all([...new Set(ids)].map((id) => this.get(id)));
    return found.filter((doc) => doc !== undefined);
  }

  async getLatest(id: string) {
    checkId(id);
    return (await this.#latest({ _id: id }, { limit: 1 }))[0];
  }

  async find(query: Find) {
    checkFind(query, this.#indexed);
    return this.#find(filterOf(query), query, "majority");
  }

  async findLatest(query: Find) {
    checkFind(query, this.#indexed);
    return this.#latest(filterOf(query), query);
  }

  async set(id: string, fields: Readonly<Record<string, Value>>) {
    checkId(id);
    checkFields(fields, this.#indexed);
    const { matchedCount } = await this.#run((documents) => documents.updateOne({ _id: id }, { $set: fields }));
    return matchedCount === 1;
  }

  async unset(id: string, ...fields: string[]) {
    checkId(id);
    checkFieldNames(fields);
    const $unset = Object.fromEntries(fields.map((field): [string, true] => [field, true]));
    const { matchedCount } = await this.#run((documents) => documents.updateOne({ _id: id }, { $unset }));
    return matchedCount === 1;
  }

  async unsetMany(ids: readonly string[], ...fields: string[]) {
    checkBatch(ids);
    for (const id of ids) checkId(id);
    checkFieldNames(fields);
    // One command each: while FerretDB is at many updates of one bulk write, other operations exceed their time (test/live/issuer.test.ts).
    const results = await Promise.allSettled(ids.map((id) => this.unset(id, ...fields)));
    for (const result of results) if (result.status === "rejected") throw result.reason;
  }

  async delete(...ids: string[]) {
    checkBatch(ids);
    for (const id of ids) checkId(id);
    if (ids.length === 0) return 0;
    // One exact `_id` each: FerretDB scans the collection for `$in`.
    const each = ids.map((_id): AnyBulkWriteOperation<Doc> => ({ deleteOne: { filter: { _id } } }));
    return (await this.#run((documents) => documents.bulkWrite(each, { ordered: false }))).deletedCount;
  }

  #run<T>(operation: (documents: MongoCollection<Doc>) => Promise<T>): Promise<T> {
    return this.#connection.inCollection(this.#name, operation);
  }

  #find(filter: Filter<Doc>, { limit, order = 1 }: Shape, level: ReadConcernLevel): Promise<D[]> {
    const options = { limit, batchSize: limit, readConcern: { level }, maxTimeMS: serverTimeoutMs };
    return this.#run(async (documents) => {
      const cursor = documents.find(filter, options).sort({ _id: order });
      return (await cursor.toArray()) as unknown as D[];
    });
  }

  /** Where the server has no linearizable reads (a single node), majority on the primary is the latest there is. */
  async #latest(filter: Filter<Doc>, shape: Shape): Promise<D[]> {
    try {
      return await this.#find(filter, shape, this.#connection.latest);
    } catch (error) {
      const { code } = ((error as Error).cause ?? {}) as { code?: number };
      if (this.#connection.latest === "majority" || !noLinearizable.has(code ?? 0)) throw error;
      this.#connection.latest = "majority";
      return this.#find(filter, shape, "majority");
    }
  }
}

const filterOf = ({ where = {}, from, below }: Find): Filter<Doc> => {
  const bounds = { ...(from !== undefined && { $gte: from }), ...(below !== undefined && { $lt: below }) };
  return { ...where, ...(Object.keys(bounds).length > 0 && { _id: bounds }) } as Filter<Doc>;
};

/** A server's message can quote documents, hence personal data: only its code is repeated. */
const translated = (error: unknown): unknown => {
  if (error instanceof StoreUnavailable || error instanceof StoreMisuse) return error;
  if (error instanceof MongoServerError) {
    const { code, codeName } = error;
    const what = `MongoDB: ${codeName ?? error.name} (${code ?? "no code"})`;
    const cause = { code };
    return misuse.has(Number(code)) ? new StoreMisuse(what, { cause }) : new StoreUnavailable(what, { cause });
  }
  if (error instanceof BSON.BSONError) return new StoreMisuse("MongoDB: cannot be written as BSON");
  if (error instanceof MongoError) return new StoreUnavailable(`MongoDB: ${error.name}: ${error.message}`);
  return error;
};
