import { readdirSync, statSync } from "node:fs";
import { join, resolve } from "node:path";
import { epochActivationMs, openEpochKeys } from "@curfew/keyring/epoch-keys.ts";
import { KeyringError } from "@curfew/keyring/key-files.ts";
import { openKeyring, pepperActivationMs } from "@curfew/keyring/keyring.ts";
import type { SigningKey } from "@curfew/keyring/signing-keys.ts";
import { verifierKeyText } from "@curfew/ledger/note-key.ts";
import { shardOrigin, yearOf } from "@curfew/ledger/shard.ts";
import { systemClock } from "@curfew/runtime/clock.ts";
import { NotPrivate } from "@curfew/runtime/exclusive.ts";
import { systemRandom } from "@curfew/runtime/random.ts";
import { buildCommand, buildRouteMap } from "@stricli/core";
import { dataDirectory } from "../connection.ts";
import { CommandFailed, exitCode } from "../exit.ts";
import { dataFlag, outputAlias, outputFlag } from "../flags.ts";
import { type Format, printOne, printRows, say } from "../output.ts";

interface KeysFlags {
  readonly data: string;
  readonly keys?: string;
  readonly output: Format;
}

/** Where the files of a kind of key are told by their names. */
const kinds = { ledger: /^signing-/, pepper: /^pepper-/, kek: /^epoch-/ } as const;
type Kind = keyof typeof kinds;

const keysFlag = {
  keys: {
    kind: "parsed",
    parse: String,
    brief: "directory of the keys; default: keys in the data directory",
    optional: true,
    placeholder: "DIR",
  },
} as const;
const parseKind = (text: string): Kind => {
  if (!Object.hasOwn(kinds, text)) throw new Error(`a kind of key is one of ${Object.keys(kinds).join(", ")}`);
  return text as Kind;
};

const openKeys = (flags: KeysFlags) => {
  const dir = resolve(flags.keys ?? join(dataDirectory(flags), "keys"));
  // A key is made where none is: only services may do that.
  if (!statSync(dir, { throwIfNoEntry: false })?.isDirectory())
    throw new CommandFailed(exitCode.usage, `there is no directory ${dir}: name that of the keys with --keys`);
  const options = { dir, random: systemRandom, clock: systemClock };
  const keyring = openKeyring(options);
  return {
    dir,
    keyring,
    epochs: openEpochKeys(options),
    has: (kind: Kind) => readdirSync(dir).some((name) => kinds[kind].test(name)),
    ledger: () => {
      const [name, ...more] = keyring.signingNames();
      if (name === undefined || more.length > 0)
        throw new KeyringError(`${dir} has the keys of ${1 + more.length} ledgers`);
      return name;
    },
  };
};
type Keys = ReturnType<typeof openKeys>;

/** What is wrong with the directory, or with what is asked of it, as the command's failure. */
const guarded = <T>(act: () => T): T => {
  try {
    return act();
  } catch (error) {
    if (error instanceof NotPrivate) throw new CommandFailed(exitCode.usage, error.message);
    if (error instanceof KeyringError) throw new CommandFailed(exitCode.refused, error.message);
    throw error;
  }
};
const demand = (keys: Keys, kind: Kind) => {
  if (!keys.has(kind))
    throw new CommandFailed(
      exitCode.usage,
      `${keys.dir} has no key of the kind ${kind}: name the directory that has, with --keys`,
    );
};

const isoIn = (ms: number) => new Date(systemClock.now() + ms).toISOString();

/** In this year's tree, and in the next one's, so that clients and witnesses can have it before. */
const verifierKeys = (name: string, { publicKey }: Pick<SigningKey, "publicKey">) => {
  const year = yearOf(systemClock.now());
  const of = (each: number) => verifierKeyText(shardOrigin(name, each), publicKey);
  return { verifierKey: of(year), nextYear: of(year + 1) };
};

const ledgerRows = ({ keyring, ledger }: Keys) => {
  const name = ledger();
  const all = keyring.signingKeys(name);
  const inForce = all.findLast(({ after }) => after !== undefined);
  const stateOf = ({ number, after, privateKey }: SigningKey) => {
    if (after === undefined) return "waits to be sealed";
    if (number === inForce?.number) return after < 0 ? "signs" : `signs every tree of more than ${after} entries`;
    return privateKey ? "signs beside it" : "retired: verifies what it has signed";
  };
  return all.map((key) => ({
    kind: "ledger",
    key: String(key.number),
    state: stateOf(key),
    ...verifierKeys(name, key),
  }));
};

const pepperRows = ({ keyring }: Keys) => {
  const { current, all } = keyring.peppers();
  const at = all.indexOf(current);
  const states = ["waits until every process has seen it", "for new tokens", "for tokens made with it"];
  return all.map(({ id }, i) => ({ kind: "pepper", key: id, state: states[1 + Math.sign(i - at)] }));
};

