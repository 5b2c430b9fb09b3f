import { statSync } from "node:fs";
import { RevocationService } from "@curfew/contracts/gen/curfew/revocation/v1/revocation_pb.ts";
import { buildCommand } from "@stricli/core";
import { type ConnectionFlags, onConnection } from "../connection.ts";
import { CommandFailed, exitCode } from "../exit.ts";
import { connectionFlags, outputAlias, outputFlag } from "../flags.ts";
import { type Format, openProgress, printRows, say } from "../output.ts";
import { openJudge } from "../scan-judge.ts";
import { scanPath } from "../scan-sources.ts";

interface ScanFlags extends ConnectionFlags {
  readonly output: Format;
  readonly report: boolean;
  readonly public: boolean;
}

const maxProblemsShown = 20;

const assertThere = (paths: readonly string[]) => {
  for (const path of paths)
    try {
      if (path !== "-") statSync(path);
    } catch (error) {
      throw new CommandFailed(exitCode.usage, `${path} cannot be searched: ${(error as Error).message}`);
    }
};

/** Searches all paths; what stood in the way is said at the end, on standard error. */
const search = (flags: ScanFlags, paths: readonly string[]) =>
  onConnection(flags, async (connection) => {
    const judge = openJudge(connection.service(RevocationService, "revocation"), flags);
    const progress = openProgress();
    const problems: string[] = [];
    let problemCount = 0;
    let binaries = 0;
    const problem = (text: string) => {
      problemCount += 1;
      if (problems.length < maxProblemsShown) problems.push(text);
    };
    const options = {
      isOurs: judge.isOurs,
      problem,
      binary: () => {
        binaries += 1;
      },
      progress: progress.count,
      nowMs: Date.now(),
    };
    let stopped: unknown;
    try {
      for (const path of paths) for await (const sighting of scanPath(path, options)) await judge.see(sighting);
    } catch (error) {
      stopped = error; // what was found, and perhaps reported, until then is printed all the same
    }
    progress.clear();
    for (const text of problems) say(`not searched: ${text}`);
    if (problemCount > problems.length) say(`… and ${problemCount - problems.length} more that could not be searched`);
    if (binaries > 0) say(`${binaries} binary files or versions of them were passed over; name a file to search it`);
    const { rows, further, failure = stopped } = judge.result();
    return { rows, further, failure, problemCount };
  });

export const scan = buildCommand({
  docs: {
    brief: "Find our secrets in files, folders, git history and standard input. Exit 1: a live one was found",
    fullDescription:
      "Prints where a secret stands and which token it belongs to, never the secret. A git repository is searched with its whole history (all branches, tags, stashes, merges, what was amended away) and with its submodules; .gitignore is honoured, and a file or folder that you name is searched even so. --report ends the token of each live secret, and a case opens. Exit 2: something could not be searched. At most 100 places a secret are listed and reported.",
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
    assertThere(paths);
    const { rows, further, failure, problemCount } = await search(flags, paths);
    printRows(flags.output, rows, ["location", "token", "generation", "state"]);
    if (further > 0) say(`… and ${further} more places of the same secrets`);
    if (failure) throw failure;
    if (rows.some((row) => row.state === "live"))
      throw new CommandFailed(exitCode.no, "live secrets were found: run again with --report to end them");
    if (rows.some((row) => row.state === "revoked"))
      throw new CommandFailed(
        exitCode.no,
        "live secrets were found; their tokens are revoked now, and each has a case: curfew case list",
      );
    if (problemCount > 0) throw new CommandFailed(exitCode.usage, "not everything could be searched");
    say(rows.length > 0 ? "only secrets of dead tokens were found" : "no secret of ours was found");
  },
});
