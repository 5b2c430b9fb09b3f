import type { SealedField } from "@curfew/contracts/gen/curfew/events/v1/common_pb.ts";
import type {
  UseCompleted,
  UseDecided,
  UseDetails,
  UseEnded,
  UseSource,
} from "@curfew/contracts/gen/curfew/events/v1/uses_pb.ts";
import { bytes, int32, int64, listedText, nested, text, time, written } from "@curfew/rpc/proto-writer.ts";

/**
 * The events of uses, encoded field by field from what is at hand: messages made only to be encoded, and encoding them from
 * the descriptor, were what a use cost most. The test holds the bytes to protobuf-es's.
 */

type Fields<M> = Omit<M, "$typeName" | "$unknown">;
type Optional<M, K extends keyof M> = Omit<M, K> & { readonly [P in K]?: M[P] | undefined };

export type UseDetailsFields = Readonly<Fields<UseDetails>>;
export type SealedFieldFields = Readonly<Fields<SealedField>>;
export type UseSourceFields = Readonly<Omit<Fields<UseSource>, "address">> & {
  readonly address?: SealedFieldFields | undefined;
};
export type UseEndedFields = Readonly<Fields<UseEnded>>;
export type UseDecidedFields = Readonly<
  Optional<Omit<Fields<UseDecided>, "details" | "source" | "decidedAt" | "ended">, "instanceSequence">
> & {
  readonly decidedAt?: Time | undefined;
  readonly details?: UseDetailsFields | undefined;
  readonly source?: UseSourceFields | undefined;
  readonly ended?: UseEndedFields | undefined;
};
export type UseCompletedFields = Readonly<
  Optional<Omit<Fields<UseCompleted>, "completedAt">, "records" | "people" | "unnamedPeople">
> & { readonly completedAt?: Time | undefined };

interface Time {
  readonly seconds: bigint;
  readonly nanos: number;
}

const details = (of: UseDetailsFields): void => {
  text(1, of.scope);
  text(2, of.resource);
  text(3, of.purpose);
  for (const category of of.dataCategories) listedText(4, category);
  text(5, of.controller);
  int64(6, of.maxPeople);
  int64(7, of.maxRecords);
  int32(8, of.action);
};

const sealed = (of: SealedFieldFields): void => {
  text(1, of.pseudonym);
  bytes(2, of.salt);
  bytes(3, of.commitment);
  bytes(4, of.ciphertext);
};

const source = (of: UseSourceFields): void => {
  text(1, of.addressPseudonym);
  text(2, of.presenterThumbprint);
  text(3, of.country);
  nested(4, of.address, sealed);
};

const ended = (of: UseEndedFields): void => {
  int32(1, of.outcome);
  int64(2, of.records);
  for (const person of of.people) listedText(3, person);
  int64(4, of.unnamedPeople);
};

const decided = (use: UseDecidedFields): void => {
  text(1, use.useId);
  nested(2, use.decidedAt, time);
  text(3, use.tokenId);
  int32(4, use.generation);
  text(5, use.subject);
  text(6, use.resourceService);
  text(7, use.instance);
  int32(8, use.reason);
  nested(9, use.details, details);
  nested(10, use.source, source);
  int64(11, use.instanceSequence ?? 0n);
  nested(12, use.ended, ended);
};

const completed = (use: UseCompletedFields): void => {
  text(1, use.useId);
  nested(2, use.completedAt, time);
  text(3, use.tokenId);
  int32(4, use.outcome);
  int64(5, use.records ?? 0n);
  for (const person of use.people ?? []) listedText(6, person);
  int64(7, use.unnamedPeople ?? 0n);
  int32(8, use.part);
  int32(9, use.parts);
  text(10, use.resourceService);
};

/** As `toBinary` of a message of these fields; the bytes share their memory with others of the time. */
export const encodeUseDecided = (use: UseDecidedFields): Uint8Array => written(use, decided);

/** Likewise. */
export const encodeUseCompleted = (use: UseCompletedFields): Uint8Array => written(use, completed);