const epochRows = ({ epochs }: Keys) => {
  const current = epochs.current();
  const at = epochs.live().findIndex(({ number }) => number === current.number);
  const states = ["waits until every process has seen it", "wraps what is written", "everything is being wrapped anew"];
  return epochs
    .live()
    .map(({ number }, i) => ({ kind: "kek", key: String(number), state: states[1 + Math.sign(i - at)] }));
};

const rows = { ledger: ledgerRows, pepper: pepperRows, kek: epochRows } as const;

const list = buildCommand({
  docs: { brief: "The keys of a directory and what each is for; no key is shown" },
  parameters: {
    flags: { ...dataFlag, ...keysFlag, ...outputFlag },
    aliases: outputAlias,
    positional: { kind: "tuple", parameters: [] },
  },
  func: (flags: KeysFlags) => {
    const found = guarded(() => {
      const keys = openKeys(flags);
      return (Object.keys(rows) as Kind[]).filter((kind) => keys.has(kind)).flatMap<object>((kind) => rows[kind](keys));
    });
    printRows(flags.output, found as Record<string, unknown>[], ["kind", "key", "state"]);
  },
});

/** Each answers what was made, and says until when the one before is needed. */
const rotations: { readonly [K in Kind]: (keys: Keys) => Record<string, unknown> } = {
  ledger: ({ keyring, ledger }) => {
    const name = ledger();
    const key = keyring.rotateSigningKey(name);
    say(
      "the auditor seals within seconds that both keys say so; every checkpoint from then on is by the new key, and by the old one beside it until curfew keys retire ledger: give clients and witnesses the new one before",
    );
    return { kind: "ledger", key: String(key.number), ...verifierKeys(name, key) };
  },
  pepper: ({ keyring }) => {
    const { current } = keyring.peppers();
    const { id } = keyring.rotatePepper();
    say(
      `${current.id} is needed until no token lives that was made with it, and for as long as such a secret is to be recognised when it leaks; then: curfew keys retire pepper ${current.id}`,
    );
    return { kind: "pepper", key: id, inForce: isoIn(pepperActivationMs) };
  },
  kek: ({ epochs }) => {
    if (epochs.live().length > 1)
      throw new KeyringError("everything is being wrapped anew already: wait until that is done");
    const before = epochs.current().number;
    const { number } = epochs.begin();
    say(
      `the auditor wraps everything anew and then destroys key ${before}, which opens what it has wrapped until then`,
    );
    return { kind: "kek", key: String(number), inForce: isoIn(epochActivationMs) };
  },
};

const rotate = buildCommand({
  docs: {
    brief: "Make the next key of a kind; running services take it up by themselves",
    fullDescription:
      "ledger: signs the ledger's checkpoints. pepper: hashes tokens. kek: wraps people's keys. Needs file access to the directory that the services share; where the kinds have directories of their own, name the one. No service is started anew: each looks at the directory once a second, and nobody uses a key before all have seen it.",
  },
  parameters: {
    flags: { ...dataFlag, ...keysFlag, ...outputFlag },
    aliases: outputAlias,
    positional: {
      kind: "tuple",
      parameters: [{ parse: parseKind, brief: Object.keys(kinds).join(", "), placeholder: "KIND" }],
    },
  },
  func: (flags: KeysFlags, kind: Kind) => {
    const keys = guarded(() => openKeys(flags));
    demand(keys, kind);
    printOne(
      flags.output,
      guarded(() => rotations[kind](keys)),
    );
  },
});

const retire = buildCommand({
  docs: {
    brief: "Destroy what is not needed any more: a pepper, or the ledger's old keys",
    fullDescription:
      "retire pepper ID: every token that was made with it is unknown from then on. retire ledger: old keys sign no more beside the one in force; what they signed stays verifiable. A key of people's keys (kek) is destroyed by the auditor.",
  },
  parameters: {
    flags: { ...dataFlag, ...keysFlag, ...outputFlag },
    aliases: outputAlias,
    positional: {
      kind: "tuple",
      parameters: [
        { parse: parseKind, brief: "ledger or pepper", placeholder: "KIND" },
        { parse: String, brief: "which pepper, as keys list names it", placeholder: "ID", optional: true },
      ],
    },
  },
  func: (flags: KeysFlags, kind: Kind, id?: string) => {
    const keys = guarded(() => openKeys(flags));
    demand(keys, kind);
    if (kind === "kek" || (kind === "pepper") !== (id !== undefined))
      throw new CommandFailed(exitCode.usage, "retire ledger, or retire pepper ID");
    if (id !== undefined) guarded(() => keys.keyring.retirePepper(id));
    else if (guarded(() => keys.keyring.retireSigningKeys(keys.ledger())) === 0)
      throw new CommandFailed(
        exitCode.refused,
        "no older key of the ledger is left, or the next one is not sealed yet",
      );
    printOne(flags.output, { kind, retired: id ?? "all before the one in force" });
  },
});

export const keys = buildRouteMap({
  docs: { brief: "List, rotate and retire keys" },
  routes: { list, rotate, retire },
});
