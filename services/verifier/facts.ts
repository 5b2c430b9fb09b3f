import { create, toBinary } from "@bufbuild/protobuf";
import { timestampFromMs } from "@bufbuild/protobuf/wkt";
import {
  type DataSubjectErased,
  ErasureAcknowledgedSchema,
} from "@curfew/contracts/gen/curfew/events/v1/data_subjects_pb.ts";
import {
  Outcome,
  UnknownAttemptsDeniedSchema,
  UseCompletedSchema,
  UseDecidedSchema,
} from "@curfew/contracts/gen/curfew/events/v1/uses_pb.ts";
import type { UseRequest } from "@curfew/contracts/gen/curfew/verifier/v1/verifier_pb.ts";
import type { OutRecord } from "@curfew/event-log/bus.ts";
import { encodedEvent } from "@curfew/event-log/envelope.ts";
import { type EventType, eventTypeOf } from "@curfew/event-log/event-types.ts";
import { partitionFor } from "@curfew/event-log/partition.ts";
import { sealField } from "@curfew/personal-data/sealed-field.ts";
import type { Clock } from "@curfew/runtime/clock.ts";
import { type Random, uuidV7 } from "@curfew/runtime/random.ts";
import { currentTraceparent } from "@curfew/runtime/telemetry.ts";
import type { Owner } from "./people.ts";
import type { Attempts } from "./unknown-attempts.ts";
import {
  encodeUseCompleted,
  encodeUseDecided,
  type UseCompletedFields,
  type UseDecidedFields,
  type UseDetailsFields,
  type UseSourceFields,
} from "./use-codec.ts";

const decidedType = eventTypeOf(create(UseDecidedSchema));
const completedType = eventTypeOf(create(UseCompletedSchema));
const acknowledgedType = eventTypeOf(create(ErasureAcknowledgedSchema));
const attemptsType = eventTypeOf(create(UnknownAttemptsDeniedSchema));

/** The records of curfew.uses.v1. Their ce_id is made of the use's id, so that a report that is repeated repeats the same facts. */
export interface Facts {
  decided(use: UseDecidedFields): OutRecord;
  completed(part: UseCompletedFields): OutRecord;
  /** The allowed answer of this use was never given. */
  unanswered(use: {
    readonly useId: string;
    readonly tokenId: string;
    readonly resourceService: string;
    /** Of the request that asked. */
    readonly traceparent: string | undefined;
  }): OutRecord;
  attempts(merged: Attempts, networkPseudonym: string): OutRecord;
  /** Where a use came from; its address sealed, for this use alone. */
  sourceOf(use: UseRequest, useId: string, owner: Owner | undefined): UseSourceFields;
  /** This instance has nothing of the person any more. */
  erasureAcknowledged(erased: DataSubjectErased, eventId: string): OutRecord;
  newUseId(): string;
}

export const openFacts = (options: {
  /** Of the uses topic. */
  readonly partitions: number;
  readonly instance: string;
  readonly clock: Clock;
  readonly random: Random;
}): Facts => {
  const { partitions, instance, clock, random } = options;
  const source = `/verifier/${instance}`;
  /** What names no token is kept together by the instance that saw it. */
  const unnamed = `verifier/${instance}`;
  const record = (
    type: EventType,
    id: string,
    tokenId: string,
    value: Uint8Array,
    traceparent = currentTraceparent(random),
  ): OutRecord => {
    const key = tokenId === "" ? unnamed : tokenId;
    const context = { source, subject: key, nowMs: clock.now(), random, traceparent, id };
    const { headers } = encodedEvent(type, value, context);
    return { partition: partitionFor(key, partitions), key, headers, value };
  };
  const completed = (part: UseCompletedFields, traceparent?: string) =>
    record(completedType, `${part.useId}/completed/${part.part}`, part.tokenId, encodeUseCompleted(part), traceparent);
  return {
    completed: (part) => completed(part),
    decided: (use) => record(decidedType, `${use.useId}/decided`, use.tokenId, encodeUseDecided(use)),
    unanswered: ({ traceparent, ...use }) =>
      completed(
        { ...use, completedAt: timestampFromMs(clock.now()), outcome: Outcome.UNANSWERED, part: 1, parts: 1 },
        traceparent,
      ),
    attempts: (merged, networkPseudonym) => {
      const { resourceService, reason, count, firstMs, lastMs } = merged;
      const useId = uuidV7(clock.now(), random);
      const message = create(UnknownAttemptsDeniedSchema, {
        useId,
        reason,
        resourceService,
        networkPseudonym,
        count: BigInt(count),
        firstAt: timestampFromMs(firstMs),
        lastAt: timestampFromMs(lastMs),
        instance,
      });
      return record(attemptsType, `${useId}/attempts`, "", toBinary(UnknownAttemptsDeniedSchema, message));
    },
    sourceOf: ({ presenterThumbprint, sourceCountry: country }, useId, owner) => {
      if (!owner) return { addressPseudonym: "", presenterThumbprint, country };
      const { pseudonym: addressPseudonym, key, address } = owner;
      const place = { eventType: decidedType.type, field: "source.address", id: useId };
      return {
        addressPseudonym,
        presenterThumbprint,
        country,
        address: sealField(key, addressPseudonym, place, address, random),
      };
    },
    erasureAcknowledged: ({ pseudonym }, erasureEventId) => {
      const message = create(ErasureAcknowledgedSchema, {
        pseudonym,
        consumer: instance,
        erasureEventId,
        acknowledgedAt: timestampFromMs(clock.now()),
      });
      const id = `${erasureEventId}/acknowledged/${instance}`;
      return record(acknowledgedType, id, "", toBinary(ErasureAcknowledgedSchema, message));
    },
    newUseId: () => uuidV7(clock.now(), random),
  };
};

/** What was asked for; what may name a person is none of these fields. */
export const detailsOf = (use: UseRequest): UseDetailsFields => use;

/** Times in requests that no clock of ours would give would break whoever reads them. */
const maxSeconds = 253_402_300_799n; // the end of the year 9999
export const isSaneTime = (at: { readonly seconds: bigint; readonly nanos: number }): boolean =>
  at.seconds >= 0n && at.seconds <= maxSeconds && at.nanos >= 0 && at.nanos < 1_000_000_000;
