import { createHmac, timingSafeEqual } from "node:crypto";
import { create } from "@bufbuild/protobuf";
import { Delivery, DigestSchema } from "@curfew/contracts/gen/curfew/events/v1/common_pb.ts";
import type { CommitDoc } from "@curfew/event-log/streams.ts";
import { encapsulate, registerKeyInfo, type Sealed, seal, sealInfo } from "@curfew/keyring/hpke.ts";
import type { Keyring } from "@curfew/keyring/keyring.ts";
import { lengthPrefixed } from "@curfew/runtime/length-prefixed.ts";
import type { Random } from "@curfew/runtime/random.ts";
import { digest, secretHash } from "@curfew/token-format/digest.ts";
import { mintSecret } from "@curfew/token-format/secret.ts";
import type { KeyState } from "./domain/records.ts";
import type { CurrentGeneration, TokenEvent } from "./domain/token-state.ts";
import type { NewSecret } from "./domain.ts";

/** The impure side of a secret: made here, kept nowhere but sealed beside the commit of its generation. */

/** Which key a secret is sealed to. */
export type SealKey = Pick<KeyState, "publicKey" | "keySha256">;

export interface MintedSecret extends NewSecret {
  /** For `handle`: the ciphertext that goes into the commit document beside the event of its generation; none where it is shown. */
  attach(events: readonly TokenEvent[]): Promise<CommitDoc["attached"]>;
  /** The secret, if this is the one that the generation has: another's command may have come first. */
  shownFor(generation: CurrentGeneration): string | undefined;
}

/** A sealed secret as it stands in a commit document. */
export const sealedOf = (doc: CommitDoc | undefined): (Sealed & { readonly keySha256: Uint8Array }) | undefined => {
  const { enc, ciphertext, keySha256 } = doc?.attached ?? {};
  const whole = enc instanceof Uint8Array && ciphertext instanceof Uint8Array && keySha256 instanceof Uint8Array;
  return whole ? { enc, ciphertext, keySha256 } : undefined;
};

export const mint = (keyring: Keyring, random: Random, key: SealKey | undefined): MintedSecret => {
  const secret = mintSecret("s", random);
  const pepper = keyring.peppers().current;
  const value = digest(pepper.key, secretHash(secret));
  // Begun before anybody knows whether it is needed, so that it is done when the policies are there.
  const encapsulated = key && encapsulate(key.publicKey);
  encapsulated?.catch(() => undefined); // whoever attaches sees it
  return {
    digest: create(DigestSchema, { pepperId: pepper.id, value }),
    keySha256: key?.keySha256,
    async attach(events) {
      const [event] = events;
      const made =
        event?.$typeName === "curfew.events.v1.TokenIssued" || event?.$typeName === "curfew.events.v1.TokenRotated";
      if (!made || event.generation?.delivery !== Delivery.SEALED) return undefined;
      if (!key || !encapsulated) throw new Error("a sealed generation without a key");
      const { subject, tokenId, generation } = event;
      const info = sealInfo({ subject, tokenId, generation: generation.number, keySha256: key.keySha256 });
      const { enc, ciphertext } = seal(await encapsulated, info, Buffer.from(secret), Buffer.alloc(0));
      return { enc, ciphertext, keySha256: key.keySha256 };
    },
    shownFor: (generation) => {
      const stored = generation.digest?.value;
      const same =
        generation.delivery === Delivery.DIRECT && stored?.length === value.length && timingSafeEqual(stored, value);
      return same ? secret : undefined;
    },
  };
};

const challengeMs = 5 * 60_000;

/** The nonce that a subject must open for a key: made anew from a secret key each time, so that nothing has to be remembered. */
const challengeNonce = (keyring: Keyring, subject: string, publicKey: Uint8Array, bucket: number): Buffer =>
  createHmac("sha256", keyring.secretKey("challenges"))
    .update(lengthPrefixed(subject, publicKey, String(bucket)))
    .digest();

/** A challenge sealed to the key; good for 5 to 10 minutes. Rejects with InvalidKey. */
export const sealChallenge = async (
  keyring: Keyring,
  subject: string,
  publicKey: Uint8Array,
  nowMs: number,
): Promise<Sealed> => {
  const nonce = challengeNonce(keyring, subject, publicKey, Math.floor(nowMs / challengeMs));
  return seal(await encapsulate(publicKey), registerKeyInfo(subject), nonce, Buffer.alloc(0));
};

/** Whether `proof` is the nonce of the running or the last five minutes. */
export const provesKey = (
  keyring: Keyring,
  subject: string,
  publicKey: Uint8Array,
  proof: Uint8Array,
  nowMs: number,
): boolean => {
  const bucket = Math.floor(nowMs / challengeMs);
  const matches = [bucket, bucket - 1].map((each) => {
    const nonce = challengeNonce(keyring, subject, publicKey, each);
    return proof.length === nonce.length && timingSafeEqual(proof, nonce);
  });
  return matches.includes(true);
};
