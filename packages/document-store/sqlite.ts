import { deserialize, serialize } from "bson";
import {
  checkBatch,
  checkCollection,
  checkDoc,
  checkFieldNames,
  checkFields,
  checkFind,
  checkId,
  indexKey,
} from "./document.ts";
import type { Collection, CollectionOptions, Doc, DocumentStore, Find, Value } from "./port.ts";
import type { SqlResult, SqlValue, Statement } from "./sqlite-job.ts";
import {
  openSqliteWriter,
  type SqliteWriter,
  type SqliteWriterOptions,
  type SqliteWriterStats,
} from "./sqlite-writer.ts";

export interface SqliteStore extends DocumentStore {
  /** Commits (one fsync each) and acknowledged writes since the start. */
  stats(): SqliteWriterStats;
}

/**
 * A document store in one SQLite file of this process alone: write-ahead log, `synchronous=FULL`, group commit in a worker thread.
 * Rejects with `StoreUnavailable` when the file cannot be opened.
 */
export const openSqliteStore = async (options: SqliteWriterOptions): Promise<SqliteStore> =>
  sqliteStore(await openSqliteWriter(options));

/** The store on a writer that is already open; closing it closes the writer. Its tables are named `c_<collection>`. */
export const sqliteStore = (writer: SqliteWriter): SqliteStore => {
  // Every handle of a collection writes every index column that its table has, whoever asked for the index.
  const tables = new Map<string, { columns: Set<string>; ready: Promise<void> }>();
  return {
    async collection<D extends Doc = Doc>(name: string, { indexes = [] }: CollectionOptions = {}) {
      checkCollection(name, indexes);
      const table = tables.get(name) ?? { columns: new Set(), ready: Promise.resolve() };
      // One after the other, so that two callers do not add the same column; a failure is the next caller's to try again.
      table.ready = table.ready.catch(() => {}).then(() => prepareTable(writer, name, table.columns, indexes));
      tables.set(name, table);
      await table.ready;
      return new SqliteCollection<D>(writer, tableOf(name), table.columns);
    },
    ping: () => writer.ping(),
    stats: () => writer.stats(),
    close: () => writer.close(),
  };
};

const tableOf = (name: string) => `"c_${name}"`;
const columnOf = (field: string) => `"i_${field}"`;

/** Makes the table, and for an index that is new its column, filled from the documents that are there. Adds to `columns` in place. */
const prepareTable = async (
  writer: SqliteWriter,
  name: string,
  columns: Set<string>,
  indexes: readonly string[],
): Promise<void> => {
  const table = tableOf(name);
  await writer.run(`CREATE TABLE IF NOT EXISTS ${table} (id TEXT PRIMARY KEY NOT NULL, doc BLOB NOT NULL)`);
  const { rows } = await writer.run("SELECT name FROM pragma_table_info(?)", `c_${name}`);
  for (const [column] of rows) if (typeof column === "string" && column.startsWith("i_")) columns.add(column.slice(2));
  for (const field of indexes) {
    if (columns.has(field)) continue;
    const column = columnOf(field);
    // Known at once: an insert given while this runs comes after it, and must fill the column.
    columns.add(field);
    try {
      await writer.transact(
        [`ALTER TABLE ${table} ADD COLUMN ${column} TEXT`],
        [`UPDATE ${table} SET ${column} = bson_index_key(doc, ?)`, field],
        [`CREATE INDEX "x_${name}_${field}" ON ${table} (${column}, id) WHERE ${column} IS NOT NULL`],
      );
    } catch (error) {
      columns.delete(field);
      throw error;
    }
  }
};

class SqliteCollection<D extends Doc> implements Collection<D> {
  readonly #writer: SqliteWriter;
  readonly #table: string;
  /** Shared by all handles of the collection: it grows when another handle adds an index. */
  readonly #columns: ReadonlySet<string>;

  constructor(writer: SqliteWriter, table: string, columns: ReadonlySet<string>) {
    this.#writer = writer;
    this.#table = table;
    this.#columns = columns;
  }

