import { readFileSync } from "node:fs";
import { join } from "node:path";

/** The EDPB common template as data (`edpb-template-v1.0.json`, with its credit): fields, and when each applies. */
export interface TemplateField {
  readonly n: number;
  readonly section: string;
  readonly key: string;
  readonly label: string;
  readonly type: string;
  readonly options?: Readonly<Record<string, string>>;
  readonly required: "yes" | "no" | "conditional";
  readonly visible_if: Condition | null;
  /** Options that only an incomplete notification may give. */
  readonly only_incomplete: readonly string[];
  readonly source: "automatic" | "suggested" | "human" | "profile";
}

type Condition =
  | { readonly all: readonly Condition[] }
  | { readonly any: readonly Condition[] }
  | { readonly not: Condition }
  | { readonly field: number; readonly in: readonly (string | boolean)[] }
  | { readonly field: number; readonly filled: true }
  | { readonly profile: string; readonly is: boolean }
  | { readonly now_after: { readonly field: number; readonly plus_hours: number } };

export interface Template {
  readonly template: string;
  readonly version: string;
  readonly credit: string;
  readonly fields: readonly TemplateField[];
}

export const edpbTemplate: Template = JSON.parse(
  readFileSync(join(import.meta.dirname, "edpb-template-v1.0.json"), "utf8"),
);

export interface FormState {
  /** Values by number, as text; lists joined by ",". Absent or "": not filled. */
  readonly value: (field: number) => string;
  /** A fact about the organisation; undefined: not known, which suppresses nothing. */
  readonly profile: (name: string) => boolean | undefined;
  readonly nowMs: number;
}

const hourMs = 3_600_000;

const holds = (condition: Condition, form: FormState): boolean => {
  if ("all" in condition) return condition.all.every((inner) => holds(inner, form));
  if ("any" in condition) return condition.any.some((inner) => holds(inner, form));
  if ("not" in condition) return !holds(condition.not, form);
  if ("profile" in condition) return (form.profile(condition.profile) ?? condition.is) === condition.is;
  if ("now_after" in condition) {
    const { field, plus_hours } = condition.now_after;
    return form.nowMs > Date.parse(form.value(field)) + plus_hours * hourMs;
  }
  const value = form.value(condition.field);
  if ("filled" in condition) return value !== "";
  return value.split(",").some((one) => condition.in.map(String).includes(one));
};

/** Whether the field applies, as far as the others are filled. */
export const isVisible = (field: TemplateField, form: FormState): boolean =>
  field.visible_if === null || holds(field.visible_if, form);

const timelineRemarks = 53;
const datesEstimated = 45;

/** Whether a field that applies must be filled. One that is conditional without a condition is asked for by some national forms only. */
export const isRequired = (field: TemplateField, form: FormState): boolean => {
  if (field.required !== "conditional") return field.required === "yes";
  if (field.n === timelineRemarks) return form.value(datesEstimated) === "true";
  return field.visible_if !== null;
};
