import { join } from "node:path";
import { DatabaseSync } from "node:sqlite";
import { isRefusal, type Refusal, type Witnessed } from "@curfew/ledger/witness.ts";

/** A new state of a log, and the cosigned checkpoint that stands for it. */
export type Cosigned = Witnessed & { readonly checkpoint: string };

/** What a witness must not forget: one row a log, in SQLite in a directory. */
export interface WitnessState {
  /**
   * Gives `decide` what was cosigned of a log, writes the new state unless it refuses, and returns its answer once that is on disk: nobody
   * else reads or writes between. What `decide` throws is thrown, and nothing is written.
   */
  update<T extends Cosigned>(origin: string, decide: (before: Witnessed | undefined) => T | Refusal): T | Refusal;
  /** The last cosigned checkpoint of the log whose origin has this SHA-256, in hex. */
  checkpoint(originHash: string): string | undefined;
  close(): void;
}

/** Waits for a lock that another process should not have, in milliseconds. */
const lockTimeoutMs = 1_000;

type Row = { size: number; root: Uint8Array; seconds: number };

/** Opens `witness.db` in `dir`, which is there. `hashOf` names an origin in the monitoring URL. */
export const openWitnessState = (dir: string, hashOf: (origin: string) => string): WitnessState => {
  const db = new DatabaseSync(join(dir, "witness.db"), { timeout: lockTimeoutMs });
  // FULL: a commit is on disk before it returns, also in WAL mode.
  db.exec(`pragma journal_mode = wal; pragma synchronous = full;
    create table if not exists log (origin text primary key, hash text not null unique, size integer not null,
      root blob not null, seconds integer not null, checkpoint text not null) strict`);
  const read = db.prepare("select size, root, seconds from log where origin = ?");
  const write = db.prepare(`insert into log values (?, ?, ?, ?, ?, ?)
    on conflict (origin) do update set size = excluded.size, root = excluded.root, seconds = excluded.seconds,
      checkpoint = excluded.checkpoint`);
  const byHash = db.prepare("select checkpoint from log where hash = ?");
  return {
    update(origin, decide) {
      db.exec("begin immediate");
      try {
        const answer = decide(read.get(origin) as Row | undefined);
        if (!isRefusal(answer))
          write.run(origin, hashOf(origin), answer.size, answer.root, answer.seconds, answer.checkpoint);
        db.exec("commit");
        return answer;
      } catch (error) {
        if (db.isTransaction) db.exec("rollback");
        throw error;
      }
    },
    checkpoint: (originHash) => (byHash.get(originHash) as { checkpoint: string } | undefined)?.checkpoint,
    close: () => db.close(),
  };
};
