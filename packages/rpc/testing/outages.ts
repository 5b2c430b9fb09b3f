import { type Collection, type Doc, type DocumentStore, StoreUnavailable } from "@curfew/document-store/port.ts";
import { type Bus, BusUnavailable } from "@curfew/event-log/bus.ts";

/** Store and bus as a service sees them while they cannot be reached, and afterwards. */

/** Every operation fails while `down` is "before"; while it is "after", writes are done and reported as lost. */
export const interruptibleStore = (store: DocumentStore) => {
  let down: false | "before" | "after" = false;
  const read = async <T>(operation: () => Promise<T>): Promise<T> => {
    if (down === "before") throw new StoreUnavailable("the test has cut the store off");
    return await operation();
  };
  const write = async <T>(operation: () => Promise<T>): Promise<T> => {
    const result = await read(operation);
    if (down === "after") throw new StoreUnavailable("the test has swallowed the answer");
    return result;
  };
  const wrapped: DocumentStore = {
    async collection<D extends Doc>(name: string, options?: Parameters<DocumentStore["collection"]>[1]) {
      const inner = await store.collection<D>(name, options);
      const outer: Collection<D> = {
        insert: (doc) => write(() => inner.insert(doc)),
        insertMany: (docs) => write(() => inner.insertMany(docs)),
        get: (id) => read(() => inner.get(id)),
        getMany: (ids) => read(() => inner.getMany(ids)),
        find: (query) => read(() => inner.find(query)),
        set: (id, fields) => write(() => inner.set(id, fields)),
        unset: (id, ...fields) => write(() => inner.unset(id, ...fields)),
        unsetMany: (ids, ...fields) => write(() => inner.unsetMany(ids, ...fields)),
        delete: (...ids) => write(() => inner.delete(...ids)),
        getLatest: (id) => read(() => inner.getLatest(id)),
        findLatest: (query) => read(() => inner.findLatest(query)),
      };
      return outer;
    },
    ping: () => read(() => store.ping()),
    close: () => store.close(),
  };
  return {
    store: wrapped,
    setDown: (how: typeof down) => {
      down = how;
    },
  };
};

/** Sends wait, reading pauses and questions are refused while `down`. */
export const interruptibleBus = (bus: Bus) => {
  let up: PromiseWithResolvers<void> | undefined;
  let closed = false;
  const assertUp = () => {
    if (up) throw new BusUnavailable("the test has cut the bus off");
  };
  const wrapped: Bus = {
    async openProducer(options) {
      const producer = await bus.openProducer(options);
      return {
        get reachable() {
          return !up && producer.reachable;
        },
        async send(records) {
          await up?.promise;
          if (closed) throw new BusUnavailable("closed");
          return await producer.send(records);
        },
        close: () => producer.close(),
      };
    },
    async subscribe(options) {
      assertUp();
      return await bus.subscribe({
        ...options,
        onRecords: async (records) => {
          await up?.promise;
          await options.onRecords(records);
        },
      });
    },
    async ends(topic) {
      assertUp();
      return await bus.ends(topic);
    },
    async describe(topic) {
      assertUp();
      return await bus.describe(topic);
    },
    async ping() {
      assertUp();
      await bus.ping();
    },
    close: () => bus.close(),
  };
  return {
    bus: wrapped,
    setDown: (down: boolean) => {
      if (down) up ??= Promise.withResolvers();
      else {
        up?.resolve();
        up = undefined;
      }
    },
    /** Lets go of what waits, for good. */
    end: () => {
      closed = true;
      up?.resolve();
      up = undefined;
    },
  };
};
