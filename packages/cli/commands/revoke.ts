import { randomUUID } from "node:crypto";
import { timestampDate } from "@bufbuild/protobuf/wkt";
import { RevocationReason } from "@curfew/contracts/gen/curfew/events/v1/revocations_pb.ts";
import { RevocationService } from "@curfew/contracts/gen/curfew/revocation/v1/revocation_pb.ts";
import { buildCommand } from "@stricli/core";
import { type ConnectionFlags, onConnection } from "../connection.ts";
import { CommandFailed, exitCode } from "../exit.ts";
import { connectionFlags, outputAlias, outputFlag } from "../flags.ts";
import { type Format, printOne } from "../output.ts";
import { readSecret } from "../read-small.ts";

const reasons = ["leaked", "compromised", "superseded", "offboarded", "policy", "requested"] as const;

interface RevokeFlags extends ConnectionFlags {
  readonly output: Format;
  readonly reason: (typeof reasons)[number];
  readonly secretFile?: string;
}

const reasonOf = (name: (typeof reasons)[number]) =>
  RevocationReason[name.toUpperCase() as keyof typeof RevocationReason];

export const revoke = buildCommand({
  docs: { brief: "End a token, by id (role security) or by the secret that you hold (--secret-file)" },
  parameters: {
    flags: {
      ...connectionFlags,
      ...outputFlag,
      reason: { kind: "enum", values: reasons, brief: "why", default: "requested" },
      secretFile: {
        kind: "parsed",
        parse: String,
        brief: "end the token whose secret is in this file; - for standard input",
        optional: true,
        placeholder: "FILE",
      },
    },
    aliases: outputAlias,
    positional: {
      kind: "tuple",
      parameters: [{ parse: String, brief: "token id", placeholder: "TOKEN", optional: true }],
    },
  },
  func: async (flags: RevokeFlags, tokenId?: string) => {
    if ((tokenId === undefined) === (flags.secretFile === undefined))
      throw new CommandFailed(exitCode.usage, "name a token, or a file with its secret");
    await onConnection(flags, async (connection) => {
      const revocation = connection.service(RevocationService, "revocation");
      if (flags.secretFile !== undefined) {
        await revocation.revokeBySecret({ requestId: randomUUID(), secret: await readSecret(flags.secretFile) });
        printOne(flags.output, { answer: "if it was a live token of ours, it is dead now" });
        return;
      }
      const answer = await revocation.revokeToken({
        requestId: randomUUID(),
        tokenId: tokenId as string,
        reason: reasonOf(flags.reason),
      });
      printOne(flags.output, {
        token: tokenId,
        revokedAt: answer.revokedAt ? timestampDate(answer.revokedAt).toISOString() : "",
        onTheLog: answer.published,
      });
    });
  },
});
