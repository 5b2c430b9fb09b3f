import { randomUUID } from "node:crypto";
import { afterEach, beforeEach, describe, expect, it } from "vitest";
import { maxBatch, maxDepth, maxDocBytes, maxFind, maxIdBytes, StoreMisuse } from "./document.ts";
import {
  type Collection,
  type CollectionOptions,
  type Doc,
  type DocumentStore,
  StoreUnavailable,
  type Value,
} from "./port.ts";

export interface OpenedStore {
  readonly store: DocumentStore;
  /** Closes `store` and opens the same data again. Absent where nothing outlives the store. */
  reopen?(): Promise<DocumentStore>;
  /** Closes whatever is open and removes what was made. */
  close(): Promise<void>;
}

type Row = Doc & { [key: string]: Value };

/** What every adapter of the port must do; `open` gives each test a store of its own or one shared with other tests. */
export const documentStoreContract = (name: string, open: () => Promise<OpenedStore>): void => {
  describe(`document store on ${name}`, () => {
    let opened: OpenedStore;
    let store: DocumentStore;
    let collectionName: string;
    const collection = (options?: CollectionOptions) => store.collection<Row>(collectionName, options);
    const reopen = async () => {
      if (opened.reopen) store = await opened.reopen();
      return opened.reopen !== undefined;
    };
    beforeEach(async () => {
      opened = await open();
      store = opened.store;
      collectionName = `c-${randomUUID()}`;
    });
    afterEach(() => opened.close());

    insertContract(collection);
    readContract(collection);
    updateContract(collection);
    valueContract(collection);
    refusalContract(collection, () => store);

    it("keeps collections apart, and ids that differ in case only", async () => {
      const [one, other] = [await collection(), await store.collection<Row>(`${collectionName}-2`)];
      await one.insert({ _id: "a" });
      expect([await other.get("a"), await one.get("A")]).toEqual([undefined, undefined]);
      expect([await other.insert({ _id: "a" }), await one.insert({ _id: "A" })]).toEqual(["inserted", "inserted"]);
      expect(await other.delete("a", "A")).toBe(1);
      expect(await one.find({ limit: 9 })).toEqual([{ _id: "A" }, { _id: "a" }]);
    });

    it("keeps everything acknowledged when opened again, and finds it by its indexes", async () => {
      const before = await collection({ indexes: ["flag"] });
      await before.insertMany(ids(20).map((_id, i) => ({ _id, n: i, ...(i % 2 === 0 && { flag: true }) })));
      await before.unset("id-0000", "flag");
      await before.set("id-0001", { flag: true });
      await before.delete("id-0002");
      if (!(await reopen())) return;
      const after = await collection({ indexes: ["flag"] });
      expect((await after.find({ limit: 100 })).length).toBe(19);
      const flagged = await after.find({ where: { flag: true }, limit: 3 });
      expect(flagged.map((doc) => doc._id)).toEqual(["id-0001", "id-0004", "id-0006"]);
    });

    it("answers a ping while open, and rejects everything as unavailable once closed", async () => {
      const c = await collection({ indexes: ["flag"] });
      await c.insert({ _id: "a" });
      await store.ping();
      await store.close();
      for (const attempt of [
        () => store.ping(),
        () => c.insert({ _id: "b" }),
        () => c.insertMany([{ _id: "b" }]),
        () => c.get("a"),
        () => c.getMany(["a"]),
        () => c.getLatest("a"),
        () => c.find({ limit: 1 }),
        () => c.findLatest({ limit: 1 }),
        () => c.set("a", { n: 1 }),
        () => c.unset("a", "n"),
        () => c.unsetMany(["a"], "n"),
        () => c.delete("a"),
      ])
        await expect(attempt()).rejects.toThrow(StoreUnavailable);
      await store.close();
    });
  });
};

type Open = (options?: CollectionOptions) => Promise<Collection<Row>>;

const ids = (n: number) => Array.from({ length: n }, (_, i) => `id-${String(i).padStart(4, "0")}`);

