import { createHash } from "node:crypto";
import { setFlagsFromString } from "node:v8";
import { runInNewContext } from "node:vm";
import { fromBinary, toBinary } from "@bufbuild/protobuf";
import { type TokenIssued, TokenIssuedSchema } from "@curfew/contracts/gen/curfew/events/v1/tokens_pb.ts";
import { tokenIdFrom } from "@curfew/token-format/token-id.ts";
import { digestKey, Fold } from "../projections.ts";
import { issued } from "./histories.ts";

export interface FoldMemory {
  readonly tokens: number;
  /** Heap and buffers, after a collection, per live token. */
  readonly bytesPerToken: number;
  readonly appliedPerSecond: number;
  /** Median of one look-up among all. */
  readonly lookUpNs: number;
}

const collect = (): number => {
  setFlagsFromString("--expose-gc");
  const gc = runInNewContext("gc") as () => void;
  gc();
  gc();
  const { heapUsed, external } = process.memoryUsage();
  return heapUsed + external;
};

const rounds = 9;
const lookUpsPerRound = 10_000;

/** A fold of `n` live tokens of 1,000 subjects under 10 grants, as decoded from the log; each with an id and a digest of its own. */
export const measureFoldMemory = (n: number): FoldMemory => {
  const hash = (text: string) => createHash("sha256").update(text).digest();
  const nowMs = 1_800_000_000_000;
  const templates = Array.from({ length: 10 }, (_, i) => {
    const grant = { scopes: [`invoices-${i}:read`, "contacts:read"], resources: ["invoices/**", "contacts/*"] };
    const times = { notBeforeMs: nowMs, expiresAtMs: nowMs + 3_600_000 };
    return issued("a", times, { grant }) as TokenIssued;
  });
  const fold = new Fold();
  const before = collect();
  let encodingMs = 0;
  const startMs = performance.now();
  for (let i = 0; i < n; i += 1) {
    const encodedMs = performance.now();
    const fact = templates[i % templates.length] as TokenIssued;
    fact.tokenId = tokenIdFrom(hash(`token ${i}`));
    fact.subject = `spiffe://test.example/workload/w${i % 1000}`;
    if (fact.generation?.digest) fact.generation.digest.value = hash(`digest ${i}`);
    const bytes = toBinary(TokenIssuedSchema, fact);
    encodingMs += performance.now() - encodedMs;
    fold.apply(fromBinary(TokenIssuedSchema, bytes));
  }
  const applyMs = performance.now() - startMs - encodingMs;
  const bytesPerToken = (collect() - before) / n;
  return { tokens: n, bytesPerToken, appliedPerSecond: (n / applyMs) * 1000, lookUpNs: medianLookUpNs(fold, n, hash) };
};

const medianLookUpNs = (fold: Fold, n: number, hash: (text: string) => Uint8Array): number => {
  const times: number[] = [];
  for (let round = 0; round < rounds; round += 1) {
    const keys = Array.from({ length: lookUpsPerRound }, (_, i) => {
      const at = ((round * lookUpsPerRound + i) * 7919) % n;
      return digestKey(hash(`digest ${at}`));
    });
    const startMs = performance.now();
    for (const key of keys) if (!fold.find(key)) throw new Error("a live token was not found");
    times.push(((performance.now() - startMs) * 1e6) / lookUpsPerRound);
  }
  return times.toSorted((a, b) => a - b)[Math.floor(rounds / 2)] ?? Number.NaN;
};
