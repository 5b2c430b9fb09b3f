import { create } from "@bufbuild/protobuf";
import { type SecretCollected, SecretCollectedSchema } from "@curfew/contracts/gen/curfew/events/v1/tokens_pb.ts";
import { type Decider, Rejection } from "@curfew/decider/decider.ts";
import type { Log } from "@curfew/runtime/log.ts";

/** A small aggregate for tests of the machinery: which numbers of a token were collected, in what order. */
export interface Collect {
  readonly numbers: readonly number[];
  /** True: collected again even when it was already so. */
  readonly again?: boolean;
}

export const collected = (generation: number): SecretCollected =>
  create(SecretCollectedSchema, { tokenId: "tok_test", generation });

export const collecting: Decider<readonly number[], Collect, SecretCollected> = {
  initial: [],
  decide(state, { numbers, again }) {
    if (numbers.some((n) => n > 1_000_000)) throw new Rejection("TOO_LARGE", "a number is over 1,000,000");
    return numbers.filter((n) => again || !state.includes(n)).map(collected);
  },
  evolve: (state, event) => [...state, event.generation],
};

/** Keeps what is logged as `level message`. */
export const listLog = (): Log & { readonly lines: string[] } => {
  const lines: string[] = [];
  const write = (level: string) => (fields: unknown, message?: string) => {
    lines.push(`${level} ${message ?? String(fields)}`);
  };
  const log = {
    lines,
    debug: write("debug"),
    info: write("info"),
    warn: write("warn"),
    error: write("error"),
    child: () => log,
  };
  return log;
};