const insertContract = (collection: Open) => {
  it("lets exactly one of many racing inserts of one _id win, and keeps the winner's document", async () => {
    const c = await collection();
    for (const _id of ids(5)) {
      const verdicts = await Promise.all(Array.from({ length: 64 }, (_, racer) => c.insert({ _id, racer })));
      expect(verdicts.filter((v) => v === "inserted")).toHaveLength(1);
      expect(await c.get(_id)).toEqual({ _id, racer: verdicts.indexOf("inserted") });
    }
  });

  it("lets exactly one of racing batches win each _id", async () => {
    const c = await collection();
    const batches = await Promise.all(
      Array.from({ length: 8 }, (_, racer) => c.insertMany(ids(20).map((_id) => ({ _id, racer })))),
    );
    for (const [i, _id] of ids(20).entries()) {
      const winners = batches.flatMap((verdicts, racer) => (verdicts[i] === "inserted" ? [racer] : []));
      expect(winners).toHaveLength(1);
      expect(await c.get(_id)).toEqual({ _id, racer: winners[0] });
    }
  });

  it("gives each document of a batch its own verdict, in order, also for an _id twice in it", async () => {
    const c = await collection();
    expect(await c.insert({ _id: "b", by: "one" })).toBe("inserted");
    const docs = ["a", "b", "c", "c", "d"].map((_id) => ({ _id, by: "many" }));
    expect(await c.insertMany(docs)).toEqual(["inserted", "exists", "inserted", "exists", "inserted"]);
    expect(await c.get("b")).toEqual({ _id: "b", by: "one" });
    expect((await c.find({ limit: 10 })).map((doc) => doc._id)).toEqual(["a", "b", "c", "d"]);
    expect(await c.insertMany([])).toEqual([]);
    const full = Array.from({ length: maxBatch }, (_, i) => ({ _id: `full-${i}` }));
    expect(new Set(await c.insertMany(full))).toEqual(new Set(["inserted"]));
  });
};

