import { Delivery, EvidenceMode } from "@curfew/contracts/gen/curfew/events/v1/common_pb.ts";
import { resourcePatternProblem } from "@curfew/token-format/grant.ts";
import { parseDocument } from "yaml";

/**
 * A policy document: YAML, `rules`, each saying which workloads may have which grants. Strict where it says nothing: bound to a
 * certificate, one hour, thirty days in all, sealed, every use recorded before it happens. A field that is unknown is a mistake, since
 * a restriction that is not understood is none.
 */
export interface PolicyRule {
  readonly name: string;
  /** `workload/billing`, or `workload/*` where the rule says `allow_wildcard_subjects: true`. */
  readonly subjects: readonly string[];
  readonly scopes: readonly string[];
  /** Patterns (packages/token-format/grant.ts). */
  readonly resources: readonly string[];
  readonly audiences: readonly string[];
  readonly purposes: readonly string[];
  readonly dataCategories: readonly string[];
  /** certificate: every grant is bound to the caller's own. */
  readonly binding: "certificate" | "none";
  /** Longest life of one generation. */
  readonly ttlMaxMs: number;
  /** Longest life of all generations together. */
  readonly lineageMaxMs: number;
  readonly overlapMaxMs: number;
  readonly delivery: readonly Delivery[];
  /** What is granted without asking; before-use may always be asked for. */
  readonly evidence: EvidenceMode;
}

/** One mistake and its place, `rules[0].ttl_max`. */
export interface PolicyProblem {
  readonly field: string;
  readonly description: string;
}

export type ParsedPolicy =
  | { readonly ok: true; readonly rules: readonly PolicyRule[] }
  | { readonly ok: false; readonly problems: readonly PolicyProblem[] };

export const maxListItems = 64;
export const namePattern = /^[a-z0-9][a-z0-9-]{0,62}$/;
export const scopePattern = /^[a-z0-9][a-z0-9-]{0,62}:[a-z0-9][a-z0-9-]{0,62}$/;
const subjectPattern = /^workload\/[A-Za-z0-9][A-Za-z0-9._-]{0,127}$/;
const wildcardSubject = "workload/*";
const maxRules = 200;
const maxProblems = 100;
const hourMs = 3_600_000;
export const ttlCapMs = 24 * hourMs;
const lineageCapMs = 30 * 24 * hourMs;
const unitMs: Readonly<Record<string, number>> = { s: 1_000, m: 60_000, h: hourMs, d: 24 * hourMs };

type Raw = Readonly<Record<string, unknown>>;
type Report = (field: string, description: string) => void;
const isObject = (value: unknown): value is Raw => typeof value === "object" && value !== null && !Array.isArray(value);

/** Reads one rule's fields, reporting each mistake and answering something harmless in its place. */
const openRuleReader = (raw: Raw, at: string, report: Report) => {
  const known = new Set<string>();
  const take = (key: string): unknown => {
    known.add(key);
    return raw[key];
  };
  const texts = (key: string, problemOf: (item: string) => string | undefined, least: number): string[] => {
    const value = take(key) ?? (least === 0 ? [] : undefined);
    const place = `${at}.${key}`;
    if (!Array.isArray(value) || value.length < least || value.length > maxListItems) {
      report(place, `a list of ${least} to ${maxListItems} texts is needed`);
      return [];
    }
    if (new Set(value).size < value.length) report(place, "an entry stands twice");
    for (const [i, item] of value.entries()) {
      const problem = typeof item === "string" ? problemOf(item) : "must be a text";
      if (problem) report(`${place}[${i}]`, problem);
    }
    return value as string[];
  };
  return {
    texts,
    matching: (key: string, form: RegExp, what: string, least = 1) =>
      texts(key, (item) => (form.test(item) ? undefined : `must be ${what}`), least),
    flag: (key: string): boolean => {
      const value = take(key) ?? false;
      if (typeof value !== "boolean") report(`${at}.${key}`, "must be true or false");
      return value === true;
    },
    choice: <T extends string>(key: string, choices: readonly T[], otherwise: T): T => {
      const value = take(key) ?? otherwise;
      if (choices.includes(value as T)) return value as T;
      report(`${at}.${key}`, `must be one of ${choices.join(", ")}`);
      return otherwise;
    },
    duration: (key: string, otherwiseMs: number, minMs: number, maxMs: number): number => {
      const value = take(key);
      if (value === undefined) return otherwiseMs;
      const [, count, unit] = /^(\d{1,9})([smhd])$/.exec(String(value)) ?? [];
      const ms = Number(count) * (unitMs[unit ?? ""] ?? Number.NaN);
      if (ms >= minMs && ms <= maxMs) return ms;
      report(`${at}.${key}`, `must be a time like 90s, 10m, 1h, 30d, from ${minMs / 1000} s to ${maxMs / hourMs} h`);
      return otherwiseMs;
    },
    name: (key: string): string => {
      const value = take(key);
      if (typeof value === "string" && namePattern.test(value)) return value;
      report(`${at}.${key}`, "must be lower-case letters, digits and hyphens, at most 63");
      return "";
    },
    /** Last: what nobody asked for. */
    unknown: () => {
      for (const key of Object.keys(raw))
        if (!known.has(key)) report(`${at}.${key.slice(0, 100)}`, "there is no such field");
    },
  };
};

