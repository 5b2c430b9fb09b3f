import { createCipheriv, createDecipheriv } from "node:crypto";
import type { EpochKey, EpochKeys } from "@curfew/keyring/epoch-keys.ts";
import { lengthPrefixed } from "@curfew/runtime/length-prefixed.ts";
import type { Random } from "@curfew/runtime/random.ts";

/**
 * What a row of the personal store says is wrapped under the key of an epoch: AES-256-GCM with a random nonce, bound to the epoch, the kind
 * of row and its id. The field is named by the epoch, so that wrapping anew adds one beside the other and no writer undoes another's.
 */
export type RowKind = "identity" | "person";

const nonceBytes = 12;
const tagBytes = 16;
const cipher = "aes-256-gcm";
const fieldPattern = /^w([1-9]\d{0,5})$/;

export const fieldOf = (epoch: number): string => `w${epoch}`;
/** Epochs under which the row is wrapped. */
export const epochsIn = (row: Readonly<Record<string, unknown>>): number[] =>
  Object.keys(row).flatMap((name) => {
    const number = fieldPattern.exec(name)?.[1];
    return number === undefined ? [] : [Number(number)];
  });

const context = (epoch: number, kind: RowKind, id: string) =>
  lengthPrefixed("curfew/epoch-wrap/v1", String(epoch), kind, id);

/** Nonce, ciphertext, tag; at most 2^32 a key (NIST SP 800-38D, 8.3). */
export const wrap = (
  { number, key }: EpochKey,
  kind: RowKind,
  id: string,
  content: Uint8Array,
  random: Random,
): Uint8Array => {
  const nonce = random(nonceBytes);
  const sealing = createCipheriv(cipher, key, nonce).setAAD(context(number, kind, id));
  return Buffer.concat([nonce, sealing.update(content), sealing.final(), sealing.getAuthTag()]);
};

/** What the row says, by whichever live epoch it is wrapped under; undefined: none of those. Throws where the row is not what was written. */
export const unwrap = (
  epochs: Pick<EpochKeys, "live">,
  kind: RowKind,
  row: Readonly<Record<string, unknown>> & { readonly _id: string },
): Buffer | undefined => {
  for (const { number, key } of epochs.live()) {
    const found = row[fieldOf(number)];
    if (!(found instanceof Uint8Array)) continue;
    const opening = createDecipheriv(cipher, key, found.subarray(0, nonceBytes), { authTagLength: tagBytes });
    opening.setAAD(context(number, kind, row._id)).setAuthTag(found.subarray(-tagBytes));
    return Buffer.concat([opening.update(found.subarray(nonceBytes, -tagBytes)), opening.final()]);
  }
  return undefined;
};