const readContract = (collection: Open) => {
  it("is empty where nothing was written", async () => {
    const c = await collection({ indexes: ["flag"] });
    expect(await c.get("a")).toBeUndefined();
    expect(await c.getLatest("a")).toBeUndefined();
    expect(await c.find({ limit: 1 })).toEqual([]);
    expect(await c.findLatest({ where: { flag: true }, limit: 1 })).toEqual([]);
    expect(await c.set("a", { n: 1 })).toBe(false);
    expect(await c.unset("a", "n")).toBe(false);
    expect(await c.delete("a", "b")).toBe(0);
    expect(await c.delete()).toBe(0);
  });

  it("finds from (inclusive) to below (exclusive), in either order, up to the limit", async () => {
    const c = await collection();
    await c.insertMany(
      ids(30)
        .reverse()
        .map((_id) => ({ _id })),
    );
    const found = async (query: Parameters<typeof c.find>[0]) => {
      const docs = (await c.find(query)).map((doc) => doc._id);
      expect((await c.findLatest(query)).map((doc) => doc._id)).toEqual(docs);
      return docs;
    };
    expect(await found({ limit: maxFind })).toEqual(ids(30));
    expect(await found({ from: "id-0010", below: "id-0013", limit: 9 })).toEqual(["id-0010", "id-0011", "id-0012"]);
    expect(await found({ from: "id-0010", below: "id-0013", order: -1, limit: 2 })).toEqual(["id-0012", "id-0011"]);
    expect(await found({ from: "id-0028", limit: 9 })).toEqual(["id-0028", "id-0029"]);
    expect(await found({ order: -1, limit: 1 })).toEqual(["id-0029"]);
    expect(await found({ from: "id-0010", limit: 1 })).toEqual(["id-0010"]);
    expect(await found({ below: "id-0000", limit: 9 })).toEqual([]);
  });

  it("compares _id as UTF-8 bytes", async () => {
    const c = await collection();
    // In UTF-16 the last two would change places; a language's order would put "a" before "B".
    const sorted = ["B", "a", "a@0000000001", "a@0000000002", "aa", "é", "\uFF5E", "\u{1F600}"];
    await c.insertMany([...sorted].reverse().map((_id) => ({ _id })));
    expect((await c.find({ limit: 10 })).map((doc) => doc._id)).toEqual(sorted);
    expect((await c.find({ from: "\uFF5E", limit: 10 })).map((doc) => doc._id)).toEqual(sorted.slice(-2));
  });

  it("finds by indexed fields, all of which must be equal in type and value", async () => {
    const c = await collection({ indexes: ["flag", "kind", "n"] });
    await c.insertMany([
      { _id: "a", flag: true, kind: "x", n: 1 },
      { _id: "b", flag: true, kind: "y", n: 2.5 },
      { _id: "c", flag: false, kind: "x" },
      { _id: "d", kind: "1", n: -0 },
      { _id: "e", kind: "true" },
      { _id: "f" },
    ]);
    const found = async (where: Record<string, string | number | boolean>) =>
      (await c.find({ where, limit: 10 })).map((doc) => doc._id).join("");
    expect(await found({ flag: true })).toBe("ab");
    expect(await found({ flag: false })).toBe("c");
    expect(await found({ kind: "x" })).toBe("ac");
    expect(await found({ kind: "x", flag: true })).toBe("a");
    expect(await found({ n: 1 })).toBe("a");
    expect(await found({ n: 2.5 })).toBe("b");
    expect(await found({ n: 0 })).toBe("d");
    expect(await found({ kind: "true" })).toBe("e");
    expect(await found({ kind: "z" })).toBe("");
    const page = await c.find({ where: { kind: "x" }, from: "b", order: -1, limit: 1 });
    expect(page).toEqual([{ _id: "c", flag: false, kind: "x" }]);
  });

  it("indexes what was there before the index, and keeps it for handles that did not ask for it", async () => {
    const old = await collection();
    await old.insert({ _id: "a", kind: "x" });
    const c = await collection({ indexes: ["kind"] });
    await old.insert({ _id: "b", kind: "x" });
    await (await collection()).insert({ _id: "c", kind: "x" });
    await old.unset("a", "kind");
    expect((await c.find({ where: { kind: "x" }, limit: 9 })).map((doc) => doc._id)).toEqual(["b", "c"]);
  });

  it("gets many by _id: those that are there, each once, and of none none", async () => {
    const c = await collection();
    await c.insertMany(ids(5).map((_id) => ({ _id, of: _id })));
    const found = await c.getMany(["id-0003", "never-there", "id-0001", "id-0003", "id"]);
    expect(found.sort((a, b) => a._id.localeCompare(b._id))).toEqual([
      { _id: "id-0001", of: "id-0001" },
      { _id: "id-0003", of: "id-0003" },
    ]);
    expect(await c.getMany([])).toEqual([]);
    expect(await c.getMany(ids(maxBatch))).toHaveLength(5);
  });

  it("reads an acknowledged write at once", async () => {
    const c = await collection({ indexes: ["flag"] });
    for (const _id of ids(20)) {
      await c.insert({ _id, flag: true });
      expect(await c.getLatest(_id)).toEqual({ _id, flag: true });
      expect(await c.find({ where: { flag: true }, limit: 5 })).toEqual([{ _id, flag: true }]);
      await c.unset(_id, "flag");
      expect(await c.find({ where: { flag: true }, limit: 5 })).toEqual([]);
    }
  });
};

const updateContract = (collection: Open) => {
  it("sets and unsets fields, as often as one likes, and leaves the others alone", async () => {
    const c = await collection({ indexes: ["flag"] });
    await c.insert({ _id: "a", flag: true, keep: { deep: [1] } });
    for (let i = 0; i < 2; i += 1) {
      expect(await c.set("a", { extra: "x", bytes: new Uint8Array([0, 255]) })).toBe(true);
      expect(await c.unset("a", "flag", "never-there")).toBe(true);
    }
    expect(plain(await c.get("a"))).toEqual({ _id: "a", keep: { deep: [1] }, extra: "x", bytes: "bytes 00ff" });
    expect(await c.find({ where: { flag: true }, limit: 1 })).toEqual([]);
    expect(await c.set("a", { flag: "back", keep: null })).toBe(true);
    expect(await c.find({ where: { flag: "back" }, limit: 1 })).toHaveLength(1);
    expect((await c.get("a"))?.keep).toBeNull();
  });

  it("unsets fields of many documents, those that are not there left out, and of none", async () => {
    const c = await collection({ indexes: ["flag"] });
    for (const _id of ids(5)) await c.insert({ _id, flag: true, keep: 1, also: 2 });
    await c.unsetMany(["id-0001", "id-0003", "never-there"], "flag", "also");
    await c.unsetMany([], "flag");
    const flagged = await c.find({ where: { flag: true }, limit: 9 });
    expect(flagged.map((doc) => doc._id)).toEqual(["id-0000", "id-0002", "id-0004"]);
    expect(await c.get("id-0003")).toEqual({ _id: "id-0003", keep: 1 });
    expect(await c.get("never-there")).toBeUndefined();
  });

  it("never makes a document by updating", async () => {
    const c = await collection();
    expect(await c.set("a", { n: 1 })).toBe(false);
    expect(await c.unset("a", "n")).toBe(false);
    expect(await c.get("a")).toBeUndefined();
  });

  it("deletes by _id, tells how many there were, and lets the _id be inserted again", async () => {
    const c = await collection();
    await c.insertMany(ids(4).map((_id) => ({ _id })));
    expect(await c.delete("id-0000", "id-0002", "never-there", "id-0000")).toBe(2);
    expect((await c.find({ limit: 9 })).map((doc) => doc._id)).toEqual(["id-0001", "id-0003"]);
    expect(await c.insert({ _id: "id-0000" })).toBe("inserted");
  });
};

