import type { ProducerTrust } from "@curfew/event-log/producer-key.ts";
import type { OpenedCheckpoint } from "@curfew/ledger/checkpoint.ts";
import { CHECKPOINT_PATH } from "@curfew/ledger/directory.ts";
import { decodeLeaf, NoLeaf, type ShardOpening } from "@curfew/ledger/leaf.ts";
import { parseNote } from "@curfew/ledger/note.ts";
import { NoteError } from "@curfew/ledger/note-error.ts";
import type { Policy } from "@curfew/ledger/policy.ts";
import { TILE_WIDTH, tilePath } from "@curfew/ledger/tile.ts";
import { LogBroken, NotALog, readCheckpoint, readUnsigned, verifyLog } from "@curfew/ledger/verify-log.ts";
import { CommandFailed, exitCode } from "./exit.ts";
import { type Completeness, openCompleteness, readProducerTrust } from "./log-completeness.ts";
import { type Format, openBar, printOne, say } from "./output.ts";
import type { LogShard } from "./read-log.ts";
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
type Log = Pick<Awaited<ReturnType<typeof readCheckpoint>>, "opened" | "witnesses" | "note"> & {
  /** No key that was given has signed it: it is believed because the next year's first entry names it. */
  readonly vouched?: true;
};
type Shard = LogShard & { readonly log: Log };

const broken = (error: unknown): Integrity => {
  if (!(error instanceof LogBroken)) throw error;
  return { holds: false, file: error.file, why: error.message };
};

const seenBefore = async (policy: Policy, { remember: kept, older = [] }: VerifyFlags): Promise<OpenedCheckpoint[]> => {
  const files = kept !== undefined && isRemembered(kept) ? [kept, ...older] : older;
  return await Promise.all(files.map((file) => readRemembered(file, policy)));
};

/** Throws LogBroken where a year of the ledger is gone that was seen before, and CommandFailed where another log was. */
const ofSameLog = (shards: readonly Shard[], seen: readonly OpenedCheckpoint[]) => {
  const origins = shards.map(({ log }) => log.opened.origin);
  const absent = seen.find(({ origin }) => !origins.includes(origin))?.origin;
  if (absent === undefined) return;
  const [, ledger, year] = /^(.+)\/(20\d{2})$/.exec(absent) ?? [];
  if (shards.some(({ folder, log }) => `${ledger}/${folder}` === `${log.opened.origin}/`))
    throw new LogBroken(`${year}/${CHECKPOINT_PATH}`, `rollback: ${absent} was seen before, and is not there`);
  throw new CommandFailed(
    exitCode.usage,
    `the checkpoint seen before is of ${absent}, and this is ${origins.join(", ")}`,
  );
};

/** What the first entry of a log says that it follows; undefined: nothing. */
const openingIn = (entry: Uint8Array | undefined): ShardOpening | undefined => {
  try {
    return entry && decodeLeaf(entry).opening;
  } catch (error) {
    if (error instanceof NoLeaf) return undefined;
    throw error;
  }
};

const textIn = (checkpoint: string): string | undefined => {
  try {
    return parseNote(checkpoint).text;
  } catch (error) {
    if (error instanceof NoteError) return undefined;
    throw error;
  }
};

/** Verifies the shards of a ledger one after the other, and that each begins where the one before it ends. */
const judge = async (
  shards: readonly Shard[],
  seen: readonly OpenedCheckpoint[],
  trust: ProducerTrust | undefined,
): Promise<Completeness> => {
  const bar = openBar("entries");
  const completeness = openCompleteness(trust);
  const all = shards.reduce((sum, { log }) => sum + log.opened.size, 0);
  /** Entries in the shards before, and the one right before. */
  let done = 0;
  let before: Log | undefined;

  const follows = ({ folder, log }: Shard, entry: Uint8Array | undefined): void => {
    const opening = openingIn(entry);
    const width = Math.min(log.opened.size, TILE_WIDTH);
    const file = `${folder}${width > 0 ? tilePath({ level: "entries", index: 0, width }) : CHECKPOINT_PATH}`;
    if (!before && opening && folder !== "")
      throw new LogBroken(file, `it follows ${opening.first} entries of years before it, which are not here`);
    if (!before && opening)
      completeness.beginsAfter(`${opening.first} entries of the years before ${log.opened.origin}`);
    if (!before || (opening?.first === done && textIn(opening.previousCheckpoint) === before.opened.text)) return;
    throw new LogBroken(file, `its first entry does not name the checkpoint with which ${before.opened.origin} ends`);
  };

  try {
    for (const shard of shards) {
      const { folder, source, log } = shard;
      const { origin, size } = log.opened;
      if (size === 0) follows(shard, undefined);
      await inFolder(folder, () =>
        verifyLog({
          read: source.read,
          ahead: source.ahead,
          release: source.release,
          tree: log.opened,
          remembered: seen.filter((each) => each.origin === origin),
          progress: (at) => bar.show(done + at, all),
          onEntries: (first, entries) => {
            if (first === 0) follows(shard, entries[0]);
            for (const [i, entry] of entries.entries()) completeness.add(entry, done + first + i);
          },
        }),
      );
      done += size;
      if (size > 0) before = log;
    }
  } finally {
    bar.clear();
  }
  return completeness.verdict();
};

