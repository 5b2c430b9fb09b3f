import { crc32 } from "node:zlib";
import type { Random } from "@curfew/runtime/random.ts";

/** `s` service token, `x` exchanged token, `c` rotation credential. */
export type SecretKind = "s" | "x" | "c";

/** Digits, capitals, small letters, in this order: the base62 GitHub uses for its tokens. */
export const ALPHABET = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";
export const PREFIX_LENGTH = 5;
export const RANDOM_LENGTH = 30;
const CHECK_LENGTH = 6;
/** Every secret has exactly this many characters, all ASCII. */
export const SECRET_LENGTH = PREFIX_LENGTH + RANDOM_LENGTH + CHECK_LENGTH;
/** The one regular expression of the format, without anchors; the checksum decides what it lets through. */
export const SECRET_PATTERN = `cfw[sxc]_[0-9A-Za-z]{${RANDOM_LENGTH + CHECK_LENGTH}}`;

const whole = new RegExp(`^${SECRET_PATTERN}$`);
/** The largest multiple of 62 a byte can hold: a byte at or above it would favour the first characters. */
const REJECT_FROM = 248;
/** One byte in 32 is rejected, so a third draw is already rare; a source that never yields is broken. */
const MAX_DRAWS = 16;

/** Base62 of the CRC-32 (zlib) over the random characters alone, six characters, padded with `0`. */
export const checkCharacters = (randomPart: string): string => {
  let rest = crc32(randomPart);
  let text = "";
  for (let i = 0; i < CHECK_LENGTH; i++) {
    text = ALPHABET.charAt(rest % 62) + text;
    rest = Math.floor(rest / 62);
  }
  return text;
};

/** A new secret of about 178 bits. Throws when `random` is broken; the secret exists nowhere else. */
export const mintSecret = (kind: SecretKind, random: Random): string => {
  let part = "";
  for (let draw = 0; draw < MAX_DRAWS; draw++) {
    for (const byte of random(RANDOM_LENGTH + 2)) {
      if (byte >= REJECT_FROM) continue;
      part += ALPHABET.charAt(byte % 62);
      if (part.length === RANDOM_LENGTH) return `cfw${kind}_${part}${checkCharacters(part)}`;
    }
  }
  throw new Error("mintSecret: the random source yields no usable bytes");
};

export type ParsedSecret = { readonly ok: true; readonly kind: SecretKind } | { readonly ok: false };

/** Whether `text` is a well-formed secret, and of which kind. Says nothing about life; never throws, reads at most 41 characters. */
export const parseSecret = (text: unknown): ParsedSecret => {
  if (typeof text !== "string" || text.length !== SECRET_LENGTH || !whole.test(text)) return { ok: false };
  const end = PREFIX_LENGTH + RANDOM_LENGTH;
  if (checkCharacters(text.slice(PREFIX_LENGTH, end)) !== text.slice(end)) return { ok: false };
  return { ok: true, kind: text.charAt(3) as SecretKind };
};
