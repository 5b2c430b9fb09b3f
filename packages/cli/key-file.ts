import { createPrivateKey } from "node:crypto";
import { existsSync, readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { generateKeyPair, type KeyPair, publicKeyOf } from "@curfew/keyring/hpke.ts";
import { systemRandom } from "@curfew/runtime/random.ts";

/** The key that secrets of an identity are sealed to, beside its certificate (0600); made when first needed. */
export const sealingKeyOf = (identityDir: string): KeyPair => {
  const file = join(identityDir, "sealing-key.pem");
  if (!existsSync(file)) {
    const { privateKey } = generateKeyPair(systemRandom);
    writeFileSync(file, privateKey.export({ format: "pem", type: "pkcs8" }), { mode: 0o600, flag: "wx", flush: true });
  }
  const privateKey = createPrivateKey(readFileSync(file));
  return { privateKey, publicKey: publicKeyOf(privateKey) };
};
