import { createHash, randomUUID } from "node:crypto";
import { openSealedDelivery } from "@curfew/client/sealed-delivery.ts";
import { Delivery } from "@curfew/contracts/gen/curfew/events/v1/common_pb.ts";
import { IssuerService } from "@curfew/contracts/gen/curfew/issuer/v1/issuer_pb.ts";
import { RevocationService } from "@curfew/contracts/gen/curfew/revocation/v1/revocation_pb.ts";
import { VerifierService } from "@curfew/contracts/gen/curfew/verifier/v1/verifier_pb.ts";
import { generateKeyPair } from "@curfew/keyring/hpke.ts";
import { systemRandom } from "@curfew/runtime/random.ts";
import { mintSecret } from "@curfew/token-format/secret.ts";
import type { Cast } from "./cast.ts";

const policy = `
rules:
  - name: crm-reads-invoices
    subjects: [workload/crm]
    scopes: [invoices:read]
    resources: ["invoices/**"]
    audiences: [invoices]
    purposes: [support]
    binding: none
    ttl_max: 1h
    lineage_max: 30d
    overlap_max: 10m
    delivery: [direct, sealed]
`;
const grant = { scopes: ["invoices:read"], resources: ["invoices/**"], audiences: ["invoices"], purposes: ["support"] };
const use = { scope: "invoices:read", resource: "invoices/1", purpose: "support", controller: "acme" };
const sighting = { kind: "chat", location: "https://chat.acme.example/1", public: false };
const sha256 = (secret: string) => createHash("sha256").update(secret).digest();

/** A token delivered direct and one sealed, each rotated: four secrets. */
const mint = async (cast: Cast): Promise<{ direct: string[]; sealed: string[] }> => {
  const admin = cast.client(IssuerService, "issuer", "person/ada");
  await admin.publishPolicy({ requestId: randomUUID(), policy: "support", document: policy });
  const issuer = cast.client(IssuerService, "issuer", "workload/crm");
  const shown = await issuer.createToken({ requestId: randomUUID(), grant, delivery: Delivery.DIRECT });
  const tokenId = shown.token?.tokenId ?? "";
  const rotated = await issuer.rotateToken({ requestId: randomUUID(), tokenId, delivery: Delivery.DIRECT });

  const subject = "spiffe://curfew.example/workload/crm";
  const holder = openSealedDelivery({ issuer, subject, keyPair: generateKeyPair(systemRandom) });
  await holder.register(randomUUID());
  const { token } = await issuer.createToken({ requestId: randomUUID(), grant, delivery: Delivery.SEALED });
  const sealedId = token?.tokenId ?? "";
  const first = await holder.collect(sealedId, 0);
  await issuer.rotateToken({ requestId: randomUUID(), tokenId: sealedId, delivery: Delivery.SEALED });
  const second = await holder.collect(sealedId, 1);
  const secrets = { direct: [shown.secret, rotated.secret], sealed: [first?.secret ?? "", second?.secret ?? ""] };
  if (Object.values(secrets).flat().includes("")) throw new Error("a secret was not delivered");
  return secrets;
};

/**
 * Everything else that takes a secret, for the canary: tokens delivered direct and rotated, verified by secret and by hash, identified,
 * reported and revoked; and a secret of another installation, that Curfew does not know. Returns all of these secrets.
 */
export const playMoreTokens = async (cast: Cast): Promise<string[]> => {
  const { direct, sealed } = await mint(cast);
  const foreign = mintSecret("s", systemRandom);
  const all = [...direct, ...sealed, foreign];
  const verifier = cast.client(VerifierService, "verifier", "workload/invoices");
  const credentials = [
    ...all.map((value) => ({ case: "secret", value }) as const),
    ...all.map((secret) => ({ case: "secretSha256", value: sha256(secret) }) as const),
  ];
  for (const credential of credentials)
    await verifier.verifyToken({ credential, use: { ...use, maxPeople: 1n, maxRecords: 1n } });

  const security = cast.client(RevocationService, "revocation", "person/sam");
  for (const secret of all) await security.identifySecret({ secretSha256: sha256(secret) });
  for (const secret of [sealed[0] as string, foreign])
    await security.reportLeak({ requestId: randomUUID(), secretSha256: sha256(secret), sighting });
  const holder = cast.client(RevocationService, "revocation", "workload/crm");
  for (const secret of [direct[1] as string, foreign]) await holder.revokeBySecret({ requestId: randomUUID(), secret });
  return all;
};
