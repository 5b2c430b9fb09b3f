import { createPrivateKey, createPublicKey, type KeyObject } from "node:crypto";
import type { Clock } from "@curfew/runtime/clock.ts";
import type { Random } from "@curfew/runtime/random.ts";
import { type KeyFiles, KeyringError } from "./key-files.ts";
import { checkOf, keyBytes, parseStored, storedText } from "./stored-key.ts";

/**
 * A signing key and those that followed it under the same name, numbered from 1. What one signs is counted (a ledger: the leaves of its
 * tree); a key follows another at a count, which is written down once beside the public key of the one before. That file outlives the
 * private half before it, so that what was signed stays verifiable, and a key that was stolen is worth nothing for what is newer.
 */
export interface SigningKey {
  readonly number: number;
  /** Ed25519. Its note texts are made by `noteSigner` and `verifierKeyText` of packages/ledger. Absent: retired. */
  readonly privateKey: KeyObject | undefined;
  readonly publicKey: KeyObject;
  /** It signs what counts more than this; the first: anything. Undefined: it was made, and has not followed yet. */
  readonly after: number | undefined;
}

export interface SigningKeys {
  /** Oldest first; the first is made where there is none. Reads the directory again at most once a second, or now. Throws KeyringError. */
  signingKeys(name: string, now?: "now"): readonly [SigningKey, ...SigningKey[]];
  /** Names of the signing keys that were made. */
  signingNames(): string[];
  /** Makes the next key, which waits until it `follow`s. Throws KeyringError where one waits already. */
  rotateSigningKey(name: string): SigningKey;
  /** The waiting key `number` follows the one before at `after`. Throws KeyringError where it follows at another. */
  follow(name: string, number: number, after: number): void;
  /** Destroys the private halves before the one in force; answers how many. */
  retireSigningKeys(name: string): number;
}

const rescanMs = 1000;
const maxNumber = 999;
const namePattern = /^[A-Za-z0-9][A-Za-z0-9._/:-]{0,127}$/;
/** A name has no "@" itself: there it stands as %40. */
const filePattern = /^signing-([^@]+?)(?:@([1-9]\d{0,2}))?\.key$/;
/** What makes a PKCS #8 private, an SPKI public Ed25519 key of its 32 bytes (RFC 8410). */
const pkcs8Prefix = Buffer.from("302e020100300506032b657004220420", "hex");
const spkiPrefix = Buffer.from("302a300506032b6570032100", "hex");

const rawOf = (publicKey: KeyObject): Buffer =>
  publicKey.export({ format: "der", type: "spki" }).subarray(spkiPrefix.length);

const followText = (after: number, before: Buffer): string =>
  `curfew-follow-v1 ${after} ${before.toString("base64url")} ${checkOf(before)}\n`;

const parseFollow = (file: string, text: string): { after: number; before: KeyObject } => {
  const m = /^curfew-follow-v1 (\d{1,15}) ([0-9A-Za-z_-]{43}) ([0-9a-f]{8})\n$/.exec(text);
  const raw = Buffer.from(m?.[2] ?? "", "base64url");
  if (!m || raw.length !== keyBytes || checkOf(raw) !== m[3]) throw new KeyringError(`${file}: damaged key file`);
  const key = Buffer.concat([spkiPrefix, raw]);
  return { after: Number(m[1]), before: createPublicKey({ key, format: "der", type: "spki" }) };
};

const filesOf = (name: string, number: number) => {
  if (!namePattern.test(name)) throw new KeyringError("not a signing key name");
  const stem = `signing-${encodeURIComponent(name)}${number === 1 ? "" : `@${number}`}`;
  return { key: `${stem}.key`, follow: `${stem}.follow` };
};

const pairOf = (seed: KeyObject) => {
  const key = Buffer.concat([pkcs8Prefix, seed.export()]);
  const privateKey = createPrivateKey({ key, format: "der", type: "pkcs8" });
  return { privateKey, publicKey: createPublicKey(privateKey) };
};

export const openSigningKeys = (files: KeyFiles, random: Random, clock: Clock): SigningKeys => {
  const seen = new Map<string, { readonly atMs: number; readonly keys: readonly [SigningKey, ...SigningKey[]] }>();

  const make = (file: string) => files.createOnce(file, () => storedText(clock.now(), random(keyBytes)));

  const scan = (name: string): readonly [SigningKey, ...SigningKey[]] => {
    const there = new Set(files.list());
    let newest = 1;
    while (there.has(filesOf(name, newest + 1).key) || there.has(filesOf(name, newest + 1).follow)) newest += 1;
    if (newest === 1 && !there.has(filesOf(name, 1).key)) make(filesOf(name, 1).key);
    const keys: SigningKey[] = [];
    let publicAfter: KeyObject | undefined;
    for (let number = newest; number >= 1; number -= 1) {
      const { key: file, follow } = filesOf(name, number);
      const text = files.read(file);
      const pair = text === undefined ? undefined : pairOf(parseStored(file, text).key);
      const publicKey = pair?.publicKey ?? publicAfter;
      if (!publicKey || (publicAfter && !publicAfter.equals(publicKey)))
        throw new KeyringError(`${file}: is not there, or not the key that was followed`);
      const followed = number === 1 ? undefined : files.read(follow);
      const parsed = followed === undefined ? undefined : parseFollow(follow, followed);
      if (number < newest && number > 1 && !parsed) throw new KeyringError(`${follow}: is not there`);
      keys.unshift({ number, privateKey: pair?.privateKey, publicKey, after: number === 1 ? -1 : parsed?.after });
      publicAfter = parsed?.before;
    }
    return keys as unknown as readonly [SigningKey, ...SigningKey[]];
  };

  const signingKeys = (name: string, now?: "now") => {
    const known = seen.get(name);
    if (known && now === undefined && clock.monotonicMs() - known.atMs < rescanMs) return known.keys;
    const keys = scan(name);
    seen.set(name, { atMs: clock.monotonicMs(), keys });
    return keys;
  };

  return {
    signingKeys,
    signingNames: () => [
      ...new Set(files.list().flatMap((file) => decodeURIComponent(filePattern.exec(file)?.[1] ?? "") || [])),
    ],
    rotateSigningKey: (name) => {
      const newest = signingKeys(name, "now").at(-1) as SigningKey;
      if (newest.after === undefined)
        throw new KeyringError(`key ${newest.number} of ${name} has not followed the one before yet`);
      if (newest.number >= maxNumber) throw new KeyringError("no signing key number is left");
      make(filesOf(name, newest.number + 1).key);
      return signingKeys(name, "now").at(-1) as SigningKey;
    },
    follow: (name, number, after) => {
      const before = signingKeys(name, "now")[number - 2];
      if (!before || number < 2) throw new KeyringError(`there is no key before key ${number} of ${name}`);
      const { follow } = filesOf(name, number);
      const there = parseFollow(
        follow,
        files.createOnce(follow, () => followText(after, rawOf(before.publicKey))),
      );
      if (there.after !== after) throw new KeyringError(`key ${number} of ${name} follows after ${there.after}`);
      signingKeys(name, "now");
    },
    retireSigningKeys: (name) => {
      const keys = signingKeys(name, "now");
      const inForce = keys.findLast(({ after }) => after !== undefined);
      const old = keys.filter(({ number, privateKey }) => number < (inForce?.number ?? 0) && privateKey);
      for (const { number } of old) files.remove(filesOf(name, number).key);
      signingKeys(name, "now");
      return old.length;
    },
  };
};
