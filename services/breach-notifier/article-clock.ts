/**
 * The 72-hour clock of GDPR Art. 33(1): elapsed time in UTC, never calendar days. Bound A counts from awareness; bound B after Regulation
 * (EEC, Euratom) 1182/71 Art. 3(1), where the hour in which the event falls is not counted. Weekends and holidays move neither: Art. 3(4)
 * excludes periods expressed in hours.
 */
export const hourMs = 3_600_000;
const periodMs = 72 * hourMs;

export interface ClockReading {
  /** Nobody has decided: awareness is the earliest signal's commit time, so that silence never lengthens the clock. */
  readonly provisional: boolean;
  readonly awareAtMs: number;
  /** Bound A: drives pages, colours, lateness. */
  readonly conservativeMs: number;
  /** Bound B: between a moment and an hour later than A. */
  readonly regulation1182Ms: number;
  readonly late: boolean;
}

/** Times in ms since the epoch, UTC. `decidedAwareAtMs`: what a named person decided; absent while nobody has. */
export const readClock = (
  firstSignalAtMs: number,
  decidedAwareAtMs: number | undefined,
  nowMs: number,
): ClockReading => {
  const awareAtMs = decidedAwareAtMs ?? firstSignalAtMs;
  const conservativeMs = awareAtMs + periodMs;
  return {
    provisional: decidedAwareAtMs === undefined,
    awareAtMs,
    conservativeMs,
    regulation1182Ms: (Math.floor(awareAtMs / hourMs) + 1) * hourMs + periodMs,
    late: nowMs > conservativeMs,
  };
};
