import { type OpenedCheckpoint, openCheckpoint } from "./checkpoint.ts";
import { claimedSigners, decodeUtf8, type NoteSignature, parseNote } from "./note.ts";
import { decodeDecimal, NoteError, within } from "./note-error.ts";
import { cosignatureSeconds, ED25519, ED25519_COSIGNATURE, type NoteVerifier, parseVerifierKey } from "./note-key.ts";

/** Room for more than the 32 logs, 32 witnesses and 32 groups that the specification asks for, at their longest. */
export const MAX_POLICY_BYTES = 262_144;

export type PolicyLog = { readonly key: NoteVerifier; readonly url?: string };
/** `name` has a meaning within the policy only; `key.name` is who signs. */
export type PolicyWitness = PolicyLog & { readonly name: string };
/** Holds where at least `threshold` of `members` do; those are witnesses, and groups that stand before it. */
export type PolicyGroup = { readonly name: string; readonly threshold: number; readonly members: readonly string[] };

/** Whom to believe (c2sp.org/tlog-policy): a checkpoint signed by one of `logs` and cosigned by the witness or group `quorum`. */
export type Policy = {
  readonly logs: readonly PolicyLog[];
  readonly witnesses: readonly PolicyWitness[];
  /** In the order of their definition. */
  readonly groups: readonly PolicyGroup[];
  /** "none": no cosignature is needed. */
  readonly quorum: string;
};

const NO_QUORUM = "none";

type Draft = {
  readonly logs: PolicyLog[];
  readonly witnesses: PolicyWitness[];
  readonly groups: PolicyGroup[];
  readonly defined: Set<string>;
  readonly members: Set<string>;
  quorum?: string;
};

const checkKey = (draft: Draft, key: NoteVerifier, own: readonly PolicyLog[]): void => {
  if (own.some((known) => Buffer.compare(known.key.publicKey, key.publicKey) === 0))
    throw new NoteError("this public key stands on a line before it");
  if ([...draft.logs, ...draft.witnesses].some((known) => known.key.name === key.name && known.key.keyId === key.keyId))
    throw new NoteError("a key of this name and id stands on a line before it");
};

const defineName = (draft: Draft, name: string): void => {
  if (name === NO_QUORUM) throw new NoteError(`the name "${NO_QUORUM}" is predefined`);
  if (draft.defined.has(name)) throw new NoteError("this name is defined on a line before it");
  draft.defined.add(name);
};

const defineLog = (draft: Draft, [text, url, ...more]: readonly string[]): void => {
  if (text === undefined || more.length > 0) throw new NoteError("a log line is: log <vkey> [<url>]");
  const key = parseVerifierKey(text);
  if (key.type !== ED25519) throw new NoteError("a log's key is of type 1 (Ed25519)");
  checkKey(draft, key, draft.logs);
  draft.logs.push({ key, ...(url !== undefined && { url }) });
};

const defineWitness = (draft: Draft, [name, text, url, ...more]: readonly string[]): void => {
  if (name === undefined || text === undefined || more.length > 0)
    throw new NoteError("a witness line is: witness <name> <vkey> [<url>]");
  const key = parseVerifierKey(text);
  if (key.type !== ED25519_COSIGNATURE) throw new NoteError("a witness's key is of type 4 (Ed25519 cosignature)");
  checkKey(draft, key, draft.witnesses);
  defineName(draft, name);
  draft.witnesses.push({ name, key, ...(url !== undefined && { url }) });
};

const defineGroup = (draft: Draft, [name, least, ...members]: readonly string[]): void => {
  if (name === undefined || least === undefined || members.length === 0)
    throw new NoteError("a group line is: group <name> any|all|<k> <name>...");
  const threshold = least === "any" ? 1 : least === "all" ? members.length : decodeDecimal(least);
  if (threshold === undefined || threshold === 0 || threshold > members.length)
    throw new NoteError("a group's threshold is any, all, or a decimal from 1 to the number of its members");
  for (const member of members) {
    if (!draft.defined.has(member)) throw new NoteError("a member is not defined on a line before it");
    // In one group at most, of all: else one witness could count twice.
    if (draft.members.has(member)) throw new NoteError("a member is already a member of a group");
    draft.members.add(member);
  }
  defineName(draft, name);
  draft.groups.push({ name, threshold, members });
};

const defineQuorum = (draft: Draft, [name, ...more]: readonly string[]): void => {
  if (name === undefined || more.length > 0) throw new NoteError("a quorum line is: quorum <name>");
  if (draft.quorum !== undefined) throw new NoteError("a policy has one quorum line");
  if (name !== NO_QUORUM && !draft.defined.has(name))
    throw new NoteError("the quorum is not defined on a line before it");
  draft.quorum = name;
};

const definitions = new Map([
  ["log", defineLog],
  ["witness", defineWitness],
  ["group", defineGroup],
  ["quorum", defineQuorum],
]);

