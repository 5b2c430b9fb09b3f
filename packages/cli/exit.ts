import { RemoteError } from "@curfew/rpc/errors.ts";

/** Exit codes, as documented in `curfew --help` and README.md. */
export const exitCode = {
  ok: 0,
  /** The answer is the one a script asks about: a live secret was found, a token is not good, a proof or a ledger does not hold. */
  no: 1,
  /** The command line, or a file that it names, is wrong, or part of what was to be searched could not be read. */
  usage: 2,
  /** The service refused: not allowed, not found, not in this state; or what was verified is incomplete. */
  refused: 3,
  /** The service cannot be reached, or cannot answer now: try again; or what is to be verified cannot be read, or is none. */
  unavailable: 4,
  /** A fault of ours. */
  internal: 5,
} as const;

export const exitCodesText = `Exit codes:
  0  done
  1  the answer is no: a live secret was found, a token is not good, a proof or a ledger does not hold
  2  the command line or a file that it names is wrong, or part of what was to be searched could not be read
  3  the service refused: not allowed, not found, not in this state; or a ledger is incomplete
  4  the service cannot be reached or cannot answer now: try again; or what is to be verified is no ledger
  5  a fault of ours`;

/** Ends the command with a code and a message for people. */
export class CommandFailed extends Error {
  override name = "CommandFailed";
  readonly code: number;
  constructor(code: number, message: string) {
    super(message);
    this.code = code;
  }
}

const unavailable = new Set(["UNAVAILABLE", "DEADLINE_EXCEEDED", "RESOURCE_EXHAUSTED", "ABORTED", "CANCELLED"]);
const faults = new Set(["INTERNAL", "UNKNOWN", "DATA_LOSS"]);
const files = new Set(["EACCES", "EEXIST", "EISDIR", "ENAMETOOLONG", "ENOENT", "ENOSPC", "ENOTDIR", "EPERM", "EROFS"]);

const codeOfStatus = (status: string): number => {
  if (unavailable.has(status)) return exitCode.unavailable;
  if (status === "INVALID_ARGUMENT") return exitCode.usage;
  return faults.has(status) ? exitCode.internal : exitCode.refused;
};

/** Code and text for whatever a command threw. */
export const failureOf = (error: unknown): { code: number; text: string } => {
  if (error instanceof CommandFailed) return { code: error.code, text: error.message };
  if (error instanceof RemoteError) {
    const { status, reason, message, fieldViolations = [] } = error.failure;
    const fields = fieldViolations
      .map((v) => `${v.field}: ${v.description}`)
      .filter((field) => !message.includes(field))
      .map((field) => `\n  ${field}`)
      .join("");
    // Ours have a reason: nobody answered. A suite that was killed leaves its addresses behind.
    const hint = status === "UNAVAILABLE" && !reason ? "\n  does the suite run? If it was killed, start it again" : "";
    return { code: codeOfStatus(status), text: `${status}${reason ? ` (${reason})` : ""}: ${message}${fields}${hint}` };
  }
  const text = error instanceof Error ? error.message : String(error);
  const { code } = (error ?? {}) as { code?: unknown };
  return { code: typeof code === "string" && files.has(code) ? exitCode.usage : exitCode.internal, text };
};
