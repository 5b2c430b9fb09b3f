import { personalKeysDir } from "@curfew/personal-data/keys-dir.ts";
import { address, list, string } from "@curfew/runtime/config.ts";

/** Settings beyond those that every service has (`packages/rpc/process.ts`). */
export const verifierSpec = {
  revocationAddresses: list(address({ about: "host:port" }), {
    about: "replicas of revocation, host:port, …",
    min: 1,
    max: 32,
  }),
  personalDatabase: string({
    about: "database of pseudonyms, shared with the auditor, who erases",
    default: "curfew_personal",
    pattern: /^[a-z][a-z0-9_-]{0,37}$/,
  }),
  personalKeysDir,
} as const;

/** The environment, read here and in main only. */
export const environment = process.env;
