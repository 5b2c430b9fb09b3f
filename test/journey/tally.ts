/** The journey's own count of who was touched, kept beside Curfew and compared with the case at the end. */
export class Tally {
  readonly #people = new Map<string, Set<string>>();
  readonly #records = new Map<string, number>();

  /** `phase`: before (the exposure), after (it, by the rightful holder) or stranger. */
  add(phase: "before" | "after" | "stranger", people: readonly string[], records: number): void {
    const set = this.#people.get(phase) ?? new Set();
    for (const person of people) set.add(person);
    this.#people.set(phase, set);
    this.#records.set(phase, (this.#records.get(phase) ?? 0) + records);
  }

  people(...phases: ("before" | "after" | "stranger")[]): number {
    return new Set(phases.flatMap((phase) => [...(this.#people.get(phase) ?? [])])).size;
  }

  records(...phases: ("before" | "after" | "stranger")[]): number {
    return phases.reduce((sum, phase) => sum + (this.#records.get(phase) ?? 0), 0);
  }
}
