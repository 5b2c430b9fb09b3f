import type { Acknowledgement } from "./domain/effective.ts";

export interface PendingRevocation {
  /** ce_id of its TokenRevoked. */
  readonly id: string;
  readonly tokenId: string;
  readonly committedMs: number;
  /** When this replica heard of it, on its monotonic clock: after the commit. */
  readonly sinceMs: number;
  /** By instance; the first receipt counts. */
  readonly acknowledgements: ReadonlyMap<string, Acknowledgement>;
}

type Pending = PendingRevocation & {
  readonly acknowledgements: Map<string, Acknowledgement>;
  /** Instances that acknowledged it here, whether or not that is recorded yet. */
  readonly heardFrom: Set<string>;
};

/** Acknowledgements of revocations not read yet, or effective already. */
const maxEarly = 10_000;
/** Positions of the last revocations, for a repeated request. */
const maxOffsets = 10_000;

/** Revocations that are not known to be effective, with the acknowledgements that have arrived. Rebuilt from the log; added to at commit. */
export class PendingRevocations {
  /** Something came that a reaction waits for. */
  onChange: () => void = () => undefined;
  readonly #pending = new Map<string, Pending>();
  readonly #early = new Map<string, Map<string, Acknowledgement>>();
  readonly #offsets = new Map<string, number>();
  /** Effective ones, as long as their TokenRevoked may still come from the topic after its commit was told here. */
  readonly #done = new Set<string>();

  add(id: string, tokenId: string, committedMs: number, sinceMs: number): void {
    if (this.#pending.has(id) || this.#done.has(id)) return;
    const acknowledgements = this.#early.get(id) ?? new Map<string, Acknowledgement>();
    this.#early.delete(id);
    this.#pending.set(id, { id, tokenId, committedMs, sinceMs, acknowledgements, heardFrom: new Set() });
    this.onChange();
  }

  acknowledge(ids: readonly string[], instance: string, acknowledgement: Acknowledgement): void {
    let isNews = false;
    for (const id of ids) {
      let known: Map<string, Acknowledgement> | undefined = this.#pending.get(id)?.acknowledgements;
      if (!known) {
        if (this.#done.has(id)) continue;
        known = this.#early.get(id) ?? new Map<string, Acknowledgement>();
        this.#early.set(id, known);
        if (this.#early.size > maxEarly) this.#early.delete(this.#early.keys().next().value as string);
      }
      const { receivedAtMs, clockOffsetMs } = acknowledgement;
      if (known.has(instance)) continue;
      known.set(instance, { receivedAtMs, clockOffsetMs });
      isNews = true;
    }
    if (isNews) this.onChange();
  }

  effective(id: string): void {
    this.#pending.delete(id);
    this.#early.delete(id);
    this.#done.add(id);
    if (this.#done.size > maxEarly) this.#done.delete(this.#done.values().next().value as string);
  }

  /** An acknowledgement of this instance has arrived, and will be recorded. False: it tells nothing new. */
  heard(id: string, instance: string): boolean {
    const pending = this.#pending.get(id);
    if (!pending || pending.acknowledgements.has(instance)) return false;
    pending.heardFrom.add(instance);
    return true;
  }

  /** Whether the instance has left unacknowledged what was known here before `sinceMs`. Few are that old, and they come first. */
  owes(instance: string, sinceMs: number): boolean {
    for (const pending of this.#pending.values()) {
      if (pending.sinceMs >= sinceMs) return false;
      if (!pending.acknowledgements.has(instance) && !pending.heardFrom.has(instance)) return true;
    }
    return false;
  }

  get(id: string): PendingRevocation | undefined {
    return this.#pending.get(id);
  }

  all(): Iterable<PendingRevocation> {
    return this.#pending.values();
  }

  get size(): number {
    return this.#pending.size;
  }

  publishedAt(id: string, offset: number): void {
    this.#offsets.set(id, offset);
    if (this.#offsets.size > maxOffsets) this.#offsets.delete(this.#offsets.keys().next().value as string);
  }

  offsetOf(id: string): number | undefined {
    return this.#offsets.get(id);
  }
}
