import { readFileSync, statSync } from "node:fs";
import { NoteError } from "@curfew/ledger/note-error.ts";
import { MAX_POLICY_BYTES, type Policy, parsePolicy } from "@curfew/ledger/policy.ts";
import { ConfigError, type Field, list, Mistake, path, string } from "@curfew/runtime/config.ts";

/** Who is asked to cosign the ledger's checkpoints. */
export interface Witnessing {
  readonly policy: Policy;
  /** host:port of witnesses that may be reached at private addresses; on loopback without TLS. */
  readonly allow: readonly string[];
}

/** The path of a policy; read when it is given. */
export const witnessPolicyFile: Field<Policy> = {
  about: "c2sp.org/tlog-policy file: this ledger's log line, the witnesses with their URLs, the quorum",
  parse: (raw) => {
    const file = path({ about: "", existing: "file" }).parse(raw);
    try {
      // One byte more, so that the policy's own limit is what is said.
      if (statSync(file).size > MAX_POLICY_BYTES) return parsePolicy(Buffer.alloc(MAX_POLICY_BYTES + 1));
      return parsePolicy(readFileSync(file));
    } catch (error) {
      if (error instanceof NoteError) throw new Mistake(`must be right (${error.message})`);
      throw new Mistake("must be a file that can be read");
    }
  },
};

const hostAndPort = /^(\[[0-9a-fA-F:]+\]|[A-Za-z0-9.-]{1,253}):\d{1,5}$/;

export const witnessAllow: Field<readonly string[]> = list(
  string({ about: "", pattern: hostAndPort, expect: "host:port" }),
  {
    about: "host:port of witnesses that may be reached at private addresses, on loopback over http",
    default: [],
    max: 64,
  },
);

const fields = { policy_file: witnessPolicyFile, allow: witnessAllow };

/** Reads the `witnesses` section of curfew.yaml: `policy_file` and `allow`; undefined: there is none. Throws ConfigError. */
export const parseWitnesses = (given: unknown): Witnessing | undefined => {
  const section = given ?? {};
  if (typeof section !== "object" || Array.isArray(section))
    throw new ConfigError(["witnesses: a mapping of settings is needed"]);
  const problems: string[] = [];
  const read = <T>(name: keyof typeof fields, { parse, fallback }: Field<T>): T | undefined => {
    const raw = (section as Readonly<Record<string, unknown>>)[name];
    try {
      return raw === undefined ? fallback?.value : parse(raw);
    } catch (error) {
      if (!(error instanceof Mistake)) throw error;
      problems.push(`witnesses.${name} ${error.message}`);
      return undefined;
    }
  };
  for (const name of Object.keys(section))
    if (!Object.hasOwn(fields, name)) problems.push(`witnesses.${name}: there is no such setting`);
  const policy = read("policy_file", witnessPolicyFile);
  const allow = read("allow", witnessAllow) ?? [];
  if (!policy && allow.length > 0 && problems.length === 0) problems.push("witnesses.policy_file is required");
  if (problems.length > 0) throw new ConfigError(problems);
  return policy && { policy, allow };
};
