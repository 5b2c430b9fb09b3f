import { hash } from "node:crypto";
import type { CollectSecretResponse, IssuerService } from "@curfew/contracts/gen/curfew/issuer/v1/issuer_pb.ts";
import { type KeyPair, open, registerKeyInfo, sealInfo } from "@curfew/keyring/hpke.ts";
import type { ServiceClient } from "@curfew/rpc/client.ts";
import { parseSecret } from "@curfew/token-format/secret.ts";

export interface Delivered extends Pick<CollectSecretResponse, "generation" | "expiresAt" | "rotatesAt"> {
  readonly secret: string;
}

const none = new Uint8Array();

/** The holder's side of sealed delivery (HPKE, RFC 9180): registers the key and opens what is sealed to it. */
export const openSealedDelivery = (options: {
  readonly issuer: ServiceClient<typeof IssuerService>;
  /** SPIFFE ID of the holder. */
  readonly subject: string;
  readonly keyPair: KeyPair;
}) => {
  const { issuer, subject } = options;
  const { publicKey, privateKey } = options.keyPair;
  const keySha256 = hash("sha256", publicKey, "buffer");
  return {
    /** Proves possession of the key by opening a nonce sealed to it. `requestId`: UUID. */
    async register(requestId: string): Promise<void> {
      const { challenge } = await issuer.registerKey({ requestId, publicKey });
      if (!challenge) return;
      const proof = open(privateKey, challenge.enc, challenge.ciphertext, registerKeyInfo(subject), none);
      await issuer.registerKey({ requestId, publicKey, proof });
    },
    /**
     * The secret of a generation above `above`, if one waits that is sealed to this key; one sealed to a key registered before is none.
     * Throws OpenFailed when it was sealed for something else, Error when what was sealed is no secret.
     */
    async collect(tokenId: string, above: number): Promise<Delivered | undefined> {
      const { generation, sealed, ...times } = await issuer.collectSecret({ tokenId, aboveGeneration: above });
      if (generation <= above || !sealed || !keySha256.equals(sealed.keySha256)) return undefined;
      const info = sealInfo({ subject, tokenId, generation, keySha256 });
      const secret = open(privateKey, sealed.enc, sealed.ciphertext, info, none).toString("latin1");
      if (!parseSecret(secret).ok) throw new Error("what was sealed is no secret");
      return { secret, generation, ...times };
    },
  };
};