const valueContract = (collection: Open) => {
  it("gives values back exactly as they went in", async () => {
    const c = await collection();
    const doc: Row = {
      _id: "every kind: /@#' \" ünï",
      nothing: null,
      yes: true,
      numbers: [0, 1, -1, 2 ** 31, -(2 ** 31) - 1, 2 ** 53, 1.5, -1e-300, 1e300],
      text: ["", "NUL \0 inside", "línea\n", "\u{1F600}", "'; DROP TABLE c; --"],
      bytes: [new Uint8Array(0), Uint8Array.from({ length: 256 }, (_, i) => i), Buffer.from("from the pool")],
      nested: { a: [{ b: [{}, null, { c: [] }] }], "key with spaces": { ключ: "значение" }, 0: "number-like" },
    };
    await c.insert(doc);
    const [a, b, [d]] = [await c.get(doc._id), await c.getLatest(doc._id), await c.find({ limit: 1 })];
    for (const read of [a, b, d]) expect(plain(read)).toEqual(plain(doc));
    expect(a).toMatchObject({ bytes: [expect.any(Uint8Array), expect.any(Uint8Array), expect.any(Uint8Array)] });
  });

  it("holds documents of a megabyte, many times over", async () => {
    const c = await collection();
    const bytes = Buffer.alloc(2 ** 20, "big");
    const text = "é".repeat(2 ** 18);
    for (const _id of ids(4)) expect(await c.insert({ _id, bytes, text })).toBe("inserted");
    await c.set("id-0001", { more: 1 });
    const docs = await c.find({ limit: 10 });
    expect(docs.map((doc) => bytes.equals(doc.bytes as Uint8Array) && doc.text === text)).toEqual(Array(4).fill(true));
  });
};