const deliveries = { sealed: Delivery.SEALED, direct: Delivery.DIRECT } as const;
const evidences = { "before-use": EvidenceMode.BEFORE_USE, batched: EvidenceMode.BATCHED } as const;

const parseRule = (raw: Raw, at: string, report: Report): PolicyRule => {
  const read = openRuleReader(raw, at, report);
  const wildcards = read.flag("allow_wildcard_subjects");
  const subjectProblem = (subject: string): string | undefined => {
    if (subject === wildcardSubject) return wildcards ? undefined : "needs allow_wildcard_subjects: true in this rule";
    return subjectPattern.test(subject) ? undefined : 'must be "workload/" and a name, or "workload/*"';
  };
  const name = "lower-case letters, digits and hyphens, at most 63";
  const rule: PolicyRule = {
    name: read.name("name"),
    subjects: read.texts("subjects", subjectProblem, 1),
    scopes: read.matching("scopes", scopePattern, "resource:verb in lower-case letters, digits and hyphens"),
    resources: read.texts("resources", resourcePatternProblem, 1),
    audiences: read.matching("audiences", namePattern, name),
    purposes: read.matching("purposes", namePattern, name),
    dataCategories: read.matching("data_categories", namePattern, name, 0),
    binding: read.choice("binding", ["certificate", "none"], "certificate"),
    ttlMaxMs: read.duration("ttl_max", hourMs, 1_000, ttlCapMs),
    lineageMaxMs: read.duration("lineage_max", lineageCapMs, 1_000, lineageCapMs),
    overlapMaxMs: read.duration("overlap_max", 10 * 60_000, 0, ttlCapMs),
    delivery: (raw.delivery === undefined
      ? (["sealed"] as const)
      : (read.matching("delivery", /^(sealed|direct)$/, "sealed or direct") as (keyof typeof deliveries)[])
    ).flatMap((item) => deliveries[item] ?? []),
    evidence: evidences[read.choice("evidence", ["before-use", "batched"], "before-use")],
  };
  read.unknown();
  return rule;
};

/** The rules of a document, or every mistake in it at once. Never throws. */
export const parsePolicy = (document: string): ParsedPolicy => {
  const problems: PolicyProblem[] = [];
  const report: Report = (field, description) => {
    if (problems.length < maxProblems) problems.push({ field, description });
  };
  const refused = () => ({ ok: false as const, problems });
  // Quiet: a warning would write pieces of the document to standard error.
  const yaml = parseDocument(document, { uniqueKeys: true, prettyErrors: false, logLevel: "silent" });
  for (const error of [...yaml.errors, ...yaml.warnings]) {
    const line = document.slice(0, error.pos[0]).split("\n").length;
    report("document", `line ${line}: ${error.code.toLowerCase().replaceAll("_", " ")}`);
  }
  if (problems.length > 0) return refused();
  let root: unknown;
  try {
    root = yaml.toJS({ maxAliasCount: 10 });
  } catch {
    report("document", "has too many aliases");
    return refused();
  }
  const rules = isObject(root) ? root.rules : undefined;
  if (!isObject(root) || !Array.isArray(rules) || rules.length > maxRules) {
    report("rules", `a list of at most ${maxRules} rules is needed`);
    return refused();
  }
  for (const key of Object.keys(root)) if (key !== "rules") report(key.slice(0, 100), "there is no such field");
  const parsed = rules.map((raw: unknown, i) => {
    if (isObject(raw)) return parseRule(raw, `rules[${i}]`, report);
    report(`rules[${i}]`, "an object is needed");
    return undefined;
  });
  const names = parsed.map((rule) => rule?.name);
  for (const [i, name] of names.entries())
    if (name && names.indexOf(name) < i) report(`rules[${i}].name`, "this name stands twice");
  return problems.length > 0 ? refused() : { ok: true, rules: parsed.flatMap((rule) => rule ?? []) };
};
