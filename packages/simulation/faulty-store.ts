import { type Collection, type Doc, type DocumentStore, StoreUnavailable } from "@curfew/document-store/port.ts";

/**
 * How an operation fails: it was never done ("lost"), it was done but reported as an outage ("unacknowledged"), or it was done and no
 * answer ever comes ("unanswered").
 */
export type Fault = "lost" | "unacknowledged" | "unanswered";

export interface StoreOperation {
  /** From 1, counted for reads and for writes by themselves. */
  readonly n: number;
  readonly kind: "read" | "write";
  readonly collection: string;
  readonly method: keyof Collection;
}

/** Asked before each operation; a promise delays it, one that never settles hangs it. */
export type StorePlan = (operation: StoreOperation) => Fault | undefined | Promise<Fault | undefined>;

/** Fails write `n` as told, and no other. */
export const failWrite =
  (n: number, fault: Fault): StorePlan =>
  (operation) =>
    operation.kind === "write" && operation.n === n ? fault : undefined;

const reads = new Set<keyof Collection>(["get", "getMany", "find", "getLatest", "findLatest"]);

export const never = <T>(): Promise<T> => new Promise(() => undefined);

/** `store` as seen by one process whose operations fail by `plan`. */
export const faultyStore = (store: DocumentStore, plan: StorePlan): DocumentStore => {
  const counts = { read: 0, write: 0 };

  const run = async <T>(collection: string, method: keyof Collection, operation: () => Promise<T>): Promise<T> => {
    const kind = reads.has(method) ? "read" : "write";
    counts[kind] += 1;
    const fault = await plan({ n: counts[kind], kind, collection, method });
    if (fault === "lost") throw new StoreUnavailable("simulated: lost");
    const result = await operation();
    if (fault === "unanswered") return await never();
    if (fault === "unacknowledged") throw new StoreUnavailable("simulated: done, and reported lost");
    return result;
  };

  return {
    async collection<D extends Doc = Doc>(name: string, options?: Parameters<DocumentStore["collection"]>[1]) {
      const inner = await store.collection<D>(name, options);
      const faulty: Collection<D> = {
        insert: (doc) => run(name, "insert", () => inner.insert(doc)),
        insertMany: (docs) => run(name, "insertMany", () => inner.insertMany(docs)),
        get: (id) => run(name, "get", () => inner.get(id)),
        getMany: (ids) => run(name, "getMany", () => inner.getMany(ids)),
        find: (query) => run(name, "find", () => inner.find(query)),
        set: (id, fields) => run(name, "set", () => inner.set(id, fields)),
        unset: (id, ...fields) => run(name, "unset", () => inner.unset(id, ...fields)),
        unsetMany: (ids, ...fields) => run(name, "unsetMany", () => inner.unsetMany(ids, ...fields)),
        delete: (...ids) => run(name, "delete", () => inner.delete(...ids)),
        getLatest: (id) => run(name, "getLatest", () => inner.getLatest(id)),
        findLatest: (query) => run(name, "findLatest", () => inner.findLatest(query)),
      };
      return faulty;
    },
    ping: () => store.ping(),
    close: () => store.close(),
  };
};