/** Names files as they were asked for. */
const inFolder = async <T>(folder: string, work: () => Promise<T>): Promise<T> => {
  try {
    return await work();
  } catch (error) {
    if (!(error instanceof LogBroken) || error.file.startsWith(folder)) throw error;
    throw new LogBroken(`${folder}${error.file}`, error.message);
  }
};

const textOf = ({ holds, file, why }: Integrity) => (holds ? `holds: ${why}` : `BROKEN: ${file}: ${why}`);

const viewOf = ({ opened: { origin, size, root }, witnesses, vouched }: Log) => ({
  origin,
  size,
  root: Buffer.from(root).toString("base64"),
  cosigned: witnesses,
  ...(vouched && { vouched }),
});

const rowOf = (log: Log) => {
  const { origin, size, root, cosigned, vouched } = viewOf(log);
  const by = cosigned.map(({ name }) => name);
  const believed = vouched && { signed: "by no key that was given: believed since the next year's log names its end" };
  return { log: origin, entries: String(size), root, ...(by.length > 0 && { cosigned: by }), ...believed };
};

const print = (format: Format, logs: readonly Log[], integrity: Integrity, completeness: Completeness | undefined) => {
  const [log, ...others] = logs;
  if (format === "json") {
    const found =
      others.length > 0 ? { kind: "ledger", logs: logs.map(viewOf) } : { kind: "log", ...(log && viewOf(log)) };
    return printOne("json", { ...found, integrity, completeness });
  }
  for (const each of others.length > 0 ? logs : []) printOne("table", rowOf(each));
  printOne("table", {
    ...(log && others.length === 0 && rowOf(log)),
    integrity: textOf(integrity),
    ...(completeness && { completeness: `${completeness.verdict}: ${completeness.why}` }),
    ...(completeness && completeness.notProved.length > 0 && { "not proved": completeness.notProved.join("; ") }),
  });
  for (const gap of completeness?.gaps ?? []) say(gap);
};

/** `isFollowed`: there is a next year, by whose first entry `judge` holds this one, so that it may have been signed by a key of long ago. */
const opened = async ({ folder, source }: LogShard, policy: Policy, isFollowed: boolean): Promise<Log> => {
  try {
    return await inFolder(folder, async () => {
      const claimed = isFollowed ? await readUnsigned(source.read, policy) : undefined;
      if (claimed && claimed.opened.size > 0) return { ...claimed, witnesses: [], vouched: true };
      return await readCheckpoint(source.read, policy);
    });
  } catch (error) {
    if (error instanceof NotALog)
      throw new CommandFailed(exitCode.unavailable, `${folder || "this"} is no log: ${error.message}`);
    throw error;
  }
};

/** Verifies a whole log, or all shards of a ledger; prints both verdicts, and throws CommandFailed with the exit code of what does not hold. */
export const verifyLedger = async (found: readonly LogShard[], policy: Policy, flags: VerifyFlags): Promise<void> => {
  const seen = await seenBefore(policy, flags);
  const trust = flags.ca === undefined ? undefined : await readProducerTrust(flags.ca);
  const shards: Shard[] = [];
  const logs = () => shards.map(({ log }) => log);
  const fail = (error: unknown): never => {
    const integrity = broken(error);
    print(flags.output, logs(), integrity, undefined);
    throw new CommandFailed(exitCode.no, `integrity is broken: ${integrity.file}: ${integrity.why}`);
  };
  for (const [at, shard] of found.entries())
    shards.push({ ...shard, log: await opened(shard, policy, at < found.length - 1).catch(fail) });
  const judged = async () => {
    ofSameLog(shards, seen);
    return await judge(shards, seen, trust);
  };
  const completeness = await judged().catch(fail);
  const past =
    seen.length > 0 ? `; it contains ${seen.map(({ size }) => `the tree of ${size}`).join(", ")} seen before` : "";
  const entries = logs().reduce((sum, { opened: { size } }) => sum + size, 0);
  const each = shards.length > 1 ? `, and each of ${shards.length} logs follows the one before it` : "";
  const why = `all ${entries} entries and all hashes above them are those that were signed${each}${past}`;
  print(flags.output, logs(), { holds: true, why }, completeness);
  const newest = logs().at(-1);
  if (flags.remember !== undefined && newest) await remember(flags.remember, newest.note);
  if (completeness.verdict === "broken") throw new CommandFailed(exitCode.refused, `incomplete: ${completeness.why}`);
};
