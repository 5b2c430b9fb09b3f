import type { KeyObject } from "node:crypto";
import { createHash } from "node:crypto";
import { create, type Message } from "@bufbuild/protobuf";
import { timestampFromMs } from "@bufbuild/protobuf/wkt";
import { EvidenceMode } from "@curfew/contracts/gen/curfew/events/v1/common_pb.ts";
import { RevocationReason, TokenRevokedSchema } from "@curfew/contracts/gen/curfew/events/v1/revocations_pb.ts";
import {
  TokenExpiredSchema,
  TokenIssuedSchema,
  TokenRotatedSchema,
} from "@curfew/contracts/gen/curfew/events/v1/tokens_pb.ts";
import { digest, secretHash } from "@curfew/token-format/digest.ts";
import { tokenIdFrom } from "@curfew/token-format/token-id.ts";

/** Facts as issuer and revocation write them, for tests. */
export const dayMs = 86_400_000;

export const tokenIdOf = (name: string): string => tokenIdFrom(createHash("sha256").update(name).digest());

export const someDigest = (name: string): Uint8Array => createHash("sha256").update(`digest ${name}`).digest();

export const digestOf = (pepper: KeyObject, secret: string): Uint8Array => digest(pepper, secretHash(secret));

interface Times {
  readonly notBeforeMs: number;
  readonly expiresAtMs: number;
}

const generationOf = (number: number, value: Uint8Array, { notBeforeMs, expiresAtMs }: Times) => ({
  number,
  digest: { pepperId: "p1", value },
  notBefore: timestampFromMs(notBeforeMs),
  expiresAt: timestampFromMs(expiresAtMs),
});

export const grantOf = (more: object = {}) => ({
  scopes: ["invoices:read"],
  resources: ["invoices/**"],
  audiences: ["crm"],
  purposes: ["billing"],
  dataCategories: ["contact"],
  evidenceMode: EvidenceMode.BEFORE_USE,
  ...more,
});

export const issued = (
  name: string,
  times: Times & { readonly digest?: Uint8Array; readonly lineageExpiresAtMs?: number },
  more: { readonly grant?: object; readonly ancestors?: readonly string[] } = {},
): Message =>
  create(TokenIssuedSchema, {
    tokenId: tokenIdOf(name),
    subject: `spiffe://test.example/workload/${name}`,
    grant: grantOf(more.grant),
    policy: "default",
    policyVersion: 1,
    policyRule: "all",
    generation: generationOf(1, times.digest ?? someDigest(`${name}/1`), times),
    lineageExpiresAt: timestampFromMs(times.lineageExpiresAtMs ?? times.notBeforeMs + 30 * dayMs),
    ancestors: (more.ancestors ?? []).map(tokenIdOf),
  });

export const rotated = (
  name: string,
  number: number,
  times: Times & { readonly previousEndsAtMs: number; readonly digest?: Uint8Array },
): Message =>
  create(TokenRotatedSchema, {
    tokenId: tokenIdOf(name),
    subject: `spiffe://test.example/workload/${name}`,
    generation: generationOf(number, times.digest ?? someDigest(`${name}/${number}`), times),
    previousEndsAt: timestampFromMs(times.previousEndsAtMs),
  });

export const expired = (name: string, atMs: number): Message =>
  create(TokenExpiredSchema, { tokenId: tokenIdOf(name), expiredAt: timestampFromMs(atMs) });

export const revoked = (name: string, atMs: number): Message =>
  create(TokenRevokedSchema, {
    tokenId: tokenIdOf(name),
    reason: RevocationReason.LEAKED,
    revokedAt: timestampFromMs(atMs),
  });
