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
  /** Parts reported so far. */
  readonly parts: readonly CompletedPart[];
  /** All parts are in; until then what was declared and is not reported yet counts in `upper`. */
  readonly complete: boolean;
  /** The answer was never given: there was no access. */
  readonly unanswered: boolean;
  /** ce_ids of its facts. */
  readonly eventIds: readonly string[];
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
  readonly nowMs: number;
}

/** In the clocks of those who decided uses: each bound is moved outwards by the largest clock offset. */
export interface ExposureWindow {
  readonly fromUpperMs: number;
  readonly fromBestMs: number;
  /** Undefined while the token can still be used. */
  readonly toMs: number | undefined;
}

/**
 * The window; undefined where nothing is known of the token. A claimed exposure later than our first sight is ignored: anyone can claim.
 * A use within the clock offset of a bound may lie on either side of it and counts as inside: an instance with a wrong clock hides no
 * access of a stranger, and some of the holder's own last uses before the exposure may be counted with them.
 */
export const exposureWindow = (input: WindowInput): ExposureWindow | undefined => {
  const { leaked, signalsAtMs, clockOffsetMs } = input;
  const generations = input.generations.filter((g) => leaked.size === 0 || leaked.has(g.number));
  if (generations.length === 0 || signalsAtMs.length === 0) return undefined;
  const issuedMs = Math.min(...generations.map((g) => g.issuedAtMs));
  const firstSightMs = Math.min(...signalsAtMs);
  const exposedMs = Math.min(firstSightMs, ...input.claimedExposuresMs.filter((ms) => ms <= firstSightMs));
  const endsMs = Math.max(...generations.map((g) => g.endsAtMs));
  // A dead generation's leak revokes nothing: its window ends where the generation did.
  const toMs = Math.min(input.effectiveRevocationMs ?? Number.POSITIVE_INFINITY, endsMs);
  const known = input.effectiveRevocationMs !== undefined || endsMs <= input.nowMs;
  return {
    fromUpperMs: issuedMs - clockOffsetMs,
    fromBestMs: Math.max(issuedMs, exposedMs) - clockOffsetMs,
    toMs: known ? toMs + clockOffsetMs : undefined,
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
  /** Of them wholly reported. */
  readonly completedUses: number;
  /** confidentiality (read), integrity (write), availability (delete): of uses after the exposure. */
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

/** A use in the widest window. */
export interface JudgedUse {
  readonly use: UseFact;
  /** After the exposure. */
  readonly inBest: boolean;
  /** From a source or presenter not seen with this token before the exposure. */
  readonly stranger: boolean;
}

const sum = (values: readonly number[]): number => values.reduce((total, value) => total + value, 0);

/** `reported`: of one use's parts; `distinct`: of several uses together. */
const measures = {
  people: {
    reported: (use: UseFact) => sum(use.parts.map((part) => part.people.length + part.unnamedPeople)),
    distinct: (uses: readonly UseFact[]) => {
      const parts = uses.flatMap((use) => use.parts);
      return new Set(parts.flatMap((part) => part.people)).size + sum(parts.map((part) => part.unnamedPeople));
    },
    declared: (use: UseFact) => use.maxPeople,
  },
  records: {
    reported: (use: UseFact) => sum(use.parts.map((part) => part.records)),
    distinct: (uses: readonly UseFact[]) => sum(uses.flatMap((use) => use.parts.map((part) => part.records))),
    declared: (use: UseFact) => use.maxRecords,
  },
} as const;

const count = (
  what: "people" | "records",
  judged: readonly JudgedUse[],
  reach: readonly Reach[],
  declared: Declared,
): Count => {
  const measure = measures[what];
  const distinct = (chosen: readonly JudgedUse[]) => measure.distinct(chosen.map(({ use }) => use));
  const outstanding = judged
    .filter(({ use }) => !use.complete)
    .map(({ use }) => Math.max(0, measure.declared(use) - measure.reported(use)));
  return {
    lower: distinct(judged.filter((u) => u.inBest && u.stranger)),
    best: distinct(judged.filter((u) => u.inBest)),
    upper: sumOf([
      distinct(judged),
      sum(outstanding),
      ...reach.map((r) => declared(what, r.controller, r.dataCategory)),
    ]),
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

const reachOf = (dimension: RadiusSlice["dimension"], value: string, reach: readonly Reach[]): readonly Reach[] => {
  if (dimension === "controller") return reach.filter((r) => r.controller === value);
  return dimension === "data-category" ? reach.filter((r) => r.dataCategory === value) : reach;
};

/** What could be reached has its slice even where no use is known. */
const reachable = (dimension: RadiusSlice["dimension"], reach: readonly Reach[]): string[] => {
  if (dimension === "controller") return reach.map((r) => r.controller);
  return dimension === "data-category" ? reach.map((r) => r.dataCategory) : [];
};

const sliceBy = (
  dimension: RadiusSlice["dimension"],
  uses: readonly JudgedUse[],
  reach: readonly Reach[],
  declared: Declared,
): RadiusSlice[] => {
  const groups = new Map<string, JudgedUse[]>(reachable(dimension, reach).map((value) => [value, []]));
  for (const judged of uses)
    for (const value of new Set(dimensions[dimension](judged.use))) {
      const group = groups.get(value);
      if (group) group.push(judged);
      else groups.set(value, [judged]);
    }
  return [...groups]
    .map(([value, group]): RadiusSlice => {
      const reached = reachOf(dimension, value, reach);
      return {
        dimension,
        value,
        people: count("people", group, reached, declared),
        records: count("records", group, reached, declared),
      };
    })
    .sort((a, b) => b.people.best - a.people.best || (a.value < b.value ? -1 : 1))
    .slice(0, maxSlices);
};

/** The uses that fall into the widest window, of the leaked generations (none named: all), each with what it shows. */
export const judgeUses = (
  window: ExposureWindow,
  leaked: ReadonlySet<number>,
  uses: readonly UseFact[],
): JudgedUse[] => {
  const accesses = uses.filter((use) => !use.unanswered);
  // Surely before the exposure, by any clock: what a stranger did must not make him familiar. A holder whose first use is nearer to the
  // exposure than the clocks differ counts as a stranger too; one who used the token longer, as holders do, is known by the earlier uses.
  const familiar = accesses.filter((use) => use.decidedAtMs < window.fromBestMs);
  const addresses = new Set(familiar.map((use) => use.addressPseudonym));
  const presenters = new Set(familiar.map((use) => use.presenterThumbprint));
  const toMs = window.toMs ?? Number.POSITIVE_INFINITY;
  return accesses
    .filter((use) => leaked.size === 0 || leaked.has(use.generation))
    .filter((use) => use.decidedAtMs >= window.fromUpperMs && use.decidedAtMs <= toMs)
    .map((use) => ({
      use,
      inBest: use.decidedAtMs >= window.fromBestMs,
      stranger:
        (use.addressPseudonym !== "" && !addresses.has(use.addressPseudonym)) ||
        (use.presenterThumbprint !== "" && !presenters.has(use.presenterThumbprint)),
    }));
};

/** Folds judged uses, in any order, each once. */
export const blastRadius = (judged: readonly JudgedUse[], reach: readonly Reach[], declared: Declared): Radius => {
  const touched = new Set(judged.filter(({ inBest }) => inBest).map(({ use }) => use.action));
  return {
    people: count("people", judged, reach, declared),
    records: count("records", judged, reach, declared),
    slices: (Object.keys(dimensions) as RadiusSlice["dimension"][]).flatMap((d) => sliceBy(d, judged, reach, declared)),
    uses: judged.length,
    completedUses: judged.filter(({ use }) => use.complete).length,
    kinds: (["read", "write", "delete"] as const)
      .filter((action) => touched.has(action))
      .map((action) => kindOf[action]),
  };
};
