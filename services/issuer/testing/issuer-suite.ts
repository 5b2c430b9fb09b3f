import { randomUUID } from "node:crypto";
import type { MessageInitShape } from "@bufbuild/protobuf";
import { durationFromMs } from "@bufbuild/protobuf/wkt";
import { Delivery, type GrantSchema } from "@curfew/contracts/gen/curfew/events/v1/common_pb.ts";
import { IssuerService } from "@curfew/contracts/gen/curfew/issuer/v1/issuer_pb.ts";
import { generateKeyPair, type KeyPair, open, registerKeyInfo, sealInfo } from "@curfew/keyring/hpke.ts";
import type { ServiceClient } from "@curfew/rpc/client.ts";
import type { RunningService } from "@curfew/rpc/replica.ts";
import { openTestSuite, trustDomain } from "@curfew/rpc/testing/suite.ts";
import type { Clock } from "@curfew/runtime/clock.ts";
import { systemRandom } from "@curfew/runtime/random.ts";
import { type IssuerParts, openIssuer } from "../service.ts";

export type Issuer = ServiceClient<typeof IssuerService>;

export const policyDocument = `
rules:
  - name: read-invoices
    subjects: [workload/billing, workload/reports]
    scopes: [invoices:read]
    resources: [invoices/*]
    audiences: [invoices]
    purposes: [billing]
    data_categories: [contact]
    delivery: [sealed, direct]
`;

export const grant = (more: MessageInitShape<typeof GrantSchema> = {}): MessageInitShape<typeof GrantSchema> => ({
  scopes: ["invoices:read"],
  resources: ["invoices/*"],
  audiences: ["invoices"],
  purposes: ["billing"],
  dataCategories: ["contact"],
  ...more,
});

export const uriOf = (path: string) => `spiffe://${trustDomain}/${path}`;
export const requestId = () => randomUUID();
export const minutes = (n: number) => durationFromMs(n * 60_000);

/** An issuer with one policy in force, and clients of it. */
export const openIssuerSuite = async (options: { readonly clock?: Clock; readonly policy?: string } = {}) => {
  const suite = await openTestSuite(options);
  const start = async (more: Partial<IssuerParts> = {}) =>
    suite.use(openIssuer({ ...(await suite.parts("issuer")), ...more }));
  const issuer = await start();
  const as = (path: string, service: RunningService = issuer) => suite.client(IssuerService, service, path);
  const admin = await as("person/ada");
  await admin.publishPolicy({ requestId: requestId(), policy: "tokens", document: options.policy ?? policyDocument });
  return { ...suite, issuer, start, as, admin, billing: await as("workload/billing") };
};

export const direct = (client: Issuer, more: MessageInitShape<typeof GrantSchema> = {}, id = requestId()) =>
  client.createToken({ requestId: id, grant: grant(more), delivery: Delivery.DIRECT });

/** Registers a new key as a workload's SDK does. */
export const registerKey = async (client: Issuer, path: string): Promise<KeyPair> => {
  const pair = generateKeyPair(systemRandom);
  const id = requestId();
  const { challenge } = await client.registerKey({ requestId: id, publicKey: pair.publicKey });
  if (!challenge) throw new Error("no challenge");
  const proof = open(
    pair.privateKey,
    challenge.enc,
    challenge.ciphertext,
    registerKeyInfo(uriOf(path)),
    Buffer.alloc(0),
  );
  await client.registerKey({ requestId: id, publicKey: pair.publicKey, proof });
  return pair;
};

/** Collects and opens what waits for a token's holder. */
export const collect = async (client: Issuer, path: string, tokenId: string, pair: KeyPair) => {
  const { generation, sealed } = await client.collectSecret({ tokenId });
  if (!sealed) return undefined;
  const info = sealInfo({ subject: uriOf(path), tokenId, generation, keySha256: sealed.keySha256 });
  const secret = open(pair.privateKey, sealed.enc, sealed.ciphertext, info, Buffer.alloc(0)).toString();
  return { generation, secret };
};
