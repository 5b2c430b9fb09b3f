import type { Organisation } from "@curfew/runtime/organisation.ts";
import type { ClockReading } from "./article-clock.ts";
import type { Count } from "./blast-radius.ts";
import { type CaseRadius, inOrder } from "./case-radius.ts";
import type { OpenCase } from "./domain.ts";
import { edpbTemplate, type FormState, isRequired, isVisible, type TemplateField } from "./template.ts";

/** What a draft is made of. */
export interface DraftInput {
  readonly state: OpenCase;
  readonly clock: ClockReading | undefined;
  /** Of this controller alone; undefined for a case about a producer. */
  readonly radius: CaseRadius | undefined;
  readonly controller: Organisation["controllers"][number];
  /** ce_id of the decision on awareness, if any. */
  readonly decisionEventId: string;
  readonly nowMs: number;
}

export interface DraftedField {
  readonly number: number;
  readonly key: string;
  readonly label: string;
  readonly source: string;
  /** Empty: missing. */
  readonly value: string;
  readonly eventIds: readonly string[];
  readonly required: boolean;
}

export interface Draft {
  readonly template: string;
  readonly controller: string;
  readonly fields: readonly DraftedField[];
  readonly missing: readonly string[];
  readonly readyPercent: number;
  /** All of it, and what the numbers rest on; the same input gives the same text. */
  readonly json: string;
}

interface Filled {
  readonly value: string;
  readonly eventIds?: readonly string[];
}
type Values = Map<number, Filled>;

const maxEventIds = 100;
/** Of the EEA, ISO 3166-1 alpha-2. */
const eea = new Set(
  "AT BE BG CY CZ DE DK EE ES FI FR GR HR HU IE IS IT LI LT LU LV MT NL NO PL PT RO SE SI SK".split(" "),
);
/** Data categories by what their names usually mean; any other is "other types", named in the next field. */
const dataTypes: Readonly<Record<string, string>> = {
  basic: "a",
  name: "a",
  contact: "b",
  health: "k",
  financial: "l",
  location: "o",
  identity: "n",
  payment: "q",
  profile: "r",
};
const kindLetters: Readonly<Record<string, string>> = { confidentiality: "a", integrity: "b", availability: "c" };

const iso = (ms: number) => new Date(ms).toISOString();
const day = (ms: number) => iso(ms).slice(0, 10);
const range = ({ lower, best, upper }: Count) => `${best} (at least ${lower}, at most ${upper ?? "unknown"})`;

const timeline = (values: Values, { state, clock, radius, decisionEventId }: DraftInput): void => {
  const [first] = state.signals;
  const firstId = first ? [first.eventId] : [];
  if (clock)
    values.set(48, {
      value: iso(clock.awareAtMs),
      eventIds: decisionEventId ? [decisionEventId] : firstId,
    });
  const { window, token } = radius ?? {};
  if (!window) return;
  const { fromBestMs, toMs } = window;
  const isOneDay = toMs !== undefined && day(fromBestMs) === day(toMs);
  values.set(44, { value: toMs === undefined ? "c" : isOneDay ? "a" : "b", eventIds: firstId });
  const claims = token?.leaks.filter(({ exposedSinceMs }) => exposedSinceMs !== undefined) ?? [];
  values.set(46, { value: iso(fromBestMs), eventIds: [...firstId, ...claims.map(({ eventId }) => eventId)] });
  if (toMs !== undefined)
    values.set(47, { value: iso(toMs), eventIds: [token?.effective?.eventId ?? token?.issuedEventId ?? ""] });
};

/** From person or service to who discovered it: those who report are ours. */
const discovery = (values: Values, { radius, state }: DraftInput): void => {
  const leaks = radius?.token?.leaks ?? [];
  const [leak] = leaks;
  const eventIds = leak ? leaks.map(({ eventId }) => eventId) : state.signals.map(({ eventId }) => eventId);
  if (leak?.reportedBy.includes("/person/")) values.set(50, { value: "a", eventIds });
  if (leak)
    values.set(51, {
      value:
        `The secret of an access token was found outside its place (${leak.kind || "place not named"}, ` +
        `${leak.public ? "where strangers could read it" : "not public"}) and reported at ${iso(leak.atMs)}.`,
      eventIds,
    });
};

const nature = (values: Values, { radius, state, clock }: DraftInput): void => {
  if (!radius) return;
  const { kinds, people } = radius.radius;
  const signals = state.signals.map(({ eventId }) => eventId);
  const uses = useIds(radius);
  const letters = kinds.flatMap((kind) => kindLetters[kind] ?? []);
  // A secret that others know is a loss of confidentiality, whatever else is known.
  values.set(55, { value: inOrder(["a", ...letters]).join(","), eventIds: [...signals, ...uses] });
  const gotOut = people.lower > 0 ? "a" : people.best > 0 ? "b" : radius.incompleteBecause.length === 0 ? "c" : "e";
  values.set(56, { value: gotOut, eventIds: uses });
  const systems = radius.judged.filter(({ inBest }) => inBest).map(({ use }) => use.resourceService);
  const audiences = radius.token?.grant?.audiences ?? [];
  values.set(63, {
    value: inOrder(systems.length > 0 ? systems : audiences).join(", "),
    eventIds: systems.length > 0 ? uses : [radius.token?.issuedEventId ?? ""],
  });
  values.set(62, {
    value:
      `Access token ${state.tokenId} was signalled as leaked or compromised at ${iso(state.firstSignalAtMs)}` +
      `${clock?.provisional ? ", awareness not decided yet" : ""}. It was used ${radius.radius.uses} times in the time ` +
      `it could be misused (${radius.radius.completedUses} wholly reported).` +
      (radius.incompleteBecause.length > 0 ? ` Known limits of the log: ${radius.incompleteBecause.join(" ")}` : ""),
    eventIds: [...signals, ...uses],
  });
};