const refusalContract = (collection: Open, store: () => DocumentStore) => {
  it("refuses absurd documents with a clear error, and writes nothing", async () => {
    const c = await collection({ indexes: ["flag"] });
    const deep = Array.from({ length: maxDepth }).reduce<Value>((inner) => ({ inner }), 1);
    const absurd: [unknown, RegExp][] = [
      [{ _id: "" }, /_id must be a string and not empty/],
      [{}, /_id must be a string/],
      [{ _id: 7 }, /_id must be a string/],
      [{ _id: "é".repeat(maxIdBytes / 2 + 1) }, /_id is longer than 1000 bytes/],
      [{ _id: "a\0b" }, /without NUL/],
      [{ _id: "\uD800" }, /valid Unicode/],
      [{ _id: "a", $set: 1 }, /field names/],
      [{ _id: "a", "b.c": 1 }, /field names/],
      [{ _id: "a", b: [{ $gt: 1 }] }, /field names/],
      [{ _id: "a", "": 1 }, /field names/],
      [JSON.parse('{"_id":"a","__proto__":{}}'), /field names/],
      [{ _id: "a", b: "\uDC00" }, /field "b" is not valid Unicode/],
      [{ _id: "a", b: undefined }, /field "b" must be/],
      [{ _id: "a", b: 1n }, /field "b" must be/],
      [{ _id: "a", b: [new Date(0)] }, /field "b" must be/],
      [{ _id: "a", b: Number.NaN }, /field "b" must be a finite number/],
      [{ _id: "a", b: -Infinity }, /field "b" must be a finite number/],
      [{ _id: "a", b: [[1]] }, /field "b" has an array directly in an array/],
      [{ _id: "a", b: () => 1 }, /field "b" must be/],
      [{ _id: "a", b: deep }, /nested deeper/],
      [{ _id: "a", b: new Uint8Array(maxDocBytes) }, /larger than/],
      [{ _id: "a", flag: null }, /indexed field "flag"/],
      [{ _id: "a", flag: ["x"] }, /indexed field "flag"/],
      [{ _id: "a", flag: "x".repeat(1001) }, /indexed field "flag" is longer/],
    ];
    for (const [doc, why] of absurd) {
      await expect(c.insert(doc as Row)).rejects.toThrow(why);
      await expect(c.insertMany([{ _id: "innocent" }, doc as Row])).rejects.toThrow(StoreMisuse);
    }
    await expect(c.insertMany(Array(maxBatch + 1).fill({ _id: "a" }))).rejects.toThrow(/more than 1000/);
    expect(await c.find({ limit: 10 })).toEqual([]);
    expect(await c.insert({ _id: "x".repeat(maxIdBytes) })).toBe("inserted");
  });

  it("refuses absurd queries, updates and names with a clear error", async () => {
    const c = await collection({ indexes: ["flag"] });
    await c.insert({ _id: "a", n: 1 });
    for (const limit of [0, -1, 1.5, Number.NaN, maxFind + 1])
      await expect(c.find({ limit })).rejects.toThrow(/limit must be 1 to 10000/);
    await expect(c.findLatest({ limit: 0 })).rejects.toThrow(StoreMisuse);
    await expect(c.find({ where: { other: 1 }, limit: 1 })).rejects.toThrow(/"other" is not an indexed field/);
    await expect(c.find({ where: { flag: { $ne: 1 } as never }, limit: 1 })).rejects.toThrow(StoreMisuse);
    await expect(c.find({ from: "", limit: 1 })).rejects.toThrow(/from must be/);
    await expect(c.find({ order: 2 as 1, limit: 1 })).rejects.toThrow(/order/);
    for (const id of ["", "x".repeat(maxIdBytes + 1), 7 as unknown as string, { $ne: 1 } as unknown as string])
      for (const attempt of [c.get(id), c.getLatest(id), c.set(id, { n: 2 }), c.unset(id, "n"), c.delete("a", id)])
        await expect(attempt).rejects.toThrow(StoreMisuse);
    await expect(c.set("a", { _id: "b" })).rejects.toThrow(/_id cannot be set/);
    await expect(c.set("a", {})).rejects.toThrow(/at least one/);
    await expect(c.set("a", { "n.x": 1 })).rejects.toThrow(/field names/);
    await expect(c.set("a", { flag: {} })).rejects.toThrow(/indexed field/);
    await expect(c.unset("a", "_id")).rejects.toThrow(/_id cannot be unset/);
    await expect(c.unset("a")).rejects.toThrow(/at least one/);
    await expect(c.unsetMany(["a"])).rejects.toThrow(/at least one/);
    await expect(c.getMany(ids(maxBatch + 1))).rejects.toThrow(/at once/);
    await expect(
      c.unsetMany(
        Array.from({ length: maxBatch + 1 }, () => "a"),
        "n",
      ),
    ).rejects.toThrow(/at once/);
    await expect(c.unset("a", "$x")).rejects.toThrow(/field names/);
    for (const name of ["", "Upper", "a b", "a.b", "$x", 'x"y', "x".repeat(65)])
      await expect(store().collection(name)).rejects.toThrow(/collection name/);
    for (const field of ["", "_id", "a.b", "$x", 'x"y'])
      await expect(store().collection("c", { indexes: [field] })).rejects.toThrow(/indexed field/);
    expect(await c.find({ limit: 10 })).toEqual([{ _id: "a", n: 1 }]);
  });
};

/** Bytes as text, so that Buffer and Uint8Array compare alike. */
const plain = (value: unknown): unknown => {
  if (value instanceof Uint8Array) return `bytes ${Buffer.from(value).toString("hex")}`;
  if (Array.isArray(value)) return value.map(plain);
  if (typeof value !== "object" || value === null) return value;
  return Object.fromEntries(Object.entries(value).map(([key, inner]) => [key, plain(inner)]));
};
