import { readFileSync } from "node:fs";
import { join } from "node:path";
import { type OcsfClassName, ocsfClasses } from "@curfew/auditor/siem/ocsf.ts";
import { Ajv2020, type ValidateFunction } from "ajv/dist/2020.js";

/** The published schema of OCSF 1.8.0 as JSON Schema (compile.py says from where), and the rules that JSON Schema cannot say. */
const file = JSON.parse(readFileSync(join(import.meta.dirname, "ocsf-1.8.0.json"), "utf8")) as {
  $id: string;
  captions: Record<OcsfClassName, Record<string, Record<string, string>>>;
};
const ajv = new Ajv2020({ allErrors: true, strict: false });
ajv.addSchema(file);
const names = Object.keys(ocsfClasses) as OcsfClassName[];
const validators = new Map<string, ValidateFunction>(
  names.map((name) => [name, ajv.compile({ $ref: `${file.$id}#/$defs/${name}` })]),
);

/** An id and the attribute that has its caption. Where the id is 99, Other, the caption is the source's own. */
const siblings = [
  ["activity_id", "activity_name"],
  ["severity_id", "severity"],
  ["status_id", "status"],
  ["auth_protocol_id", "auth_protocol"],
  ["category_uid", "category_name"],
  ["class_uid", "class_name"],
  ["type_uid", "type_name"],
] as const;

/** What is wrong with an OCSF object; empty when nothing is. */
export const ocsfProblems = (event: Readonly<Record<string, unknown>>): string[] => {
  const name = names.find((each) => ocsfClasses[each].uid === event.class_uid);
  if (!name) return [`no class ${String(event.class_uid)}`];
  const validate = validators.get(name) as ValidateFunction;
  const problems = validate(event)
    ? []
    : (validate.errors ?? []).map((e) => `${e.instancePath} ${e.message} ${JSON.stringify(e.params)}`);
  for (const [id, caption] of siblings) {
    if (event[id] === undefined || (event[id] === 99 && event[caption])) continue;
    const expected = file.captions[name][id]?.[String(event[id])];
    if (event[caption] !== expected) problems.push(`${caption} is ${String(event[caption])}, not ${expected}`);
  }
  if (event.type_uid !== Number(event.class_uid) * 100 + Number(event.activity_id))
    problems.push(`type_uid ${String(event.type_uid)} is not that of class and activity`);
  return problems;
};
