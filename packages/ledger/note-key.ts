import { createPrivateKey, createPublicKey, hash, type KeyObject, sign, verify } from "node:crypto";
import { decodeBase64, NoteError } from "./note-error.ts";

/** The longest key name (and so the longest origin of a log). */
export const MAX_NAME_LENGTH = 255;
const MAX_KEY_TEXT_LENGTH = 1024;
export const ED25519 = 1;
export const ED25519_COSIGNATURE = 4;
const ED25519_SIGNATURE_BYTES = 64;
const TIME_BYTES = 8;
const spkiPrefix = Buffer.from("302a300506032b6570032100", "hex");
const pkcs8Prefix = Buffer.from("302e020100300506032b657004220420", "hex");

/** Checks one kind of signature line. `keyId` is 32 bits, `type` that of the key (01 or 04), `publicKey` raw. `verify` gets the note's text and the bytes after the key id; never throws. */
export type NoteVerifier = {
  readonly name: string;
  readonly keyId: number;
  readonly type: number;
  readonly publicKey: Uint8Array;
  readonly verify: (text: string, signature: Uint8Array) => boolean;
};

/** Makes one kind of signature line. */
export type NoteSigner = {
  readonly name: string;
  readonly keyId: number;
  readonly sign: (text: string) => Uint8Array;
};

/** Whether `name` can stand in a signature line: non-empty, no Unicode space or control character, no `+`. */
export const isKeyName = (name: string): boolean =>
  name.length > 0 && name.length <= MAX_NAME_LENGTH && name.isWellFormed() && !/[\p{White_Space}\p{Cc}+]/u.test(name);

const keyIdOf = (name: string, type: number, publicKey: Uint8Array): number => {
  if (!isKeyName(name)) throw new NoteError("not a key name");
  return hash("sha256", Buffer.concat([Buffer.from(`${name}\n`), Buffer.of(type), publicKey]), "buffer").readUInt32BE(
    0,
  );
};

const keyIdText = (name: string, type: number, publicKey: Uint8Array): string =>
  keyIdOf(name, type, publicKey).toString(16).padStart(8, "0");

const rawPublicKey = (key: KeyObject): Buffer => {
  if (key.asymmetricKeyType !== "ed25519") throw new NoteError("a note key is an Ed25519 key");
  const publicKey = key.type === "private" ? createPublicKey(key) : key;
  return publicKey.export({ format: "der", type: "spki" }).subarray(spkiPrefix.length);
};

/** The message of a C2SP cosignature/v1 over a checkpoint. */
const cosigned = (seconds: bigint, text: string): Buffer => Buffer.from(`cosignature/v1\ntime ${seconds}\n${text}`);

/** The time of a cosignature in POSIX seconds, out of the bytes after the key id; undefined when those are not one. */
export const cosignatureSeconds = (signature: Uint8Array): number | undefined => {
  if (signature.length !== TIME_BYTES + ED25519_SIGNATURE_BYTES) return undefined;
  const seconds = Number(Buffer.from(signature.subarray(0, TIME_BYTES)).readBigUInt64BE(0));
  return Number.isSafeInteger(seconds) ? seconds : undefined;
};

const verifierOf = (name: string, type: number, publicKey: Buffer): NoteVerifier => {
  const key = createPublicKey({ key: Buffer.concat([spkiPrefix, publicKey]), format: "der", type: "spki" });
  const plain = (text: string, signature: Uint8Array): boolean =>
    signature.length === ED25519_SIGNATURE_BYTES && verify(null, Buffer.from(text), key, signature);
  const withTime = (text: string, signature: Uint8Array): boolean => {
    const seconds = cosignatureSeconds(signature);
    return seconds !== undefined && verify(null, cosigned(BigInt(seconds), text), key, signature.subarray(TIME_BYTES));
  };
  const keyId = keyIdOf(name, type, publicKey);
  return { name, keyId, type, publicKey, verify: type === ED25519 ? plain : withTime };
};

/** Splits `name+<8 hex>+base64(type ‖ 32 bytes)` and checks that the key id is that of `publicKeyOf` the bytes. */
const parseKeyText = (text: string, publicKeyOf: (raw: Buffer) => Buffer) => {
  if (text.length > MAX_KEY_TEXT_LENGTH)
    throw new NoteError(`a note key has at most ${MAX_KEY_TEXT_LENGTH} characters`);
  const [, name = "", id = "", encoded = ""] = /^([^+]*)\+([0-9a-f]{8})\+(.*)$/.exec(text) ?? [];
  const bytes = isKeyName(name) ? decodeBase64(encoded) : undefined;
  const type = bytes?.[0];
  if (bytes === undefined || type === undefined) throw new NoteError("malformed note key");
  if ((type !== ED25519 && type !== ED25519_COSIGNATURE) || bytes.length !== 33)
    throw new NoteError(`note key of type ${type} and ${bytes.length - 1} bytes: not supported`);
  const raw = bytes.subarray(1);
  if (id !== keyIdText(name, type, publicKeyOf(raw)))
    throw new NoteError("the id of the note key is not that of its bytes");
  return { name, type, raw };
};

