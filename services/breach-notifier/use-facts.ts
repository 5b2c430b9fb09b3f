import { fromBinary } from "@bufbuild/protobuf";
import { timestampMs } from "@bufbuild/protobuf/wkt";
import {
  Action,
  Outcome,
  Reason,
  type UseCompleted,
  UseCompletedSchema,
  type UseDecided,
  UseDecidedSchema,
} from "@curfew/contracts/gen/curfew/events/v1/uses_pb.ts";
import type { UseFact } from "./blast-radius.ts";

type Part = Pick<UseCompleted, "outcome" | "records" | "people" | "unnamedPeople" | "part" | "parts">;

/** The facts of uses joined by use_id, in any order, each (use, fact, part) once however often it comes. */
interface JoiningUse {
  decided: { readonly fact: UseDecided; readonly eventId: string } | undefined;
  readonly parts: Map<number, { readonly fact: Part; readonly eventId: string }>;
}

export type FactName = "decided" | "completed";

/** The fact that counts for a blast radius, or undefined: denied answers and those that name no token are none. */
export const countedFact = (message: { readonly $typeName: string }): FactName | undefined => {
  if (message.$typeName === UseCompletedSchema.typeName)
    return (message as UseCompleted).tokenId === "" ? undefined : "completed";
  if (message.$typeName !== UseDecidedSchema.typeName) return undefined;
  const { tokenId, reason } = message as UseDecided;
  return tokenId !== "" && reason === Reason.OK ? "decided" : undefined;
};

const actionOf = (action: Action): UseFact["action"] => {
  if (action === Action.WRITE) return "write";
  return action === Action.DELETE ? "delete" : "read";
};

/** What the decision itself says of the access: beside all numbered parts, so that none takes its place. */
const ownPart = ({ ended }: UseDecided): Part[] => (ended ? [{ ...ended, part: 0, parts: 1 }] : []);

const isComplete = (parts: readonly Part[]): boolean => {
  const wanted = Math.max(0, ...parts.map((part) => part.parts));
  return wanted > 0 && parts.length >= wanted;
};

const useFact = (useId: string, { decided, parts }: JoiningUse): UseFact | undefined => {
  if (!decided) return undefined;
  const { fact } = decided;
  const later = [...parts.values()].sort((a, b) => a.fact.part - b.fact.part);
  const reported = [...ownPart(fact), ...later.map((part) => part.fact)];
  const answered = reported.filter((part) => part.outcome !== Outcome.UNANSWERED);
  return {
    useId,
    decidedAtMs: fact.decidedAt ? timestampMs(fact.decidedAt) : 0,
    generation: fact.generation,
    resourceService: fact.resourceService,
    resource: fact.details?.resource ?? "",
    controller: fact.details?.controller ?? "",
    dataCategories: fact.details?.dataCategories ?? [],
    action: actionOf(fact.details?.action ?? Action.UNSPECIFIED),
    country: fact.source?.country ?? "",
    addressPseudonym: fact.source?.addressPseudonym ?? "",
    presenterThumbprint: fact.source?.presenterThumbprint ?? "",
    maxPeople: Number(fact.details?.maxPeople ?? 0n),
    maxRecords: Number(fact.details?.maxRecords ?? 0n),
    parts: answered.map((part) => ({
      records: Number(part.records),
      people: part.people,
      unnamedPeople: Number(part.unnamedPeople),
    })),
    complete: later.length === 0 ? reported.length > 0 : isComplete(later.map((part) => part.fact)),
    // What was reported of a use counts, whatever else was said of it.
    unanswered: reported.length > 0 && answered.length === 0,
    eventIds: [decided.eventId, ...later.map((part) => part.eventId)],
  };
};

/** Uses of one token, growing. */
export class TokenUses {
  readonly #uses = new Map<string, JoiningUse>();
  #facts = 0;

  /** Facts kept. */
  get size(): number {
    return this.#facts;
  }

  add(name: FactName, value: Uint8Array, eventId: string): void {
    if (name === "decided") {
      const fact = fromBinary(UseDecidedSchema, value);
      const use = this.#use(fact.useId);
      if (use.decided) return;
      use.decided = { fact, eventId };
    } else {
      const fact = fromBinary(UseCompletedSchema, value);
      const { parts } = this.#use(fact.useId);
      if (parts.has(fact.part)) return;
      parts.set(fact.part, { fact, eventId });
    }
    this.#facts += 1;
  }

  list(): UseFact[] {
    return [...this.#uses].flatMap(([useId, use]) => useFact(useId, use) ?? []);
  }

  /** Uses of which a report was read and the answer was not. */
  get orphans(): number {
    return [...this.#uses.values()].filter((use) => !use.decided).length;
  }

  #use(useId: string): JoiningUse {
    const found = this.#uses.get(useId);
    if (found) return found;
    const use: JoiningUse = { decided: undefined, parts: new Map() };
    this.#uses.set(useId, use);
    return use;
  }
}
