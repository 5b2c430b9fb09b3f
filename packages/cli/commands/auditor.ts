import { spawn } from "node:child_process";
import { once } from "node:events";
import { existsSync } from "node:fs";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { buildCommand, buildRouteMap } from "@stricli/core";
import { dataDirectory } from "../connection.ts";
import { CommandFailed, exitCode } from "../exit.ts";
import { dataFlag, outputAlias, outputFlag } from "../flags.ts";
import { type Format, printRows } from "../output.ts";

interface RebuildFlags {
  readonly data: string;
  readonly output: Format;
  readonly fromFiles: boolean;
}

/** The auditor's own program: what its read models are made of is its matter. */
const program = fileURLToPath(new URL("../../../services/auditor/rebuild/main.ts", import.meta.url));
const maxMessage = 10_000;

const rebuild = buildCommand({
  docs: {
    brief: "Make the auditor's read models anew from the ledger alone",
    fullDescription:
      "For the suite of one process, which must be stopped. From the staged batches in the auditor's store or, where that is gone, with --from-files from the ledger's files: then what was sealed after the published checkpoint is sealed again, perhaps in another order, and checkpoints of it that somebody has are void. May be interrupted at any time and run again; until it is done the suite does not start. Auditors that are processes of their own: stop them, and start one once with CURFEW_REBUILD=store (or files).",
  },
  parameters: {
    flags: {
      ...dataFlag,
      ...outputFlag,
      fromFiles: { kind: "boolean", brief: "the store is gone: from the ledger's files", default: false },
    },
    aliases: outputAlias,
    positional: { kind: "tuple", parameters: [] },
  },
  func: async (flags: RebuildFlags) => {
    const dataDir = dataDirectory(flags);
    if (!existsSync(join(dataDir, "store")))
      throw new CommandFailed(exitCode.usage, `there is no store in ${dataDir}: name the suite's data directory`);
    const args = [...process.execArgv, program, "--data", dataDir, ...(flags.fromFiles ? ["--from-files"] : [])];
    const child = spawn(process.execPath, args, {
      stdio: ["ignore", "pipe", process.stderr.isTTY ? "inherit" : "pipe"],
    });
    const texts = [child.stdout, child.stderr].map(async (stream) => {
      let text = "";
      for await (const chunk of stream?.setEncoding("utf8") ?? []) text = (text + chunk).slice(-maxMessage);
      return text;
    });
    const [code] = (await once(child, "close")) as [number | null];
    const [out = "", said = ""] = await Promise.all(texts);
    if (code !== 0) throw new CommandFailed(code === exitCode.refused ? code : exitCode.internal, said.trim());
    printRows(flags.output, [JSON.parse(out)], ["batches", "entries"]);
  },
});

export const auditor = buildRouteMap({ docs: { brief: "The auditor's store" }, routes: { rebuild } });
