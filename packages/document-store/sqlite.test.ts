import { type ChildProcess, fork, spawn } from "node:child_process";
import { once } from "node:events";
import { existsSync, mkdtempSync, readFileSync, rmSync, statSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import type { Worker } from "node:worker_threads";
import { afterEach, describe, expect, it } from "vitest";
import { documentStoreContract } from "./contract.ts";
import { type DocumentStore, StoreUnavailable } from "./port.ts";
import { openSqliteStore, sqliteStore } from "./sqlite.ts";
import { openSqliteWriter, SqlError, type SqliteWriter } from "./sqlite-writer.ts";

const newFolder = () => mkdtempSync(join(tmpdir(), "curfew-store-"));

documentStoreContract("a SQLite file", async () => {
  const folder = newFolder();
  const file = join(folder, "store.db");
  let store = await openSqliteStore({ file });
  return {
    store,
    reopen: async () => {
      await store.close();
      store = await openSqliteStore({ file });
      return store;
    },
    close: async () => {
      await store.close();
      rmSync(folder, { recursive: true });
    },
  };
});

documentStoreContract("SQLite in memory", async () => {
  const store = await openSqliteStore({ file: ":memory:" });
  return { store, close: () => store.close() };
});

const undo: (() => unknown)[] = [];
afterEach(async () => {
  for (const step of undo.splice(0).reverse()) await step();
});
const folderOf = () => {
  const folder = newFolder();
  undo.push(() => rmSync(folder, { recursive: true, force: true }));
  return folder;
};
const opened = async (file = join(folderOf(), "store.db"), limits = {}) => {
  const writer = await openSqliteWriter({ file, ...limits });
  undo.push(() => writer.close());
  return { writer, store: sqliteStore(writer), file };
};
const childFile = fileURLToPath(new URL("./sqlite-test-child.ts", import.meta.url));
const idsIn = async (store: DocumentStore, where: Record<string, boolean> = {}) => {
  const documents = await store.collection("acknowledged", { indexes: ["unpublished"] });
  const found = new Set<string>();
  for (let from: string | undefined; ; ) {
    const page = await documents.find({ where, limit: 10_000, ...(from !== undefined && { from }) });
    for (const doc of page) found.add(doc._id);
    if (page.length < 10_000) return found;
    from = page.at(-1)?._id;
  }
};

describe("durability", () => {
  it("keeps every acknowledged insert when the writing process is killed with -9, again and again", async () => {
    const file = join(folderOf(), "store.db");
    const acknowledged = new Set<string>();
    for (const kill of [50, 500, 1500]) {
      const child: ChildProcess = fork(childFile, [file], {
        execArgv: ["--disable-warning=ExperimentalWarning"],
        env: {},
      });
      undo.push(() => child.kill("SIGKILL"));
      const exited = once(child, "exit");
      let here = 0;
      child.on("message", (id: string) => {
        acknowledged.add(id);
        here += 1;
        // The other callers are in the middle of their inserts.
        if (here === kill) child.kill("SIGKILL");
      });
      expect(await exited).toEqual([null, "SIGKILL"]);
      expect(here).toBeGreaterThanOrEqual(kill);
      const store = await openSqliteStore({ file });
      const there = await idsIn(store);
      const indexed = await idsIn(store, { unpublished: true });
      await store.close();
      expect([...acknowledged].filter((id) => !there.has(id) || !indexed.has(id))).toEqual([]);
    }
  });

  it("commits synchronously to a write-ahead log, many concurrent inserts in one commit", async () => {
    const { writer, store } = await opened();
    expect((await writer.run("SELECT * FROM pragma_synchronous, pragma_journal_mode")).rows).toEqual([[2, "wal"]]);
    const documents = await store.collection("c");
    const before = writer.stats();
    await Promise.all(Array.from({ length: 500 }, (_, i) => documents.insert({ _id: `${i}` })));
    const after = writer.stats();
    expect(after.operations - before.operations).toBe(500);
    expect(after.commits - before.commits).toBeLessThan(50);
    await documents.insert({ _id: "alone" });
    expect(writer.stats().commits - after.commits).toBe(1);
    await documents.get("alone");
    expect(writer.stats().commits - after.commits).toBe(1);
  });

  it.skipIf(process.env.ABSENT_PROGRAMS?.includes("strace"))(
    "syncs the log once per acknowledged group (needs strace)",
    async () => {
      const folder = folderOf();
      const trace = join(folder, "trace");
      const node = [
        process.execPath,
        "--disable-warning=ExperimentalWarning",
        childFile,
        join(folder, "store.db"),
        "2000",
      ];
      const child = spawn("strace", ["-f", "-y", "-e", "trace=fsync,fdatasync", "-o", trace, ...node], { env: {} });
      undo.push(() => child.kill("SIGKILL"));
      let said = "";
      child.stdout.on("data", (chunk: Buffer) => {
        said += chunk.toString();
      });
      expect(await once(child, "close")).toEqual([0, null]);
      const { commits, operations } = JSON.parse(said) as { commits: number; operations: number };
      const syncs = readFileSync(trace, "utf8").match(/f(data)?sync\(\d+<[^>]*-wal>/g)?.length ?? 0;
      expect(operations).toBeGreaterThanOrEqual(2000);
      expect(commits).toBeLessThan(operations);
      expect(syncs).toBeGreaterThanOrEqual(commits);
    },
  );

  it("keeps the log short, however much is written: what was answered is moved into the file", async () => {
    const { store, file } = await opened();
    const documents = await store.collection("large");
    const bytes = new Uint8Array(1_000_000).fill(7);
    for (let n = 0; n < 30; n += 1) await documents.insert({ _id: `d${n}`, bytes });
    await store.ping(); // comes after whatever followed the last answer
    expect(statSync(`${file}-wal`).size).toBeLessThan(8_000_000);
    expect(statSync(file).size).toBeGreaterThan(25_000_000);
  });
});

describe("trouble", () => {
  const fill = async (store: DocumentStore) => {
    const documents = await store.collection("acknowledged", { indexes: ["unpublished"] });
    const inserted: string[] = [];
    const refused: unknown[] = [];
    for (let round = 0; refused.length === 0; round += 1)
      await Promise.all(
        Array.from({ length: 20 }, async (_, i) => {
          const _id = `${round}-${i}`;
          await documents.insert({ _id, unpublished: true, bytes: new Uint8Array(3000) }).then(
            () => inserted.push(_id),
            (error: unknown) => refused.push(error),
          );
        }),
      );
    return { documents, inserted, refused };
  };

  it("a full disk refuses loudly, loses nothing acknowledged, still reads, and goes on once there is room", async () => {
    const { writer, store, file } = await opened();
    await writer.run("PRAGMA max_page_count = 200");
    const { documents, inserted, refused } = await fill(store);
    for (const error of refused) expect(error).toBeInstanceOf(StoreUnavailable);
    expect(String(refused[0])).toMatch(/full/);
    expect(inserted.length).toBeGreaterThan(20);
    const [write, read] = await Promise.allSettled([
      documents.insertMany([{ _id: "many", bytes: new Uint8Array(100_000) }]),
      documents.get("0-0"),
    ]);
    expect(write).toMatchObject({ status: "rejected", reason: expect.any(StoreUnavailable) });
    expect(read).toMatchObject({ status: "fulfilled", value: { _id: "0-0" } });
    expect(await idsIn(store)).toEqual(new Set(inserted));
    await writer.run("PRAGMA max_page_count = 2000");
    expect(await documents.insert({ _id: "room", bytes: new Uint8Array(100_000) })).toBe("inserted");
    await store.close();
    const again = await opened(file);
    expect(await idsIn(again.store)).toEqual(new Set([...inserted, "room"]));
    expect((await again.writer.run("SELECT * FROM pragma_integrity_check")).rows).toEqual([["ok"]]);
  });

  it("a file that became read-only refuses writes loudly and still reads", async () => {
    const { writer, store } = await opened();
    const documents = await store.collection("c");
    await documents.insert({ _id: "a", n: 1 });
    await writer.run("PRAGMA query_only = ON");
    await expect(documents.insert({ _id: "b" })).rejects.toThrow(/SQLite: attempt to write a readonly database/);
    await expect(documents.set("a", { n: 2 })).rejects.toThrow(StoreUnavailable);
    expect(await documents.find({ limit: 10 })).toEqual([{ _id: "a", n: 1 }]);
  });

  it("after a write that the machine refused, a ping fails until something can be written again", async () => {
    const { store, file } = await opened();
    const documents = await store.collection("c");
    const { DatabaseSync } = await import("node:sqlite");
    using other = new DatabaseSync(file);
    other.exec("BEGIN IMMEDIATE");
    await expect(store.ping()).resolves.toBeUndefined(); // nobody has tried
    await expect(documents.insert({ _id: "a" })).rejects.toThrow(StoreUnavailable);
    expect(await documents.find({ limit: 1 })).toEqual([]);
    await expect(store.ping()).rejects.toThrow(StoreUnavailable);
    other.exec("ROLLBACK");
    await expect(store.ping()).resolves.toBeUndefined();
    other.exec("BEGIN IMMEDIATE");
    await expect(store.ping()).resolves.toBeUndefined();
  });

  it("a folder that is absent or in which nothing can be written, or a file that is no database, does not open", async () => {
    const noDatabase = join(folderOf(), "text");
    writeFileSync(noDatabase, "hello ".repeat(1000));
    const places = [join(folderOf(), "absent", "store.db"), folderOf(), noDatabase];
    // Not even root writes there.
    if (existsSync("/proc/self")) places.push("/proc/self/store.db");
    for (const file of places) await expect(openSqliteStore({ file })).rejects.toThrow(StoreUnavailable);
  });

  it("a lock held by another connection is waited for a little, then refuses", async () => {
    const { writer, store, file } = await opened();
    const documents = await store.collection("c");
    const { DatabaseSync } = await import("node:sqlite");
    using other = new DatabaseSync(file);
    other.exec("BEGIN IMMEDIATE");
    await expect(documents.insert({ _id: "a" })).rejects.toThrow(/SQLite: database is locked/);
    expect(await documents.get("a")).toBeUndefined();
    other.exec("ROLLBACK");
    expect(await documents.insert({ _id: "a" })).toBe("inserted");
    expect(writer.stats().operations).toBeGreaterThan(0);
  });

  it("a thread that dies rejects what waits and what comes, and close still ends", async () => {
    const started = new Promise<Worker>((resolve) => process.once("worker", resolve));
    const { store } = await opened();
    const worker = await started;
    const documents = await store.collection("c");
    const waiting = Array.from({ length: 100 }, (_, i) => documents.insert({ _id: `${i}` }));
    const ended = worker.terminate();
    for (const result of await Promise.allSettled(waiting))
      if (result.status === "rejected") expect(result.reason).toBeInstanceOf(StoreUnavailable);
    await ended;
    await expect(documents.insert({ _id: "x" })).rejects.toThrow(/SQLite: its thread ended/);
    await expect(store.ping()).rejects.toThrow(StoreUnavailable);
    await store.close();
  });

  it("a queue that is too long, in operations or bytes, refuses at once and takes more when it is shorter", async () => {
    const { store } = await opened(undefined, { maxQueuedJobs: 10, maxQueuedBytes: 100_000 });
    const documents = await store.collection("c");
    const results = await Promise.allSettled(Array.from({ length: 15 }, (_, i) => documents.insert({ _id: `${i}` })));
    expect(results.map((r) => r.status)).toEqual([...Array(10).fill("fulfilled"), ...Array(5).fill("rejected")]);
    expect(results[14]).toMatchObject({ reason: expect.any(StoreUnavailable) });
    expect(await documents.insert({ _id: "14" })).toBe("inserted");
    await expect(documents.insert({ _id: "big", bytes: new Uint8Array(100_001) })).rejects.toThrow(/queue is full/);
    expect(await documents.find({ limit: 100 })).toHaveLength(11);
  });
});

describe("the writer on its own", () => {
  const filled = async () => {
    const { writer } = await opened();
    await writer.run("CREATE TABLE t (id INTEGER PRIMARY KEY, text TEXT NOT NULL, bytes BLOB)");
    return writer;
  };
  const texts = async (writer: SqliteWriter) => (await writer.run("SELECT text FROM t ORDER BY id")).rows.flat();

  it("undoes a failing job as a whole and none of its neighbours in the group", async () => {
    const writer = await filled();
    const sql = "INSERT INTO t (id, text) VALUES (?, ?)";
    const results = await Promise.allSettled([
      writer.transact([sql, 1, "a"], [sql, 2, "b"]),
      writer.transact([sql, 3, "c"], [sql, 1, "twice"]),
      writer.run(sql, 1, "twice"),
      writer.run("INSERT INTO nowhere VALUES (1)"),
      writer.run(sql, 4, "d"),
    ]);
    expect(results.map((r) => r.status)).toEqual(["fulfilled", "rejected", "rejected", "rejected", "fulfilled"]);
    expect(results[1]).toMatchObject({ reason: expect.any(SqlError) });
    expect(results[2]).toMatchObject({ reason: { code: 1555 } });
    expect(await texts(writer)).toEqual(["a", "b", "d"]);
    expect(writer.stats()).toEqual({ commits: 2, operations: 3 });
  });

  it("runs jobs in the order given, reads among them, and answers the rows of RETURNING", async () => {
    const writer = await filled();
    const add = (text: string) => writer.run("INSERT INTO t (text) VALUES (?) RETURNING id", text);
    const [first, seen, second] = await Promise.all([add("a"), texts(writer), add("b")]);
    expect([first.rows, seen, second.rows]).toEqual([[[1]], ["a"], [[2]]]);
  });

  it("finishes what was given before it closes, and nothing after", async () => {
    const { writer, file } = await opened();
    await writer.run("CREATE TABLE t (id INTEGER PRIMARY KEY, text TEXT)");
    const given = Array.from({ length: 100 }, (_, i) => writer.run("INSERT INTO t (text) VALUES (?)", `${i}`));
    const closed = writer.close();
    await expect(writer.run("INSERT INTO t (text) VALUES ('late')")).rejects.toThrow(/closed/);
    await Promise.all([...given, closed]);
    expect(await texts((await opened(file)).writer)).toHaveLength(100);
  });
});
