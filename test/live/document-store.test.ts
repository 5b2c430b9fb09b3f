import { randomUUID } from "node:crypto";
import { documentStoreContract } from "@curfew/document-store/contract.ts";
import { openMongoStore } from "@curfew/document-store/mongo.ts";
import { type DocumentStore, StoreUnavailable } from "@curfew/document-store/port.ts";
import { MongoClient } from "mongodb";
import { afterAll, afterEach, beforeAll, describe, expect, it } from "vitest";
import { type FerretServer, startFerret } from "../../deploy/dev/servers.ts";

const given = process.env.CURFEW_TEST_MONGODB_URL;
let server: FerretServer | undefined;
let url = given ?? "";
beforeAll(async () => {
  if (given) return;
  server = await startFerret();
  url = server.url;
});
afterAll(() => server?.stop());

documentStoreContract("a MongoDB-protocol server", async () => {
  const database = `contract-${randomUUID()}`;
  let store = await openMongoStore({ url, database });
  return {
    store,
    reopen: async () => {
      await store.close();
      store = await openMongoStore({ url, database });
      return store;
    },
    close: () => store.close(),
  };
});

it("has every collection, with its indexes, once it has answered a ping: none is made in the middle of a command", async () => {
  const database = `made-${randomUUID()}`;
  const store = await openMongoStore({ url, database });
  const client = new MongoClient(url);
  try {
    await store.collection("plain");
    await store.collection("indexed", { indexes: ["field"] });
    await store.ping();
    await store.ping();
    const db = client.db(database);
    expect((await db.listCollections().toArray()).map(({ name }) => name).sort()).toEqual(["indexed", "plain"]);
    expect((await db.collection("indexed").indexes()).map(({ key }) => Object.keys(key))).toEqual([["_id"], ["field"]]);
    // Another process finds them there.
    const other = await openMongoStore({ url, database });
    const same = await other.collection("plain");
    await other.ping();
    expect(await same.insert({ _id: "a" })).toBe("inserted");
    await other.close();
  } finally {
    await client.close();
    await store.close();
  }
});

describe("a MongoDB-protocol server that is killed", () => {
  const opened: DocumentStore[] = [];
  let own: FerretServer | undefined;
  afterEach(async () => {
    for (const store of opened.splice(0)) await store.close();
    own?.resume();
    await own?.stop();
    own = undefined;
  });
  const open = async (at: FerretServer) => {
    const store = await openMongoStore({ url: at.url, database: "outage" });
    opened.push(store);
    return store;
  };

  it("keeps every acknowledged insert over kill -9 under load, and the store recovers by itself", async () => {
    own = await startFerret();
    const store = await open(own);
    const documents = await store.collection("c", { indexes: ["writer"] });
    const acknowledged: string[] = [];
    let unavailable = 0;
    const stop = new AbortController();
    const writers = Array.from({ length: 8 }, async (_, writer) => {
      for (let i = 0; !stop.signal.aborted; i += 1) {
        const _id = `${writer}-${i}`;
        try {
          await documents.insert({ _id, writer, bytes: Buffer.from(_id) });
          acknowledged.push(_id);
        } catch (error) {
          expect(error).toBeInstanceOf(StoreUnavailable);
          unavailable += 1;
        }
      }
    });
    for (const floor of [100, 200]) {
      await expect.poll(() => acknowledged.length, { timeout: 60_000 }).toBeGreaterThan(floor);
      const before = unavailable;
      await own.kill();
      await expect(store.ping()).rejects.toThrow(StoreUnavailable);
      await expect.poll(() => unavailable, { timeout: 20_000 }).toBeGreaterThan(before);
      await own.restart();
      const at = acknowledged.length;
      await expect.poll(() => acknowledged.length, { timeout: 60_000 }).toBeGreaterThan(at + 50);
    }
    stop.abort();
    await Promise.all(writers);
    await store.ping();
    const there = new Set((await documents.find({ limit: 10_000 })).map((doc) => doc._id));
    expect(acknowledged.filter((id) => !there.has(id))).toEqual([]);
  });

  it("can be opened, and its collections too, while the server is down, and works once it is up", async () => {
    own = await startFerret();
    await own.kill();
    const store = await open(own);
    const documents = await store.collection("late", { indexes: ["flag"] });
    await expect(store.ping()).rejects.toThrow(StoreUnavailable);
    await expect(documents.insert({ _id: "a" })).rejects.toThrow(StoreUnavailable);
    await own.restart();
    await expect.poll(() => store.ping().then(() => "up", String), { timeout: 20_000 }).toBe("up");
    expect(await documents.insert({ _id: "b", flag: true })).toBe("inserted");
    expect(await documents.find({ where: { flag: true }, limit: 1 })).toHaveLength(1);
  });

  it("refuses a wrong connection string at opening, without repeating its password", async () => {
    for (const wrong of [
      "http://u:hunter2@localhost",
      "mongodb://u:hunter2@",
      "mongodb://u:hunter2@localhost/?w=-x&tls=7",
    ]) {
      const error: unknown = await openMongoStore({ url: wrong, database: "d" }).catch((e: unknown) => e);
      expect(String(error)).toBe("StoreMisuse: MongoDB: the connection string is not valid");
      expect((error as Error).cause).toBeUndefined();
    }
  });

  it("rejects within its time limit while the server hangs, and goes on once it answers", async () => {
    own = await startFerret();
    const store = await open(own);
    const documents = await store.collection("hang");
    await documents.insert({ _id: "a" });
    own.pause();
    await expect(documents.insert({ _id: "b" })).rejects.toThrow(StoreUnavailable);
    own.resume();
    await expect.poll(() => documents.get("a").then((doc) => doc?._id, String), { timeout: 30_000 }).toBe("a");
  });
});