/** Reads a verifier key text: type 01 (Ed25519) or 04 (Ed25519 cosignature). Throws a `NoteError`. */
export const parseVerifierKey = (text: string): NoteVerifier => {
  const { name, type, raw } = parseKeyText(text, (publicKey) => publicKey);
  return verifierOf(name, type, raw);
};

const keyText = (name: string, type: number, publicKey: Buffer): string =>
  `${name}+${keyIdText(name, type, publicKey)}+${Buffer.concat([Buffer.of(type), publicKey]).toString("base64")}`;

/** The text of a key under another name. */
export const renamedKeyText = ({ type, publicKey }: Pick<NoteVerifier, "type" | "publicKey">, name: string): string =>
  keyText(name, type, Buffer.from(publicKey));

/** The verifier key text of an Ed25519 key (either half) that signs notes. */
export const verifierKeyText = (name: string, key: KeyObject): string => keyText(name, ED25519, rawPublicKey(key));

/** The verifier key text of an Ed25519 key that cosigns as a witness. */
export const cosignerKeyText = (name: string, key: KeyObject): string =>
  keyText(name, ED25519_COSIGNATURE, rawPublicKey(key));

/** Signs notes as `name` (type 01). Throws a `NoteError` unless `privateKey` is an Ed25519 private key. */
export const noteSigner = (name: string, privateKey: KeyObject): NoteSigner => {
  if (privateKey.type !== "private") throw new NoteError("a private key is wanted");
  const keyId = keyIdOf(name, ED25519, rawPublicKey(privateKey));
  return { name, keyId, sign: (text) => sign(null, Buffer.from(text), privateKey) };
};

/** Cosigns checkpoints as the witness `name` (type 04) at `seconds` since the Unix epoch. */
export const noteCosigner = (name: string, privateKey: KeyObject, seconds: number): NoteSigner => {
  if (privateKey.type !== "private") throw new NoteError("a private key is wanted");
  if (!Number.isSafeInteger(seconds) || seconds < 0) throw new NoteError("a cosignature's time is whole seconds");
  const keyId = keyIdOf(name, ED25519_COSIGNATURE, rawPublicKey(privateKey));
  const time = Buffer.alloc(TIME_BYTES);
  time.writeBigUInt64BE(BigInt(seconds));
  const signText = (text: string) => Buffer.concat([time, sign(null, cosigned(BigInt(seconds), text), privateKey)]);
  return { name, keyId, sign: signText };
};

const privateKeyOf = (seed: Buffer): KeyObject =>
  createPrivateKey({ key: Buffer.concat([pkcs8Prefix, seed]), format: "der", type: "pkcs8" });

const SIGNER_PREFIX = "PRIVATE+KEY+";

const parseSecret = (text: string, wanted: number): { name: string; privateKey: KeyObject } => {
  if (!text.startsWith(SIGNER_PREFIX)) throw new NoteError("malformed note key");
  const { name, type, raw } = parseKeyText(text.slice(SIGNER_PREFIX.length), (seed) =>
    rawPublicKey(privateKeyOf(seed)),
  );
  if (type !== wanted) throw new NoteError(`not a key of type ${wanted}`);
  return { name, privateKey: privateKeyOf(raw) };
};

const secretText = (name: string, type: number, privateKey: KeyObject): string => {
  if (privateKey.type !== "private") throw new NoteError("a private key is wanted");
  const id = keyIdText(name, type, rawPublicKey(privateKey));
  const seed = privateKey.export({ format: "der", type: "pkcs8" }).subarray(pkcs8Prefix.length);
  return `${SIGNER_PREFIX}${name}+${id}+${Buffer.concat([Buffer.of(type), seed]).toString("base64")}`;
};

/** Reads a signer key text of type 01, `PRIVATE+KEY+name+<8 hex>+base64(01 ‖ seed)`. Throws a `NoteError` that repeats none of it. */
export const parseSignerKey = (text: string): NoteSigner => {
  const { name, privateKey } = parseSecret(text, ED25519);
  return noteSigner(name, privateKey);
};

/** The signer key text of an Ed25519 private key: a secret. */
export const signerKeyText = (name: string, privateKey: KeyObject): string => secretText(name, ED25519, privateKey);

/** Reads the same of a witness's key, type 04. Throws a `NoteError` that repeats none of it. */
export const parseCosignerKey = (text: string): { readonly name: string; readonly privateKey: KeyObject } =>
  parseSecret(text, ED25519_COSIGNATURE);

/** The signer key text of a witness's private key: a secret. */
export const cosignerSecretText = (name: string, privateKey: KeyObject): string =>
  secretText(name, ED25519_COSIGNATURE, privateKey);
