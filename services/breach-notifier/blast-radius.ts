/**
 * What a stranger who held a leaked secret can have touched (design: breach, "Blast radius"): a pure fold of one token's uses over a
 * window. lower: shown by evidence of a stranger; best: all completed uses; upper: what cannot be excluded.
 */
export interface CompletedPart {
  readonly records: number;
  readonly people: readonly string[];
  readonly unnamedPeople: number;
}

/** One allowed use, joined from its facts. */
export interface UseFact {
  readonly useId: string;
  readonly decidedAtMs: number;
  readonly generation: number;
  readonly resourceService: string;
  readonly resource: string;
  readonly controller: string;
  readonly dataCategories: readonly string[];
  readonly action: "read" | "write" | "delete";
  readonly country: string;
  readonly addressPseudonym: string;
  readonly presenterThumbprint: string;
  readonly maxPeople: number;
  readonly maxRecords: number;
  /** Parts reported; empty: not completed, so it counts with its declared maximum in `upper`. */
  readonly parts: readonly CompletedPart[];
  /** The answer was never given: there was no access. */
  readonly unanswered: boolean;
}

export interface TokenGeneration {
  readonly number: number;
  readonly issuedAtMs: number;
  /** When it expired or was superseded. */
  readonly endsAtMs: number;
}

export interface WindowInput {
  readonly generations: readonly TokenGeneration[];
  /** Generations whose secret was seen; empty: not known which, so all. */
  readonly leaked: ReadonlySet<number>;
  /** Commit times of the signals on our log. */
  readonly signalsAtMs: readonly number[];
  /** Since when reporters claim that it could be read. */
  readonly claimedExposuresMs: readonly number[];
  readonly effectiveRevocationMs: number | undefined;
  /** Largest clock offset that an instance reported, absolute. */
  readonly clockOffsetMs: number;
}

export interface ExposureWindow {
  readonly fromUpperMs: number;
  readonly fromBestMs: number;
  /** Undefined while the token can still be used. */
  readonly toMs: number | undefined;
}

/** The window; undefined where nothing is known of the token. A claimed exposure later than our first sight is ignored: anyone can claim. */
export const exposureWindow = (input: WindowInput): ExposureWindow | undefined => {
  const { leaked, signalsAtMs } = input;
  const generations = input.generations.filter((g) => leaked.size === 0 || leaked.has(g.number));
  if (generations.length === 0 || signalsAtMs.length === 0) return undefined;
  const issuedMs = Math.min(...generations.map((g) => g.issuedAtMs));
  const firstSightMs = Math.min(...signalsAtMs);
  const exposedMs = Math.min(firstSightMs, ...input.claimedExposuresMs.filter((ms) => ms <= firstSightMs));
  const endsMs = Math.max(...generations.map((g) => g.endsAtMs));
  // A dead generation's leak revokes nothing: its window ends where the generation did.
  const toMs = Math.min(input.effectiveRevocationMs ?? Number.POSITIVE_INFINITY, endsMs);
  const known = input.effectiveRevocationMs !== undefined || endsMs <= firstSightMs;
  return {
    fromUpperMs: issuedMs,
    fromBestMs: Math.max(issuedMs, exposedMs),
    toMs: known ? toMs + input.clockOffsetMs : undefined,
  };
};

export interface Count {
  readonly lower: number;
  readonly best: number;
  /** Undefined: unknown, since nobody declared how many there are. */
  readonly upper: number | undefined;
}

export interface RadiusSlice {
  readonly dimension: "controller" | "data-category" | "resource-service" | "action" | "resource" | "country";
  readonly value: string;
  readonly people: Count;
  readonly records: Count;
}

export interface Radius {
  readonly people: Count;
  readonly records: Count;
  readonly slices: readonly RadiusSlice[];
  /** Allowed uses between `fromUpperMs` and `toMs`. */
  readonly uses: number;
  readonly completedUses: number;
  /** confidentiality (read), integrity (write), availability (delete). */
  readonly kinds: readonly string[];
}

/** People or records that a controller declared to hold of a data category; undefined: not declared. */
export type Declared = (what: "people" | "records", controller: string, dataCategory: string) => number | undefined;

/** A (controller, data category) pair that the token could reach. */
export interface Reach {
  readonly controller: string;
  readonly dataCategory: string;
}

const kindOf = { read: "confidentiality", write: "integrity", delete: "availability" } as const;

const sumOf = (values: readonly (number | undefined)[]): number | undefined =>
  values.some((v) => v === undefined) ? undefined : (values as number[]).reduce((sum, v) => sum + v, 0);

interface Judged {
  readonly use: UseFact;
  readonly inBest: boolean;
  /** From a source or presenter not seen with this token before the exposure. */
  readonly stranger: boolean;
}

