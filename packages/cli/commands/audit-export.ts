import { type Timestamp, timestampFromDate } from "@bufbuild/protobuf/wkt";
import { AuditorService } from "@curfew/contracts/gen/curfew/auditor/v1/auditor_pb.ts";
import { BreachService } from "@curfew/contracts/gen/curfew/breach/v1/breach_pb.ts";
import { buildCommand } from "@stricli/core";
import { type Connection, type ConnectionFlags, onConnection } from "../connection.ts";
import { CommandFailed, exitCode } from "../exit.ts";
import { connectionFlags, parseTime, type ShardFlags, shardFlag } from "../flags.ts";
import { writeNewFile } from "../new-file.ts";
import { openProgress, printOne } from "../output.ts";

interface ExportFlags extends ConnectionFlags, ShardFlags {
  readonly case?: string;
  readonly token?: string;
  readonly from?: Date;
  readonly to?: Date;
  readonly drafts: boolean;
  readonly out: string;
}

const checked = (flags: ExportFlags): ExportFlags => {
  const { case: caseId, token, from, to } = flags;
  const fail = (why: string) => new CommandFailed(exitCode.usage, why);
  if (!(caseId || token || from || to)) throw fail("say what of: --case, --token, --from or --to");
  if (caseId && token) throw fail("--case takes its token along: give only one of --case and --token");
  if (from && to && from >= to) throw fail("--from is not before --to");
  return flags;
};

/** Drafts are kept where they are made; the ledger has their hashes. */
const draftsOf = async (connection: Connection, { case: caseId, drafts }: ExportFlags) => {
  if (!caseId || !drafts) return { drafts: [], atLeast: [] };
  const kept = (await connection.service(BreachService, "breach-notifier").listDrafts({ caseId })).drafts;
  return { drafts: kept.map(({ json }) => json), atLeast: kept.flatMap(({ position }) => position ?? []) };
};

async function* piecesOf(answers: AsyncIterable<{ readonly piece: Uint8Array }>): AsyncGenerator<Uint8Array> {
  const progress = openProgress();
  try {
    for await (const { piece } of answers) {
      progress.count("pieces");
      yield piece;
    }
  } finally {
    progress.clear();
  }
}

const time = (name: "from" | "to", date: Date | undefined): { [name: string]: Timestamp } =>
  date ? { [name]: timestampFromDate(date) } : {};

const text = (brief: string, placeholder: string) =>
  ({ kind: "parsed", parse: String, brief, optional: true, placeholder }) as const;
const moment = (brief: string) =>
  ({ kind: "parsed", parse: parseTime, brief, optional: true, placeholder: "TIME" }) as const;

export const exportBundle = buildCommand({
  docs: {
    brief: "Write an evidence bundle: what anybody can check with curfew verify FILE, or without us (role auditor)",
    fullDescription:
      "A ZIP of ledger entries with their proofs, checkpoints, what people read, and how to check it. --from and --to alone take every entry that was sealed in that time; with --token or --case only what is about them. The file is new, for its owner alone, and whole or not there. That it was made is recorded.",
  },
  parameters: {
    flags: {
      ...connectionFlags,
      ...shardFlag,
      case: text("a case: its events, its signals, all about its token, and its drafts", "CASE"),
      token: text("all about a token", "TOKEN"),
      from: moment("only what was sealed at or after"),
      to: moment("only what was sealed before"),
      drafts: { kind: "boolean", brief: "take the drafts of the case's notification along", default: true },
      out: { kind: "parsed", parse: String, brief: "the new file", placeholder: "FILE" },
    },
    aliases: { o: "out" },
  },
  func: (flags: ExportFlags) => {
    const { case: caseId = "", token: tokenId = "", from, to, out, shard } = checked(flags);
    return onConnection(flags, async (connection) => {
      const auditor = connection.service(AuditorService, "auditor");
      const along = await draftsOf(connection, flags);
      const answers = auditor.exportBundle({
        caseId,
        tokenId,
        shard,
        ...time("from", from),
        ...time("to", to),
        ...along,
      });
      const bytes = await writeNewFile(out, piecesOf(answers));
      const { verifierKey } = await auditor.getCheckpoint({});
      printOne("table", { bundle: out, bytes: String(bytes), drafts: String(along.drafts.length) });
      printOne("table", { "check it with": `curfew verify ${out} --key ${verifierKey}` });
    });
  },
});
