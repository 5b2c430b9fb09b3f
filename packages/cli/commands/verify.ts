import { existsSync, statSync } from "node:fs";
import { join } from "node:path";
import { file } from "@curfew/bundle/layout.ts";
import { NoteError, within } from "@curfew/ledger/note-error.ts";
import { type Policy, parsePolicy } from "@curfew/ledger/policy.ts";
import { policyInEachYear } from "@curfew/ledger/shard.ts";
import { readAuthorities, TimestampRefused } from "@curfew/ledger/timestamp.ts";
import { systemClock } from "@curfew/runtime/clock.ts";
import { buildCommand } from "@stricli/core";
import { CommandFailed, exitCode } from "../exit.ts";
import { outputAlias, outputFlag } from "../flags.ts";
import { readProducerTrust } from "../log-completeness.ts";
import { openShards } from "../read-log.ts";
import { readSmall } from "../read-small.ts";
import { verifyBundle } from "../verify-bundle.ts";
import { type VerifyFlags, verifyLedger } from "../verify-ledger.ts";

const maxKeyLength = 1_024;
const maxPolicyBytes = 262_144;
const maxCaBytes = 1_000_000;

const inYears = (text: string | Uint8Array): Policy => policyInEachYear(parsePolicy(text), systemClock.now());

/** Whom to believe: one key, or what a policy asks for. A year's key stands for the ledger's in all years. */
const trusted = async ({ key, policy }: VerifyFlags): Promise<Policy> => {
  if ((key === undefined) === (policy === undefined))
    throw new CommandFailed(
      exitCode.usage,
      "give --key VKEY or --policy FILE: neither a log nor a bundle can say whom to believe",
    );
  try {
    if (key !== undefined) return within("--key", () => inYears(`log ${key.slice(0, maxKeyLength)}\nquorum none\n`));
    const text = await readSmall(policy as string, maxPolicyBytes);
    return within(policy as string, () => inYears(text));
  } catch (error) {
    if (!(error instanceof NoteError)) throw error;
    throw new CommandFailed(exitCode.usage, error.message);
  }
};

const isDirectory = (target: string): boolean => {
  try {
    return statSync(target).isDirectory();
  } catch (error) {
    throw new CommandFailed(exitCode.usage, `${target} cannot be verified: ${(error as Error).message}`);
  }
};

const isUrl = (target: string) => /^https?:/i.test(target);

/** DER of the authorities (PEM) to which that of a time-stamp authority may lead. */
const readTsaAuthorities = async (path: string): Promise<readonly Uint8Array[]> => {
  const pem = (await readSmall(path, maxCaBytes)).toString("latin1");
  try {
    return readAuthorities(pem);
  } catch (error) {
    if (!(error instanceof TimestampRefused)) throw error;
    throw new CommandFailed(exitCode.usage, `${path}: ${error.message}`);
  }
};

const verifyFile = async (flags: VerifyFlags, policy: Policy, target: string) => {
  const { output, remember, older = [], ca, tsaCa } = flags;
  if (remember !== undefined || older.length > 0)
    throw new CommandFailed(exitCode.usage, "--remember and --older are for a log: a bundle shows one tree of it");
  await verifyBundle(target, policy, output, {
    ...(ca !== undefined && { producers: await readProducerTrust(ca) }),
    ...(tsaCa !== undefined && { timestamps: await readTsaAuthorities(tsaCa) }),
  });
};

export const verify = buildCommand({
  docs: {
    brief: "Verify a whole ledger, or an evidence bundle, to the last byte; needs no server of ours",
    fullDescription:
      "DIR or URL is a c2sp.org/tlog-tiles log, ours or another's, or the whole ledger of Curfew, which has such a log for each year below it; FILE is what curfew audit export wrote. Two verdicts: integrity (nothing that was sealed was changed, removed or inserted) and completeness (everything that was produced was sealed; for a ledger of Curfew). Exit 0: both hold; 1: integrity is broken, and the file and why are named; 3: incomplete; 4: neither a log nor a bundle, or it cannot be read. A log that was rolled back or forked looks sound to who never saw it before: --remember FILE keeps its last checkpoint and compares it the next time.",
  },
  parameters: {
    flags: {
      ...outputFlag,
      key: {
        kind: "parsed",
        parse: String,
        brief: "verifier key of the log, NAME+ID+BASE64, as its operator publishes it; that of one year stands for all",
        optional: true,
        placeholder: "VKEY",
      },
      policy: {
        kind: "parsed",
        parse: String,
        brief: "c2sp.org/tlog-policy: logs, witnesses, and how many must have cosigned",
        optional: true,
        placeholder: "FILE",
      },
      remember: {
        kind: "parsed",
        parse: String,
        brief: "the log must contain this checkpoint, if the file is there; its own is kept there if integrity holds",
        optional: true,
        placeholder: "FILE",
      },
      older: {
        kind: "parsed",
        parse: String,
        brief: "the log must contain this checkpoint of it as well; may be repeated",
        optional: true,
        variadic: true,
        placeholder: "FILE",
      },
      ca: {
        kind: "parsed",
        parse: String,
        brief: "certificate authority (PEM) of the suite that keeps the log: whose records are signed by whom",
        optional: true,
        placeholder: "FILE",
      },
      tsaCa: {
        kind: "parsed",
        parse: String,
        brief:
          "authority (PEM) of the time-stamp authority of a bundle, from that authority: the timestamp must be its",
        optional: true,
        placeholder: "FILE",
      },
    },
    aliases: outputAlias,
    positional: {
      kind: "tuple",
      parameters: [
        { parse: String, brief: "directory or URL of a log, or an evidence bundle", placeholder: "DIR|URL|FILE" },
      ],
    },
  },
  func: async (flags: VerifyFlags, target: string) => {
    const policy = await trusted(flags);
    if (!isUrl(target) && !isDirectory(target)) return await verifyFile(flags, policy, target);
    if (flags.tsaCa !== undefined)
      throw new CommandFailed(exitCode.usage, "--tsa-ca is for a bundle: a log has no timestamps in it");
    if (!isUrl(target) && existsSync(join(target, file.note)))
      throw new CommandFailed(
        exitCode.unavailable,
        `${target} is an unpacked bundle: verify the ZIP file that it came from`,
      );
    const shards = await openShards(target);
    try {
      await verifyLedger(shards, policy, flags);
    } finally {
      shards[0].source.close();
    }
  },
});
