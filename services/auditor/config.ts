import { personalKeysDir } from "@curfew/personal-data/keys-dir.ts";
import { address, integer, oneOf, optional, string } from "@curfew/runtime/config.ts";
import { backupDays, epochDays } from "./people/erasure-settings.ts";
import { ledgerBucketFile } from "./public-log/bucket-settings.ts";
import { tsaAllow, tsaCaFile, tsaUrl } from "./public-log/timestamp-settings.ts";
import { witnessAllow, witnessPolicyFile } from "./public-log/witness-settings.ts";

/** Settings beyond those that every service has (`packages/rpc/process.ts`). */
export const auditorSpec = {
  ledgerOrigin: optional(
    string({
      about: "name of the ledger, in every checkpoint, and of its signing key; default: <trust domain>/ledger",
      pattern: /^[A-Za-z0-9][A-Za-z0-9._/:-]{0,127}$/,
    }),
  ),
  reverifyPerSecond: optional(
    integer({
      about: "records read again and compared with the ledger a second, at most; default: 1,000",
      min: 1,
      max: 1_000_000,
    }),
  ),
  rebuild: optional(
    oneOf({
      about:
        "make the read models anew before serving, with every other auditor stopped; set it once. store: from the staged batches; files: where the store is gone, from ledgerDir, after which what was sealed past the published checkpoint is sealed again",
      values: ["store", "files"],
    }),
  ),
  minInsync: optional(
    integer({
      about: "min.insync.replicas that every topic must have: another value is reported as drift; default: any",
      min: 1,
      max: 100,
    }),
  ),
  ledgerListen: optional(
    address({
      about: "host:port on which those files are served over plain HTTP to anybody; default: nowhere",
      anyPort: true,
    }),
  ),
  ledgerDir: optional(
    string({
      about:
        "directory that is kept a c2sp.org/tlog-tiles log of the ledger, by the replica that seals: replicas share it; default: none",
    }),
  ),
  ledgerBucketFile: optional(ledgerBucketFile),
  personalDatabase: string({
    about: "database of pseudonyms and people's keys, shared with the verifiers",
    default: "curfew_personal",
    pattern: /^[a-z][a-z0-9_-]{0,37}$/,
  }),
  personalKeysDir,
  epochDays: integer({
    about: "days after which the key of that database's rows is replaced and destroyed",
    ...epochDays,
  }),
  backupDays: integer({
    about: "days for which a backup of that database or its keys is kept: it goes into the answer to an erasure",
    ...backupDays,
  }),
  witnessPolicyFile: optional(witnessPolicyFile),
  witnessAllow,
  tsaUrl: optional(tsaUrl),
  tsaCaFile: optional(tsaCaFile),
  tsaAllow,
} as const;

/** Where settings do not go together, of those that could be read: one that is absent here, not undefined, is wrong by itself. */
export const ledgerProblems = (given: {
  readonly ledgerDir?: unknown;
  readonly ledgerBucketFile?: unknown;
  readonly ledgerListen?: unknown;
  readonly witnessPolicyFile?: unknown;
  readonly tsaUrl?: unknown;
  readonly tsaCaFile?: unknown;
  readonly rebuild?: unknown;
}): string[] => {
  const problems: string[] = [];
  if (given.ledgerDir && given.ledgerBucketFile)
    problems.push("CURFEW_LEDGER_DIR and CURFEW_LEDGER_BUCKET_FILE are both given: the files have one place");
  if ("tsaUrl" in given && "tsaCaFile" in given && !given.tsaUrl !== !given.tsaCaFile)
    problems.push("CURFEW_TSA_URL and CURFEW_TSA_CA_FILE come together");
  const needs = (name: string, what: string) =>
    problems.push(`${name} needs CURFEW_LEDGER_DIR or CURFEW_LEDGER_BUCKET_FILE, ${what}`);
  if ("ledgerDir" in given && "ledgerBucketFile" in given && !given.ledgerDir && !given.ledgerBucketFile) {
    if (given.tsaUrl) needs("CURFEW_TSA_URL", "whose checkpoint is stamped");
    if (given.ledgerListen) needs("CURFEW_LEDGER_LISTEN", "which it serves");
    if (given.witnessPolicyFile) needs("CURFEW_WITNESS_POLICY_FILE", "whose checkpoint is cosigned");
    if (given.rebuild === "files") needs("CURFEW_REBUILD=files", "from which it builds");
  }
  return problems;
};

/** The environment, read here and in main only. */
export const environment = process.env;
