import { type Connection, openTokenSource } from "@curfew/client/token-source.ts";
import { generateKeyPair } from "@curfew/keyring/hpke.ts";
import { systemRandom } from "@curfew/runtime/random.ts";

/** billing asks for a token to read invoices, and keeps a good secret from now on. */
export const openBillingToken = (issuer: string, connection: Connection) =>
  openTokenSource({
    ...connection,
    issuer,
    keyPair: generateKeyPair(systemRandom),
    wanted: {
      grant: {
        scopes: ["invoices:read"],
        resources: ["invoices/*"],
        audiences: ["invoices"],
        purposes: ["billing"],
        dataCategories: ["contact"],
      },
    },
  });
