import { RemoteError } from "@curfew/rpc/errors.ts";

/** Exit codes, as documented in `curfew --help` and packages/cli/README.md. */
export const exitCode = {
  ok: 0,
  /** The answer is the one a script asks about: a live secret was found, a token is not good. */
  no: 1,
  /** The command line, a file it names or the configuration is wrong; nothing was done. */
  usage: 2,
  /** The service refused: not allowed, not found, not in this state. */
  refused: 3,
  /** The service cannot be reached, or cannot answer now: try again. */
  unavailable: 4,
  /** A fault of ours. */
  internal: 5,
} as const;

/** Ends the command with a code and a message for people; a message may name no secret. */
export class CommandFailed extends Error {
  override name = "CommandFailed";
  readonly code: number;
  constructor(code: number, message: string) {
    super(message);
    this.code = code;
  }
}

const unavailable = new Set(["UNAVAILABLE", "DEADLINE_EXCEEDED", "RESOURCE_EXHAUSTED", "ABORTED"]);

/** Code and text for whatever a command threw. */
export const failureOf = (error: unknown): { code: number; text: string } => {
  if (error instanceof CommandFailed) return { code: error.code, text: error.message };
  if (error instanceof RemoteError) {
    const { status, reason, message, fieldViolations = [] } = error.failure;
    const fields = fieldViolations.map((v) => `\n  ${v.field}: ${v.description}`).join("");
    const code = unavailable.has(status) ? exitCode.unavailable : exitCode.refused;
    return { code, text: `${status}${reason ? ` (${reason})` : ""}: ${message}${fields}` };
  }
  return { code: exitCode.internal, text: error instanceof Error ? error.message : String(error) };
};
