import { Reason } from "@curfew/contracts/gen/curfew/events/v1/uses_pb.ts";
import { VerifierService } from "@curfew/contracts/gen/curfew/verifier/v1/verifier_pb.ts";
import { secretHash } from "@curfew/token-format/digest.ts";
import { buildCommand } from "@stricli/core";
import { type ConnectionFlags, onConnection } from "../connection.ts";
import { enumName } from "../enum-name.ts";
import { CommandFailed, exitCode } from "../exit.ts";
import { connectionFlags, outputAlias, outputFlag, parseCount } from "../flags.ts";
import { type Format, printOne } from "../output.ts";
import { readSecret } from "../read-small.ts";

interface VerifyFlags extends ConnectionFlags {
  readonly output: Format;
  readonly secretFile: string;
  readonly scope: string;
  readonly resource: string;
  readonly purpose: string;
  readonly controller: string;
  readonly category?: readonly string[];
  readonly maxPeople: number;
  readonly maxRecords: number;
}

const text = (brief: string, placeholder: string) => ({ kind: "parsed", parse: String, brief, placeholder }) as const;
const count = (brief: string) =>
  ({ kind: "parsed", parse: parseCount, brief, default: "0", placeholder: "N" }) as const;

export const verifyToken = buildCommand({
  docs: {
    brief: "Ask, as a resource service, whether a token is good for a use; the use is recorded. Exit 1: it is not",
  },
  parameters: {
    flags: {
      ...connectionFlags,
      ...outputFlag,
      secretFile: text("file with the secret; - for standard input", "FILE"),
      scope: text("resource:verb", "SCOPE"),
      resource: text("the resource", "RESOURCE"),
      purpose: text("why", "PURPOSE"),
      controller: text("whose data", "ID"),
      category: {
        kind: "parsed",
        parse: String,
        brief: "data categories",
        variadic: ",",
        optional: true,
        placeholder: "CATEGORY",
      },
      maxPeople: count("at most so many people"),
      maxRecords: count("at most so many records"),
    },
    aliases: outputAlias,
  },
  func: async (flags: VerifyFlags) => {
    const secretSha256 = secretHash(await readSecret(flags.secretFile));
    const answer = await onConnection(flags, (connection) =>
      connection.service(VerifierService, "verifier").verifyToken({
        credential: { case: "secretSha256", value: secretSha256 },
        use: {
          scope: flags.scope,
          resource: flags.resource,
          purpose: flags.purpose,
          controller: flags.controller,
          dataCategories: [...(flags.category ?? [])],
          maxPeople: BigInt(flags.maxPeople),
          maxRecords: BigInt(flags.maxRecords),
        },
      }),
    );
    const { allowed, reason, tokenId, subject, useId } = answer;
    printOne(flags.output, { allowed, reason: enumName(Reason, reason), token: tokenId, subject, use: useId });
    if (!allowed) throw new CommandFailed(exitCode.no, `not allowed: ${enumName(Reason, reason)}`);
  },
});
