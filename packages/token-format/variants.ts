import { secretHash } from "./digest.ts";
import { PREFIX_LENGTH, parseSecret, RANDOM_LENGTH } from "./secret.ts";

/** One form a leaked secret can take, as bytes to look for. `form` names it without revealing it. */
export type SecretVariant = { readonly form: string; readonly bytes: Buffer };

/**
 * What base64 makes of `body` whatever stands before and after it: one text for each of the three alignments, without
 * the characters at the edges that also depend on the neighbours.
 */
const base64Cores = (body: Uint8Array): string[] =>
  [0, 1, 2].map((pad) =>
    Buffer.concat([Buffer.alloc(pad), body])
      .toString("base64")
      .slice(Math.ceil((pad * 8) / 6), Math.floor(((pad + body.length) * 8) / 6)),
  );

/**
 * Every form in which the canary looks for a secret: whole, its random part, that in base64 (at three alignments) and
 * hex, and the secret's SHA-256 raw, in hex and in base64 of both alphabets. Encodings are of the random part, because
 * they are then also found inside an encoding of the whole. Throws for what is not a secret.
 */
export const secretVariants = (secret: string): SecretVariant[] => {
  if (!parseSecret(secret).ok) throw new TypeError("secretVariants: not a secret");
  const randomPart = Buffer.from(secret.slice(PREFIX_LENGTH, PREFIX_LENGTH + RANDOM_LENGTH));
  const hashed = Buffer.from(secretHash(secret));
  const texts: [string, string][] = [
    ["whole", secret],
    ["random part", randomPart.toString()],
    ["hex", randomPart.toString("hex")],
    ["hex, capitals", randomPart.toString("hex").toUpperCase()],
    ["SHA-256, hex", hashed.toString("hex")],
    ["SHA-256, hex, capitals", hashed.toString("hex").toUpperCase()],
  ];
  // Base62 characters never encode to "+" or "/", so the URL alphabet matters for the hash alone.
  for (const [at, text] of base64Cores(randomPart).entries()) texts.push([`base64 at ${at}`, text]);
  for (const [at, text] of base64Cores(hashed).entries()) {
    texts.push([`SHA-256, base64 at ${at}`, text]);
    const url = text.replaceAll("+", "-").replaceAll("/", "_");
    if (url !== text) texts.push([`SHA-256, base64url at ${at}`, url]);
  }
  return [
    ...texts.map(([form, text]) => ({ form, bytes: Buffer.from(text) })),
    { form: "SHA-256, raw", bytes: hashed },
  ];
};
