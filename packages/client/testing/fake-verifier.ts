import { createHash } from "node:crypto";
import { create, type MessageInitShape } from "@bufbuild/protobuf";
import { timestampFromMs } from "@bufbuild/protobuf/wkt";
import { EvidenceMode } from "@curfew/contracts/gen/curfew/events/v1/common_pb.ts";
import { Reason } from "@curfew/contracts/gen/curfew/events/v1/uses_pb.ts";
import {
  type CachedUse,
  type CompletedUse,
  CompletedUseSchema,
  type UseRequest,
  VerifierService,
  type VerifyTokenRequest,
  type VerifyTokenResponseSchema,
} from "@curfew/contracts/gen/curfew/verifier/v1/verifier_pb.ts";
import { RpcError, type RpcFailure } from "@curfew/rpc/errors.ts";
import { type BoundService, bindService } from "@curfew/rpc/service-definition.ts";
import { trustDomain } from "@curfew/rpc/testing/harness.ts";
import type { Clock } from "@curfew/runtime/clock.ts";
import { systemRandom, uuidV7 } from "@curfew/runtime/random.ts";
import { mintSecret } from "@curfew/token-format/secret.ts";
import { tokenIdFrom } from "@curfew/token-format/token-id.ts";
import { type Positions, positionsAt, refuse } from "./fake-suite.ts";

export interface FakeToken {
  readonly secret: string;
  readonly tokenId: string;
  reason: Reason;
  cacheable: boolean;
  ancestors: string[];
  asOf: Positions;
  expiresAtMs: number;
}

const sha256 = (text: string) => createHash("sha256").update(text).digest("hex");

export const openFakeVerifier = (clock: Clock) => {
  const tokens = new Map<string, FakeToken>();
  const cached = new Map<string, CachedUse>();
  const completed = new Map<string, CompletedUse>();
  const fake = {
    tokens,
    asked: 0,
    requests: [] as (UseRequest | undefined)[],
    batches: [] as number[],
    reports: 0,
    /** Recorded, over all reports. */
    records: 0,
    cached,
    /** By use and part; what was over before its decision was reported is part 1. */
    completed,
    /** Use ids that came again with other content. */
    forged: [] as string[],
    failure: undefined as RpcFailure | undefined,
    reportFailure: undefined as RpcFailure | undefined,
    /** So many reports are recorded, and then the answer is lost. */
    loseAnswers: 0,
    /** A use of this scope is refused with the whole report or batch. */
    poison: "",
    /** So is a report of one that touched a person of this identifier. */
    poisonedPerson: "",
    /** Called before an answer leaves. */
    beforeAnswer: async (): Promise<void> => undefined,
    token(options: Partial<FakeToken> = {}): FakeToken {
      const token: FakeToken = {
        secret: mintSecret("s", systemRandom),
        tokenId: tokenIdFrom(systemRandom(32)),
        reason: Reason.OK,
        cacheable: true,
        ancestors: [],
        asOf: positionsAt(20),
        expiresAtMs: clock.now() + 3_600_000,
        ...options,
      };
      tokens.set(sha256(token.secret), token);
      return token;
    },
    completedOf: (useId: string) => [...completed.values()].filter((part) => part.useId === useId),
    service: (): BoundService =>
      bindService(VerifierService, {
        verifyToken: refuse,
        async batchVerifyTokens({ requests }) {
          fake.asked += requests.length;
          fake.batches.push(requests.length);
          fake.requests.push(...requests.map(({ use }) => use));
          if (fake.failure) throw new RpcError(fake.failure);
          if (requests.some(({ use }) => use?.scope === fake.poison)) throw new RpcError(poisoned);
          const responses = requests.map(answer);
          await fake.beforeAnswer();
          return { responses };
        },
        reportUses(request) {
          fake.reports += 1;
          if (fake.reportFailure) throw new RpcError(fake.reportFailure);
          if (request.cachedUses.some(({ use }) => use?.scope === fake.poison)) throw new RpcError(poisoned);
          const touched = [...request.cachedUses.map(({ ended }) => ended), ...request.completedUses].flatMap(
            (part) => part?.people ?? [],
          );
          if (touched.some(({ value }) => value === fake.poisonedPerson)) throw new RpcError(poisoned);
          for (const use of request.cachedUses) {
            record(cached, use.useId, use);
            if (!use.ended) continue;
            const { useId, tokenId, ended } = use;
            const { outcome, records, people, unnamedPeople } = ended;
            const whole = { useId, tokenId, outcome, records, people, unnamedPeople, part: 1, parts: 1 };
            record(completed, `${useId}/1`, create(CompletedUseSchema, whole));
          }
          for (const part of request.completedUses) record(completed, `${part.useId}/${part.part}`, part);
          fake.records += request.cachedUses.length + request.completedUses.length;
          if (fake.loseAnswers > 0) {
            fake.loseAnswers -= 1;
            throw new RpcError({ status: "INTERNAL", reason: "LOST", message: "the answer was lost" });
          }
          return {};
        },
      }),
  };
  const poisoned: RpcFailure = { status: "INVALID_ARGUMENT", reason: "POISON", message: "a use is refused" };
  const record = <T>(into: Map<string, T>, id: string, value: T) => {
    if (into.has(id) && JSON.stringify(into.get(id), plain) !== JSON.stringify(value, plain)) fake.forged.push(id);
    into.set(id, value);
  };
  const plain = (_key: string, value: unknown) => (typeof value === "bigint" ? String(value) : value);
  const answer = ({ credential }: VerifyTokenRequest): MessageInitShape<typeof VerifyTokenResponseSchema> => {
    const hash = credential.case === "secretSha256" ? Buffer.from(credential.value).toString("hex") : "";
    const token = tokens.get(hash);
    const useId = uuidV7(clock.now(), systemRandom);
    if (!token) return { allowed: false, reason: Reason.UNKNOWN };
    const { tokenId, reason } = token;
    if (reason !== Reason.OK) return { allowed: false, reason, useId, tokenId };
    const cacheable = {
      tokenId,
      generation: 1,
      subject: `spiffe://${trustDomain}/workload/billing`,
      grant: {
        scopes: ["invoices:read"],
        resources: ["invoices/**"],
        audiences: ["crm"],
        purposes: ["billing"],
        dataCategories: ["contact"],
        evidenceMode: EvidenceMode.BATCHED,
      },
      notBefore: timestampFromMs(token.expiresAtMs - 3_600_000),
      expiresAt: timestampFromMs(token.expiresAtMs),
      ancestors: token.ancestors,
      asOf: [...token.asOf],
    };
    return { allowed: true, reason, useId, tokenId, ...(token.cacheable && { cacheable }) };
  };
  return fake;
};
export type FakeVerifier = ReturnType<typeof openFakeVerifier>;
