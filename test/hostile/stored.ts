import { readdirSync } from "node:fs";
import { basename, join } from "node:path";
import { DatabaseSync } from "node:sqlite";

/** What a suite has stored in its data directory, read beside it. */

/** What changes by itself while nobody calls: leases between replicas, and those of the suite's own verifier. */
const passing = ["leases", "epochs", "use-positions"];
/** Stores nothing but what is on the topics. */
const follows = ["auditor"];
const ofOthers = "WHERE id NOT LIKE 'verifier-%'";

type Row = Readonly<Record<string, unknown>>;
const select = <T>(file: string, ask: (rows: (sql: string, ...values: (string | Buffer)[]) => Row[]) => T): T => {
  const database = new DatabaseSync(file, { readOnly: true });
  try {
    return ask((sql, ...values) => database.prepare(sql).all(...values));
  } finally {
    database.close();
  }
};
const countOf = ([row]: readonly Row[]) => Number(row?.n);
const storesIn = (dataDir: string) =>
  readdirSync(join(dataDir, "store"))
    .filter((name) => name.endsWith(".db"))
    .map((name) => join(dataDir, "store", name));
const busIn = (dataDir: string) => join(dataDir, "bus.db");

/** How many records of the bus hold this text, in a header, key or value. */
export const recordsWith = (dataDir: string, text: string): number =>
  select(busIn(dataDir), (rows) => {
    const sql = "SELECT count(*) AS n FROM records WHERE instr(headers, ?) OR instr(key, ?) OR instr(value, ?)";
    return countOf(rows(sql, text, text, Buffer.from(text)));
  });

/** How many records of this type, on the topics themselves, name `who`. */
export const eventsIn = (dataDir: string, type: string, who: string): number =>
  select(busIn(dataDir), (rows) => {
    const sql = `SELECT count(*) AS n FROM records
      WHERE topic <> 'curfew.siem.v1' AND headers ->> 'ce_type' = ? AND instr(value, ?)`;
    return countOf(rows(sql, type, Buffer.from(who)));
  });

/** Whether a commit is not on its topic yet. */
export const isUnpublished = (dataDir: string): boolean =>
  storesIn(dataDir).some((file) =>
    select(file, (rows) => {
      const known = rows("SELECT 1 FROM pragma_table_info('c_commits') WHERE name = 'i_unpublished'").length > 0;
      return known && countOf(rows("SELECT count(*) AS n FROM c_commits WHERE i_unpublished IS NOT NULL")) > 0;
    }),
  );

/**
 * Records by topic, but for those that come some time after what they tell of: counted denials of unknown secrets, closings of producers'
 * epochs, and what is derived for compliance tooling.
 */
export const recordsByTopic = (dataDir: string): Record<string, number> =>
  select(busIn(dataDir), (rows) => {
    const later = "instr(headers, 'unknown-attempts') OR instr(headers, 'producer-epoch.closed')";
    const sql = `SELECT topic, count(*) AS n FROM records
      WHERE topic <> 'curfew.siem.v1' AND NOT (${later}) GROUP BY topic`;
    return Object.fromEntries(rows(sql).map(({ topic, n }) => [String(topic), Number(n)]));
  });

/** Documents by collection of the services that command. */
export const documentsByCollection = (dataDir: string): Record<string, number> =>
  Object.fromEntries(
    storesIn(dataDir)
      .filter((file) => !follows.includes(basename(file, ".db")))
      .flatMap((file) =>
        select(file, (rows) =>
          rows("SELECT name FROM sqlite_master WHERE type = 'table'")
            .map(({ name }) => String(name))
            .filter((name) => name.startsWith("c_") && !passing.includes(name.slice(2)))
            .map((table): [string, number] => [
              `${basename(file, ".db")} ${table.slice(2)}`,
              countOf(rows(`SELECT count(*) AS n FROM "${table}" ${ofOthers}`)),
            ]),
        ),
      ),
  );
