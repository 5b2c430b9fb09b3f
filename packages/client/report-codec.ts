import { create, fromBinary, type MessageInitShape, toBinary } from "@bufbuild/protobuf";
import type { Outcome, Reason } from "@curfew/contracts/gen/curfew/events/v1/uses_pb.ts";
import { EndedAccessSchema, ReportUsesRequestSchema } from "@curfew/contracts/gen/curfew/verifier/v1/verifier_pb.ts";
import { int32, int64, listedText, nested, text, time, written } from "@curfew/rpc/proto-writer.ts";
import type { PersonFields, UseFields } from "./access-request.ts";

/**
 * `curfew.verifier.v1.ReportUsesRequest`, encoded as accesses end, at the latest as they are sent: what waits is a few bytes instead of
 * the twenty objects that each use is made of, which would outlive several collections. The test holds the bytes to protobuf-es's.
 */

/** `curfew.verifier.v1.CachedUse`. */
export interface CachedUse {
  readonly useId: string;
  readonly decidedMs: number;
  readonly tokenId: string;
  readonly generation: number;
  readonly reason: Reason;
  readonly use: UseFields;
}

/** `curfew.verifier.v1.CompletedUse`. */
export interface CompletedUse {
  readonly useId: string;
  readonly tokenId: string;
  readonly outcome: Outcome;
  readonly records: number;
  readonly people: readonly PersonFields[];
  readonly unnamedPeople: number;
  readonly part: number;
  /** 0 while more may come. */
  readonly parts: number;
}

/** `curfew.verifier.v1.EndedAccess`: of an access that is over, all in one part. */
export type EndedAccess = Pick<CompletedUse, "outcome" | "records" | "people" | "unnamedPeople">;

const request = (use: UseFields): void => {
  text(1, use.scope);
  text(2, use.resource);
  text(3, use.purpose);
  for (const category of use.dataCategories) listedText(4, category);
  text(5, use.controller);
  int64(6, use.maxPeople);
  int64(7, use.maxRecords);
  int32(8, use.action);
  text(9, use.sourceAddress);
  text(10, use.presenterThumbprint);
  text(11, use.sourceCountry);
};

const timeOfMs = (ms: number): void =>
  time({ seconds: BigInt(Math.floor(ms / 1000)), nanos: (ms - Math.floor(ms / 1000) * 1000) * 1_000_000 });

const person = ({ controller, identifierType, value }: PersonFields): void => {
  text(1, controller);
  text(2, identifierType);
  text(3, value);
};

const endedAccess = (ended: EndedAccess): void => {
  int32(1, ended.outcome);
  int32(2, ended.records);
  for (const each of ended.people) nested(3, each, person);
  int32(4, ended.unnamedPeople);
};

interface Numbered {
  readonly use: CachedUse;
  readonly sequence: number;
  readonly ended: EndedAccess | undefined;
}
const cachedUse = ({ use, sequence, ended }: Numbered): void => {
  text(1, use.useId);
  int32(2, sequence);
  nested(3, use.decidedMs, timeOfMs);
  text(4, use.tokenId);
  int32(5, use.generation);
  int32(6, use.reason);
  nested(7, use.use, request);
  nested(8, ended, endedAccess);
};

const completedUse = (use: CompletedUse): void => {
  text(1, use.useId);
  text(2, use.tokenId);
  int32(3, use.outcome);
  int32(4, use.records);
  for (const each of use.people) nested(5, each, person);
  int32(6, use.unnamedPeople);
  int32(7, use.part);
  int32(8, use.parts);
};

const cachedField = (numbered: Numbered): void => nested(2, numbered, cachedUse);
const completedField = (use: CompletedUse): void => nested(3, use, completedUse);
const instanceField = (instance: string): void => text(1, instance);

/** One of the request's cached uses; `sequence` is its instance_sequence, `ended` what its access touched if that is over. */
export const encodeCachedUse = (use: CachedUse, sequence: number, ended?: EndedAccess): Uint8Array =>
  written({ use, sequence, ended }, cachedField);

/** A cached use that has ended, as two of the request's uses: its decision, and what it touched. */
export const apart = (cachedUse: Uint8Array): { readonly decision: Uint8Array; readonly completion: Uint8Array } => {
  const { cachedUses } = fromBinary(ReportUsesRequestSchema, cachedUse);
  const encode = (uses: Pick<MessageInitShape<typeof ReportUsesRequestSchema>, "cachedUses" | "completedUses">) =>
    toBinary(ReportUsesRequestSchema, create(ReportUsesRequestSchema, uses));
  const completed = ({ useId, tokenId, ended = create(EndedAccessSchema) }: (typeof cachedUses)[number]) => {
    const { outcome, records, people, unnamedPeople } = ended;
    return { useId, tokenId, outcome, records, people, unnamedPeople, part: 1, parts: 1 };
  };
  return {
    decision: encode({ cachedUses: cachedUses.map(({ ended: _, ...use }) => use) }),
    completion: encode({ completedUses: cachedUses.map(completed) }),
  };
};

/** One of its completed uses. */
export const encodeCompletedUse = (use: CompletedUse): Uint8Array => written(use, completedField);

/** The request, its uses in their order. */
export const encodeReport = (
  instance: string,
  cachedUses: readonly Uint8Array[],
  completedUses: readonly Uint8Array[],
): Buffer => Buffer.concat([written(instance, instanceField), ...cachedUses, ...completedUses]);