  async insert(doc: D) {
    checkDoc(doc, this.#columns);
    const [sql, ...params] = this.#insertion(doc);
    return verdict(await this.#writer.run(sql, ...params));
  }

  async insertMany(docs: readonly D[]) {
    checkBatch(docs);
    for (const doc of docs) checkDoc(doc, this.#columns);
    const results = await this.#writer.transact(...docs.map((doc) => this.#insertion(doc)));
    return results.map(verdict);
  }

  async get(id: string) {
    checkId(id);
    const { rows } = await this.#writer.run(`SELECT doc FROM ${this.#table} WHERE id = ?`, id);
    return rows[0] && this.#decode(rows[0]);
  }

  async getMany(ids: readonly string[]) {
    checkBatch(ids);
    for (const id of ids) checkId(id);
    const chosen = "id IN (SELECT value FROM json_each(?))";
    const { rows } = await this.#writer.run(`SELECT doc FROM ${this.#table} WHERE ${chosen}`, JSON.stringify(ids));
    return rows.map((row) => this.#decode(row));
  }

  async find(query: Find) {
    checkFind(query, this.#columns);
    const terms: string[] = [];
    const params: SqlValue[] = [];
    const add = (term: string, value: SqlValue) => {
      terms.push(term);
      params.push(value);
    };
    for (const [field, value] of Object.entries(query.where ?? {}))
      add(`${columnOf(field)} = ?`, indexKey(value, field));
    if (query.from !== undefined) add("id >= ?", query.from);
    if (query.below !== undefined) add("id < ?", query.below);
    const where = terms.length === 0 ? "" : `WHERE ${terms.join(" AND ")}`;
    const direction = query.order === -1 ? "DESC" : "ASC";
    const sql = `SELECT doc FROM ${this.#table} ${where} ORDER BY id ${direction} LIMIT ?`;
    const { rows } = await this.#writer.run(sql, ...params, query.limit);
    return rows.map((row) => this.#decode(row));
  }

  async set(id: string, fields: Readonly<Record<string, Value>>) {
    checkId(id);
    checkFields(fields, this.#columns);
    const params: SqlValue[] = [serialize(fields)];
    const also = this.#changedColumns(Object.keys(fields), (field) => params.push(indexKey(fields[field], field)));
    const sql = `UPDATE ${this.#table} SET doc = bson_set(doc, ?)${also} WHERE id = ?`;
    return (await this.#writer.run(sql, ...params, id)).changes === 1;
  }

  async unset(id: string, ...fields: string[]) {
    checkId(id);
    checkFieldNames(fields);
    const params: SqlValue[] = [JSON.stringify(fields)];
    const also = this.#changedColumns(fields, () => params.push(null));
    const sql = `UPDATE ${this.#table} SET doc = bson_unset(doc, ?)${also} WHERE id = ?`;
    return (await this.#writer.run(sql, ...params, id)).changes === 1;
  }

  async unsetMany(ids: readonly string[], ...fields: string[]) {
    checkBatch(ids);
    for (const id of ids) checkId(id);
    checkFieldNames(fields);
    const params: SqlValue[] = [JSON.stringify(fields)];
    const also = this.#changedColumns(fields, () => params.push(null));
    const chosen = "id IN (SELECT value FROM json_each(?))";
    const sql = `UPDATE ${this.#table} SET doc = bson_unset(doc, ?)${also} WHERE ${chosen}`;
    await this.#writer.run(sql, ...params, JSON.stringify(ids));
  }

  async delete(...ids: string[]) {
    checkBatch(ids);
    for (const id of ids) checkId(id);
    const sql = `DELETE FROM ${this.#table} WHERE id IN (SELECT value FROM json_each(?))`;
    return (await this.#writer.run(sql, JSON.stringify(ids))).changes;
  }

  /** One file has one copy, and this thread reads it after every write given before: any read is the latest. */
  getLatest(id: string) {
    return this.get(id);
  }

  findLatest(query: Find) {
    return this.find(query);
  }

  #insertion(doc: D): Statement {
    const fields = [...this.#columns].filter((field) => Object.hasOwn(doc, field));
    const columns = ["id", "doc", ...fields.map(columnOf)];
    const sql = `INSERT INTO ${this.#table} (${columns}) VALUES (${columns.map(() => "?")}) ON CONFLICT (id) DO NOTHING`;
    return [sql, doc._id, serialize(doc), ...fields.map((field) => indexKey(doc[field], field))];
  }

  #changedColumns(fields: readonly string[], each: (field: string) => void): string {
    let sql = "";
    for (const field of new Set(fields)) {
      if (!this.#columns.has(field)) continue;
      each(field);
      sql += `, ${columnOf(field)} = ?`;
    }
    return sql;
  }

  #decode([bytes]: readonly SqlValue[]): D {
    return deserialize(bytes as Uint8Array, { promoteBuffers: true }) as D;
  }
}

const verdict = ({ changes }: SqlResult) => (changes === 1 ? "inserted" : "exists");
