import { clone, create, type DescMessage, type Message, toJsonString } from "@bufbuild/protobuf";
import { reflect } from "@bufbuild/protobuf/reflect";
import { ActorSchema, type SealedField } from "@curfew/contracts/gen/curfew/events/v1/common_pb.ts";
import {
  type UnknownAttemptsDenied,
  type UseCompleted,
  UseCompletedSchema,
  type UseDecided,
  UseDecidedSchema,
  UseSourceSchema,
} from "@curfew/contracts/gen/curfew/events/v1/uses_pb.ts";
import { eventTypeNamed } from "@curfew/event-log/event-types.ts";

/**
 * What of an event is about one person. The others in it are left out: whom else an access reached, and from whose address, is theirs
 * (GDPR Art. 15(4)).
 */
export interface PersonEvent {
  readonly role: "source" | "reached" | "network" | "about";
  readonly json: string;
  /** Sealed to this person. */
  readonly sealed?: { readonly field: SealedField; readonly useId: string };
}

const jsonOf = (desc: DescMessage, message: Message): string => {
  try {
    return toJsonString(desc, message, { useProtoFieldName: true });
  } catch {
    return ""; // a time outside protobuf's range; it is in the ledger all the same
  }
};

const only = (people: readonly string[], pseudonym: string) => people.filter((each) => each === pseudonym);

/** Who placed a hold, or looked, is somebody else too; that it was done, when and why, is the person's. */
const withoutActors = (desc: DescMessage, message: Message): Message => {
  const shown = clone(desc, message);
  const fields = reflect(desc, shown);
  for (const field of desc.fields) if (field.message?.typeName === ActorSchema.typeName) fields.clear(field);
  return shown;
};

const ofDecided = (use: UseDecided, pseudonym: string): PersonEvent | undefined => {
  const isSource = use.source?.addressPseudonym === pseudonym;
  const reached = only(use.ended?.people ?? [], pseudonym);
  if (!isSource && reached.length === 0) return undefined;
  const { address, ...source } = use.source ?? create(UseSourceSchema);
  const shown = create(UseDecidedSchema, {
    ...use,
    // The ciphertext says nothing to them; the opened address stands beside.
    source: isSource ? create(UseSourceSchema, source) : create(UseSourceSchema, { country: source.country }),
    ...(use.ended && { ended: { ...use.ended, people: reached } }),
  });
  return {
    role: isSource ? "source" : "reached",
    json: jsonOf(UseDecidedSchema, shown),
    ...(isSource && address && { sealed: { field: address, useId: use.useId } }),
  };
};

const ofCompleted = (part: UseCompleted, pseudonym: string): PersonEvent | undefined => {
  const people = only(part.people, pseudonym);
  if (people.length === 0) return undefined;
  return { role: "reached", json: jsonOf(UseCompletedSchema, create(UseCompletedSchema, { ...part, people })) };
};

/** Undefined where the event is not about them. */
export const personEvent = (type: string, message: Message, pseudonym: string): PersonEvent | undefined => {
  if (message.$typeName === "curfew.events.v1.UseDecided") return ofDecided(message as UseDecided, pseudonym);
  if (message.$typeName === "curfew.events.v1.UseCompleted") return ofCompleted(message as UseCompleted, pseudonym);
  const desc = eventTypeNamed(type)?.desc;
  if (!desc) return undefined;
  if (message.$typeName === "curfew.events.v1.UnknownAttemptsDenied")
    return (message as UnknownAttemptsDenied).networkPseudonym === pseudonym
      ? { role: "network", json: jsonOf(desc, message) }
      : undefined;
  const named = (message as Message & { pseudonym?: unknown }).pseudonym;
  return named === pseudonym ? { role: "about", json: jsonOf(desc, withoutActors(desc, message)) } : undefined;
};
