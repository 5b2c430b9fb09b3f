import { randomUUID } from "node:crypto";
import { existsSync } from "node:fs";
import { timestampFromDate } from "@bufbuild/protobuf/wkt";
import { RevocationService } from "@curfew/contracts/gen/curfew/revocation/v1/revocation_pb.ts";
import type { ServiceClient } from "@curfew/rpc/client.ts";
import { secretHash } from "@curfew/token-format/digest.ts";
import { buildCommand } from "@stricli/core";
import { type ConnectionFlags, onConnection } from "../connection.ts";
import { CommandFailed, exitCode } from "../exit.ts";
import { connectionFlags, outputAlias, outputFlag } from "../flags.ts";
import { type Format, printRows, say } from "../output.ts";
import { type Sighting, scanPath } from "../scan-sources.ts";

interface ScanFlags extends ConnectionFlags {
  readonly output: Format;
  readonly report: boolean;
  readonly public: boolean;
}

interface Found {
  readonly location: string;
  readonly token: string;
  readonly generation: number;
  readonly state: string;
}

const maxLocation = 2_048;
const progressEvery = 200;

/** Asks whose a secret is, or reports it; only its SHA-256 travels. A secret that was seen in several places is asked for once. */
const openJudge = (revocation: ServiceClient<typeof RevocationService>, flags: ScanFlags) => {
  const identified = new Map<string, { tokenId: string; generation: number; live: boolean }>();
  return async ({ secret, kind, location, exposedSince }: Sighting): Promise<Found | undefined> => {
    const secretSha256 = secretHash(secret);
    const key = Buffer.from(secretSha256).toString("hex");
    const known = identified.get(key) ?? (await revocation.identifySecret({ secretSha256 }));
    identified.set(key, known);
    if (!known.tokenId) return undefined;
    if (flags.report) {
      await revocation.reportLeak({
        requestId: randomUUID(),
        secretSha256,
        sighting: {
          kind,
          location: location.slice(-maxLocation),
          public: flags.public,
          ...(exposedSince && { exposedSince: timestampFromDate(exposedSince) }),
        },
      });
    }
    const state = known.live ? (flags.report ? "was live, revoked" : "LIVE") : "dead";
    return { location, token: known.tokenId, generation: known.generation, state };
  };
};

export const scan = buildCommand({
  docs: {
    brief: "Find our secrets in files, folders, git history and standard input",
    fullDescription:
      "Prints where a secret stands and which token it belongs to, never the secret. Folders that are git work trees are searched with their whole history, and .gitignore is honoured. --report ends each live token and opens the case. Exit 1 when a live one was found.",
  },
  parameters: {
    flags: {
      ...connectionFlags,
      ...outputFlag,
      report: {
        kind: "boolean",
        brief: "report each secret as leaked: its token ends",
        default: false,
        withNegated: false,
      },
      public: { kind: "boolean", brief: "strangers could read it there", default: false, withNegated: false },
    },
    aliases: outputAlias,
    positional: {
      kind: "array",
      parameter: { parse: String, brief: "file, folder or - for standard input", placeholder: "PATH" },
      minimum: 1,
    },
  },
  func: async (flags: ScanFlags, ...paths: string[]) => {
    const missing = paths.filter((path) => path !== "-" && !existsSync(path));
    if (missing.length > 0) throw new CommandFailed(exitCode.usage, `there is no ${missing.join(", ")}`);
    const rows = await onConnection(flags, async (connection) => {
      const judge = openJudge(connection.service(RevocationService, "revocation"), flags);
      const found: Found[] = [];
      let files = 0;
      const onFile = () => {
        files += 1;
        if (process.stderr.isTTY && files % progressEvery === 0) process.stderr.write(`\r${files} files`);
      };
      for (const path of paths)
        for await (const sighting of scanPath(path, onFile)) {
          const row = await judge(sighting);
          if (row) found.push(row);
        }
      if (process.stderr.isTTY && files >= progressEvery) process.stderr.write("\r");
      return found;
    });
    printRows(
      flags.output,
      [...rows].map((row) => ({ ...row })),
      ["location", "token", "generation", "state"],
    );
    if (rows.some((row) => row.state !== "dead"))
      throw new CommandFailed(
        exitCode.no,
        flags.report
          ? "live secrets were found; their tokens are revoked"
          : "live secrets were found: run again with --report to end them",
      );
    say(rows.length > 0 ? "only secrets of dead tokens were found" : "no secret of ours was found");
  },
});
