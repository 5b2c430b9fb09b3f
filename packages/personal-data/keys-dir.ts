import { damagedKeys } from "@curfew/keyring/stored-key.ts";
import { type Field, Mistake, optional, path } from "@curfew/runtime/config.ts";

const about = "directory of the keys of that database, 0700, shared by verifiers and auditors; default: keysDir";
const ours = /^(epoch-[1-9]\d{0,5}|secret-identifiers)\.key$/;

/** The setting of every service that opens the personal store. Looks at what is there already, and makes nothing. */
export const personalKeysDir: Field<string | undefined> = optional({
  about,
  parse: (raw) => {
    const dir = path({ about, existing: "directory", private: true }).parse(raw);
    const damaged = damagedKeys(dir, ours);
    if (damaged.length > 0) throw new Mistake(`must hold keys that can be used (${damaged.join("; ")})`);
    return dir;
  },
});
