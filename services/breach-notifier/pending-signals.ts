import { timestampMs } from "@bufbuild/protobuf/wkt";
import type { Signal } from "@curfew/contracts/gen/curfew/events/v1/breaches_pb.ts";
import { type CaseState, maxSignals, takesSignal } from "./domain.ts";

/** A signal, and the case that it belongs to. */
export interface KnownSignal {
  readonly caseId: string;
  readonly tokenId: string;
  readonly producer: string;
  readonly signal: Signal;
}

const atMs = ({ signal: { at } }: KnownSignal): number => (at ? timestampMs(at) : 0);

/**
 * Signals that were read and that no case is known to have. They go once the topic of cases tells that their case has them or will not take
 * them; until then, of each case at most as many are kept as it takes, the earliest ones: those move its clock.
 */
export class PendingSignals {
  readonly #byCase = new Map<string, Map<string, KnownSignal>>();

  /** `state`: of its case as its topic tells it. Answers whether it is new and to be taken. */
  add(known: KnownSignal, state: CaseState): boolean {
    const { caseId, signal } = known;
    const pending = this.#byCase.get(caseId) ?? new Map<string, KnownSignal>();
    if (pending.has(signal.eventId) || !takesSignal(state, signal)) return false;
    this.#byCase.set(caseId, pending.set(signal.eventId, known));
    if (pending.size <= maxSignals) return true;
    const latest = [...pending.values()].reduce((a, b) => (atMs(b) >= atMs(a) ? b : a));
    pending.delete(latest.signal.eventId);
    return latest !== known;
  }

  /** The case has taken a signal; `state`: with it. */
  settle(caseId: string, taken: Signal | undefined, state: CaseState): void {
    const pending = this.#byCase.get(caseId);
    if (!pending) return;
    if (taken) pending.delete(taken.eventId);
    const isFull = state.status !== "none" && state.signals.length >= maxSignals;
    if (isFull) for (const [id, { signal }] of pending) if (!takesSignal(state, signal)) pending.delete(id);
    if (pending.size === 0) this.#byCase.delete(caseId);
  }

  list(): KnownSignal[] {
    return [...this.#byCase.values()].flatMap((pending) => [...pending.values()]);
  }
}
