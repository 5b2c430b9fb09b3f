import { address, ConfigError, integer, optional, string } from "@curfew/runtime/config.ts";
import { witnessAllow, witnessPolicyFile } from "./witness-settings.ts";

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
  minInsync: optional(
    integer({
      about: "min.insync.replicas that every topic must have: another value is reported as drift; default: any",
      min: 1,
      max: 100,
    }),
  ),
  ledgerListen: optional(
    address({
      about: "host:port on which ledgerDir is served over plain HTTP to anybody; default: nowhere",
      anyPort: true,
    }),
  ),
  ledgerDir: optional(
    string({
      about:
        "directory that is kept a c2sp.org/tlog-tiles log of the ledger, by the replica that seals: replicas share it; default: none",
    }),
  ),
  witnessPolicyFile: optional(witnessPolicyFile),
  witnessAllow,
} as const;

/** Throws ConfigError where settings do not go together. */
export const checkLedger = (given: {
  readonly ledgerDir?: unknown;
  readonly ledgerListen?: unknown;
  readonly witnessPolicyFile?: unknown;
}): void => {
  if (given.ledgerDir) return;
  const problems: string[] = [];
  if (given.ledgerListen) problems.push("CURFEW_LEDGER_LISTEN needs CURFEW_LEDGER_DIR, which it serves");
  if (given.witnessPolicyFile)
    problems.push("CURFEW_WITNESS_POLICY_FILE needs CURFEW_LEDGER_DIR, whose checkpoint is cosigned");
  if (problems.length > 0) throw new ConfigError(problems);
};

/** The environment, read here and in main only. */
export const environment = process.env;
