import { type DescField, type DescMessage, ScalarType } from "@bufbuild/protobuf";
import { findSecrets } from "@curfew/token-format/scan.ts";
import type { FieldViolation } from "./errors.ts";
import { isSecret } from "./redact.ts";

/**
 * What every request must be, whatever the rules of its proto say. Text holds no control characters but tab, newline and return: they
 * would reach terminals, mails and files of those who read the log. Times and durations are ones that protobuf defines: a time with
 * nanos below zero decodes, is written to the log, and then nobody can print it. A secret of ours stands in no field but those marked
 * for it: from any other it would be written to the log in clear.
 */
type Problem = Pick<FieldViolation, "description" | "reason">;
type Check = (value: unknown, at: string, found: FieldViolation[]) => void;
type Fields = Readonly<Record<string, unknown>>;

/** More than this tells a caller nothing new. */
const maxViolations = 20;
// biome-ignore lint/suspicious/noControlCharactersInRegex: they are what is refused
const controlCharacter = /[\u0000-\u0008\u000b\u000c\u000e-\u001f\u007f-\u009f]/;
const secondsOfYear1 = -62_135_596_800n;
const secondsOfYear9999 = 253_402_300_799n;
const maxDurationSeconds = 315_576_000_000n;
const maxNanos = 999_999_999;

interface SecondsAndNanos {
  readonly seconds: bigint;
  readonly nanos: number;
}

const timeProblem = ({ seconds, nanos }: SecondsAndNanos): Problem | undefined =>
  seconds >= secondsOfYear1 && seconds <= secondsOfYear9999 && nanos >= 0 && nanos <= maxNanos
    ? undefined
    : { reason: "TIMESTAMP_INVALID", description: "must be a time from year 1 to 9999, nanos from 0 to 999,999,999" };

const durationProblem = ({ seconds, nanos }: SecondsAndNanos): Problem | undefined => {
  const size = seconds < 0n ? -seconds : seconds;
  const oneSign = seconds === 0n || nanos === 0 || seconds < 0n === nanos < 0;
  return size <= maxDurationSeconds && Math.abs(nanos) <= maxNanos && oneSign
    ? undefined
    : { reason: "DURATION_INVALID", description: "must be at most 10,000 years, seconds and nanos of one sign" };
};

const textProblem = (text: string): Problem | undefined =>
  controlCharacter.test(text)
    ? { reason: "CONTROL_CHARACTER", description: "must hold no control characters" }
    : undefined;

/** What every secret of ours begins with: most texts are known at this glance to hold none. */
const secretPrefix = "cfw";
export const secretInField = "SECRET_IN_FIELD";

const clearTextProblem = (text: string): Problem | undefined =>
  text.includes(secretPrefix) && findSecrets(text).length > 0
    ? { reason: secretInField, description: "must hold no secret; revoke the one that it holds" }
    : textProblem(text);

const checkOf =
  <T>(problemOf: (value: T) => Problem | undefined): Check =>
  (value, field, found) => {
    const problem = problemOf(value as T);
    if (problem && found.length < maxViolations) found.push({ field, ...problem });
  };

const checkTime = checkOf(timeProblem);
const checkDuration = checkOf(durationProblem);
const checkText = checkOf(textProblem);
const checkClearText = checkOf(clearTextProblem);

/** Of one value of the field, not of a list of them. */
const itemCheck = (field: DescField): Check | undefined => {
  const { message } = field;
  if (!message) {
    if (!("scalar" in field) || field.scalar !== ScalarType.STRING) return undefined;
    return isSecret(field) ? checkText : checkClearText;
  }
  if (message.typeName === "google.protobuf.Timestamp") return checkTime;
  if (message.typeName === "google.protobuf.Duration") return checkDuration;
  return (value, at, found) => walk(message, value as Fields, `${at}.`, found);
};

interface FieldCheck {
  readonly field: DescField;
  readonly check: Check;
}

const checksOf = new Map<DescMessage, readonly FieldCheck[]>();

/** Worked out once for each message. */
const compiled = (desc: DescMessage): readonly FieldCheck[] => {
  const known = checksOf.get(desc);
  if (known) return known;
  const checks = desc.fields.flatMap((field) => {
    const check = itemCheck(field);
    return check ? [{ field, check }] : [];
  });
  checksOf.set(desc, checks);
  return checks;
};

const heldIn = (message: Fields, { oneof, localName }: DescField): unknown => {
  if (!oneof) return message[localName];
  const chosen = message[oneof.localName] as { readonly case: string | undefined; readonly value?: unknown };
  return chosen.case === localName ? chosen.value : undefined;
};

const walk = (desc: DescMessage, message: Fields, prefix: string, found: FieldViolation[]): void => {
  for (const { field, check } of compiled(desc)) {
    const value = heldIn(message, field);
    if (value === undefined || value === null || value === "") continue;
    const at = prefix + field.name;
    if (field.fieldKind === "list")
      for (const [i, item] of (value as unknown[]).entries()) check(item, `${at}[${i}]`, found);
    else if (field.fieldKind === "map") for (const item of Object.values(value)) check(item, at, found);
    else check(value, at, found);
  }
};

/** What is malformed in a message that was decoded, by field; at most 20. */
export const malformedFields = (desc: DescMessage, message: object): FieldViolation[] => {
  const found: FieldViolation[] = [];
  walk(desc, message as Fields, "", found);
  return found;
};
