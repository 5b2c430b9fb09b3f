import {
  checkBatch,
  checkCollection,
  checkDoc,
  checkFieldNames,
  checkFields,
  checkFind,
  checkId,
  indexKey,
} from "@curfew/document-store/document.ts";
import {
  type Collection,
  type Doc,
  type DocumentStore,
  type Find,
  StoreUnavailable,
  type Value,
} from "@curfew/document-store/port.ts";

interface Shelf {
  readonly docs: Map<string, Doc>;
  readonly indexed: Set<string>;
}

/**
 * A document store in a Map, for simulation: it takes no turn of its own, so a seed decides alone what happens when. Held to the contract
 * that the real adapters pass.
 */
export const memoryStore = (): DocumentStore => {
  const shelves = new Map<string, Shelf>();
  let closed = false;
  const assertOpen = async () => {
    if (closed) throw new StoreUnavailable("closed");
  };
  return {
    async collection<D extends Doc>(name: string, { indexes = [] }: { indexes?: readonly string[] } = {}) {
      await assertOpen();
      checkCollection(name, indexes);
      const shelf = shelves.get(name) ?? { docs: new Map(), indexed: new Set() };
      shelves.set(name, shelf);
      for (const field of indexes) shelf.indexed.add(field);
      return memoryCollection(shelf, assertOpen) as unknown as Collection<D>;
    },
    ping: assertOpen,
    close: async () => {
      closed = true;
    },
  };
};

const copy = <T>(value: T): T => structuredClone(value);
const byId = (a: string, b: string) => Buffer.compare(Buffer.from(a), Buffer.from(b));

const without =
  (fields: readonly string[]) =>
  ({ _id, ...rest }: Doc): Doc => ({
    _id,
    ...Object.fromEntries(Object.entries(rest).filter(([name]) => !fields.includes(name))),
  });

const memoryCollection = ({ docs, indexed }: Shelf, assertOpen: () => Promise<void>): Collection => {
  const put = (doc: Doc): "inserted" | "exists" => {
    if (docs.has(doc._id)) return "exists";
    docs.set(doc._id, copy(doc));
    return "inserted";
  };
  const change = (id: string, changed: (doc: Doc) => Doc): boolean => {
    const doc = docs.get(id);
    if (doc) docs.set(id, changed(doc));
    return doc !== undefined;
  };
  const collection: Collection = {
    async insert(doc) {
      await assertOpen();
      checkDoc(doc, indexed);
      return put(doc);
    },
    async insertMany(many) {
      await assertOpen();
      checkBatch(many);
      for (const doc of many) checkDoc(doc, indexed);
      return many.map(put);
    },
    async get(id) {
      await assertOpen();
      checkId(id);
      return copy(docs.get(id));
    },
    async getMany(ids) {
      await assertOpen();
      checkBatch(ids);
      for (const id of ids) checkId(id);
      return [...new Set(ids)].flatMap((id) => copy(docs.get(id)) ?? []);
    },
    async find(query) {
      await assertOpen();
      checkFind(query, indexed);
      return found(docs, query).map(copy);
    },
    async set(id, fields) {
      await assertOpen();
      checkId(id);
      checkFields(fields, indexed);
      return change(id, (doc) => ({ ...doc, ...copy(fields) }));
    },
    async unset(id, ...fields) {
      await assertOpen();
      checkId(id);
      checkFieldNames(fields);
      return change(id, without(fields));
    },
    async unsetMany(ids, ...fields) {
      await assertOpen();
      checkBatch(ids);
      for (const id of ids) checkId(id);
      checkFieldNames(fields);
      for (const id of ids) change(id, without(fields));
    },
    async delete(...ids) {
      await assertOpen();
      checkBatch(ids);
      for (const id of ids) checkId(id);
      return ids.filter((id) => docs.delete(id)).length;
    },
    getLatest: (id) => collection.get(id),
    findLatest: (query) => collection.find(query),
  };
  return collection;
};

const found = (docs: ReadonlyMap<string, Doc>, { where = {}, from, below, order = 1, limit }: Find): Doc[] => {
  const wanted = Object.entries(where).map(([field, value]) => [field, indexKey(value, field)] as const);
  const matches = (doc: Doc) =>
    (from === undefined || byId(doc._id, from) >= 0) &&
    (below === undefined || byId(doc._id, below) < 0) &&
    wanted.every(([field, key]) => Object.hasOwn(doc, field) && indexKey(doc[field] as Value, field) === key);
  return [...docs.values()]
    .filter(matches)
    .sort((a, b) => order * byId(a._id, b._id))
    .slice(0, limit);
};
