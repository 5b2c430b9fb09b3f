import { readFileSync, statSync } from "node:fs";
import { NoteError } from "@curfew/ledger/note-error.ts";
import { MAX_POLICY_BYTES, type Policy, parsePolicy } from "@curfew/ledger/policy.ts";
import { ConfigError, type Field, Mistake, path } from "@curfew/runtime/config.ts";
import { outboundAllow, readSection } from "../export/section.ts";

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

export const witnessAllow = outboundAllow("witnesses");

/** Reads the `witnesses` section of curfew.yaml: `policy_file` and `allow`; undefined: there is none. Throws ConfigError. */
export const parseWitnesses = (given: unknown): Witnessing | undefined => {
  const fields = { policy_file: witnessPolicyFile, allow: witnessAllow };
  const { policy_file: policy, allow = [] } = readSection("witnesses", given, fields);
  if (!policy && allow.length > 0) throw new ConfigError(["witnesses.policy_file is required"]);
  return policy && { policy, allow };
};
