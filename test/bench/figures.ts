/** One line of the result: what was measured, against what it is held, and how far the rounds lay apart. */
export interface Figure {
  readonly what: string;
  readonly value: number;
  /** How the value is printed: "0.74", "52 k/s", "11.2 ms". */
  readonly show: (value: number) => string;
  /** Values of the rounds, where there were several; the value is their median. */
  readonly rounds?: readonly number[];
  /** Absent: printed without a verdict. */
  readonly target?: { readonly least: number } | { readonly most: number };
  /** What else belongs to it. */
  readonly notes?: readonly string[];
}

export const ratio = (value: number): string => value.toFixed(2);
export const perSecond = (value: number): string =>
  value >= 10_000 ? `${(value / 1000).toFixed(1)} k/s` : `${Math.round(value)}/s`;
export const millis = (value: number): string => `${value.toFixed(value < 10 ? 2 : 1)} ms`;
export const bytes = (value: number): string => `${Math.round(value)} B`;
export const micros = (value: number): string => `${value.toFixed(1)} µs`;

/** The value below which `share` of the values lie (nearest rank). */
export const quantile = (values: readonly number[], share: number): number => {
  const sorted = values.toSorted((a, b) => a - b);
  return sorted[Math.min(sorted.length - 1, Math.max(0, Math.ceil(share * sorted.length) - 1))] ?? Number.NaN;
};

export const median = (values: readonly number[]): number => quantile(values, 0.5);

/** A figure of several rounds: their median. */
export const ofRounds = (rounds: readonly number[], rest: Omit<Figure, "value" | "rounds">): Figure => ({
  ...rest,
  rounds,
  value: median(rounds),
});

/** b of y ~ x^b by least squares on the logarithms: 0 is no growth, 1 is in proportion. */
export const exponent = (points: readonly { readonly x: number; readonly y: number }[]): number => {
  const logs = points.map(({ x, y }) => ({ x: Math.log(x), y: Math.log(y) }));
  const mean = (of: "x" | "y") => logs.reduce((sum, point) => sum + point[of], 0) / logs.length;
  const [mx, my] = [mean("x"), mean("y")];
  const over = logs.reduce((sum, { x, y }) => sum + (x - mx) * (y - my), 0);
  return over / logs.reduce((sum, { x }) => sum + (x - mx) ** 2, 0);
};

const verdict = ({ value, target }: Figure): string => {
  if (!target) return "";
  const met = "least" in target ? value >= target.least : value <= target.most;
  return met ? "PASS" : "MISS";
};

const wanted = ({ target, show }: Figure): string => {
  if (!target) return "";
  return "least" in target ? `at least ${show(target.least)}` : `at most ${show(target.most)}`;
};

/** The figure as lines of text. */
export const printed = (figure: Figure): string => {
  const { what, value, show, rounds = [], notes = [] } = figure;
  const spread =
    rounds.length > 1 ? `median of ${rounds.length}, ${show(Math.min(...rounds))} to ${show(Math.max(...rounds))}` : "";
  const parts = [show(value), spread, wanted(figure), verdict(figure)].filter((part) => part !== "");
  return [`${what}: ${parts.join("; ")}`, ...notes.map((note) => `    ${note}`)].join("\n");
};
