import { randomUUID } from "node:crypto";
import { IssuerService } from "@curfew/contracts/gen/curfew/issuer/v1/issuer_pb.ts";
import { buildCommand, buildRouteMap } from "@stricli/core";
import { type ConnectionFlags, onConnection } from "../connection.ts";
import { connectionFlags, outputAlias, outputFlag } from "../flags.ts";
import { type Format, printOne } from "../output.ts";
import { readSmall } from "../read-small.ts";

const maxPolicyBytes = 1 << 20;

const publish = buildCommand({
  docs: { brief: "Put a new version of a policy in force (role admin)" },
  parameters: {
    flags: { ...connectionFlags, ...outputFlag },
    aliases: outputAlias,
    positional: {
      kind: "tuple",
      parameters: [
        { parse: String, brief: "name of the policy", placeholder: "POLICY" },
        { parse: String, brief: "YAML document; - for standard input", placeholder: "FILE" },
      ],
    },
  },
  func: (flags: ConnectionFlags & { output: Format }, policy: string, file: string) =>
    onConnection(flags, async (connection) => {
      const document = (await readSmall(file, maxPolicyBytes)).toString("utf8");
      const { version, published } = await connection
        .service(IssuerService, "issuer")
        .publishPolicy({ requestId: randomUUID(), policy, document });
      printOne(flags.output, { policy, version, onTheLog: published });
    }),
});

export const policy = buildRouteMap({ docs: { brief: "Publish policies" }, routes: { publish } });
