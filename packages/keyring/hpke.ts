import {
  createCipheriv,
  createDecipheriv,
  createPrivateKey,
  createPublicKey,
  createSecretKey,
  diffieHellman,
  encapsulate as encapsulateTo,
  hash,
  type KeyObject,
} from "node:crypto";
import { lengthPrefixed } from "@curfew/runtime/length-prefixed.ts";
import type { Random } from "@curfew/runtime/random.ts";

/**
 * HPKE, RFC 9180, base mode, one message per context: DHKEM(X25519, HKDF-SHA256) 0x0020, HKDF-SHA256 0x0001, AES-256-GCM 0x0002.
 * On node:crypto because it is synchronous and three times as fast as WebCrypto; the test holds it to the RFC's vector and to
 * another implementation.
 */

export interface Sealed {
  /** The encapsulated (ephemeral public) key, 32 bytes. */
  readonly enc: Uint8Array;
  /** Ciphertext with its 16-byte tag. */
  readonly ciphertext: Uint8Array;
}

/** The message was not sealed to this key with this `info` and `aad`, or was changed. Says no more on purpose. */
export class OpenFailed extends Error {
  override name = "OpenFailed";
  constructor() {
    super("the sealed message cannot be opened");
  }
}

/** A key that is not 32 bytes, or a public key of low order. */
export class InvalidKey extends Error {
  override name = "InvalidKey";
}

export const keyBytes = 32;
const tagBytes = 16;
const none = Buffer.alloc(0);
const suiteOfKem = "KEM\x00\x20";
const suiteOfHpke = "HPKE\x00\x20\x00\x01\x00\x02";
const pkcs8Prefix = Buffer.from("302e020100300506032b656e04220420", "hex");
const spkiPrefix = Buffer.from("302a300506032b656e032100", "hex");

const blockBytes = 64;
const hashBytes = 32;
const innerPad = Buffer.alloc(blockBytes, 0x36);
const outerPad = Buffer.alloc(blockBytes, 0x5c);

/** RFC 2104 with a key of at most a block, over one-shot hashes: Node's Hmac objects take longer than what they hash. */
const hmac = (key: Uint8Array, ...data: Uint8Array[]): Buffer => {
  const inner = Buffer.concat([innerPad, ...data]);
  const outer = Buffer.concat([outerPad], blockBytes + hashBytes);
  for (let i = 0; i < key.length; i += 1) {
    inner[i] = 0x36 ^ (key[i] as number);
    outer[i] = 0x5c ^ (key[i] as number);
  }
  outer.set(hash("sha256", inner, "buffer"), blockBytes);
  const mac = hash("sha256", outer, "buffer");
  // They hold the key, in memory that Node gives to others next.
  inner.fill(0);
  outer.fill(0);
  return mac;
};
const labeled = (suite: string, label: string): Buffer => Buffer.from(`HPKE-v1${suite}${label}`, "latin1");
const labeledExtract = (suite: string, salt: Uint8Array, label: string, ikm: Uint8Array): Buffer =>
  hmac(salt, labeled(suite, label), ikm);
/** `length` at most 32: one block of HKDF-Expand. */
const labeledExpand = (suite: string, prk: Uint8Array, label: string, info: Uint8Array, length: number): Buffer =>
  hmac(prk, Buffer.from([0, length]), labeled(suite, label), info, Buffer.from([1])).subarray(0, length);

export const privateKeyFromRaw = (raw: Uint8Array): KeyObject => {
  if (raw.length !== keyBytes) throw new InvalidKey("an X25519 private key has 32 bytes");
  return createPrivateKey({ key: Buffer.concat([pkcs8Prefix, raw]), format: "der", type: "pkcs8" });
};

/** By the array that holds it: whoever seals to the same holder again and again, as an issuer does, has the key read once. */
const publicKeys = new WeakMap<Uint8Array, KeyObject>();

const publicKeyFromRaw = (raw: Uint8Array): KeyObject => {
  if (raw.length !== keyBytes) throw new InvalidKey("an X25519 public key has 32 bytes");
  const known = publicKeys.get(raw);
  if (known) return known;
  const key = createPublicKey({ key: Buffer.concat([spkiPrefix, raw]), format: "der", type: "spki" });
  publicKeys.set(raw, key);
  return key;
};

/** The 32 bytes of the public key that belongs to a private one. By way of JWK: OpenSSL takes ten times as long to write DER. */
export const publicKeyOf = (privateKey: KeyObject): Buffer =>
  Buffer.from(createPublicKey(privateKey).export({ format: "jwk" }).x ?? "", "base64url");

export interface KeyPair {
  readonly privateKey: KeyObject;
  /** 32 bytes. */
  readonly publicKey: Uint8Array;
}

/** RFC 9180 §7.1.3. `ikm` at least 32 random bytes. */
export const deriveKeyPair = (ikm: Uint8Array): KeyPair => {
  const prk = labeledExtract(suiteOfKem, none, "dkp_prk", ikm);
  const privateKey = privateKeyFromRaw(labeledExpand(suiteOfKem, prk, "sk", none, keyBytes));
  return { privateKey, publicKey: publicKeyOf(privateKey) };
};

