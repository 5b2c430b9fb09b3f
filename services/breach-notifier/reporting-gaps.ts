/** A time in which uses of a resource service may be missing from the log. */
export interface ReportingGap {
  /** Empty: any of them. */
  readonly resourceService: string;
  readonly fromMs: number;
  readonly toMs: number;
}

interface Range {
  readonly fromMs: number;
  readonly toMs: number;
}

const maxRangesPerService = 1_000;
const maxServices = 1_000;

/** Without the shortest stretch between two neighbours. */
const withoutSmallestHole = (ranges: readonly Range[]): Range[] => {
  const holes = ranges.slice(1).map(({ fromMs }, i) => fromMs - (ranges[i]?.toMs ?? fromMs));
  const at = holes.indexOf(Math.min(...holes));
  const [one, two] = [ranges[at], ranges[at + 1]];
  if (!one || !two) return [...ranges];
  return [...ranges.slice(0, at), { fromMs: one.fromMs, toMs: two.toMs }, ...ranges.slice(at + 2)];
};

/**
 * Gaps by resource service, those that touch as one. None is ever forgotten: past a limit the nearest ones become one that spans both, and
 * services beyond the limit share their gaps under no name, which counts for each: a case may then read as incomplete that is not.
 */
export class ReportingGaps {
  /** Apart from each other, in order. */
  readonly #ranges = new Map<string, Range[]>();

  add({ resourceService, fromMs: a, toMs: b }: ReportingGap): void {
    const isFull = this.#ranges.size >= maxServices && !this.#ranges.has(resourceService);
    const name = isFull ? "" : resourceService;
    const ranges = this.#ranges.get(name) ?? [];
    let [fromMs, toMs] = [Math.min(a, b), Math.max(a, b)];
    const start = ranges.findLastIndex((range) => range.toMs < fromMs) + 1;
    let end = start;
    for (let range = ranges[end]; range && range.fromMs <= toMs; range = ranges[end]) {
      fromMs = Math.min(fromMs, range.fromMs);
      toMs = Math.max(toMs, range.toMs);
      end += 1;
    }
    const merged = ranges.toSpliced(start, end - start, { fromMs, toMs });
    this.#ranges.set(name, merged.length > maxRangesPerService ? withoutSmallestHole(merged) : merged);
  }

  list(): ReportingGap[] {
    return [...this.#ranges].flatMap(([resourceService, ranges]) =>
      ranges.map((range) => ({ resourceService, ...range })),
    );
  }
}
