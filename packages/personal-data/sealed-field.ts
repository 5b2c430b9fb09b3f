import {
  createCipheriv,
  createDecipheriv,
  createSecretKey,
  hkdfSync,
  type KeyObject,
  timingSafeEqual,
} from "node:crypto";
import { lengthPrefixed } from "@curfew/runtime/length-prefixed.ts";
import type { Random } from "@curfew/runtime/random.ts";

/**
 * Personal data inside an event, readable with the person's key alone. HKDF-SHA256 over that key and a fresh salt makes key, nonce and a
 * commitment; the commitment stands in the event, and so in the leaf that is signed: AES-GCM alone would let whoever holds two keys make
 * one ciphertext that opens under both. Where it stands (event type, field, id) is bound by HKDF's info and as associated data.
 */
export interface Sealed {
  /** Whose key. */
  readonly pseudonym: string;
  /** 16 bytes. */
  readonly salt: Uint8Array;
  /** 32 bytes. */
  readonly commitment: Uint8Array;
  /** Of 64, 256 or 1,024 bytes, and a tag of 16. */
  readonly ciphertext: Uint8Array;
}

/** Where a sealed field stands. */
export interface FieldPlace {
  /** CloudEvents type. */
  readonly eventType: string;
  /** Name in the event, e.g. "source.address". */
  readonly field: string;
  /** Of the fact, e.g. a use's. */
  readonly id: string;
}

/** Not what was sealed there under this key. Says nothing of the content. */
export class NotSealedThere extends Error {
  override name = "NotSealedThere";
}

const cipher = "aes-256-gcm";
const saltBytes = 16;
const keyBytes = 32;
const nonceBytes = 12;
const commitmentBytes = 32;
const tagBytes = 16;
const lengthBytes = 2;
/** Lengths there are: an address of any kind is in the first. */
const buckets = [64, 256, 1_024] as const;

const derive = (personKey: KeyObject, salt: Uint8Array, context: Uint8Array) => {
  const bytes = Buffer.from(
    hkdfSync("sha256", personKey, salt, context, keyBytes + nonceBytes + commitmentBytes) as ArrayBuffer,
  );
  return {
    // Ciphers take a KeyObject in a quarter of the time that they take bytes in.
    key: createSecretKey(bytes.subarray(0, keyBytes)),
    nonce: bytes.subarray(keyBytes, keyBytes + nonceBytes),
    commitment: bytes.subarray(keyBytes + nonceBytes),
  };
};

const contextOf = (pseudonym: string, { eventType, field, id }: FieldPlace): Buffer =>
  lengthPrefixed("curfew/sealed-field/v1", pseudonym, eventType, field, id);

const padded = (text: string): Buffer => {
  const content = Buffer.from(text, "utf8");
  const size = buckets.find((bucket) => content.length + lengthBytes <= bucket);
  if (size === undefined) throw new RangeError(`a sealed field holds at most ${buckets[2] - lengthBytes} bytes`);
  const bytes = Buffer.alloc(size);
  bytes.writeUInt16BE(content.length, 0);
  content.copy(bytes, lengthBytes);
  return bytes;
};

const unpadded = (bytes: Buffer): string => {
  const length = bytes.readUInt16BE(0);
  const end = lengthBytes + length;
  if (end > bytes.length || bytes.subarray(end).some((byte) => byte !== 0)) throw new NotSealedThere("wrong padding");
  return bytes.toString("utf8", lengthBytes, end);
};

/** Throws RangeError for more than 1,022 bytes. */
export const sealField = (
  personKey: KeyObject,
  pseudonym: string,
  place: FieldPlace,
  text: string,
  random: Random,
): Sealed => {
  const salt = random(saltBytes);
  const context = contextOf(pseudonym, place);
  const { key, nonce, commitment } = derive(personKey, salt, context);
  const sealing = createCipheriv(cipher, key, nonce).setAAD(context);
  const ciphertext = Buffer.concat([sealing.update(padded(text)), sealing.final(), sealing.getAuthTag()]);
  return { pseudonym, salt, commitment, ciphertext };
};

/** Throws NotSealedThere, before anything is deciphered where the commitment is another key's. */
export const openField = (personKey: KeyObject, sealed: Sealed, place: FieldPlace): string => {
  const { pseudonym, salt, ciphertext } = sealed;
  const wellFormed = salt.length === saltBytes && buckets.some((bucket) => ciphertext.length === bucket + tagBytes);
  const context = contextOf(pseudonym, place);
  const { key, nonce, commitment } = derive(personKey, salt, context);
  if (!wellFormed || sealed.commitment.length !== commitmentBytes || !timingSafeEqual(commitment, sealed.commitment))
    throw new NotSealedThere("this is not what was committed to here under this person's key");
  const opening = createDecipheriv(cipher, key, nonce, { authTagLength: tagBytes });
  opening.setAAD(context).setAuthTag(ciphertext.subarray(-tagBytes));
  try {
    return unpadded(Buffer.concat([opening.update(ciphertext.subarray(0, -tagBytes)), opening.final()]));
  } catch (cause) {
    throw cause instanceof NotSealedThere ? cause : new NotSealedThere("the ciphertext was changed", { cause });
  }
};
