/**
 * What both adapters accept, checked before anything is sent: the rules are the stricter of MongoDB, FerretDB and SQLite, so that
 * code tested on one runs on the others, and what is read equals what was written (but for -0, which may come back as 0).
 */
import type { Doc, Find, Value } from "./port.ts";

export const maxIdBytes = 1000;
export const maxIndexedBytes = 1000;
export const maxDocBytes = 8 * 2 ** 20;
export const maxDepth = 32;
export const maxFind = 10_000;
export const maxBatch = 1000;

/** A document, query or name that no adapter accepts: a mistake in the calling code, never worth a retry. Names fields, not values. */
export class StoreMisuse extends TypeError {
  override name = "StoreMisuse";
}

const collectionName = /^[a-z][a-z0-9_-]{0,63}$/;
const indexedField = /^[A-Za-z][A-Za-z0-9_]{0,63}$/;

export const checkCollection = (name: string, indexes: readonly string[]): void => {
  if (!collectionName.test(name)) throw new StoreMisuse(`collection name must match ${collectionName}`);
  for (const field of indexes)
    if (!indexedField.test(field)) throw new StoreMisuse(`indexed field must match ${indexedField}`);
};

export const checkId = (id: unknown, what = "_id"): void => {
  if (typeof id !== "string" || id === "") throw new StoreMisuse(`${what} must be a string and not empty`);
  if (Buffer.byteLength(id) > maxIdBytes) throw new StoreMisuse(`${what} is longer than ${maxIdBytes} bytes`);
  if (!id.isWellFormed() || id.includes("\0")) throw new StoreMisuse(`${what} must be valid Unicode without NUL`);
};

export const checkDoc = (doc: Doc, indexed: Iterable<string>): void => {
  checkId(doc._id);
  const bytes = checkedSize(doc, "document", 0);
  if (bytes > maxDocBytes) throw new StoreMisuse(`document is larger than ${maxDocBytes} bytes`);
  for (const field of indexed) if (Object.hasOwn(doc, field)) indexKey(doc[field], field);
};

/** Fields for `set`: like a document, without `_id`, at least one. */
export const checkFields = (fields: Readonly<Record<string, Value>>, indexed: Iterable<string>): void => {
  if (Object.hasOwn(fields, "_id")) throw new StoreMisuse("_id cannot be set");
  if (Object.keys(fields).length === 0) throw new StoreMisuse("set needs at least one field");
  if (checkedSize(fields, "fields", 0) > maxDocBytes)
    throw new StoreMisuse(`fields are larger than ${maxDocBytes} bytes`);
  for (const field of indexed) if (Object.hasOwn(fields, field)) indexKey(fields[field], field);
};

export const checkFieldNames = (names: readonly string[]): void => {
  if (names.length === 0) throw new StoreMisuse("unset needs at least one field");
  for (const name of names) {
    if (name === "_id") throw new StoreMisuse("_id cannot be unset");
    checkKey(name);
  }
};

export const checkFind = (query: Find, indexed: { has(field: string): boolean }): void => {
  const { where = {}, from, below, order = 1, limit } = query;
  if (!Number.isInteger(limit) || limit < 1 || limit > maxFind) throw new StoreMisuse(`limit must be 1 to ${maxFind}`);
  if (order !== 1 && order !== -1) throw new StoreMisuse("order must be 1 or -1");
  if (from !== undefined) checkId(from, "from");
  if (below !== undefined) checkId(below, "below");
  for (const [field, value] of Object.entries(where)) {
    if (!indexed.has(field)) throw new StoreMisuse(`where: "${field}" is not an indexed field of this collection`);
    indexKey(value, field);
  }
};

export const checkBatch = (things: readonly unknown[]): void => {
  if (things.length > maxBatch) throw new StoreMisuse(`more than ${maxBatch} at once`);
};

/** The one text that stands for an indexed value, equal exactly when MongoDB calls the values equal (so 0 is -0, and 1 is not true). */
export const indexKey = (value: unknown, field: string): string => {
  if (typeof value === "boolean") return `b${value ? 1 : 0}`;
  if (typeof value === "number") return `n${value}`;
  if (typeof value !== "string") throw new StoreMisuse(`indexed field "${field}" must be a string, number or boolean`);
  if (Buffer.byteLength(value) > maxIndexedBytes)
    throw new StoreMisuse(`indexed field "${field}" is longer than ${maxIndexedBytes} bytes`);
  return `s${value}`;
};

const checkKey = (key: string): void => {
  if (key === "" || key === "__proto__" || key === "_bsontype" || /[$.\0]/.test(key) || !key.isWellFormed())
    throw new StoreMisuse(`field names must not be empty, reserved, or contain "$", "." or NUL`);
};

/** Walks a value, refuses what would not come back as it went in, and answers about how many bytes of BSON it takes. */
const checkedSize = (value: unknown, path: string, depth: number): number => {
  switch (typeof value) {
    case "string":
      if (!value.isWellFormed()) throw new StoreMisuse(`${path} is not valid Unicode`);
      return Buffer.byteLength(value) + 7;
    case "number":
      if (!Number.isFinite(value)) throw new StoreMisuse(`${path} must be a finite number`);
      return 10;
    case "boolean":
      return 2;
    case "object": {
      if (value === null) return 2;
      if (value instanceof Uint8Array) return value.byteLength + 7;
      if (depth >= maxDepth) throw new StoreMisuse(`document is nested deeper than ${maxDepth}`);
      let bytes = 8;
      if (Array.isArray(value)) {
        for (const item of value) {
          if (Array.isArray(item)) throw new StoreMisuse(`${path} has an array directly in an array`);
          bytes += checkedSize(item, path, depth + 1) + 6;
        }
        return bytes;
      }
      const prototype = Object.getPrototypeOf(value);
      if (prototype !== Object.prototype && prototype !== null) break;
      for (const [key, inner] of Object.entries(value)) {
        checkKey(key);
        bytes += checkedSize(inner, depth === 0 ? `field "${key}"` : path, depth + 1) + key.length + 2;
      }
      return bytes;
    }
  }
  throw new StoreMisuse(
    `${path} must be null, a boolean, number, string, Uint8Array, array or plain object (undefined, bigint and Date are not)`,
  );
};