export const generateKeyPair = (random: Random): KeyPair => deriveKeyPair(random(keyBytes));

/** Base mode has no pre-shared key. */
const pskIdHash = labeledExtract(suiteOfHpke, none, "psk_id_hash", none);

/** Both sides' shared secret (§4.1). Throws InvalidKey for a public key of low order. */
const agree = (mine: KeyObject, theirs: Uint8Array, enc: Uint8Array, recipient: Uint8Array): Buffer => {
  let dh: Buffer;
  try {
    dh = diffieHellman({ privateKey: mine, publicKey: publicKeyFromRaw(theirs) });
  } catch (e) {
    throw e instanceof InvalidKey ? e : lowOrder();
  }
  const eaePrk = labeledExtract(suiteOfKem, none, "eae_prk", dh);
  return labeledExpand(suiteOfKem, eaePrk, "shared_secret", Buffer.concat([enc, recipient]), 32);
};
const lowOrder = () => new InvalidKey("the X25519 public key has low order");

/** Both sides' key schedule (§5.1): AES key and base nonce. */
const schedule = (shared: Uint8Array, info: Uint8Array) => {
  const context = Buffer.concat([Buffer.from([0]), pskIdHash, labeledExtract(suiteOfHpke, none, "info_hash", info)]);
  const secret = labeledExtract(suiteOfHpke, shared, "secret", none);
  return {
    key: labeledExpand(suiteOfHpke, secret, "key", context, 32),
    baseNonce: labeledExpand(suiteOfHpke, secret, "base_nonce", context, 12),
  };
};

/** The sender's side for a given ephemeral pair: for the RFC's vector alone; use `encapsulate` and `seal`. */
export const senderContext = (publicKey: Uint8Array, info: Uint8Array, ephemeral: KeyPair) => ({
  enc: ephemeral.publicKey,
  ...schedule(agree(ephemeral.privateKey, publicKey, ephemeral.publicKey, publicKey), info),
});

/** A secret that the holder of a public key can make out of `enc`, for one message. */
export interface Encapsulated {
  /** The ephemeral public key, 32 bytes. */
  readonly enc: Uint8Array;
  readonly shared: Uint8Array;
}

/**
 * The half of a seal that needs nothing of the message, with an ephemeral pair of OpenSSL's own making: nearly all of its time, spent in
 * libuv's pool. Rejects with InvalidKey.
 */
export const encapsulate = async (publicKey: Uint8Array): Promise<Encapsulated> => {
  const key = publicKeyFromRaw(publicKey);
  return await new Promise((resolve, reject) => {
    encapsulateTo(key, (error, { sharedKey: shared, ciphertext: enc } = { sharedKey: none, ciphertext: none }) =>
      error ? reject(lowOrder()) : resolve({ enc, shared }),
    );
  });
};

/** Seals one message to whoever `encapsulate` was given the key of; another message needs an encapsulation of its own. */
export const seal = (
  { enc, shared }: Encapsulated,
  info: Uint8Array,
  plaintext: Uint8Array,
  aad: Uint8Array,
): Sealed => {
  const { key, baseNonce } = schedule(shared, info);
  const cipher = createCipheriv("aes-256-gcm", createSecretKey(key), baseNonce).setAAD(aad);
  return { enc, ciphertext: Buffer.concat([cipher.update(plaintext), cipher.final(), cipher.getAuthTag()]) };
};

/** The plaintext of one message; throws OpenFailed whatever the reason. */
export const open = (
  privateKey: KeyObject,
  enc: Uint8Array,
  ciphertext: Uint8Array,
  info: Uint8Array,
  aad: Uint8Array,
): Buffer => {
  try {
    const { key, baseNonce } = schedule(agree(privateKey, enc, enc, publicKeyOf(privateKey)), info);
    const end = ciphertext.length - tagBytes;
    const decipher = createDecipheriv("aes-256-gcm", key, baseNonce, { authTagLength: tagBytes }).setAAD(aad);
    decipher.setAuthTag(ciphertext.subarray(end));
    return Buffer.concat([decipher.update(ciphertext.subarray(0, end)), decipher.final()]);
  } catch {
    throw new OpenFailed();
  }
};

/** HPKE `info` of a sealed token secret: whose, which token, which generation, which key. Another of any of these cannot open it. */
export const sealInfo = (binding: {
  readonly subject: string;
  readonly tokenId: string;
  /** From 1. */
  readonly generation: number;
  /** SHA-256 of the registered public key, 32 bytes. */
  readonly keySha256: Uint8Array;
}): Uint8Array =>
  lengthPrefixed(
    "curfew/sealed-secret/v1",
    binding.subject,
    binding.tokenId,
    String(binding.generation),
    binding.keySha256,
  );

/** HPKE `info` of the challenge in RegisterKey: only whoever is asked as this SPIFFE ID can be made to open it. */
export const registerKeyInfo = (spiffeId: string): Uint8Array => lengthPrefixed("curfew-register-key", spiffeId);
