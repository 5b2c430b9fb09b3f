import { generateKeyPairSync, hash } from "node:crypto";
import { resolve } from "node:path";
import { openKeyFiles } from "@curfew/keyring/key-files.ts";
import { NoteError, within } from "@curfew/ledger/note-error.ts";
import {
  cosignerKeyText,
  cosignerSecretText,
  ED25519,
  isKeyName,
  noteCosigner,
  parseCosignerKey,
  parseVerifierKey,
} from "@curfew/ledger/note-key.ts";
import { inEachYear } from "@curfew/ledger/shard.ts";
import type { WitnessedLogs } from "@curfew/ledger/witness.ts";
import { systemClock } from "@curfew/runtime/clock.ts";
import { address, Mistake } from "@curfew/runtime/config.ts";
import { DirectoryInUse, lockDirectory } from "@curfew/runtime/exclusive.ts";
import { openLog } from "@curfew/runtime/log.ts";
import { systemRandom } from "@curfew/runtime/random.ts";
import { onShutdown, type ShutdownStep } from "@curfew/runtime/shutdown.ts";
import { buildCommand } from "@stricli/core";
import { CommandFailed, exitCode } from "../exit.ts";
import { say, standardOutput } from "../output.ts";
import { openWitnessServer } from "../witness-server.ts";
import { openWitnessState } from "../witness-state.ts";

interface WitnessFlags {
  readonly data: string;
  readonly name?: string;
  readonly log: readonly string[];
  readonly listen: { readonly host: string; readonly port: number };
}

const graceMs = 5_000;
const maxOriginLength = 255;
const keyFile = "cosigner";

const wrong = (text: string) => new CommandFailed(exitCode.usage, text);

/** `VKEY`, or `VKEY ORIGIN` for a log whose key has another name. A ledger of Curfew that is named in one year is known in all. */
const readLogs = (given: readonly string[]): WitnessedLogs => {
  const logs = new Map<string, ReturnType<typeof parseVerifierKey>[]>();
  const seen = new Set<string>();
  for (const [i, text] of given.entries()) {
    const [, vkey = "", origin] = /^(\S+)(?: (.+))?$/.exec(text) ?? [];
    within(`--log number ${i + 1}`, () => {
      const key = parseVerifierKey(vkey);
      if (key.type !== ED25519) throw new NoteError("a log's key is of type 1 (Ed25519)");
      const name = origin ?? key.name;
      if (name.length > maxOriginLength || /\p{Cc}/u.test(name)) throw new NoteError("this is no origin");
      if (seen.has(`${name} ${vkey}`)) throw new NoteError("this key is given twice");
      seen.add(`${name} ${vkey}`);
      for (const each of origin === undefined ? inEachYear(key, systemClock.now()) : [key]) {
        const log = origin ?? each.name;
        const keys = logs.get(log) ?? [];
        if (!keys.some((other) => other.name === each.name && other.keyId === each.keyId))
          logs.set(log, [...keys, each]);
      }
    });
  }
  return logs;
};

/** The witness's own key, made at the first start; its name is part of it. */
const openKey = (dir: string, name: string | undefined) => {
  const files = openKeyFiles({ dir, random: systemRandom, clock: systemClock });
  if (name !== undefined && !isKeyName(name)) throw wrong("--name has no spaces and no plus sign");
  if (name === undefined && files.read(keyFile) === undefined)
    throw wrong("--name is needed at the first start, like witness.example/w1");
  const made = () => cosignerSecretText(name ?? "", generateKeyPairSync("ed25519").privateKey);
  const key = parseCosignerKey(files.createOnce(keyFile, made));
  if (name !== undefined && name !== key.name)
    throw wrong(`the key in ${dir} is that of ${key.name}: another witness needs a --data directory of its own`);
  return key;
};

const start = async (flags: WitnessFlags, steps: ShutdownStep[], log: ReturnType<typeof openLog>) => {
  const dir = resolve(flags.data);
  const logs = readLogs(flags.log);
  const lock = lockDirectory(dir);
  steps.push({ name: "lock", close: () => lock.release() });
  const { name, privateKey } = openKey(`${dir}/keys`, flags.name);
  const state = openWitnessState(dir, (origin) => hash("sha256", origin));
  steps.push({ name: "state", close: () => state.close() });
  const cosignerAt = (seconds: number) => noteCosigner(name, privateKey, seconds);
  const { host, port } = flags.listen;
  const parts = { logs, state, cosignerAt, now: systemClock.now, log };
  const server = await openWitnessServer(parts, flags.listen).catch((error: NodeJS.ErrnoException) => {
    throw wrong(`cannot listen on ${host}:${port}: ${error.code === "EADDRINUSE" ? "the port is taken" : error.code}`);
  });
  steps.push({ name: "server", close: () => server.close() });
  const named = flags.log.map((text) => text.split("+", 1)[0]);
  say(`witness ${name} of ${named.join(", ")}; for the policies of those who rely on it:`);
  standardOutput.write(`witness ${name} ${cosignerKeyText(name, privateKey)} ${server.url}\n`);
};

const usageErrors = ["NoteError", "NotPrivate", "KeyringError"];

export const witness = buildCommand({
  docs: {
    brief: "Run a witness: it cosigns the checkpoints of ledgers, each only if it extends the one before",
    fullDescription:
      "For whoever does not run the ledger: another department, another company. Speaks c2sp.org/tlog-witness over plain HTTP, on loopback unless told otherwise; put a proxy with TLS before it. Its key is made at the first start and never leaves DIR/keys (0600); its memory is DIR/witness.db, which must never be put back from a backup: a witness that forgets can be shown a rolled-back ledger. Ctrl-C stops it. A clock more than a minute before its last cosignature cosigns nothing until it is right.",
  },
  parameters: {
    flags: {
      data: {
        kind: "parsed",
        parse: String,
        brief: "directory of the key and the memory",
        default: ".curfew-witness",
        placeholder: "DIR",
      },
      name: {
        kind: "parsed",
        parse: String,
        brief: "name of the witness, like witness.example/w1; needed at the first start",
        optional: true,
        placeholder: "NAME",
      },
      log: {
        kind: "parsed",
        parse: String,
        brief:
          'verifier key of a log to cosign, that of one year for all; "VKEY ORIGIN" where its origin is another; may be repeated',
        variadic: true,
        placeholder: "VKEY",
      },
      listen: {
        kind: "parsed",
        parse: (text: string) => {
          try {
            return address({ about: "", anyPort: true }).parse(text);
          } catch (error) {
            throw error instanceof Mistake ? new Error(`--listen ${error.message}`) : error;
          }
        },
        brief: "host:port",
        default: "127.0.0.1:7610",
        placeholder: "HOST:PORT",
      },
    },
    positional: { kind: "tuple", parameters: [] },
  },
  func: async (flags: WitnessFlags) => {
    const log = openLog({ service: "witness", level: "info" });
    const steps: ShutdownStep[] = [];
    try {
      await start(flags, steps, log);
    } catch (error) {
      for (const step of steps.toReversed()) await step.close(() => undefined);
      if (error instanceof DirectoryInUse) throw new CommandFailed(exitCode.refused, error.message);
      if (usageErrors.includes((error as Error).name)) throw wrong((error as Error).message);
      throw error;
    }
    onShutdown(steps, { graceMs, log });
    // Until a signal ends the process.
    await new Promise(() => undefined);
  },
});