const countPeople = (uses: readonly Judged[], reach: readonly Reach[], declared: Declared): Count => {
  const distinct = (chosen: readonly Judged[]) => {
    const named = new Set(chosen.flatMap(({ use }) => use.parts.flatMap((part) => part.people)));
    return chosen.reduce((sum, { use }) => sum + use.parts.reduce((s, part) => s + part.unnamedPeople, 0), named.size);
  };
  const open = uses.filter(({ use }) => use.parts.length === 0).reduce((sum, { use }) => sum + use.maxPeople, 0);
  return {
    lower: distinct(uses.filter((u) => u.inBest && u.stranger)),
    best: distinct(uses.filter((u) => u.inBest)),
    upper: sumOf([distinct(uses), open, ...reach.map((r) => declared("people", r.controller, r.dataCategory))]),
  };
};

const countRecords = (uses: readonly Judged[], reach: readonly Reach[], declared: Declared): Count => {
  const total = (chosen: readonly Judged[]) =>
    chosen.reduce((sum, { use }) => sum + use.parts.reduce((s, part) => s + part.records, 0), 0);
  const open = uses.filter(({ use }) => use.parts.length === 0).reduce((sum, { use }) => sum + use.maxRecords, 0);
  return {
    lower: total(uses.filter((u) => u.inBest && u.stranger)),
    best: total(uses.filter((u) => u.inBest)),
    upper: sumOf([total(uses), open, ...reach.map((r) => declared("records", r.controller, r.dataCategory))]),
  };
};

const dimensions: Readonly<Record<RadiusSlice["dimension"], (use: UseFact) => readonly string[]>> = {
  controller: (use) => [use.controller],
  "data-category": (use) => use.dataCategories,
  "resource-service": (use) => [use.resourceService],
  action: (use) => [use.action],
  resource: (use) => [use.resource],
  country: (use) => [use.country || "unknown"],
};

/** Values listed per dimension; the most touched ones first. */
const maxSlices = 100;

const sliceBy = (
  dimension: RadiusSlice["dimension"],
  uses: readonly Judged[],
  reach: readonly Reach[],
  declared: Declared,
) => {
  const valuesOf = dimensions[dimension];
  const groups = new Map<string, Judged[]>();
  for (const judged of uses)
    for (const value of valuesOf(judged.use)) {
      const group = groups.get(value);
      if (group) group.push(judged);
      else groups.set(value, [judged]);
    }
  return [...groups]
    .map(([value, group]): RadiusSlice => {
      const reached = reach.filter(
        (r) =>
          (dimension === "controller" && r.controller === value) ||
          (dimension === "data-category" && r.dataCategory === value) ||
          (dimension !== "controller" && dimension !== "data-category"),
      );
      return {
        dimension,
        value,
        people: countPeople(group, reached, declared),
        records: countRecords(group, reached, declared),
      };
    })
    .sort((a, b) => b.people.best - a.people.best || (a.value < b.value ? -1 : 1))
    .slice(0, maxSlices);
};

/** Folds the uses of one token. `uses` in any order, each use once; those outside the window or of other generations are left out. */
export const blastRadius = (
  window: ExposureWindow,
  leaked: ReadonlySet<number>,
  uses: readonly UseFact[],
  reach: readonly Reach[],
  declared: Declared,
): Radius => {
  const of = uses.filter((use) => !use.unanswered);
  const familiar = of.filter((use) => use.decidedAtMs < window.fromBestMs);
  const addresses = new Set(familiar.map((use) => use.addressPseudonym));
  const presenters = new Set(familiar.map((use) => use.presenterThumbprint));
  const judged = of
    .filter((use) => leaked.size === 0 || leaked.has(use.generation))
    .filter(
      (use) => use.decidedAtMs >= window.fromUpperMs && (window.toMs === undefined || use.decidedAtMs <= window.toMs),
    )
    .map(
      (use): Judged => ({
        use,
        inBest: use.decidedAtMs >= window.fromBestMs,
        stranger:
          (use.addressPseudonym !== "" && !addresses.has(use.addressPseudonym)) ||
          (use.presenterThumbprint !== "" && !presenters.has(use.presenterThumbprint)),
      }),
    );
  const touched = [...new Set(judged.map(({ use }) => use.action))];
  return {
    people: countPeople(judged, reach, declared),
    records: countRecords(judged, reach, declared),
    slices: (Object.keys(dimensions) as RadiusSlice["dimension"][]).flatMap((d) => sliceBy(d, judged, reach, declared)),
    uses: judged.length,
    completedUses: judged.filter(({ use }) => use.parts.length > 0).length,
    kinds: (["read", "write", "delete"] as const)
      .filter((action) => touched.includes(action))
      .map((action) => kindOf[action]),
  };
};
