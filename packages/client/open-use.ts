import { Outcome } from "@curfew/contracts/gen/curfew/events/v1/uses_pb.ts";
import { type Person, type PersonFields, parseCount, parsePerson, type UseFields } from "./access-request.ts";
import { type Decision, estimatedBytes, type UseReporter } from "./use-reporter.ts";

/** What one step of an access touched. */
export interface Touched {
  readonly records?: number;
  /** People named; each is counted once, however often named. */
  readonly people?: readonly Person[];
  /** People touched whom the resource service cannot name. */
  readonly unnamedPeople?: number;
}

/** An access that was allowed and has begun. */
export interface Use {
  readonly useId: string;
  readonly tokenId: string;
  /** Adds to what the access touched; call it as often as it touches something. Throws InvalidRequest, having added nothing. */
  touched(what: Touched): void;
}

const maxPartPeople = 1_000;
const maxPartBytes = 400 * 1024;
/** An access declared over so many reports counts only; so does what one names beyond. */
const maxNamedPeople = 100_000;

/** Accumulates what one access touches and hands it to the reporter in parts. */
export class OpenUse implements Use {
  readonly useId: string;
  readonly tokenId: string;
  readonly #request: UseFields;
  readonly #reporter: UseReporter;
  readonly #decision: Decision | undefined;
  #people: PersonFields[] = [];
  #bytes = 0;
  #named = 0;
  #unnamed = 0;
  #records = 0;
  #parts = 0;
  #ended: boolean = false;

  /** The reporter keeps a place for the completion from here on. `decision`: where it was decided here. */
  constructor(reporter: UseReporter, useId: string, tokenId: string, request: UseFields, decision?: Decision) {
    this.#reporter = reporter;
    this.#decision = decision;
    this.useId = useId;
    this.tokenId = tokenId;
    this.#request = request;
    reporter.begin();
  }

  touched({ records = 0, people = [], unnamedPeople = 0 }: Touched): void {
    if (this.#ended) throw new Error("the access has ended: touch before the callback returns");
    const addedRecords = parseCount("records", records);
    const addedUnnamed = parseCount("unnamedPeople", unnamedPeople);
    const added = people.map((person) => parsePerson(person, this.#request.controller));
    this.#records += addedRecords;
    this.#unnamed += addedUnnamed;
    const countsOnly = this.#request.maxPeople > BigInt(maxNamedPeople);
    for (const person of added) {
      if (countsOnly || this.#named >= maxNamedPeople) this.#unnamed += 1;
      else this.#name(person);
    }
  }

  /** Reports the rest. UNANSWERED: the access has not begun after all. */
  end(outcome: Outcome): void {
    if (this.#ended) return;
    this.#ended = true;
    this.#report(outcome, true);
  }

  #name(person: PersonFields): void {
    const bytes = estimatedBytes([person]);
    if (this.#people.length >= maxPartPeople || this.#bytes + bytes > maxPartBytes)
      this.#report(Outcome.COMPLETED, false);
    this.#people.push(person);
    this.#bytes += bytes;
    this.#named += 1;
  }

  #report(outcome: Outcome, last: boolean): void {
    this.#parts += 1;
    const use = {
      useId: this.useId,
      tokenId: this.tokenId,
      outcome,
      records: this.#records,
      people: this.#people,
      unnamedPeople: this.#unnamed,
      part: this.#parts,
      parts: last ? this.#parts : 0,
    };
    this.#people = [];
    this.#bytes = 0;
    this.#records = 0;
    this.#unnamed = 0;
    this.#reporter.completed(use, last, this.#decision);
  }
}
