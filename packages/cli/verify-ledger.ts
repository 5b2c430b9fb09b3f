import type { ProducerTrust } from "@curfew/event-log/producer-key.ts";
import type { OpenedCheckpoint } from "@curfew/ledger/checkpoint.ts";
import type { Policy } from "@curfew/ledger/policy.ts";
import { LogBroken, NotALog, readCheckpoint, verifyLog } from "@curfew/ledger/verify-log.ts";
import { CommandFailed, exitCode } from "./exit.ts";
import { type Completeness, openCompleteness, readProducerTrust } from "./log-completeness.ts";
import { type Format, openBar, printOne, say } from "./output.ts";
import type { LogSource } from "./read-log.ts";
import { isRemembered, readRemembered, remember } from "./remembered.ts";

export interface VerifyFlags {
  readonly output: Format;
  readonly key?: string;
  readonly policy?: string;
  readonly remember?: string;
  readonly older?: readonly string[];
  readonly ca?: string;
  readonly tsaCa?: string;
}

type Integrity = { readonly holds: boolean; readonly file?: string; readonly why: string };
type Log = Awaited<ReturnType<typeof readCheckpoint>>;

const broken = (error: unknown): Integrity => {
  if (!(error instanceof LogBroken)) throw error;
  return { holds: false, file: error.file, why: error.message };
};

const seenBefore = async (policy: Policy, { remember: kept, older = [] }: VerifyFlags): Promise<OpenedCheckpoint[]> => {
  const files = kept !== undefined && isRemembered(kept) ? [kept, ...older] : older;
  return await Promise.all(files.map((file) => readRemembered(file, policy)));
};

const ofSameLog = (log: Log, seen: readonly OpenedCheckpoint[]) => {
  for (const { origin } of seen)
    if (origin !== log.opened.origin)
      throw new CommandFailed(
        exitCode.usage,
        `the checkpoint seen before is of ${origin}, this log is ${log.opened.origin}`,
      );
};

const judge = async (
  source: LogSource,
  log: Log,
  seen: readonly OpenedCheckpoint[],
  trust: ProducerTrust | undefined,
) => {
  const bar = openBar("entries");
  const completeness = openCompleteness(trust);
  try {
    await verifyLog({
      read: source.read,
      ahead: source.ahead,
      release: source.release,
      tree: log.opened,
      remembered: seen,
      progress: bar.show,
      onEntries: (first, entries) => {
        for (const [i, entry] of entries.entries()) completeness.add(entry, first + i);
      },
    });
  } finally {
    bar.clear();
  }
  return completeness.verdict();
};

const textOf = ({ holds, file, why }: Integrity) => (holds ? `holds: ${why}` : `BROKEN: ${file}: ${why}`);

const print = (format: Format, log: Log | undefined, integrity: Integrity, completeness: Completeness | undefined) => {
  const { origin, size, root } = log?.opened ?? {};
  const tree = { origin, size, root: root && Buffer.from(root).toString("base64") };
  const cosigned = log?.witnesses ?? [];
  if (format === "json") return printOne("json", { kind: "log", ...tree, cosigned, integrity, completeness });
  printOne("table", {
    ...(log && { log: origin, entries: String(size), root: tree.root }),
    ...(cosigned.length > 0 && { cosigned: cosigned.map(({ name }) => name) }),
    integrity: textOf(integrity),
    ...(completeness && { completeness: `${completeness.verdict}: ${completeness.why}` }),
    ...(completeness && completeness.notProved.length > 0 && { "not proved": completeness.notProved.join("; ") }),
  });
  for (const gap of completeness?.gaps ?? []) say(gap);
};

const opened = async (source: LogSource, policy: Policy): Promise<Log | Integrity> => {
  try {
    return await readCheckpoint(source.read, policy);
  } catch (error) {
    if (error instanceof NotALog) throw new CommandFailed(exitCode.unavailable, `this is no log: ${error.message}`);
    return broken(error);
  }
};

/** Verifies a whole log, prints both verdicts, and throws CommandFailed with the exit code of what does not hold. */
export const verifyLedger = async (source: LogSource, policy: Policy, flags: VerifyFlags): Promise<void> => {
  const seen = await seenBefore(policy, flags);
  const trust = flags.ca === undefined ? undefined : await readProducerTrust(flags.ca);
  const log = await opened(source, policy);
  const fail = (integrity: Integrity) => {
    print(flags.output, "opened" in log ? log : undefined, integrity, undefined);
    throw new CommandFailed(exitCode.no, `integrity is broken: ${integrity.file}: ${integrity.why}`);
  };
  if (!("opened" in log)) return fail(log);
  ofSameLog(log, seen);
  const completeness = await judge(source, log, seen, trust).catch((error: unknown) => fail(broken(error)));
  const past =
    seen.length > 0 ? `; it contains ${seen.map(({ size }) => `the tree of ${size}`).join(", ")} seen before` : "";
  const why = `all ${log.opened.size} entries and all hashes above them are those that were signed${past}`;
  print(flags.output, log, { holds: true, why }, completeness);
  if (flags.remember !== undefined) await remember(flags.remember, log.note);
  if (completeness.verdict === "broken") throw new CommandFailed(exitCode.refused, `incomplete: ${completeness.why}`);
};