/** One line, an octet a unit: comments may be in any encoding, all else is UTF-8. */
const readLine = (draft: Draft, line: string): void => {
  // biome-ignore lint/suspicious/noControlCharactersInRegex: they are what the format forbids
  if (/[\x00-\x08\x0b-\x1f\x7f]/.test(line)) throw new NoteError("the only control characters are tab and line feed");
  const trimmed = line.replace(/^[ \t]+|[ \t]+$/g, "");
  if (trimmed === "" || trimmed.startsWith("#")) return;
  const [keyword = "", ...items] = decodeUtf8(Buffer.from(trimmed, "latin1")).split(/[ \t]+/);
  const define = definitions.get(keyword);
  if (define === undefined) throw new NoteError("a line begins with log, witness, group, quorum or #");
  define(draft, items);
};

/** Reads a c2sp.org/tlog-policy file. Keys of other types than Ed25519 are refused. Throws a `NoteError` that names line and rule. */
export const parsePolicy = (policy: string | Uint8Array): Policy => {
  if (policy.length > MAX_POLICY_BYTES || Buffer.byteLength(policy) > MAX_POLICY_BYTES)
    throw new NoteError(`a policy has at most ${MAX_POLICY_BYTES} bytes`);
  const bytes = typeof policy === "string" ? Buffer.from(decodeUtf8(policy)) : Buffer.from(policy);
  const lines = bytes.toString("latin1").split("\n");
  if (lines.pop() !== "") throw new NoteError(`line ${lines.length + 1}: does not end in a line feed`);
  const draft: Draft = { logs: [], witnesses: [], groups: [], defined: new Set(), members: new Set() };
  for (const [i, line] of lines.entries()) within(`line ${i + 1}`, () => readLine(draft, line));
  const { logs, witnesses, groups, quorum } = draft;
  if (quorum === undefined) throw new NoteError(`line ${lines.length + 1}: the policy ends without a quorum line`);
  return { logs, witnesses, groups, quorum };
};

const keyTextOf = ({ name, keyId, type, publicKey }: NoteVerifier): string =>
  `${name}+${keyId.toString(16).padStart(8, "0")}+${Buffer.from([type, ...publicKey]).toString("base64")}`;

/** A policy file that `parsePolicy` reads as the same policy, but for the URLs, which are left out: they say whom to ask, not whom to believe. */
export const formatPolicy = ({ logs, witnesses, groups, quorum }: Policy): string =>
  [
    ...logs.map(({ key }) => `log ${keyTextOf(key)}`),
    ...witnesses.map(({ name, key }) => `witness ${name} ${keyTextOf(key)}`),
    ...groups.map(({ name, threshold, members }) => `group ${name} ${threshold} ${members.join(" ")}`),
    `quorum ${quorum}`,
    "",
  ].join("\n");

/** Who cosigned, in the order of the policy, by its names for them; and when (POSIX seconds; the earliest, if more than once). */
export type Cosigned = {
  readonly witnesses: readonly { readonly name: string; readonly seconds: number }[];
  /** Whether they are as many as the policy demands. */
  readonly quorum: boolean;
};

const isOf = (key: NoteVerifier) => (line: NoteSignature) => line.name === key.name && line.keyId === key.keyId;

/** Weighs `signatures` by `policy`; they must have been verified, as those of an opened checkpoint have. */
export const weighSignatures = (policy: Policy, signatures: readonly NoteSignature[]): Cosigned => {
  const witnesses = policy.witnesses.flatMap(({ name, key }) => {
    const times = signatures.filter(isOf(key)).flatMap(({ signature }) => cosignatureSeconds(signature) ?? []);
    return times.length === 0 ? [] : [{ name, seconds: Math.min(...times) }];
  });
  const held = new Set([NO_QUORUM, ...witnesses.map(({ name }) => name)]);
  for (const { name, threshold, members } of policy.groups)
    if (members.filter((member) => held.has(member)).length >= threshold) held.add(name);
  return { witnesses, quorum: held.has(policy.quorum) };
};

/** `log`: whose checkpoint it is. */
export type PolicyVerdict = Cosigned & { readonly log: PolicyLog; readonly opened: OpenedCheckpoint };

/**
 * Opens a signed checkpoint of any of the policy's logs: that log has signed, and no signature of a key in the policy
 * fails. Whether the quorum holds is the verdict's to say. Throws a `NoteError`.
 */
export const openByPolicy = (checkpoint: string | Uint8Array, policy: Policy): PolicyVerdict => {
  const { text, signatures } = parseNote(checkpoint);
  const [origin] = text.split("\n", 1);
  const log = policy.logs.find(({ key }) => key.name === origin && signatures.some(isOf(key)));
  if (log === undefined)
    throw new NoteError(`no log of the policy has signed the checkpoint; it names ${claimedSigners(signatures)}`);
  const others = [...policy.logs, ...policy.witnesses].filter((other) => other !== log);
  const opened = openCheckpoint(
    checkpoint,
    log.key,
    others.map(({ key }) => key),
  );
  return { log, opened, ...weighSignatures(policy, opened.signatures) };
};