const useIds = ({ judged }: CaseRadius): string[] =>
  inOrder(judged.filter(({ inBest }) => inBest).flatMap(({ use }) => use.eventIds)).slice(0, maxEventIds);

const numbers = (values: Values, { radius }: DraftInput): void => {
  if (!radius) return;
  const eventIds = useIds(radius);
  const { people, records, slices } = radius.radius;
  const byCategory = slices.filter(({ dimension }) => dimension === "data-category");
  values.set(67, { value: "b", eventIds });
  values.set(68, { value: String(people.best), eventIds });
  values.set(72, { value: "b", eventIds });
  values.set(73, { value: String(records.best), eventIds });
  const letters = byCategory.map(({ value }) => dataTypes[value] ?? "u");
  const grantIds = radius.token?.issuedEventId ? [radius.token.issuedEventId] : [];
  values.set(70, { value: inOrder([...letters, "s"]).join(","), eventIds: [...grantIds, ...eventIds] });
  const split = byCategory.map(
    ({ value, people: p, records: r }) => `${value}: people ${range(p)}, records ${range(r)}`,
  );
  values.set(71, {
    value: [...split, `in all: people ${range(people)}, records ${range(records)}`].join("; "),
    eventIds: [...grantIds, ...eventIds],
  });
};

const response = (values: Values, { radius }: DraftInput): void => {
  const { revoked, effective } = radius?.token ?? {};
  if (!revoked) return;
  values.set(92, {
    value:
      `The token was revoked at ${iso(revoked.atMs)}` +
      (effective
        ? ` and refused everywhere from ${iso(effective.atMs)} on.`
        : "; the proof that it is refused everywhere is still being gathered."),
    eventIds: [revoked.eventId, ...(effective ? [effective.eventId] : [])],
  });
};

/** From the organisation's own entry; what it does not say is missing. */
const profile = (values: Values, { controller }: DraftInput): void => {
  values.set(12, { value: controller.name });
  values.set(13, { value: controller.contact });
  if (controller.dpo === "") return;
  values.set(29, { value: "true" });
  values.set(31, { value: controller.dpo });
  values.set(33, { value: "a" });
};

const formOf = (values: Values, { controller, nowMs }: DraftInput): FormState => ({
  value: (n) => values.get(n)?.value ?? "",
  profile: (name) => {
    if (name.startsWith("national_form_asks_")) return false;
    return name === "controller_established_in_eea" && controller.country !== ""
      ? eea.has(controller.country.toUpperCase())
      : undefined;
  },
  nowMs,
});

const fill = (field: TemplateField, values: Values, form: FormState): DraftedField => {
  const filled = values.get(field.n);
  return {
    number: field.n,
    key: field.key,
    label: field.label,
    source: field.source,
    value: filled?.value ?? "",
    eventIds: [...new Set(filled?.eventIds ?? [])].filter((id) => id !== "").slice(0, maxEventIds),
    required: isRequired(field, form),
  };
};

const isMissing = ({ required, value }: DraftedField) => required && value === "";

/**
 * Drafts the Art. 33 notification of one controller on the EDPB common template: what the log and the organisation's file answer is filled,
 * each with the ids of its events; the rest is named as missing. No personal data of the people affected.
 */
export const draftNotification = (input: DraftInput): Draft => {
  const { state, controller, radius, nowMs } = input;
  const values: Values = new Map();
  values.set(3, { value: "a" });
  values.set(7, { value: state.caseId });
  profile(values, input);
  timeline(values, input);
  discovery(values, input);
  nature(values, input);
  numbers(values, input);
  response(values, input);
  const form = formOf(values, input);
  const visible = edpbTemplate.fields.filter((field) => isVisible(field, form));
  const usesInterim = visible.some(({ n, only_incomplete }) => only_incomplete.some((o) => form.value(n) === o));
  const others = visible.filter(({ n }) => n !== 4).map((field) => fill(field, values, form));
  values.set(4, { value: usesInterim || others.some(isMissing) ? "b" : "a" });
  const fields = visible.map((field) => fill(field, values, form));
  const required = fields.filter((field) => field.required);
  const missing = fields.filter(isMissing).map(({ key }) => key);
  const readyPercent = Math.floor((100 * (required.length - missing.length)) / required.length);
  const template = `${edpbTemplate.template} v${edpbTemplate.version}`;
  const json = JSON.stringify({
    template,
    credit: edpbTemplate.credit,
    caseId: state.caseId,
    controller: controller.id,
    draftedAt: iso(nowMs),
    readyPercent,
    missing,
    fields,
    folded: (radius?.folded ?? [])
      .map(({ topic, partition, offset }) => ({ topic, partition, offset: Number(offset) }))
      .sort((a, b) => a.partition - b.partition),
    incompleteBecause: radius?.incompleteBecause ?? [],
  });
  return { template, controller: controller.id, fields, missing, readyPercent, json };
};
